"""Tracing and time: modes, changed attributes, batch sizes; and where nodes come from."""

import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn
from netwright.bridge.variant import MANY
from netwright.errors import LintWarning, TraceError
from netwright.ir.graph import Graph

sys.path.insert(0, str(Path(__file__).resolve().parent))

from traced_models import Function, array, assert_equal, check, tensor


def traced(model: nn.Module, *args: Any) -> Graph:
    fast = nw.compile(model)
    with nw.no_grad():
        fast(*args)
    return fast.graph("traced")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return F.relu(self.linear2(F.relu(self.linear1(x)))) + x


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.ReLU(), Block(8)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.head(self.stem(x))


# -- modes --------------------------------------------------------------------------------------


def test_code_that_asks_for_the_mode() -> None:
    class Model(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x * 2 if self.training else x + 1

    check(Model(), tensor(3, 4))


def test_a_part_in_eval_mode_compiles_for_that_combination() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.ReLU(), nn.BatchNorm1d(3))
    fast = nw.compile(model)
    model[0].eval()
    before = model[0].running_mean.numpy().copy(), model[3].running_mean.numpy().copy()
    fast(array(8, 4))
    assert (model[0].running_mean.numpy() == before[0]).all()
    assert (model[3].running_mean.numpy() != before[1]).any()
    model[0].train()
    fast(array(8, 4))
    assert (model[0].running_mean.numpy() != before[0]).any()


def test_a_backward_after_a_change_of_mode_is_that_of_the_forward() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    fast = nw.compile(model)
    found = []
    for f in (fast, model):
        f.zero_grad()
        f.eval()
        out = f(tensor(8, 4))
        f.train()
        (out * out).sum().backward()
        found.append([p.grad.numpy() for p in model.parameters()])
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert model[1].num_batches_tracked.item() == 0


def test_dropout_in_eval_mode_has_the_mask_of_its_own_forward_in_backward() -> None:
    model = Function(lambda x: F.dropout(x, 0.5, training=True)).eval()
    x = nw.tensor(np.ones((20, 30), np.float32), requires_grad=True)
    out = nw.compile(model)(x)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), out.detach().numpy())


def test_no_grad_inside_forward_stops_the_gradient() -> None:
    layer = nn.Linear(4, 4)

    def forward(x: nw.Tensor) -> nw.Tensor:
        with nw.no_grad():
            scale = layer(x).sigmoid()
        return layer(x) * scale + x.detach()

    model = Function(forward, layer=layer)
    fast = nw.compile(model)
    found = []
    for f in (fast, model):
        f.zero_grad()
        x = nw.tensor(array(3, 4), requires_grad=True)
        f(x).sum().backward()
        found.append([x.grad.numpy(), layer.weight.grad.numpy().copy()])
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_model_is_a_part_of_another_model() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.Sequential(nw.compile(inner), nn.Linear(4, 2))
    reference = nn.Sequential(inner, model[1])
    fast = nw.compile(model)
    with nw.no_grad():
        assert_equal(model, reference, (tensor(3, 4),), {})
        assert_equal(fast, reference, (tensor(3, 4),), {})


def test_compiling_a_compiled_model_compiles_the_model() -> None:
    model = nn.Linear(3, 2)
    assert nw.compile(nw.compile(model))._model is model


# -- sources ------------------------------------------------------------------------------------


def line_of(function: Any, text: str) -> int:
    """The line in this file on which ``function`` contains ``text``."""
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


def test_nodes_carry_the_module_path_and_the_users_line() -> None:
    graph = traced(Nested().eval(), tensor(4, 6))
    add = next(n for n in graph.nodes if n.op == "add")
    assert (add.source.module, add.source.file) == ("stem.1.1", __file__)
    assert add.source.line == line_of(Block.forward, "+ x")
    linear = [n for n in graph.nodes if n.op == "linear"]
    assert [n.source.module for n in linear] == [
        "stem.0",
        "stem.1.1.linear1",
        "stem.1.1.linear2",
        "head",
    ]
    assert linear[-1].source.line == line_of(Nested.forward, "self.head")


def test_layers_of_a_sequential_carry_the_line_that_made_or_called_them() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    for node in traced(model, tensor(2, 4)).nodes:
        if node.op in ("linear", "relu"):
            assert node.source.file == __file__
            assert node.source.module in ("0", "1")


# -- a program that needs the batch size ----------------------------------------------------------


def test_a_branch_on_the_batch_size_compiles_per_size_and_says_so() -> None:
    def forward(x: nw.Tensor) -> nw.Tensor:
        if x.shape[0] > 1:
            return x - x.mean(0)
        return x

    model = Function(forward)
    fast = nw.compile(model)
    for n in (1, 4, 1, 3, 4):
        assert_equal(fast, model, (tensor(n, 3),), {})
    assert fast.compilations == 3
    assert "T001" in fast.explain()
    assert f"{__file__}:{line_of(forward, 'if x.shape')}" in fast.explain()


