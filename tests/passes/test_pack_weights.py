"""pack_weights."""

from typing import Any

import pytest

from netwright.ir.graph import Graph
from netwright.ir.types import Dim, float64
from netwright.passes.assign_layout import assign_layout
from netwright.passes.differentiate import differentiate
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.pack_weights import Choice, pack_weights
from netwright.passes.plan_memory import plan_memory
from netwright.passes.rewriting import Ledger

N = Dim(1)


def pack(graph: Graph, ledger: Ledger | None = None) -> Graph:
    return pack_weights(graph, lambda columns, dtype: 8 if columns > 4 else 4, ledger)


def test_linear_reads_a_packed_weight(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net(float64)
    graph = net.done(out=net.linear(net.input("x", N, 5), 6, "fc"))
    ledger = Ledger()
    after = pack(graph, ledger)
    assert ops(after) == ["pack_matrix", "linear_packed"]
    assert after.node("linear").source.module == after.node("linear_packed").source.module == "fc"
    assert [e.code for e in ledger.entries] == ["P101"]
    assert_same(graph, after, 1e-14)


@pytest.mark.parametrize(("channels", "out", "groups"), [(3, 6, 1), (4, 6, 2), (4, 4, 4)])
def test_convolutions_and_their_input_gradients(
    new_net: Any, assert_same: Any, ops: Any, channels: int, out: int, groups: int
) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 5, 5, channels), out, "conv", layout="NHWC", groups=groups)
    graph = differentiate(net.done(out=y), {"x"})
    after = pack(graph)
    assert ops(after) == ["pack_conv", "conv2d_packed", "pack_conv", "conv2d_grad_input_packed"]
    assert_same(graph, after, 1e-13)


