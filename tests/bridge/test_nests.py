"""What goes into forward() and comes out of it: nests, records, sizes, foreign arrays."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.frontend import tree

Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Output:
    logits: Any
    hidden: Any
    name: str = "output"


class Calls(nn.Module):
    """forward() is a function."""

    def __init__(self, function):
        super().__init__()
        self.__dict__["function"] = function

    def forward(self, *args):
        return self.function(*args)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_dataclasses_go_in_and_come_out():
    model = nw.compile(Calls(lambda i: Output(i.logits + 1, [i.hidden * 2])))
    found = model(Output(nw.tensor(X), nw.tensor(X)))
    assert isinstance(found, Output) and found.name == "output"
    assert found.logits.tolist() == (X + 1).tolist()
    assert found.hidden[0].tolist() == (X * 2).tolist()
    other = model(Output(nw.tensor(X[:1]), nw.tensor(X[:1])))  # another batch size
    assert other.logits.tolist() == (X[:1] + 1).tolist()


def test_a_field_of_a_dataclass_is_a_constant_of_the_program():
    @dataclass
    class Scaled:
        x: Any
        scale: float

    model = nw.compile(Calls(lambda i: i.x * i.scale))
    argument = Scaled(nw.tensor(X), 2.0)
    assert model(argument).tolist() == (X * 2).tolist()
    argument.scale = 3.0
    assert model(argument).tolist() == (X * 3).tolist()


@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda items: defaultdict(list, items)])
def test_dicts_of_any_class_come_out_as_they_are(kind):
    made = kind([("a", 1), ("b", [2])])
    got = tree.map_leaves(made, lambda v: isinstance(v, int), lambda v: v + 1)
    assert type(got) is type(made) and dict(got) == {"a": 2, "b": [3]}
    assert dict(made) == {"a": 1, "b": [2]}


def test_named_tuples_keep_their_class():
    assert nw.compile(Calls(lambda x: Pair(x, {"y": x + 1})))(X).b["y"].tolist() == (X + 1).tolist()


def test_the_batch_size_in_a_result_is_that_of_the_call():
    """It was the symbol N of the trace."""
    model = nw.compile(Calls(lambda x: {"y": x * 2, "n": x.shape[0], "shape": x.shape}))
    for n in (2, 1):
        found = model(X[:n])
        assert (found["n"], found["shape"]) == (n, (n, 3))
        assert type(found["n"]) is int
    assert "T001" not in model.explain()


def test_arrays_of_other_libraries_are_inputs():
    class Foreign:
        def __array__(self, dtype=None, copy=None):
            return X

    assert nw.compile(Calls(lambda x: x + 1))(Foreign()).tolist() == (X + 1).tolist()


def test_tensors_of_pytorch_are_inputs():
    torch = pytest.importorskip("torch")
    model = nw.compile(Calls(lambda i: i["x"] + 1))
    assert model({"x": torch.from_numpy(X)}).tolist() == (X + 1).tolist()


def test_what_is_no_tensor_is_named():
    with pytest.raises(
        TypeError, match=r"at least one netwright tensor or numpy array.*got list, int; make"
    ):
        nw.compile(Calls(lambda x, n: x))([1.0], 3)