def test_a_step_with_a_branch_on_the_batch_size_works_for_each_size() -> None:
    layer = nn.Linear(3, 2)
    model = Function(lambda x: layer(x) if x.size(0) != 2 else layer(x) * 2, layer=layer)
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=nw.optim.SGD(model.parameters(), lr=0.0))
    for n in (2, 3, 2):
        expected = nn.MSELoss()(model(tensor(n, 3)), tensor(n, 2)).item()
        assert step(array(n, 3), array(n, 2)).item() == pytest.approx(expected, rel=1e-5)
    assert step.compilations == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * float(x.shape[0]),
        lambda x: x + (x.shape[0] + 1),
        lambda x: x * int(x.size(0)),
        lambda x: sum([x] * len(range(x.shape[0]))),
        lambda x: x * (x.shape[0] % 2),
        lambda x: x[: x.shape[0] // 2] if x.shape[0] == 4 else x,
        lambda x: nw.zeros(x.shape[0], 3) + x,
        lambda x: x.view(2, -1, 3) if len(x) == 4 else x,
        lambda x: x * 2 if x.shape[0] in {4, 8} else x,
        lambda x: x * -x.shape[0],
        lambda x: x / x.shape[0] ** 0.5,
        lambda x: x[: x.shape[0] // 2],
        lambda x: x + nw.arange(x.shape[0]).reshape(-1, 1),
        lambda x: x * max(x.shape[0], 2),
    ],
    ids=[
        *("float", "plus", "int", "range", "modulo", "half", "zeros", "len", "set", "negative"),
        *("root", "floor", "arange", "max"),
    ],
)
def test_other_uses_of_the_batch_size_as_a_number(function: Callable[..., Any]) -> None:
    fast = nw.compile(Function(function))
    for n in (4, 3):
        np.testing.assert_allclose(
            fast(array(n, 3)).numpy(), function(tensor(n, 3)).numpy(), rtol=1e-5, atol=1e-6
        )


def test_static_batch_on_request() -> None:
    fast = nw.compile(nn.Linear(3, 2).eval(), dynamic=False)
    for n in (2, 3, 2):
        fast(array(n, 3))
    assert fast.compilations == 2


# -- what is odd but legal ------------------------------------------------------------------------


