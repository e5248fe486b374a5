"""fuse_pooling: pooling joins the convolution in front of it, and only where nothing is lost."""

from typing import Any

import pytest

from netwright.ir.graph import Graph, Value
from netwright.ir.types import Dim, float64
from netwright.passes.differentiate import differentiate
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_pooling import CHEAP, fuse_pooling
from netwright.passes.rewriting import Ledger

N = Dim(1)
HERE = "NHWC"


def pool(net: Any, x: Value, op: str = "max_pool2d", **changed: Any) -> Value:
    attrs: dict[str, Any] = {
        "kernel_size": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0)), "ceil_mode": False,
        "layout": HERE,
    }  # fmt: skip
    if op == "max_pool2d":
        attrs["dilation"] = (1, 1)
    else:
        attrs |= {"count_include_pad": True, "divisor_override": None}
    return net.op(op, x, module="pool", **{**attrs, **changed})


def convolution(net: Any, size: tuple[int, int] = (8, 8), **attrs: Any) -> Value:
    x = net.input("x", N, *size, 4)
    return net.op("relu", net.conv(x, 6, "conv", layout=HERE, **attrs))


def fuse(graph: Graph) -> tuple[Graph, list[str], str]:
    """The fused graph, the codes, and why the last pooling was declined."""
    ledger = Ledger()
    after = fuse_pooling(fuse_conv_bn_relu(graph), ledger)
    return after, [e.code for e in ledger.entries], ledger.entries[-1].message


def regions(graph: Graph) -> list[list[str]]:
    return [
        [n.op for n in node.attrs["body"].nodes if n.op not in ("input", "constant")]
        for node in graph.nodes
        if node.op == "fused"
    ]


@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("window", [(2, 2), (1, 2), (2, 1)])
def test_windows_side_by_side_join_the_convolution(
    new_net: Any, assert_same: Any, op: str, size: Any, window: Any
) -> None:
    net = new_net(float64)
    y = pool(net, convolution(net, size), op, kernel_size=window, stride=window)
    graph = net.done(out=y)
    after, codes, _ = fuse(graph)
    assert regions(after) == [["conv2d", "relu", op]] and codes == ["F601"]
    node = after.node("conv2d")
    assert node.source.module == "conv" and node.type == graph.type(y)
    assert [n.source.module for n in node.attrs["body"].nodes][-1] == "pool"
    assert_same(graph, after, 1e-13)


def test_a_convolution_without_an_epilogue_pools_too(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    y = pool(net, net.conv(net.input("x", N, 8, 8, 4), 6, "conv", layout=HERE))
    graph = net.done(out=y)
    after, codes, _ = fuse(graph)
    assert regions(after) == [["conv2d", "max_pool2d"]] and codes == ["F601"]
    assert_same(graph, after, 1e-13)


def test_each_layer_pools_its_own_result(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    x = pool(net, convolution(net))
    x = pool(net, net.op("relu", net.conv(x, 5, "conv2", layout=HERE)))
    graph = net.done(out=x)
    after, codes, _ = fuse(graph)
    assert regions(after) == [["conv2d", "relu", "max_pool2d"]] * 2
    assert codes == ["F601", "F601"]
    assert_same(graph, after, 1e-13)


@pytest.mark.parametrize(
    ("op", "changed"),
    [
        ("max_pool2d", {"stride": (1, 1)}),
        ("max_pool2d", {"kernel_size": (1, 1)}),
        ("max_pool2d", {"padding": ((1, 0), (0, 0))}),
        ("max_pool2d", {"dilation": (2, 2)}),
        ("max_pool2d", {"ceil_mode": True}),
        ("max_pool2d", {"kernel_size": (3, 3), "stride": (3, 3)}),
        ("avg_pool2d", {"padding": ((1, 1), (1, 1))}),
        ("avg_pool2d", {"divisor_override": 3}),
    ],
    ids=str,
)
def test_other_windows_stay_apart(new_net: Any, op: str, changed: Any) -> None:
    net = new_net()
    graph = net.done(out=pool(net, convolution(net), op, **changed))
    after, codes, why = fuse(graph)
    assert regions(after) == [["conv2d", "relu"]] and codes == ["F602"]
    assert "windows" in why


def test_an_image_that_somebody_else_reads_is_written(new_net: Any) -> None:
    net = new_net()
    y = convolution(net)
    graph = net.done(out=pool(net, y), mean=net.op("mean", y, dims=(1, 2), keepdim=False))
    after, codes, why = fuse(graph)
    assert regions(after) == [["conv2d", "relu"]] and codes == ["F602"]
    assert "also used elsewhere" in why


def test_an_image_that_is_a_result_is_written(new_net: Any) -> None:
    net = new_net()
    y = convolution(net)
    assert fuse(net.done(out=pool(net, y), image=y))[1] == ["F602"]


def test_the_backward_pass_needs_the_image(new_net: Any) -> None:
    net = new_net()
    y = net.flatten(pool(net, convolution(net)))
    loss = net.cross_entropy(net.linear(y, 4, "fc"), net.labels())
    graph = net.done(loss=loss)
    weights = {n.attrs["path"] for n in graph.sources("parameter")}
    _, codes, why = fuse(differentiate(graph, weights, loss="loss"))
    assert codes == ["F602"] and "also used elsewhere" in why


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"groups": 2}, "groups"),
        ({"groups": 2, "kernel": 1}, "groups"),
        ({"kernel": 1}, "1 x 1"),
    ],
    ids=str,
)
def test_convolutions_whose_kernels_do_not_pool_stay_apart(
    new_net: Any, attrs: Any, why: str
) -> None:
    net = new_net()
    graph = net.done(out=pool(net, convolution(net, **attrs)))
    _, codes, found = fuse(graph)
    assert codes == ["F602"] and why in found


def test_channels_first_images_stay_apart(new_net: Any) -> None:
    net = new_net()
    y = net.op("relu", net.conv(net.input("x", N, 4, 8, 8), 6, "conv"))
    _, codes, why = fuse(net.done(out=net.max_pool(y)))
    assert codes == ["F602"] and "channels-last" in why


def test_a_shortcut_is_read_for_each_pixel(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 8, 8, 4)
    y = net.op("relu", net.op("add", net.conv(x, 4, "conv", layout=HERE), x))
    after, codes, why = fuse(net.done(out=pool(net, y)))
    assert regions(after) == [["conv2d", "add", "relu"]]
    assert codes == ["F602"] and "for each pixel" in why


def test_a_long_activation_is_not_done_in_registers(new_net: Any) -> None:
    net = new_net()
    y = net.op("silu", net.conv(net.input("x", N, 8, 8, 4), 4, "conv", layout=HERE))
    _, codes, why = fuse(net.done(out=pool(net, y)))
    assert codes == ["F602"] and "silu" in why and "silu" not in CHEAP


def test_pooling_of_something_else_is_not_mentioned(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=pool(net, net.op("relu", net.input("x", N, 8, 8, 4))))
    ledger = Ledger()
    assert fuse_pooling(graph, ledger) == graph and not ledger.entries