def test_inside_of_a_region(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net(float64)
    x = net.input("x", N, 3, 5, 5)
    y = net.op("relu", net.batch_norm(net.conv(x, 6, "conv"), "bn"))
    graph = fuse_conv_bn_relu(assign_layout(net.done(out=net.linear(net.flatten(y), 4, "fc"))))
    after = pack(graph)
    (region,) = (n for n in after.nodes if n.op == "fused")
    assert "conv2d_packed" in [n.op for n in region.attrs["body"].nodes]
    assert ops(after).count("pack_conv") == 1
    assert_same(graph, after, 1e-13)
    steps = [s.node.op for s in plan_memory(after, hoist=True).steps if s.node]
    assert "pack_conv" not in steps and "pack_matrix" not in steps


def test_one_pack_serves_all_users_of_a_weight(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net(float64)
    x, w = net.input("x", N, 5), net.parameter("w", 5, 5)
    graph = net.done(out=net.op("linear", net.op("linear", x, w), w))
    after = pack(graph)
    assert ops(after).count("pack_matrix") == 1
    assert_same(graph, after, 1e-13)


def step_of(net: Any, y: Any, *weights: str) -> Graph:
    """A graph with a result and new values of some weights."""
    graph = net.done(out=y)
    for node in list(graph.sources("parameter")):
        if node.attrs["path"] in weights:
            graph.updates[node.attrs["path"]] = graph.add("neg", node.value)
    return graph


def pack_step(
    graph: Graph, most_rows: int, ledger: Ledger | None = None, op: str = "linear", **more: Any
) -> Graph:
    def choose(rows: Any, depth: int, outputs: int, dtype: Any) -> str:
        assert (rows, depth, outputs) == (N, 5, 6 if "fc_weight" in graph.updates else 5)
        return op if rows.at(3) <= most_rows else "linear_packed"

    return pack_weights(graph, lambda *_: 8, ledger, choose_linear=choose, **more)


@pytest.mark.parametrize(("op", "code"), [("linear", "P103"), ("linear_transposed", "P104")])
def test_few_rows_read_a_weight_that_changes_in_every_call_as_it_is(
    new_net: Any, assert_same: Any, ops: Any, op: str, code: str
) -> None:
    net = new_net(float64)
    graph = step_of(net, net.linear(net.input("x", N, 5), 6, "fc"), "fc_weight")
    ledger = Ledger()
    after = pack_step(graph, 3, ledger, op)
    assert "pack_matrix" not in ops(after)
    assert op in ops(after)
    assert [e.code for e in ledger.entries] == [code]
    assert_same(graph, after, 1e-14)
    assert "pack_matrix" in ops(pack_step(graph, 2, op=op)), "the rule says that packing is faster"


def test_a_region_reads_a_changing_weight_as_a_left_factor(
    new_net: Any, assert_same: Any, ops: Any
) -> None:
    net = new_net(float64)
    y = net.op("relu", net.linear(net.input("x", N, 5), 6, "fc"))
    graph = fuse_conv_bn_relu(step_of(net, y, "fc_weight"))
    after = pack_step(graph, 3, op="linear_transposed")
    (region,) = (n for n in after.nodes if n.op == "fused")
    assert "linear_transposed" in [n.op for n in region.attrs["body"].nodes]
    assert "pack_matrix" not in ops(after)
    assert_same(graph, after, 1e-14)


def test_what_was_measured_for_a_packed_weight_says_nothing_about_a_changing_one(
    new_net: Any, ops: Any
) -> None:
    net = new_net(float64)
    graph = step_of(net, net.linear(net.input("x", N, 5), 6, "fc"), "fc_weight")
    assert "pack_matrix" not in ops(pack_step(graph, 3, choices={"linear": Choice(16)}))


def test_a_prepared_weight_is_packed_for_few_rows_too(new_net: Any, ops: Any) -> None:
    net = new_net(float64)
    graph = step_of(net, net.linear(net.input("x", N, 5), 6, "fc"), "fc_bias")
    assert "pack_matrix" in ops(pack_step(graph, 3))


def test_a_changing_weight_of_two_products_is_packed_once(new_net: Any, ops: Any) -> None:
    net = new_net(float64)
    x, w = net.input("x", N, 5), net.parameter("w", 5, 5)
    graph = step_of(net, net.op("linear", net.op("linear", x, w), w), "w")
    assert ops(pack_step(graph, 3)).count("pack_matrix") == 1


def test_the_written_order_has_no_packed_form(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.conv(net.input("x", N, 3, 5, 5), 6, "conv"))
    assert pack(graph) == graph


def test_a_weight_that_the_region_uses_twice_stays(new_net: Any) -> None:
    net = new_net()
    w = net.parameter("w", 4, 4)
    y = net.op("linear", net.input("x", 4, 4), w)
    graph = fuse_conv_bn_relu(net.done(out=net.op("mul", y, w)))
    assert [n.op for n in graph.nodes] == ["parameter", "input", "fused"] or [
        n.op for n in graph.nodes
    ] == ["input", "parameter", "fused"]
    assert pack(graph) == graph


def test_a_weight_of_symbolic_size_stays(new_net: Any) -> None:
    net = new_net()
    x, w = net.input("x", 4, 5), net.input("w", N, 5)
    graph = net.done(out=net.op("linear", x, w))
    assert pack(graph) == graph


WINOGRAD: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"stride": (2, 2)}, False),
    ({"dilation": (2, 2)}, False),
    ({"groups": 2}, False),
    ({"kernel": 1}, False),
]


@pytest.mark.parametrize(("options", "fires"), WINOGRAD, ids=str)
def test_winograd_takes_plain_3x3_convolutions_only(
    new_net: Any, assert_same: Any, ops: Any, options: dict[str, Any], fires: bool
) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 7, 6, 4), 6, "conv", layout="NHWC", **options)
    graph = net.done(out=y)
    after = pack_weights(graph, lambda columns, dtype: 8, None, lambda *geometry: 2)
    assert ops(after) == (
        ["pack_winograd", "conv2d_winograd"] if fires else ["pack_conv", "conv2d_packed"]
    )
    assert_same(graph, after, 1e-12)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (1, 0)), ((3, 0), (1, 1))], ids=str)
def test_winograd_computes_gradients_of_inputs(
    new_net: Any, assert_same: Any, ops: Any, padding: Any
) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 7, 6, 4), 6, "conv", layout="NHWC", padding=padding)
    graph = differentiate(net.done(out=y), {"x"})
    after = pack_weights(graph, lambda columns, dtype: 8, None, lambda *geometry: 2)
    reaches = max(map(max, padding)) <= 2  # else a gradient would need a negative padding
    assert ops(after).count("conv2d_winograd") == 1 + reaches
    assert_same(graph, after, 1e-12)


