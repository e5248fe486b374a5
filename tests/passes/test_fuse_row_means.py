"""fuse_row_means: a depthwise convolution averages its rows where an image is averaged and used."""

from typing import Any

import pytest

from netwright.ir.graph import Graph, Value
from netwright.ir.types import Dim, float64
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_row_means import fuse_row_means
from netwright.passes.rewriting import Ledger

N = Dim(1)


def depthwise(net: Any, size: tuple[int, int] = (7, 9), layout: str = "NHWC") -> Value:
    shape = (N, *size, 6) if layout == "NHWC" else (N, 6, *size)
    return net.op("silu", net.conv(net.input("x", *shape), 6, "conv", groups=6, layout=layout))


def average(net: Any, x: Value, size: tuple[int, int] = (1, 1), layout: str = "NHWC") -> Value:
    return net.op("adaptive_avg_pool2d", x, output_size=size, layout=layout, module="squeeze")


def gate(net: Any, y: Value, mean: Value) -> Value:
    return net.op("mul", y, net.op("sigmoid", mean))


def fuse(graph: Graph) -> tuple[Graph, list[str], str]:
    ledger = Ledger()
    after = fuse_row_means(fuse_conv_bn_relu(graph), ledger)
    return after, [e.code for e in ledger.entries], "".join(e.message for e in ledger.entries)


def test_the_convolution_averages_rows_and_the_rest_is_averaged_after(
    new_net: Any, assert_same: Any
) -> None:
    net = new_net(float64)
    y = depthwise(net)
    graph = net.done(out=gate(net, y, average(net, y)))
    after, codes, _ = fuse(graph)
    node = after.node("conv2d")
    ops = [n.op for n in node.attrs["body"].nodes if n.op != "input"]
    assert ops == ["conv2d", "silu", "adaptive_avg_pool2d"] and codes == ["F701"]
    assert [t.shape for t in node.types] == [(N, 7, 9, 6), (N, 7, 1, 6)]
    pool = after.node("adaptive_avg_pool2d")
    assert pool.operands == (node.values[1],) and pool.source.module == "squeeze"
    assert_same(graph, after, 1e-13)


def test_a_convolution_alone_averages_too(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 5, 5, 6), 6, "conv", groups=6, layout="NHWC")
    graph = net.done(out=gate(net, y, average(net, y)), y=y)
    after, codes, _ = fuse(graph)
    assert codes == ["F701"]
    assert_same(graph, after, 1e-13)


def test_an_image_that_nobody_else_reads_is_only_averaged(new_net: Any) -> None:
    net = new_net()
    after, codes, why = fuse(net.done(out=average(net, depthwise(net))))
    assert codes == ["F702"] and "nothing else reads" in why
    assert not any(len(n.types) > 1 for n in after.nodes)


def test_a_column_has_no_rows_to_average(new_net: Any) -> None:
    net = new_net()
    y = depthwise(net, (7, 1))
    _, codes, why = fuse(net.done(out=gate(net, y, average(net, y))))
    assert codes == ["F702"] and "one pixel wide" in why


def test_a_second_average_reads_the_image(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    y = depthwise(net)
    graph = net.done(a=average(net, y), b=average(net, y))
    after, codes, _ = fuse(graph)
    assert codes == ["F701", "F702"]
    assert_same(graph, after, 1e-13)


@pytest.mark.parametrize("case", ["dense", "grouped", "windows", "channels first", "sum"])
def test_other_averages_and_other_images_stay(new_net: Any, case: str) -> None:
    net = new_net()
    size, layout = (1, 1), "NHWC"
    if case in ("dense", "grouped"):
        groups = 1 if case == "dense" else 3
        x = net.input("x", N, 7, 9, 6)
        y = net.op("silu", net.conv(x, 6, "conv", groups=groups, layout=layout))
    elif case == "sum":
        y = net.op("add", net.input("x", N, 7, 9, 6), net.input("y", N, 7, 9, 6))
    else:
        size = (7, 3) if case == "windows" else size
        layout = "NCHW" if case == "channels first" else layout
        y = depthwise(net, layout=layout)
    graph = fuse_conv_bn_relu(net.done(out=average(net, y, size, layout), y=y))
    ledger = Ledger()
    assert fuse_row_means(graph, ledger) == graph and not ledger.entries
