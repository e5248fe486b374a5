"""split_batch_norm: batch normalisation in training as steps that fuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float32, float64
from netwright.passes.assign_layout import assign_layout
from netwright.passes.differentiate import differentiate
from netwright.passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.fuse_reductions import fuse_reductions
from netwright.passes.rewriting import Ledger
from netwright.passes.split_batch_norm import split_batch_norm

N = Dim(1)


def training_graph(net: Any, relu: bool = True, residual: bool = False) -> Graph:
    """linear, BatchNorm, (residual add,) ReLU, linear, with its loss and gradients."""
    x = net.input("x", N, 6)
    y = net.batch_norm(net.linear(x, 5, "fc1"), "bn", dim=1, train=True)
    if residual:
        y = net.op("add", y, net.input("shortcut", N, 5))
    y = net.op("relu", y) if relu else y
    graph = net.done(loss=net.cross_entropy(net.linear(y, 4, "fc2"), net.labels()))
    weights = {n.attrs["path"] for n in graph.sources("parameter")}
    return eliminate_common_subexpressions(differentiate(graph, weights, loss="loss"))


def fused(graph: Graph, ledger: Ledger | None = None) -> Graph:
    graph = split_batch_norm(graph, ledger)
    return fuse_reductions(fuse_elementwise(fuse_conv_bn_relu(graph, ledger), ledger), ledger)


def regions(graph: Graph) -> list[list[str]]:
    return [
        [n.op for n in node.attrs["body"].nodes if n.op not in ("input", "constant")]
        for node in graph.nodes
        if node.op == "fused"
    ]


def codes(ledger: Ledger) -> list[str]:
    return [e.code for e in ledger.entries if e.pass_name == "split_batch_norm"]


MASKED = ["sub", "mul", "add", "le", "where"]


def test_a_training_step_has_one_sweep_forward_and_two_backward(
    new_net: Any, assert_same: Callable[..., None], ops: Callable
) -> None:
    graph = training_graph(new_net(float64))
    ledger = Ledger()
    after = fused(graph, ledger)
    found = regions(after)
    assert ["sub", "mul", "add", "relu"] in found
    assert [*MASKED, "batch_norm_grad_sums"] in found
    assert [*MASKED, "sub", "mul", "sub", "sub", "mul"] in found
    assert not {"batch_norm_train", "batch_norm_grad", "le", "where"} & set(ops(after))
    assert codes(ledger) == ["B101", "B102", "B101", "B103"]
    assert_same(graph, after, 1e-10)


def test_no_mask_is_stored(new_net: Any) -> None:
    before, after = (f(training_graph(new_net())) for f in (fuse_elementwise, fused))
    assert not any(t.dtype.name == "bool" for n in after.nodes for t in n.types)
    assert any(n.op == "batch_norm_grad" for n in before.nodes)


def test_the_mask_is_that_of_the_forward_pass_to_the_last_bit(new_net: Any, values_of: Any) -> None:
    """Where BatchNorm gives exactly 0, or almost, both must see the same side of it."""
    graph = training_graph(new_net(float32))
    values = values_of(graph, n=40)
    values["x"] = np.round(values["x"])  # many equal rows
    values["bn_bias"] = np.zeros_like(values["bn_bias"])
    split = split_batch_norm(graph)
    masks = [n for n in split.nodes if n.op == "le"]
    assert len(masks) == 2
    relu = next(n for n in split.nodes if n.op == "relu")
    split.outputs.update(relu=relu.value, **{f"le{i}": m.value for i, m in enumerate(masks)})
    found = evaluate(split, values)
    for k in range(2):
        np.testing.assert_array_equal(found[f"le{k}"], found["relu"] <= 0)


def test_a_masked_gradient_that_a_shortcut_needs_is_written_by_the_sums(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    net = new_net(float64)
    g = net.op("mul", net.input("g", N, 5), net.input("h", N, 5))
    x, mean = net.input("y", N, 5), net.buffer("mean", 5)
    state = [net.parameter("gamma", 5), mean, net.buffer("rstd", 5)]
    dx, dgamma, dbeta = net.op("batch_norm_grad", g, x, *state, channel_dim=1)
    graph = net.done(
        dx=dx,
        dgamma=dgamma,
        dbeta=dbeta,
        shortcut=net.op("exp", net.op("sum", g, dims=(0,), keepdim=False)),
    )
    after = fused(graph)
    assert ["mul", "batch_norm_grad_sums"] in regions(after)
    (sums,) = [n for n in after.nodes if n.op == "fused" and len(n.types) == 2]
    assert [t.rank for t in sums.types] == [2, 3]
    assert_same(graph, after, 1e-12)


def test_behind_a_residual_add_the_stored_result_gives_the_mask(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    graph = training_graph(new_net(float64), residual=True)
    ledger = Ledger()
    after = fused(graph, ledger)
    assert ["sub", "mul", "add", "add", "relu"] in regions(after)
    assert "B102" not in codes(ledger)
    assert_same(graph, after, 1e-10)


def test_without_an_activation_there_is_no_mask(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    graph = training_graph(new_net(float64), relu=False)
    ledger = Ledger()
    after = fused(graph, ledger)
    assert codes(ledger) == ["B101", "B101", "B103"]
    assert_same(graph, after, 1e-10)


def _grad(net: Any, mask: Callable[[Any, Value, Value], Value]) -> Graph:
    """The gradient of BatchNorm + ReLU with another use of, or another kind of, mask."""
    x, dr = net.input("x", N, 5), net.input("dr", N, 5)
    affine = [net.parameter("gamma", 5), net.parameter("beta", 5)]
    y, mean, _, rstd = net.op("batch_norm_train", x, *affine, eps=1e-5, channel_dim=1)
    g = mask(net, net.op("relu", y), dr)
    dx, dgamma, _ = net.op("batch_norm_grad", g, x, affine[0], mean, rstd, channel_dim=1)
    return net.done(dx=dx, dgamma=dgamma)


def plain(net: Any, r: Value, dr: Value) -> Value:
    zero = net.constant(0.0)
    return net.op("where", net.op("le", r, zero), zero, dr)


def mask_is_a_result(net: Any, r: Value, dr: Value) -> Value:
    zero = net.constant(0.0)
    le = net.op("le", r, zero)
    net.graph.outputs["mask"] = le
    return net.op("where", le, zero, dr)


def gradient_is_a_result(net: Any, r: Value, dr: Value) -> Value:
    net.graph.outputs["g"] = g = plain(net, r, dr)
    return g


def threshold_is_not_zero(net: Any, r: Value, dr: Value) -> Value:
    return net.op("where", net.op("le", r, net.constant(0.5)), net.constant(0.0), dr)


def filled_with_ones(net: Any, r: Value, dr: Value) -> Value:
    return net.op("where", net.op("le", r, net.constant(0.0)), net.constant(1.0), dr)


def other_comparison(net: Any, r: Value, dr: Value) -> Value:
    zero = net.constant(0.0)
    return net.op("where", net.op("lt", r, zero), zero, dr)


def other_value(net: Any, r: Value, dr: Value) -> Value:
    return plain(net, net.op("relu", dr), dr)


@pytest.mark.parametrize(
    "mask",
    [plain, mask_is_a_result, gradient_is_a_result, threshold_is_not_zero, filled_with_ones,
     other_comparison, other_value],
)  # fmt: skip
def test_only_the_mask_of_its_own_relu_is_made_again(
    new_net: Any, assert_same: Callable[..., None], mask: Any
) -> None:
    graph = _grad(new_net(float64), mask)
    ledger = Ledger()
    after = split_batch_norm(graph, ledger)
    assert codes(ledger).count("B102") == (mask is plain)
    assert_same(graph, after, 1e-10)
    assert_same(graph, fused(graph), 1e-10)


def test_sums_of_something_else_stay(new_net: Any, assert_same: Callable[..., None]) -> None:
    net = new_net(float64)
    x, g = net.input("x", N, 3, 5), net.input("g", N, 3, 5)
    state = [net.parameter(name, 5) for name in ("gamma", "mean", "rstd")]
    dx, dgamma, _ = net.op("batch_norm_grad", g, x, *state, channel_dim=2)
    some = net.op("sum", dx, dims=(0,), keepdim=False)
    kept = net.op("sum", dx, dims=(0, 1), keepdim=True)
    other = net.op("sum", dgamma, dims=(0,), keepdim=False)
    graph = net.done(dx=dx, some=some, kept=kept, other=other)
    ledger = Ledger()
    after = split_batch_norm(graph, ledger)
    assert codes(ledger) == ["B101"]
    assert sum(n.op == "sum" for n in after.nodes) == 3
    assert_same(graph, after, 1e-10)


def test_channels_that_are_not_last_stay(new_net: Any) -> None:
    net = new_net(float64)
    graph = net.done(y=net.batch_norm(net.input("x", N, 4, 3, 3), "bn", train=True))
    ledger = Ledger()
    assert split_batch_norm(graph, ledger) == graph
    assert codes(ledger) == ["B111"]


def test_evaluation_is_left_alone(new_net: Any) -> None:
    net = new_net(float64)
    graph = net.done(y=net.batch_norm(net.input("x", N, 4), "bn"))
    assert split_batch_norm(graph) is graph


def test_images_are_split_once_they_are_channels_last(
    example_graphs: dict[str, Graph], assert_same: Callable[..., None], ops: Callable
) -> None:
    graph = eliminate_common_subexpressions(example_graphs["residual_train_loss"])
    after = fused(assign_layout(graph))
    assert "batch_norm_train" not in ops(after) and "batch_norm_grad" not in ops(after)
    assert_same(graph, after, 1e-9)
