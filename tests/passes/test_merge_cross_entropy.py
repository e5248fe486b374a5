"""merge_cross_entropy."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, TensorType, float32, int64
from netwright.ir.verify import verify
from netwright.passes.merge_cross_entropy import merge_cross_entropy
from netwright.passes.rewriting import Ledger

N = Dim(1)
CLASSES = 5


class Losses:
    """A graph with logits and targets, and losses of them with their gradients."""

    def __init__(self) -> None:
        self.graph = Graph("losses")
        self.logits = self._input("logits", TensorType(float32, (N, CLASSES)))
        self.target = self._input("target", TensorType(int64, (N,)))
        self.weight = self._input("weight", TensorType(float32, (CLASSES,)))
        self.scale = self._input("scale", TensorType(float32, ()))

    def _input(self, path: str, kind: TensorType) -> Value:
        return self.graph.add("input", path=path, type=kind)

    def loss(self, *operands: Value, **attrs: Any) -> Value:
        return self.graph.add("cross_entropy", *operands, **self.attrs(**attrs))

    def gradient(self, g: Value, *operands: Value, **attrs: Any) -> Value:
        return self.graph.add("cross_entropy_grad", g, *operands, **self.attrs(**attrs))

    def attrs(self, **attrs: Any) -> dict[str, Any]:
        return {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0, **attrs}

    def merged(self, **outputs: Value) -> tuple[list[str], list[str]]:
        """(operators after the pass, codes), once it has been seen that the results are the same
        bits."""
        self.graph.outputs.update(outputs)
        ledger = Ledger()
        after = merge_cross_entropy(self.graph, ledger)
        verify(after)
        rng = np.random.default_rng(0)
        values = {
            "logits": rng.normal(size=(7, CLASSES)).astype(np.float32),
            "target": np.array([0, 1, 2, 3, 4, 1, 1]),
            "weight": rng.uniform(0.5, 2, CLASSES).astype(np.float32),
            "scale": np.asarray(0.3, np.float32),
        }
        expected, found = (evaluate(g, values) for g in (self.graph, after))
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        return [n.op for n in after.nodes if n.op != "input"], [e.code for e in ledger.entries]


ROWS, TOTAL = "cross_entropy_rows", "cross_entropy_total"


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_and_its_gradient_are_made_of_one_sweep(
    reduction: str, smoothing: float, weighted: bool
) -> None:
    at = Losses()
    attrs = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": 1}
    operands = (at.logits, at.target, *([at.weight] if weighted else ()))
    loss = at.loss(*operands, **attrs)
    dx = at.gradient(at.scale, *operands, **attrs)
    assert at.merged(out=loss, dx=dx) == ([ROWS, TOTAL], ["E101"])


def test_losses_of_rows_need_no_total() -> None:
    at = Losses()
    loss = at.loss(at.logits, at.target, reduction="none")
    g = at.graph.add("sum", at.logits, dims=(1,), keepdim=False)
    dx = at.gradient(g, at.logits, at.target, reduction="none")
    assert at.merged(out=loss, dx=dx) == (["sum", ROWS], ["E101"])


def test_what_the_gradient_is_made_of_moves_in_front_and_readers_of_the_loss_stay() -> None:
    at = Losses()
    loss = at.loss(at.logits, at.target)
    more = at.graph.add("exp", loss)
    g = at.graph.add("square", at.graph.add("neg", at.scale))
    dx = at.gradient(g, at.logits, at.target)
    operators, _ = at.merged(out=more, dx=dx)
    assert operators == ["neg", "square", ROWS, TOTAL, "exp"]


# -- not when -------------------------------------------------------------------------------------


def test_a_loss_without_gradient_stays() -> None:
    at = Losses()
    assert at.merged(out=at.loss(at.logits, at.target)) == (["cross_entropy"], [])


def test_a_gradient_that_depends_on_the_loss_cannot_be_known_before() -> None:
    at = Losses()
    loss = at.loss(at.logits, at.target)
    dx = at.gradient(at.graph.add("exp", loss), at.logits, at.target)
    operators, codes = at.merged(out=loss, dx=dx)
    assert operators == ["cross_entropy", "exp", "cross_entropy_grad"]
    assert codes == ["E111"]


def test_two_losses_that_are_multiplied_need_each_other() -> None:
    at = Losses()
    first = at.loss(at.logits, at.target)
    second = at.loss(at.logits, at.target, label_smoothing=0.5)
    dx = at.gradient(second, at.logits, at.target)
    dy = at.gradient(first, at.logits, at.target, label_smoothing=0.5)
    product = at.graph.add("mul", first, second)
    operators, codes = at.merged(out=product, dx=dx, dy=dy)
    assert not {ROWS, TOTAL} & set(operators)
    assert codes == ["E111", "E111"]


@pytest.mark.parametrize("other", ["logits", "attrs"])
def test_a_gradient_of_something_else_stays(other: str) -> None:
    at = Losses()
    loss = at.loss(at.logits, at.target)
    logits = at.graph.add("neg", at.logits) if other == "logits" else at.logits
    smoothing = 0.1 if other == "attrs" else 0.0
    dx = at.gradient(at.scale, logits, at.target, label_smoothing=smoothing)
    operators, codes = at.merged(out=loss, dx=dx)
    assert not {ROWS, TOTAL} & set(operators)
    assert codes == []


# -- in a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 300])
def test_a_step_has_the_same_bits_without_the_pass(classes: int) -> None:
    found = []
    for on in (True, False):
        nw.manual_seed(0)
        model = nn.Linear(6, classes)
        step = nw.compile(
            model,
            loss=nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1),
            optimizer=optim.SGD(model.parameters(), lr=0.1),
            passes={"merge_cross_entropy": on},
        )
        rng = np.random.default_rng(0)
        losses = [
            step(rng.normal(size=(9, 6)).astype(np.float32), rng.integers(0, classes, 9)).item()
            for _ in range(3)
        ]
        operators = {n.op for n in step.graph().nodes}
        assert ({ROWS, TOTAL} <= operators) is on
        assert step.fallbacks == 0
        found.append((losses, model.weight.detach().numpy().tobytes()))
    assert found[0] == found[1]


def test_a_bad_label_changes_nothing_and_names_the_loss() -> None:
    model = nn.Linear(6, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer)
    before = model.weight.detach().numpy().copy()
    with pytest.raises(IndexError, match=r"Target 3 is out of bounds.*cross_entropy"):
        step(np.ones((2, 6), np.float32), np.array([0, 3]))
    np.testing.assert_array_equal(model.weight.detach().numpy(), before)