def test_keywords_in_another_order_than_the_signature() -> None:
    class Model(nn.Module):
        def forward(self, x: nw.Tensor, y: nw.Tensor) -> nw.Tensor:
            return x - 2 * y

    fast = nw.compile(Model())
    x, y = array(3, 4), array(3, 4, seed=1)
    for _ in range(2):
        np.testing.assert_allclose(fast(y=y, x=x).numpy(), x - 2 * y, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(fast(x=x, y=y).numpy(), x - 2 * y, rtol=1e-6, atol=1e-6)


def test_names_that_are_no_words() -> None:
    heads = nn.ModuleDict({"my-head 1": nn.Linear(4, 2), "größe": nn.Linear(2, 2)})

    def forward(batch: Any) -> Any:
        hidden = heads["my-head 1"](batch["an input"]).relu()
        return {"an output": heads["größe"](hidden), 3: batch[0]}

    model = Function(forward, heads=heads)
    fast = nw.compile(model)
    batch = {"an input": tensor(3, 4), 0: tensor(3, 1)}
    assert_equal(fast, model, (batch,), {})


def test_an_extent_that_equals_the_batch_by_chance() -> None:
    model = Function(lambda x, w: x @ w)
    fast = nw.compile(model)
    for n in (4, 5, 4):  # w has 4 rows
        x, w = array(n, 4), array(4, 3, seed=1)
        np.testing.assert_allclose(fast(x, w).numpy(), x @ w, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_is_no_extent_to_broadcast() -> None:
    model = Function(lambda x, y: x * y)
    fast = nw.compile(model)
    for n, m in ((1, 1), (5, 1), (1, 5), (5, 5)):
        x, y = array(n, 4), array(m, 4, seed=1)
        np.testing.assert_allclose(fast(x, y).numpy(), x * y, rtol=1e-6)


def test_a_changed_number_attribute_makes_another_program() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 2.0
            self.shifts = [1.0]
            self.options = {"power": 1}

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x ** self.options["power"] * self.scale + self.shifts[0]

    model = Scaled()
    fast = nw.compile(model)
    x = tensor(3, 4)
    assert_equal(fast, model, (x,), {})
    model.scale = 3.0
    assert_equal(fast, model, (x,), {})
    model.shifts = [2.0]
    assert_equal(fast, model, (x,), {})


def test_a_changed_tensor_attribute_is_seen() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tensor(4)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return x * self.scale

    model = Scaled()
    fast = nw.compile(model)
    x = tensor(3, 4)
    assert_equal(fast, model, (x,), {})
    model.scale.mul_(2.0)
    assert_equal(fast, model, (x,), {})
    model.scale = tensor(4, seed=3)
    assert_equal(fast, model, (x,), {})


def test_hooks_run_in_the_compiled_program() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    fast = nw.compile(model)
    with nw.no_grad():
        before = fast(array(3, 4)).numpy()
        handle = model[0].register_forward_hook(lambda module, args, output: output * 2)
        np.testing.assert_allclose(fast(array(3, 4)).numpy(), before * 2, rtol=1e-6)
        handle.remove()
        np.testing.assert_allclose(fast(array(3, 4)).numpy(), before, rtol=1e-6)


def test_a_replaced_layer_is_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    fast = nw.compile(model)
    with nw.no_grad():
        assert_equal(fast, model, (tensor(3, 4),), {})
        model[0] = nn.Linear(4, 5)
        assert_equal(fast, model, (tensor(3, 4),), {})
        model[0].weight = nn.Parameter(tensor(2, 4))
        model[0].bias = None
        assert_equal(fast, model, (tensor(3, 4),), {})


def test_double_converts_a_compiled_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    fast = nw.compile(model)
    fast(array(3, 4))
    model.double()
    assert_equal(fast, model, (nw.from_numpy(array(3, 4).astype(np.float64)),), {})
    model.float()
    assert_equal(fast, model, (tensor(3, 4),), {})


def test_squeeze_drops_a_batch_of_one_as_in_eager_and_no_other() -> None:
    layer = nn.Linear(3, 1)
    for function in (lambda x: layer(x).squeeze(), lambda x: x.squeeze(0) * 2):
        model = Function(function, layer=layer)
        fast = nw.compile(model)
        for n in (1, 4, 1, 3, 2, 1):
            with nw.no_grad():
                assert_equal(fast, model, (tensor(n, 3),), {})
                assert fast(tensor(n, 3)).shape == model(tensor(n, 3)).shape
        assert fast.compilations == 2


def test_a_cache_that_forward_fills_compiles_once_more_and_then_stays() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table: Any = None

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            if self.table is None:
                self.table = nw.arange(x.shape[1]).to(x.dtype)
            return x * self.table

    model = Cached()
    fast = nw.compile(model)
    for n in (3, 3, 4, 5):
        np.testing.assert_allclose(fast(array(n, 4)).numpy(), array(n, 4) * np.arange(4))
    assert fast.compilations <= 2


def test_a_counter_in_forward_is_a_warning_that_names_it() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            self.calls += 1
            return x * 2

    model = nn.Sequential(Counts())
    fast = nw.compile(model)
    fast(array(3, 4))
    with pytest.warns(LintWarning, match=r"T002.*0\.calls.*every call is compiled anew"):
        fast(array(3, 4))
    assert (fast(array(3, 4)).numpy() == array(3, 4) * 2).all()  # said once, and still right


def test_a_tensor_that_forward_keeps_cannot_be_read_outside() -> None:
    class Keeps(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            self.hidden = x * 2
            return self.hidden + 1

    model = Keeps()
    fast = nw.compile(model)
    for _ in range(3):
        fast(array(3, 4))
    assert fast.compilations == 1
    with pytest.raises(TraceError, match="Return it from forward"):
        model.hidden.sum()


# -- tensors of other places ----------------------------------------------------------------------


class Captures(nn.Module):
    def __init__(self, tensor: nw.Tensor) -> None:
        super().__init__()
        self.tensors = [tensor]

    def forward(self, x):
        return x * self.tensors[0] + nw.ones(3)


@pytest.mark.parametrize("how", ["in place", "through numpy"])
def test_a_constant_that_was_changed_is_compiled_anew_with_a_warning(how):
    """The program went on with the old value."""
    scale = nw.from_numpy(array(3))
    other = scale.numpy()
    model = Captures(scale)
    fast = nw.compile(model)
    x = array(2, 3)
    with nw.no_grad():
        for _ in range(3):  # the third call is a shortcut
            fast(x)
        assert len(fast._variants) == 1
        if how == "in place":
            scale.mul_(2)
        else:
            other[:] = 7
        with pytest.warns(LintWarning, match=r"T003.*test_trace_changes.py.*register_buffer"):
            found = fast(x)
        assert nw.allclose(found, model(nw.from_numpy(x)))
        assert len(fast._variants) == 1


def test_a_step_sees_a_constant_that_was_changed():
    scale = nw.ones(3)
    linear = nn.Linear(3, 1)
    model = nn.Sequential(Captures(scale), linear)
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=nw.optim.SGD(model.parameters(), lr=0.0))
    x, t = array(4, 3), array(4, 1, seed=1)
    losses = [float(step(x, t)) for _ in range(3)]
    scale.fill_(3)
    with pytest.warns(LintWarning, match="T003"):
        changed = float(step(x, t))
    expected = nn.MSELoss()(model(nw.from_numpy(x)), nw.from_numpy(t))
    assert abs(changed - float(expected)) < 1e-5 and abs(changed - losses[0]) > 1e-3


def test_many_programs_for_many_lengths_are_told_of_once():
    model = nn.Softmax(dim=-1)
    fast = nw.compile(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for length in range(1, MANY):
            fast(array(2, length))
            fast(array(3, length))
    with pytest.warns(LintWarning, match=r"T004.*10th program.*shapes \[2,10\].*few sizes"):
        fast(array(2, MANY))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(array(2, MANY + 1))
