"""save_pool_places: the gradient of max pooling needs one byte per maximum, not the image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float64
from netwright.passes.rewriting import Ledger
from netwright.passes.save_pool_places import save_pool_places
from netwright.passes.split_batch_norm import split_batch_norm

N = Dim(1)
TILES: dict[str, Any] = {
    "kernel_size": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0)), "dilation": (1, 1),
    "ceil_mode": False, "layout": "NHWC",
}  # fmt: skip


def plain(net: Any, r: Value, dr: Value) -> Value:
    zero = net.constant(0.0)
    return net.op("where", net.op("le", r, zero), zero, dr)


def training_graph(
    net: Any,
    mask: Callable[[Any, Value, Value], Value] | None = plain,
    size: tuple[int, int] = (6, 8),
    **changes: Any,
) -> Graph:
    """ReLU, max pooling, and their gradient for a gradient of the pooled map."""
    attrs = {**TILES, **changes}
    x = net.input("x", N, *size, 3)
    r = net.op("relu", x)
    y = net.op("max_pool2d", r, **attrs)
    g = net.op("mul", y, net.constant(0.5))
    dx = net.op("max_pool2d_grad", g, r, **attrs)
    dx = dx if mask is None else mask(net, r, dx)
    return net.done(y=y, dx=dx, r=net.op("sum", r, dims=(0, 1, 2, 3), keepdim=False))


def codes(ledger: Ledger) -> list[str]:
    return [e.code for e in ledger.entries if e.pass_name == "save_pool_places"]


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_places_are_kept_and_the_mask_is_that_of_the_pooled_map(
    new_net: Any, assert_same: Callable[..., None], ops: Callable, size: tuple[int, int]
) -> None:
    graph = training_graph(new_net(float64), size=size)
    ledger = Ledger()
    after = save_pool_places(graph, ledger)
    assert codes(ledger) == ["M101", "M102"]
    assert not {"max_pool2d", "max_pool2d_grad"} & set(ops(after))
    (mask,) = [n for n in after.nodes if n.op == "le"]
    assert mask.type.shape == (N, size[0] // 2, size[1] // 2, 3)
    assert_same(graph, after, 0.0)


def test_ties_and_nan_go_where_they_went(new_net: Any) -> None:
    graph = training_graph(new_net(float64))
    values = {"x": np.random.default_rng(0).integers(-2, 3, (3, 6, 8, 3)).astype(np.float64)}
    values["x"][np.random.default_rng(1).random((3, 6, 8, 3)) < 0.2] = np.nan
    found = evaluate(save_pool_places(graph), values)
    for name, wanted in evaluate(graph, values).items():
        np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_size": (3, 3)},  # overlapping
        {"stride": (3, 3)},  # gaps
        {"stride": (2, 1)},
        {"padding": ((1, 0), (0, 0))},
        {"dilation": (2, 1)},
        {"kernel_size": (5, 5), "stride": (5, 5)},  # too large
    ],
)
def test_windows_that_do_not_tile_the_image_stay(new_net: Any, changes: dict) -> None:
    graph = training_graph(new_net(float64), **changes)
    ledger = Ledger()
    assert save_pool_places(graph, ledger) == graph
    assert codes(ledger) == ["M103"]


def test_a_window_beyond_the_image_stays(new_net: Any, assert_same: Callable[..., None]) -> None:
    beyond = training_graph(new_net(float64), size=(7, 8), ceil_mode=True)
    assert save_pool_places(beyond) == beyond
    inside = training_graph(new_net(float64), size=(6, 8), ceil_mode=True)
    after = save_pool_places(inside)
    assert any(n.op == "max_pool2d_with_places" for n in after.nodes)
    assert_same(inside, after, 0.0)


def test_other_layouts_and_poolings_without_a_gradient_stay(new_net: Any) -> None:
    graph = training_graph(
        new_net(float64), layout="NCHW", size=(8, 4), kernel_size=(2, 1), stride=(2, 1)
    )
    assert save_pool_places(graph) == graph
    net = new_net(float64)
    graph = net.done(y=net.op("max_pool2d", net.input("x", N, 4, 4, 3), **TILES))
    assert save_pool_places(graph) is graph


def gradient_is_a_result(net: Any, r: Value, dr: Value) -> Value:
    net.graph.outputs["dr"] = dr
    return plain(net, r, dr)


def threshold_is_not_zero(net: Any, r: Value, dr: Value) -> Value:
    return net.op("where", net.op("le", r, net.constant(0.5)), net.constant(0.0), dr)


def filled_with_ones(net: Any, r: Value, dr: Value) -> Value:
    return net.op("where", net.op("le", r, net.constant(0.0)), net.constant(1.0), dr)


def other_value(net: Any, r: Value, dr: Value) -> Value:
    return plain(net, net.op("square", r), dr)


@pytest.mark.parametrize(
    "mask",
    [None, gradient_is_a_result, threshold_is_not_zero, filled_with_ones, other_value],
)
def test_only_the_mask_of_what_is_pooled_moves(
    new_net: Any, assert_same: Callable[..., None], mask: Any
) -> None:
    graph = training_graph(new_net(float64), mask)
    ledger = Ledger()
    after = save_pool_places(graph, ledger)
    assert codes(ledger) == ["M101"]
    assert_same(graph, after, 0.0)


@pytest.mark.parametrize("shared", [False, True])
def test_in_front_of_a_flatten_the_mask_is_that_of_the_rows(
    new_net: Any, assert_same: Callable[..., None], shared: bool
) -> None:
    net = new_net(float64)
    r = net.op("relu", net.input("x", N, 6, 4, 3))
    y = net.op("permute", net.op("max_pool2d", r, **TILES), dims=(0, 3, 1, 2))
    rows = net.op("reshape", y, shape=(N, 18))
    w = net.parameter("weight", 5, 18)
    g = net.op("matmul", net.op("linear", rows, w), w)
    back = net.op("reshape", g, shape=(N, 3, 3, 2))
    back = net.op("permute", back, dims=(0, 2, 3, 1))
    dx = plain(net, r, net.op("max_pool2d_grad", back, r, **TILES))
    graph = net.done(dx=dx, **({"g": g} if shared else {}))
    after = save_pool_places(graph)
    (mask,) = [n for n in after.nodes if n.op == "le"]
    assert mask.type.shape == ((N, 3, 2, 3) if shared else (N, 18))
    assert_same(graph, after, 0.0)


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_sums_of_batch_norm_are_taken_of_the_pooled_map(
    new_net: Any, assert_same: Callable[..., None], size: tuple[int, int]
) -> None:
    """Parts of the pooled rows and of the image's have different sizes, here and in the kernel."""
    net = new_net(float64)
    x = net.input("x", N, *size, 5)
    affine = [net.parameter("gamma", 5), net.parameter("beta", 5)]
    y, mean, _, rstd = net.op("batch_norm_train", x, *affine, eps=1e-5, channel_dim=3)
    r = net.op("relu", y)
    p = net.op("max_pool2d", r, **TILES)
    g = plain(net, r, net.op("max_pool2d_grad", net.op("exp", p), r, **TILES))
    dx, dgamma, dbeta = net.op("batch_norm_grad", g, x, affine[0], mean, rstd, channel_dim=3)
    graph = net.done(p=p, dx=dx, dgamma=dgamma, dbeta=dbeta)
    ledger = Ledger()
    after = split_batch_norm(save_pool_places(graph), ledger)
    (sums,) = [n for n in after.nodes if n.op == "batch_norm_grad_sums"]
    assert [after.node(v).op for v in sums.operands[:2]] == ["where", "max_pool2d_gather"]
    assert [e.code for e in ledger.entries] == ["B101", "B104", "B101"]
    assert_same(graph, after, 1e-10)