def test_the_choice_of_winograd_sees_channels_and_output_size(new_net: Any) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 9, 8, 4), 6, "conv", layout="NHWC", padding=((0, 0), (0, 0)))
    seen: list[tuple[Any, ...]] = []

    def choose(*geometry: Any) -> int:
        seen.append(geometry)
        return 0

    pack_weights(net.done(out=y), lambda columns, dtype: 8, None, choose)
    assert seen == [(4, 6, (7, 6), float64)]


GRADIENTS: list[tuple[dict[str, Any], bool]] = [*WINOGRAD, ({"padding": ((3, 0), (1, 1))}, True)]


@pytest.mark.parametrize(("options", "fires"), GRADIENTS, ids=str)
def test_winograd_takes_weight_gradients_of_plain_3x3_convolutions_only(
    new_net: Any, assert_same: Any, ops: Any, options: dict[str, Any], fires: bool
) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 7, 6, 4), 6, "conv", layout="NHWC", **options)
    graph = differentiate(net.done(out=y), {"conv_weight"})
    ledger = Ledger()
    after = pack_weights(
        graph, lambda columns, dtype: 8, ledger, choose_gradient_tile=lambda *geometry: 2
    )
    assert ops(after).count("conv2d_grad_weight_winograd") == fires
    assert ops(after).count("conv2d_grad_weight") == 1 - fires
    assert [e.code for e in ledger.entries].count("P102") == fires
    assert_same(graph, after, 1e-12)


def test_the_choice_for_a_weight_gradient_sees_channels_and_the_size_of_the_gradient(
    new_net: Any,
) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 9, 8, 4), 6, "conv", layout="NHWC", padding=((0, 0), (0, 0)))
    seen: list[tuple[Any, ...]] = []

    def choose(*geometry: Any) -> int:
        seen.append(geometry)
        return 0

    graph = differentiate(net.done(out=y), {"conv_weight"})
    pack_weights(graph, lambda columns, dtype: 8, choose_gradient_tile=choose)
    assert seen == [(4, 6, (7, 6), float64)]


PARTS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"stride": (2, 1), "dilation": (1, 2)}, True),
    ({"groups": 2}, False),
    ({"layout": "NCHW"}, False),
]


@pytest.mark.parametrize(("options", "fires"), PARTS, ids=str)
def test_weight_gradients_are_summed_in_parts_where_the_rule_says_so(
    new_net: Any, assert_same: Any, ops: Any, options: dict[str, Any], fires: bool
) -> None:
    net = new_net(float64)
    options = {"layout": "NHWC", **options}
    shape = (7, 6, 4) if options["layout"] == "NHWC" else (4, 7, 6)
    y = net.conv(net.input("x", N, *shape), 6, "conv", **options)
    graph = differentiate(net.done(out=y), {"conv_weight"})
    ledger, seen = Ledger(), []

    def choose(*geometry: Any) -> int:
        seen.append(geometry)
        return 3

    after = pack_weights(graph, lambda columns, dtype: 8, ledger, choose_parts=choose)
    assert ops(after).count("conv2d_grad_weight_parts") == fires
    assert ops(after).count("conv2d_grad_weight") == 1 - fires
    assert [e.code for e in ledger.entries].count("P105") == fires
    assert_same(graph, after, 1e-12)
    if fires:
        assert seen == [(4, 6, (3, 3), y_size(graph))]


def y_size(graph: Any) -> tuple[int, int]:
    """Height and width of the only convolution's result, channels last."""
    (conv,) = (n for n in graph.nodes if n.op == "conv2d")
    return conv.type.shape[1:3]


def test_winograd_goes_before_parts(new_net: Any, ops: Any) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 7, 6, 4), 6, "conv", layout="NHWC")
    graph = differentiate(net.done(out=y), {"conv_weight"})
    after = pack_weights(
        graph, lambda *_: 8, choose_gradient_tile=lambda *_: 2, choose_parts=lambda *_: 3
    )
    assert "conv2d_grad_weight_winograd" in ops(after)
    assert "conv2d_grad_weight_parts" not in ops(after)
