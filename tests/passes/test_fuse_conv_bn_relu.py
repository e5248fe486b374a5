"""fuse_conv_bn_relu: folded weights are right, epilogues have one result, nothing else fires."""

from typing import Any

import numpy as np
import pytest

from netwright.ir.graph import Graph
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float64
from netwright.passes.differentiate import differentiate
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.plan_memory import plan_memory
from netwright.passes.rewriting import Ledger

N = Dim(1)
IMAGE = (N, 8, 8, 3)


def regions(graph: Graph) -> list[list[str]]:
    """The operators of each region of a graph."""
    return [
        [n.op for n in node.attrs["body"].nodes if n.op not in ("input", "constant")]
        for node in graph.nodes
        if node.op == "fused"
    ]


def fuse(graph: Graph) -> tuple[Graph, list[str], list[str]]:
    """The fused graph with the codes of what was done and of what was declined."""
    ledger = Ledger()
    after = fuse_conv_bn_relu(graph, ledger)
    done = [e.code for e in ledger.entries if e.done]
    return after, done, [e.code for e in ledger.entries if not e.done]


# -- what it does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_folded_convolution_computes_the_same(
    new_net: Any, assert_same: Any, layout: str, bias: bool, groups: int
) -> None:
    net = new_net(float64)
    shape = (N, 4, 6, 6) if layout == "NCHW" else (N, 6, 6, 4)
    y = net.conv(net.input("x", *shape), 6, "conv", bias=bias, layout=layout, groups=groups)
    y = net.batch_norm(y, "bn", dim=1 if layout == "NCHW" else 3)
    graph = net.done(out=net.op("relu", y))
    after, done, declined = fuse(graph)
    assert regions(after) == [["conv2d", "relu"]]
    assert (done, declined) == (["F001", "F002"], [])
    assert not any(n.op == "batch_norm" for n in after.nodes)
    assert_same(graph, after, 1e-13)


@pytest.mark.parametrize("shape", [(N, 5), (N, 4, 5)])
def test_a_linear_and_batch_norm_over_its_features_fold(
    new_net: Any, assert_same: Any, shape: Any
) -> None:
    net = new_net(float64)
    y = net.batch_norm(net.linear(net.input("x", *shape), 7, "fc"), "bn", dim=len(shape) - 1)
    graph = net.done(out=net.op("tanh", y))
    after, done, _ = fuse(graph)
    assert regions(after) == [["linear", "tanh"]] and done == ["F001", "F002"]
    assert_same(graph, after, 1e-13)


def test_folding_follows_the_live_parameters(new_net: Any, values_of: Any) -> None:
    """The folded weights are nodes, computed from the parameters that a run is given."""
    net = new_net(float64)
    y = net.batch_norm(net.conv(net.input("x", N, 3, 5, 5), 4, "conv"), "bn")
    graph = net.done(out=y)
    after = fuse_conv_bn_relu(graph)
    for seed in range(3):
        values = values_of(graph, 2, seed)
        expected = evaluate(graph, values)["out"]
        np.testing.assert_allclose(evaluate(after, values)["out"], expected, rtol=1e-12, atol=1e-12)
    plan = plan_memory(after, hoist=True)
    assert [s.node.op for s in plan.steps if s.node] == ["conv2d"]
    assert len(plan.prepare) > 3


