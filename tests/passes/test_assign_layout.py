"""assign_layout: the same results from channels-last operators, with few conversions."""

from typing import Any

import pytest

from netwright.ir.graph import Graph
from netwright.ir.types import Dim, float64, int64
from netwright.passes.assign_layout import assign_layout
from netwright.passes.differentiate import GRAD, differentiate
from netwright.passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from netwright.passes.rewriting import Ledger
from netwright.passes.simplify import simplify

N = Dim(1)


def count(graph: Graph, op: str) -> int:
    return sum(n.op == op for n in graph.nodes)


def layouts(graph: Graph) -> set[str]:
    return {n.attrs["layout"] for n in graph.nodes if "layout" in n.attrs}


def residual_net(net: Any, channels: int = 3, train: bool = False) -> Graph:
    """conv-bn-relu-pool, a residual block, global pooling by flatten, linear, loss."""
    x = net.conv(net.input("x", N, channels, 8, 8), 4, "conv1")
    x = net.max_pool(net.op("relu", net.batch_norm(x, "bn1", train=train)))
    y = net.op("relu", net.batch_norm(net.conv(x, 4, "conv2"), "bn2", train=train))
    x = net.op("relu", net.op("add", net.conv(y, 4, "conv3", bias=False), x))
    logits = net.linear(net.flatten(x), 4, "fc")
    return net.done(loss=net.cross_entropy(logits, net.labels()), logits=logits)


@pytest.mark.parametrize("train", [False, True])
def test_a_residual_network_has_two_conversions(
    new_net: Any, assert_same: Any, train: bool
) -> None:
    graph = residual_net(new_net(float64), train=train)
    ledger = Ledger()
    after = assign_layout(graph, ledger)
    assert layouts(after) == {"NHWC"}
    assert count(after, "permute") == 2, "the image, and before flatten"
    assert count(after, "reshape") == 1
    assert [e.code for e in ledger.entries] == ["Y101"]
    assert "2 permutes" in str(ledger.entries[0])
    assert_same(graph, after, 1e-12)


def test_an_image_of_one_channel_is_only_renamed(new_net: Any, assert_same: Any) -> None:
    graph = residual_net(new_net(float64), channels=1)
    after = assign_layout(graph)
    assert count(after, "permute") == 1 and count(after, "reshape") == 2
    assert_same(graph, after, 1e-12)


@pytest.mark.parametrize("train", [False, True])
def test_the_backward_graph_converts_the_flat_gradient_once(
    new_net: Any, assert_same: Any, train: bool
) -> None:
    graph = residual_net(new_net(float64), train=train)
    weights = {n.attrs["path"] for n in graph.sources("parameter")}
    joint = differentiate(graph, weights, loss="loss")
    joint = eliminate_common_subexpressions(simplify(joint))
    after = assign_layout(joint)
    assert layouts(after) == {"NHWC"}
    assert count(after, "permute") == 3, "the image, before flatten, and the gradient of flatten"
    assert_same(joint, after, 1e-12)


def test_the_gradient_of_the_image_is_one_more(new_net: Any, assert_same: Any) -> None:
    graph = residual_net(new_net(float64))
    joint = differentiate(graph, {"x"}, loss="loss")
    after = assign_layout(eliminate_common_subexpressions(simplify(joint)))
    assert after.type(after.outputs[GRAD + "x"]).shape == (N, 3, 8, 8)
    assert count(after, "permute") == 4
    assert_same(joint, after, 1e-12)


def test_a_second_run_changes_nothing(new_net: Any) -> None:
    after = assign_layout(residual_net(new_net()))
    ledger = Ledger()
    assert assign_layout(after, ledger) is after and not ledger.entries


@pytest.mark.parametrize("pool", ["avg", "adaptive", "mean", "mean_keepdim"])
def test_poolings(new_net: Any, assert_same: Any, pool: str) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 3, 6, 6), 4, "conv")
    if pool == "avg":
        y = net.op(
            "avg_pool2d", x, kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)),
            ceil_mode=False, count_include_pad=True, divisor_override=None, layout="NCHW",
        )  # fmt: skip
    elif pool == "adaptive":
        y = net.op("adaptive_avg_pool2d", x, output_size=(1, 1), layout="NCHW")
    else:
        y = net.op("mean", x, dims=(2, 3), keepdim=pool == "mean_keepdim")
    graph = net.done(out=net.op("neg", y))
    joint = differentiate(graph, {"conv_weight", "x"})
    after = assign_layout(joint)
    assert_same(joint, after, 1e-12)
    if pool != "avg":
        assert count(assign_layout(graph), "permute") == 1, "a single pixel moves by a reshape"


