"""fuse_elementwise_pooling: what is pooled, and what is scattered, stays in registers."""

from collections.abc import Callable
from typing import Any

import pytest

from netwright.ir.graph import Graph, Value
from netwright.ir.types import Dim, float64, int64, uint8
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.fuse_elementwise_pooling import fuse_elementwise_pooling
from netwright.passes.rewriting import Ledger

N = Dim(1)
WINDOW: dict[str, Any] = {"kernel_size": (2, 2)}
TILES: dict[str, Any] = {
    **WINDOW, "stride": (2, 2), "padding": ((0, 0), (0, 0)), "dilation": (1, 1),
    "ceil_mode": False, "layout": "NHWC",
}  # fmt: skip


def fused(graph: Graph, ledger: Ledger | None = None) -> Graph:
    return fuse_elementwise_pooling(fuse_elementwise(graph), ledger)


def regions(graph: Graph) -> list[list[str]]:
    return [
        [n.op for n in node.attrs["body"].nodes if n.op not in ("input", "constant")]
        for node in graph.nodes
        if node.op == "fused" and node.attrs["kind"] == "pooling"
    ]


def codes(ledger: Ledger) -> list[str]:
    return [e.code for e in ledger.entries]


def normalised(net: Any, x: Value) -> Value:
    y = net.op("add", net.op("mul", x, net.parameter("scale", 3)), net.parameter("beta", 3))
    return net.op("relu", y)


def test_a_pooling_computes_its_operand_and_gathers_what_that_reads(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    net = new_net(float64)
    x = net.input("x", N, 7, 6, 3)
    y, places = net.op("max_pool2d_with_places", normalised(net, x), **WINDOW)
    at = net.op("max_pool2d_gather", x, places, **WINDOW)
    other = net.op("max_pool2d_gather", net.input("z", N, 7, 6, 3), places, **WINDOW)
    graph = net.done(y=y, places=places, at=at, other=other)
    ledger = Ledger()
    after = fused(graph, ledger)
    pool = "max_pool2d_with_places"
    assert regions(after) == [["mul", "add", "relu", pool, "max_pool2d_gather"]]
    assert sum(n.op == "max_pool2d_gather" for n in after.nodes) == 1  # the loop does not read z
    assert codes(ledger) == ["M201"]
    assert_same(graph, after, 1e-14)


def test_in_front_of_a_flatten_the_channels_come_first(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    def graph(dims: tuple[int, ...], twice: bool = False, relu: bool = True) -> Graph:
        net = new_net(float64)
        x = net.input("x", N, 4, 6, 3)
        x = net.op("relu", x) if relu else x
        y, places = net.op("max_pool2d_with_places", x, **WINDOW)
        more = {"y": y} if twice else {}
        return net.done(flat=net.op("permute", y, dims=dims), places=places, **more)

    pool = "max_pool2d_with_places"
    for relu in (True, False):
        before, ledger = graph((0, 3, 1, 2), relu=relu), Ledger()
        after = fuse_elementwise_pooling(before, ledger)
        assert regions(after) == [[*["relu"][: int(relu)], pool, "permute"]]
        assert "M204" in codes(ledger)
        assert_same(before, after, 0.0)
    for other in (graph((0, 3, 1, 2), twice=True), graph((0, 2, 1, 3))):
        assert regions(fuse_elementwise_pooling(other)) == [["relu", pool]]


def test_without_places_a_single_operator_is_taken_too(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    net = new_net(float64)
    graph = net.done(y=net.op("max_pool2d", net.op("gelu", net.input("x", N, 4, 4, 3)), **TILES))
    after = fused(graph)
    assert regions(after) == [["gelu", "max_pool2d"]]
    assert_same(graph, after, 0.0)


@pytest.mark.parametrize(
    "changes",
    [{"kernel_size": (3, 3)}, {"padding": ((1, 1), (0, 0))}, {"dilation": (2, 2)}],
)
def test_elements_of_several_windows_are_computed_once(new_net: Any, changes: dict) -> None:
    net = new_net(float64)
    x = net.op("relu", net.input("x", N, 8, 8, 3))
    graph = net.done(y=net.op("max_pool2d", x, **{**TILES, **changes}))
    assert fuse_elementwise_pooling(graph) == graph


def test_an_operand_that_is_read_elsewhere_is_written(new_net: Any) -> None:
    net = new_net(float64)
    r = net.op("relu", net.input("x", N, 4, 4, 3))
    graph = net.done(y=net.op("max_pool2d", r, **TILES), r=r)
    ledger = Ledger()
    assert fuse_elementwise_pooling(graph, ledger) == graph
    assert codes(ledger) == ["M203"]


def test_operands_of_other_shapes_are_declined(new_net: Any) -> None:
    net = new_net(float64)
    y = net.op("add", net.input("x", N, 4, 4, 3), net.input("per_image", N, 1, 1, 3))
    graph = net.done(y=net.op("max_pool2d", y, **TILES))
    ledger = Ledger()
    assert fuse_elementwise_pooling(graph, ledger) == graph
    assert codes(ledger) == ["M203"]


def scattered(net: Any) -> tuple[Value, Value]:
    g, places = net.input("g", N, 2, 3, 3), net.input("places", N, 2, 3, 3, dtype=uint8)
    places = net.op("minimum", places, net.constant(3, uint8))
    return net.op("max_pool2d_scatter", g, places, **WINDOW, size=(5, 6)), g


def test_what_follows_a_scattered_gradient_is_computed_there(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    net = new_net(float64)
    dr, _ = scattered(net)
    x, scale = net.input("x", N, 5, 6, 3), net.parameter("scale", 3)
    graph = net.done(dx=net.op("mul", net.op("sub", dr, x), scale))
    ledger = Ledger()
    after = fused(graph, ledger)
    assert regions(after) == [["max_pool2d_scatter", "sub", "mul"]]
    assert codes(ledger) == ["M202"]
    assert_same(graph, after, 1e-14)


def test_a_scattered_gradient_with_two_readers_is_written(new_net: Any) -> None:
    net = new_net(float64)
    dr, _ = scattered(net)
    graph = net.done(a=net.op("square", dr), b=net.op("sum", dr, dims=(0,), keepdim=False))
    ledger = Ledger()
    assert fuse_elementwise_pooling(graph, ledger) == graph
    assert codes(ledger) == ["M203"]
    net = new_net(float64)
    dr, _ = scattered(net)
    graph = net.done(a=net.op("square", dr), dr=dr)
    assert fuse_elementwise_pooling(graph, ledger) == graph


def test_a_loop_between_a_scattered_gradient_and_a_pooling_joins_the_first(
    new_net: Any, assert_same: Callable[..., None]
) -> None:
    net = new_net(float64)
    graph = net.done(y=net.op("max_pool2d", net.op("relu", scattered(net)[0]), **TILES))
    ledger = Ledger()
    after = fuse_elementwise_pooling(graph, ledger)
    assert regions(after) == [["max_pool2d_scatter", "relu"]]
    assert codes(ledger) == ["M202"]
    assert_same(graph, after, 0.0)


def test_random_draws_keep_their_numbers(new_net: Any) -> None:
    net = new_net()
    key = net.input("rng", 2, dtype=int64)
    u = net.op("uniform", key, shape=(N, 4, 4, 3), stream=0)
    y = net.op("mul", u, net.input("x", N, 4, 4, 3))
    graph = fuse_elementwise(net.done(y=net.op("max_pool2d", y, **TILES)))
    ledger = Ledger()
    assert fuse_elementwise_pooling(graph, ledger) == graph
    assert codes(ledger) == ["M203"]
