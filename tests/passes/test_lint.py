"""lint: one mistake and its correction per code, on graphs and on traced models."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.errors import LintWarning
from netwright.frontend.trace import trace
from netwright.ir.graph import Graph
from netwright.ir.types import Dim, int64
from netwright.passes.lint import lint, lint_gradients

N = Dim(1)


def codes(graph: Graph) -> list[str]:
    return [w.code for w in lint(graph)]


def message(graph: Graph) -> str:
    (warning,) = lint(graph)
    return str(warning)


def traced(model: nn.Module, loss: Callable[..., Any], x: np.ndarray, t: np.ndarray) -> Graph:
    """The graph of ``loss(model(x), t)``."""
    modules = {"": model}
    if isinstance(loss, nn.Module):
        modules["loss"] = loss

    def program(x: Any, t: Any) -> Any:
        return loss(model(x), t)

    return trace(program, modules, (nw.from_numpy(x), nw.from_numpy(t))).graph


X = np.zeros((4, 6), np.float32)
LABELS = np.zeros(4, np.int64)


# -- L001: softmax into cross entropy -------------------------------------------------------------


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_l001_softmax_into_cross_entropy(new_net: Any, op: str) -> None:
    net = new_net()
    p = net.op(op, net.input("x", N, 4), dim=1, module="head")
    text = message(net.done(out=net.cross_entropy(p, net.labels(), module="criterion")))
    assert text.startswith("L001: ")
    assert "head at model.py:1" in text and "criterion at model.py:2" in text
    assert "strict=True" in text and ("LogSoftmax" in text) == (op == "log_softmax")


def test_l001_of_models(recwarn: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Softmax(dim=1))
    assert codes(traced(model, nn.CrossEntropyLoss(), X, LABELS)) == ["L001"]
    soft = np.full((4, 4), 0.25, np.float32)
    assert codes(traced(model, nn.CrossEntropyLoss(), X, soft)) == ["L001"]
    assert codes(traced(model[0], nn.CrossEntropyLoss(), X, LABELS)) == []


def test_l001_not_for_another_dimension(new_net: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4), dim=0)
    assert codes(net.done(out=net.cross_entropy(p, net.labels()))) == []


def test_l001_not_for_log_softmax_before_nll() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.LogSoftmax(dim=1))
    assert codes(traced(model, nn.NLLLoss(), X, LABELS)) == []


# -- L002: sigmoid into BCE with logits -----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"reduction": "none"},
                                     {"pos_weight": nw.tensor([2.0])}])  # fmt: skip
def test_l002_sigmoid_into_bce_with_logits(options: dict[str, Any]) -> None:
    loss = nn.BCEWithLogitsLoss(**options)
    targets = np.zeros((4, 1), np.float32)
    model = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())
    text = message(traced(model, loss, X, targets))
    assert text.startswith("L002: ") and "[1 at " in text and "BCELoss" in text
    assert codes(traced(model[0], loss, X, targets)) == []


def test_l002_not_for_bce_loss_or_for_softplus_layers() -> None:
    targets = np.zeros((4, 1), np.float32)
    model = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())
    assert codes(traced(model, nn.BCELoss(), X, targets)) == []
    model = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid(), nn.Softplus())
    assert codes(traced(model, nn.MSELoss(), X, targets)) == []


# -- L003: an activation on the logits ------------------------------------------------------------


@pytest.mark.parametrize("op", ["relu", "tanh", "sigmoid"])
def test_l003_an_activation_on_the_logits(new_net: Any, op: str) -> None:
    net = new_net()
    y = net.op(op, net.linear(net.input("x", N, 6), 4, "fc"), module="act")
    text = message(net.done(out=net.cross_entropy(y, net.labels(), module="criterion")))
    assert text.startswith(f"L003: {op} [act at model.py:2]")
    assert "criterion at model.py:3" in text


def test_l003_of_models() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Flatten())
    assert codes(traced(model, nn.CrossEntropyLoss(), X, LABELS)) == ["L003"]
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.LogSoftmax(dim=1))
    assert codes(traced(model, nn.NLLLoss(), X, LABELS)) == ["L003"]
    model = nn.Sequential(nn.Linear(6, 1), nn.ReLU())
    targets = np.zeros((4, 1), np.float32)
    assert codes(traced(model, nn.BCEWithLogitsLoss(), X, targets)) == ["L003"]


def test_l003_not_for_hidden_layers() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    assert codes(traced(model, nn.CrossEntropyLoss(), X, LABELS)) == []


# -- L004: linear into linear ---------------------------------------------------------------------


def test_l004_linear_into_linear(new_net: Any) -> None:
    net = new_net()
    x = net.linear(net.input("x", N, 2, 3), 4, "fc1")
    text = message(net.done(out=net.linear(net.flatten(x), 3, "fc2")))
    assert text.startswith("L004: ") and "fc1 at model.py:1" in text and "fc2 at" in text


def test_l004_not_with_an_activation_or_a_second_use(new_net: Any) -> None:
    net = new_net()
    x = net.linear(net.input("x", N, 6), 4, "fc1")
    a = net.linear(net.op("relu", x), 3, "fc2")
    b = net.linear(x, 3, "fc3")
    assert codes(net.done(a=a, b=b)) == [], "x is a hidden value of its own"
    net = new_net()
    x = net.linear(net.input("x", N, 6), 4, "fc1")
    assert codes(net.done(hidden=x, out=net.linear(x, 3, "fc2"))) == []


# -- L005: a bias in front of batch norm ----------------------------------------------------------


@pytest.mark.parametrize("train", [False, True])
def test_l005_a_bias_before_batch_norm(new_net: Any, train: bool) -> None:
    net = new_net()
    x = net.conv(net.input("x", N, 3, 4, 4), 4, "conv")
    text = message(net.done(out=net.batch_norm(x, "bn", train=train)))
    assert text.startswith("L005: ") and "conv at" in text and "bias=False" in text


def test_l005_not_without_a_bias_or_over_other_channels(new_net: Any) -> None:
    net = new_net()
    x = net.conv(net.input("x", N, 3, 4, 4), 4, "conv", bias=False)
    assert codes(net.done(out=net.batch_norm(x, "bn"))) == []
    net = new_net()
    x = net.linear(net.input("x", N, 5, 6), 6, "fc")
    assert codes(net.done(out=net.batch_norm(x, "bn", dim=1))) == []
    net = new_net()
    x = net.linear(net.input("x", N, 6), 6, "fc")
    assert codes(net.done(out=net.batch_norm(x, "bn"), raw=x)) == []


# -- L006: saturating activations in hidden layers ------------------------------------------------


def deep(net: Any, activations: list[str], norm: bool = False) -> Graph:
    x = net.input("x", N, 6)
    for i, op in enumerate(activations):
        x = net.linear(x, 6, f"fc{i}", bias=not norm)
        x = net.op(op, net.batch_norm(x, f"bn{i}") if norm else x, module=f"act{i}")
    return net.done(out=net.linear(x, 2, "head"))


def test_l006_four_saturating_layers(new_net: Any) -> None:
    text = message(deep(new_net(), ["sigmoid", "tanh", "sigmoid", "tanh"]))
    assert text.startswith("L006: 4 hidden layers use sigmoid and tanh")
    assert all(f"act{i} at model.py" in text for i in range(4)) and "ReLU" in text


@pytest.mark.parametrize("activations", [["tanh"] * 3, ["relu"] * 6, ["tanh"] * 3 + ["relu"]])
def test_l006_not_below_four(new_net: Any, activations: list[str]) -> None:
    assert codes(deep(new_net(), activations)) == []


def test_l006_not_for_normalised_layers_gates_or_the_last_layer(new_net: Any) -> None:
    assert codes(deep(new_net(), ["tanh"] * 5, norm=True)) == []
    net = new_net()
    x = net.input("x", N, 6)
    for i in range(5):
        gate = net.op("sigmoid", net.linear(x, 6, f"gate{i}"))
        x = net.op("mul", gate, net.op("relu", net.linear(x, 6, f"fc{i}")))
    assert codes(net.done(out=net.linear(x, 2, "head"))) == []
    net = new_net()
    heads = {
        f"h{i}": net.op("sigmoid", net.linear(net.input(f"x{i}", N, 6), 6, f"fc{i}"))
        for i in range(5)
    }
    assert codes(net.done(**heads)) == []


def test_l006_sees_through_pooling(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 3, 32, 32)
    for i in range(4):
        x = net.max_pool(net.op("tanh", net.conv(x, 3, f"conv{i}")))
    assert codes(net.done(out=net.linear(net.flatten(x), 2, "head"))) == ["L006"]


# -- L007, L008: losses that do not fit the targets -----------------------------------------------


def test_l007_cross_entropy_on_a_single_output(new_net: Any) -> None:
    net = new_net()
    y = net.linear(net.input("x", N, 6), 1, "fc")
    text = message(net.done(out=net.cross_entropy(y, net.labels(), module="criterion")))
    assert text.startswith("L007: ") and "fc at" in text and "criterion at" in text
    net = new_net()
    y = net.linear(net.input("x", N, 6), 2, "fc")
    assert codes(net.done(out=net.cross_entropy(y, net.labels()))) == []


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_l008_mse_against_integer_labels(reduction: str) -> None:
    loss = nn.MSELoss(reduction=reduction)
    labels = np.zeros((4, 1), np.int64)
    text = message(traced(nn.Linear(6, 1), loss, X, labels))
    assert text.startswith("L008: ") and "'t'" in text and ".float()" in text
    assert codes(traced(nn.Linear(6, 1), loss, X, labels.astype(np.float32))) == []


def test_l008_not_for_labels_that_the_user_converts() -> None:
    loss = nn.MSELoss()

    def converted(y: Any, t: Any) -> Any:
        numbers = t.float()
        return loss(y, numbers)

    assert codes(traced(nn.Linear(6, 1), converted, X, np.zeros((4, 1), np.int64))) == []


def test_l008_not_for_integers_that_are_computed(new_net: Any) -> None:
    net = new_net()
    index = net.op("argmax", net.input("x", N, 4), dim=1, keepdim=False)
    difference = net.op("sub", net.input("y", N), net.op("cast", index, dtype="f32"))
    assert codes(net.done(out=net.op("square", difference))) == []
    net = new_net()
    t = net.graph.add("cast", net.input("t", N, dtype=int64), dtype="f32")
    square = net.graph.add("square", net.graph.add("sub", net.input("y", N), t))
    assert codes(net.done(out=square)) == ["L008"]


# -- L009: parameters without a gradient ----------------------------------------------------------


def test_l009_parameters_without_a_gradient(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.linear(net.input("x", N, 6), 4, "fc"))
    (warning,) = lint_gradients(graph, ["fc_weight", "fc_bias", "extra"], ["fc_weight"])
    assert warning.code == "L009"
    assert "fc_bias" in str(warning) and "extra (never used)" in str(warning)
    assert "fc_weight" not in str(warning)


def test_l009_not_if_all_have_one(new_net: Any) -> None:
    graph = new_net().done()
    assert lint_gradients(graph, ["w"], {"w", "v"}) == []


# -- all ------------------------------------------------------------------------------------------


def test_a_good_network_has_no_lints() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * 3 * 3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4),
    )  # fmt: skip
    x = np.zeros((4, 1, 8, 8), np.float32)
    assert codes(traced(model, nn.CrossEntropyLoss(), x, LABELS)) == []
    assert codes(traced(model.eval(), nn.CrossEntropyLoss(), x, LABELS)) == []


def test_a_mistake_is_reported_once_per_place(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 6)
    for i in range(3):
        x = net.linear(x, 6, f"fc{i}")
    assert codes(net.done(out=x)) == ["L004", "L004"]


def test_one_code_can_be_silenced(new_net: Any) -> None:
    net = new_net()
    x = net.linear(net.linear(net.input("x", N, 6), 1, "fc1"), 1, "fc2")
    graph = net.done(out=net.cross_entropy(x, net.labels()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="L004")
        for warning in lint(graph):
            warnings.warn(warning, LintWarning, stacklevel=1)
    assert [w.message.code for w in caught] == ["L007"]  # type: ignore[union-attr]