def test_operators_of_either_order_follow(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 4, 4, 4), 4, "conv1")
    x = net.op("cat", x, net.op("neg", x), dim=1)
    x = net.op("pad", x, low=(0, 1, 2, 0), high=(0, 0, 0, 1), value=0.5)
    x = net.op("slice", x, dim=2, start=1, stop=5, step=2)
    x = net.op("softmax", net.op("log_softmax", x, dim=1), dim=3)
    x = net.op("mul", x, net.op("amax", x, dims=(1,), keepdim=True))
    x = net.op("sub", x, net.parameter("bias", 9, 1, 1))
    x = net.op("sub", x, net.parameter("row", 5))
    x = net.op("div", x, net.constant(2.0))
    graph = net.done(out=net.flatten(net.conv(x, 2, "conv2")))
    after = assign_layout(graph)
    assert count(after, "permute") == 2
    assert_same(graph, after, 1e-12)
    joint = differentiate(graph, {"conv1_weight", "bias", "row"})
    assert_same(joint, assign_layout(joint), 1e-12)


def test_reductions_that_keep_channels_before_pixels_read_the_written_order(
    new_net: Any, assert_same: Any
) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 3, 4, 5), 4, "conv")
    graph = net.done(
        rows=net.op("sum", x, dims=(3,), keepdim=False),
        pixels=net.op("sum", x, dims=(1,), keepdim=False),
        best=net.op("argmax", x, dim=1, keepdim=False),
        column=net.op("argmax", x, dim=2, keepdim=False),
    )
    after = assign_layout(graph)
    assert count(after, "permute") == 2
    assert_same(graph, after, 1e-12)


def test_random_numbers_keep_their_places(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 3, 4, 4), 4, "conv")
    key = net.input("rng", 2, dtype=int64)
    half = net.constant(
        0.5, dtype=net.graph.type(net.op("uniform", key, shape=(1,), stream=9)).dtype
    )
    keep = net.op("ge", net.op("uniform", key, shape=(N, 4, 4, 4), stream=0), half)
    channels = net.op("ge", net.op("uniform", key, shape=(N, 4, 1, 1), stream=1), half)
    x = net.op("where", keep, x, net.constant(0.0))
    graph = net.done(out=net.op("where", channels, x, net.constant(0.0)))
    after = assign_layout(graph)
    assert [n.type.shape for n in after.nodes if n.op == "uniform"][1:] == [
        (N, 4, 4, 4), (N, 4, 1, 1)
    ]  # fmt: skip
    assert count(after, "permute") == 3, "the image, the mask of elements, the output"
    assert_same(graph, after, 1e-12)


def test_values_in_both_orders_stay_last_where_a_convolution_follows(
    new_net: Any, assert_same: Any
) -> None:
    net = new_net(float64)
    x = net.input("x", N, 3, 4, 4)
    y = net.conv(x, 3, "conv1")
    z = net.conv(net.op("relu", x), 3, "conv2")
    graph = net.done(out=net.op("add", y, z), raw=y)
    after = assign_layout(graph)
    assert count(after, "permute") == 3, "the image once, and two outputs"
    assert_same(graph, after, 1e-12)


def test_what_no_convolution_touches_stays(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    x = net.input("x", N, 3, 4, 4)
    soft = net.op("softmax", net.op("exp", x), dim=1)
    graph = net.done(soft=soft, out=net.max_pool(x))
    after = assign_layout(graph)
    assert after.node(soft).attrs["dim"] == 1
    assert_same(graph, after, 1e-12)


def test_graphs_without_spatial_operators_are_left_alone(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("relu", net.input("x", N, 3, 4, 4)))
    assert assign_layout(graph) is graph


def test_weights_that_are_computed_keep_their_order(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    w = net.op("mul", net.parameter("w", 4, 3, 3, 3), net.parameter("scale", 4, 1, 1, 1))
    y = net.op(
        "conv2d", net.input("x", N, 3, 5, 5), w, stride=(2, 1), padding=((1, 0), (0, 1)),
        dilation=(1, 2), groups=1, layout="NCHW",
    )  # fmt: skip
    graph = net.done(out=y)
    joint = differentiate(graph, {"w", "scale", "x"})
    after = assign_layout(joint)
    assert after.type(w).shape == (4, 3, 3, 3)
    assert_same(joint, after, 1e-12)


def test_conversions_are_named_after_their_value(new_net: Any) -> None:
    after = assign_layout(residual_net(new_net()))
    assert after.node("x_nhwc").op == "permute"
    assert after.node("conv2d").source.module == "conv1"