def test_two_batch_norms_in_a_row_fold(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net(float64)
    y = net.conv(net.input("x", N, 3, 5, 5), 4, "conv")
    graph = net.done(out=net.batch_norm(net.batch_norm(y, "bn1"), "bn2"))
    after, done, _ = fuse(graph)
    assert "batch_norm" not in ops(after) and done == ["F001", "F001"]
    assert_same(graph, after, 1e-12)


def test_a_residual_add_joins_the_epilogue(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    x = net.input("x", *IMAGE)
    y = net.batch_norm(net.conv(x, 3, "conv", layout="NHWC"), "bn", dim=3)
    graph = net.done(out=net.op("relu", net.op("add", y, x)))
    after, _, declined = fuse(graph)
    assert regions(after) == [["conv2d", "add", "relu"]] and declined == []
    assert_same(graph, after, 1e-13)


def test_a_chain_of_epilogue_operators(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x, z = net.input("x", *IMAGE), net.input("z", *IMAGE)
    y = net.op("relu", net.conv(x, 3, "conv", layout="NHWC"))
    y = net.op("relu", net.op("add", y, z))
    graph = net.done(out=net.op("mul", y, net.constant(0.5)))
    after, _, _ = fuse(graph)
    assert regions(after) == [["conv2d", "relu", "add", "relu", "mul"]]
    assert_same(graph, after)


def test_an_activation_written_by_hand_is_one_epilogue(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", *IMAGE), 3, "conv", layout="NHWC")
    graph = net.done(out=net.op("mul", y, net.op("sigmoid", y)))
    after, _, _ = fuse(graph)
    assert regions(after) == [["conv2d", "sigmoid", "mul"]]
    assert_same(graph, after)


def test_both_branches_of_a_residual_block_fuse_once(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x = net.input("x", *IMAGE)
    main = net.op("relu", net.conv(x, 4, "conv1", layout="NHWC"))
    main = net.conv(main, 4, "conv2", layout="NHWC")
    shortcut = net.conv(x, 4, "shortcut", kernel=1, layout="NHWC")
    graph = net.done(out=net.op("relu", net.op("add", main, shortcut)))
    after, _, _ = fuse(graph)
    assert sorted(regions(after)) == [["conv2d", "add", "relu"], ["conv2d", "relu"]]
    assert_same(graph, after)


def test_a_bias_of_one_element_per_channel_joins(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", *IMAGE), 4, "conv", layout="NHWC", bias=False)
    graph = net.done(out=net.op("add", y, net.parameter("bias", 4)))
    after, _, _ = fuse(graph)
    assert regions(after) == [["conv2d", "add"]]
    assert_same(graph, after)


def test_an_activations_derivative_joins_with_its_mask(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    hidden = net.op("relu", net.linear(net.input("x", N, 5), 6, "fc1"))
    loss = net.cross_entropy(net.linear(hidden, 4, "fc2"), net.labels())
    graph = differentiate(net.done(out=loss), {"fc1_weight"}, "out")
    after, _, _ = fuse(graph)
    assert ["matmul", "le", "where"] in regions(after) or ["le", "matmul", "where"] in regions(
        after
    )
    assert_same(graph, after, 1e-12)


def test_the_region_keeps_the_module_and_line_of_the_layer(new_net: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", *IMAGE), 4, "conv", layout="NHWC")
    graph = net.done(out=net.op("relu", y, module="act"))
    node = fuse_conv_bn_relu(graph).node("conv2d")
    assert node.op == "fused" and node.source.module == "conv"
    assert [n.source.module for n in node.attrs["body"].nodes if n.operands] == ["conv", "act"]


# -- what it must not do --------------------------------------------------------------------------


def test_no_fold_with_a_second_consumer(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", N, 3, 5, 5), 4, "conv")
    graph = net.done(out=net.batch_norm(y, "bn"), other=net.op("sum", y, dims=(1,), keepdim=False))
    after, done, declined = fuse(graph)
    assert after == graph and done == [] and declined == ["F101"]


def test_no_fold_of_a_graph_output(new_net: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", N, 3, 5, 5), 4, "conv")
    graph = net.done(out=net.batch_norm(y, "bn"), raw=y)
    after, done, declined = fuse(graph)
    assert after == graph and done == [] and declined == ["F101"]


def test_no_fold_in_training_mode(new_net: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", N, 3, 5, 5), 4, "conv")
    graph = net.done(out=net.batch_norm(y, "bn", train=True))
    after, done, declined = fuse(graph)
    assert after == graph and done == [] and declined == ["F102"]


def test_no_fold_into_a_weight_that_is_computed(new_net: Any) -> None:
    net = new_net()
    x, w = net.input("x", N, 3, 5, 5), net.input("w", 4, 3, 3, 3)
    y = net.op(
        "conv2d", x, w, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1,
        layout="NCHW",
    )  # fmt: skip
    graph = net.done(out=net.batch_norm(y, "bn"))
    after, done, declined = fuse(graph)
    assert after == graph and done == [] and declined == ["F103"]


def test_no_fold_of_statistics_that_the_graph_updates(new_net: Any) -> None:
    net = new_net()
    y = net.batch_norm(net.conv(net.input("x", N, 3, 5, 5), 4, "conv"), "bn")
    net.graph.updates["bn_running_mean"] = net.op("mean", y, dims=(0, 2, 3), keepdim=False)
    after, done, declined = fuse(net.done(out=y))
    assert after == net.graph and done == [] and declined == ["F103"]


def test_no_fold_over_another_dimension(new_net: Any) -> None:
    net = new_net()
    y = net.linear(net.input("x", N, 4, 5), 4, "fc")
    graph = net.done(out=net.batch_norm(y, "bn", dim=1))
    after, done, declined = fuse(graph)
    assert after == graph and done == [] and declined == ["F105"]


@pytest.mark.parametrize("raw", [False, True])
def test_no_epilogue_behind_a_second_consumer(new_net: Any, raw: bool) -> None:
    net = new_net()
    y = net.conv(net.input("x", *IMAGE), 4, "conv", layout="NHWC")
    relu = net.op("relu", y)
    other = y if raw else net.op("sum", y, dims=(3,), keepdim=False)
    after, done, declined = fuse(net.done(out=relu, other=other))
    assert after == net.graph and done == [] and declined == ["F101"]


def test_a_residual_that_depends_on_the_convolution_stays_outside(new_net: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", *IMAGE), 3, "conv", layout="NHWC")
    pooled = net.op("mean", y, dims=(1, 2), keepdim=True)
    graph = net.done(out=net.op("relu", net.op("sub", y, pooled)))
    after, done, declined = fuse(graph)
    assert after == graph and done == [] and declined == ["F101"]


def test_a_residual_through_a_second_convolution_stays_outside(
    new_net: Any, assert_same: Any
) -> None:
    net = new_net()
    y = net.conv(net.input("x", *IMAGE), 3, "conv1", layout="NHWC")
    z = net.conv(net.op("relu", y), 3, "conv2", layout="NHWC")
    graph = net.done(out=net.op("add", y, z))
    after, _, _ = fuse(graph)
    assert regions(after) == [["conv2d", "add"]], "only the second has one result"
    assert_same(graph, after)


def test_an_operand_that_does_not_fit_ends_the_epilogue(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    y = net.op("relu", net.conv(net.input("x", *IMAGE), 4, "conv", layout="NHWC"))
    row = net.input("row", 8, 1)
    graph = net.done(out=net.op("mul", y, row))
    after, done, declined = fuse(graph)
    assert regions(after) == [["conv2d", "relu"]]
    assert done == ["F002"] and declined == ["F104"]
    assert_same(graph, after)


def test_a_bias_per_channel_does_not_fit_the_written_order(new_net: Any) -> None:
    net = new_net()
    y = net.conv(net.input("x", N, 3, 4, 4), 4, "conv", bias=False)
    graph = net.done(out=net.op("add", y, net.input("bias", 4, 1, 1)))
    after, done, declined = fuse(graph)
    assert after == graph and done == [] and declined == ["F104"]


def test_a_batch_dependent_count_ends_the_epilogue(new_net: Any) -> None:
    net = new_net()
    y = net.linear(net.input("x", N, 4), 4, "fc")
    count = net.graph.add("extent", size=N, dtype="f32")
    after, done, declined = fuse(net.done(out=net.op("div", y, count)))
    assert after == net.graph and done == [] and declined == ["F104"]


def test_an_operator_that_changes_the_shape_ends_the_epilogue(new_net: Any) -> None:
    net = new_net()
    y = net.linear(net.input("x", N, 1), 4, "fc")
    graph = net.done(out=net.op("add", y, net.input("z", 5, 1, 4)))
    after, done, _ = fuse(graph)
    assert after == graph and done == []


def test_state_alone_is_not_mixed_with_the_rest(new_net: Any) -> None:
    """Otherwise a product of parameters would be computed in every call."""
    net = new_net()
    product = net.op("matmul", net.parameter("a", 4, 2), net.parameter("b", 2, 4))
    graph = net.done(out=net.op("mul", product, net.input("x", 4, 4)))
    after, done, _ = fuse(graph)
    assert after == graph and done == []
