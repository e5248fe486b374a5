"""plan_memory: lifetimes are re-simulated, and every plan is run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.errors import ShapeError
from netwright.ir.graph import Graph
from netwright.ir.plan import Location, Plan
from netwright.ir.types import Dim, TensorType, bool_, float64, int64
from netwright.passes.differentiate import differentiate
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.plan_memory import plan_memory
from netwright.passes.simplify import simplify
from netwright.passes.state import state_only

N = Dim(1)


def squared(kind: TensorType) -> list[Any]:
    """The symbolic extents after the first: a value of N x N elements has no place in a plan."""
    return [d for d in kind.shape if isinstance(d, Dim)][1:]


# -- whole graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hoist", [False, True])
def test_plans_of_random_graphs(
    random_graph: Callable[..., Graph], graph_values: Any, check_plan: Any, hoist: bool
) -> None:
    for seed in range(40):
        graph = random_graph(seed, size=30, regions=seed % 2 == 0)
        if any(isinstance(d, Dim) for n in graph.nodes for t in n.types for d in squared(t)):
            continue
        if seed % 3 == 0:
            graph = fuse_elementwise(simplify(graph))
        check_plan(graph, graph_values(graph, n=3, seed=seed), 3, hoist)


@pytest.mark.parametrize("hoist", [False, True])
def test_plans_of_the_example_networks(
    example_graphs: dict[str, Graph], values_of: Any, check_plan: Any, hoist: bool
) -> None:
    for graph in example_graphs.values():
        check_plan(graph, values_of(graph), 3, hoist)
        fused = fuse_elementwise(fuse_conv_bn_relu(simplify(graph)))
        check_plan(fused, values_of(graph), 3, hoist)


@pytest.mark.parametrize("hoist", [False, True])
def test_plan_of_a_training_step(
    new_net: Any, values_of: Any, check_plan: Any, hoist: bool
) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 2, 6, 6), 4, "conv")
    x = net.max_pool(net.op("relu", net.batch_norm(x, "bn", train=True)))
    graph = net.done(loss=net.cross_entropy(net.linear(net.flatten(x), 4, "fc"), net.labels()))
    weights = [n.attrs["path"] for n in graph.sources("parameter")]
    step = differentiate(graph, weights, "loss")
    for path in weights:
        parameter = next(n for n in step.sources("parameter") if n.attrs["path"] == path)
        grad = step.outputs.pop("grad:" + path)
        rate = step.add("constant", value=np.array(0.1))
        step.updates[path] = step.add("sub", parameter.value, step.add("mul", grad, rate))
    step = fuse_elementwise(simplify(step))
    plan = check_plan(step, values_of(step), 3, hoist)
    committed = {s.results[0].slot for s in plan.steps if s.commits and s.node}
    assert {"state:" + w for w in weights} <= committed, "every parameter is written in place"


def test_plan_of_a_folded_network(new_net: Any, values_of: Any, check_plan: Any) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 2, 6, 6), 4, "conv")
    graph = net.done(out=net.linear(net.flatten(net.op("relu", net.batch_norm(x, "bn"))), 3, "fc"))
    plan = check_plan(fuse_conv_bn_relu(graph), values_of(graph), 3, hoist=True)
    assert plan.prepared_bytes and plan.prepare
    assert len([s for s in plan.steps if s.node]) == 2


def test_a_value_of_batch_by_batch_elements_is_refused_by_name(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    y = net.op("mul", net.op("reshape", x, shape=(N, 1)), x, module="gram")
    graph = net.done(out=net.op("sum", y, dims=(1,), keepdim=False))
    with pytest.raises(ShapeError, match=r"%mul: f32\[N,N\] \[gram at model.py:2\].*dynamic=False"):
        plan_memory(graph)


def test_ten_layers_need_two_live_activations(new_net: Any) -> None:
    net = new_net()
    value = net.input("x", N, 256)
    for i in range(10):
        value = net.op("relu", net.linear(value, 256, f"fc{i}"))
    plan = plan_memory(net.done(out=net.linear(value, 10, "head")))
    assert plan.batch_bytes == 2 * 256 * 4
    assert plan.fixed_bytes == plan.prepared_bytes == 0
    assert plan.arena_bytes(7) == 7 * plan.batch_bytes


def test_an_arena_of_thousands_of_buffers_is_packed(new_net: Any) -> None:
    net = new_net()
    values = [net.op("softmax", net.input("x", N, 4), dim=1)]
    for _ in range(2000):
        values.append(net.op("softmax", values[-1], dim=1))
    graph = net.done(out=net.op("cat", *values[::40], dim=1))
    assert plan_memory(graph).batch_bytes < 60 * 64


# -- writing over operands ------------------------------------------------------------------------


def in_place(plan: Plan, node: str) -> bool:
    step = next(s for s in plan.steps if s.node and s.node.name == node)
    return step.results[0] in step.operands


def test_an_elementwise_result_takes_the_place_of_a_dying_operand(new_net: Any) -> None:
    net = new_net()
    a = net.op("softmax", net.input("x", N, 64), dim=1)
    plan = plan_memory(net.done(out=net.op("softmax", net.op("exp", a), dim=1)))
    assert in_place(plan, "exp")
    assert plan.batch_bytes == 256


def test_also_of_a_reshaped_and_of_a_repeated_operand(new_net: Any) -> None:
    net = new_net()
    a = net.op("softmax", net.input("x", N, 64), dim=1)
    r = net.op("reshape", a, shape=(N, 8, 8))
    y = net.op("mul", r, r)
    plan = plan_memory(net.done(out=net.op("softmax", y, dim=1)))
    assert in_place(plan, y.node)


@pytest.mark.parametrize("case", ["later", "broadcast", "both_ways", "size", "softmax", "input"])
def test_operands_that_must_stay(new_net: Any, values_of: Any, check_plan: Any, case: str) -> None:
    net = new_net(float64)
    x = net.input("x", 8, 8)
    a = net.op("softmax", x, dim=1)
    if case == "later":
        y = net.op("exp", a)
        y = net.op("matmul", y, a)
        watched = "exp"
    elif case == "broadcast":
        row = net.op("sum", a, dims=(0,), keepdim=False)
        y = net.op("add", row, x)
        watched = y.node
    elif case == "both_ways":
        flat = net.op("reshape", net.op("softmax", net.input("z", 8), dim=0), shape=(8, 1))
        y = net.op("mul", flat, net.op("reshape", flat, shape=(1, 8)))
        watched = y.node
    elif case == "size":
        y = net.op("cast", a, dtype="f32")
        y = net.op("softmax", y, dim=1)
        watched = "cast"
    elif case == "softmax":
        y = net.op("softmax", a, dim=1)
        watched = y.node
        y = net.op("softmax", y, dim=1)
    else:
        y = net.op("exp", x)
        watched = y.node
        y = net.op("softmax", y, dim=1)
    graph = net.done(out=y)
    assert not in_place(check_plan(graph, values_of(graph), 3), watched)


def test_the_key_of_random_numbers_is_not_written_over(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net(float64)
    key = net.op("add", net.input("rng", 2, dtype=int64), net.constant([0, 1], int64))
    draw = net.op("uniform", key, shape=(2,), stream=0)
    graph = net.done(out=net.op("softmax", draw, dim=0))
    check_plan(graph, values_of(graph), 3)
    fused = fuse_elementwise(graph)
    check_plan(fused, values_of(graph), 3)


# -- results --------------------------------------------------------------------------------------


def test_outputs_are_computed_where_the_caller_wants_them(new_net: Any) -> None:
    net = new_net()
    y = net.op("exp", net.input("x", N, 4))
    plan = plan_memory(net.done(out=net.op("reshape", y, shape=(N, 2, 2))))
    assert len(plan.steps) == 1 and plan.locations[y] == Location("output:out")


def test_outputs_that_are_something_else_are_copied(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net()
    x, w = net.input("x", N, 4), net.parameter("w", 4)
    y = net.op("exp", x)
    scaled = net.op("neg", w)
    graph = net.done(
        x=x, flat=net.op("reshape", x, shape=(4 * N,)), w=w, y=y, again=y, scaled=scaled,
        constant=net.constant([1.0, 2.0]), reshaped=net.op("reshape", y, shape=(N, 2, 2)),
    )  # fmt: skip
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert sum(s.node is None for s in plan.steps) == 7


def test_the_source_of_a_copy_is_pinned(new_net: Any, values_of: Any, check_plan: Any) -> None:
    """It must not be written over between its last reader and the copy at the end."""
    net = new_net()
    w = net.buffer("w", 64)
    total = net.op("sum", net.input("x", N, 64), dims=(0,), keepdim=False)
    net.graph.updates["w"] = total
    value = net.op("exp", total)
    for _ in range(3):
        value = net.op("softmax", net.op("neg", value), dim=0)
    graph = net.done(out=net.op("add", value, w))
    check_plan(graph, values_of(graph), 3)


# -- what is prepared -----------------------------------------------------------------------------


def test_functions_of_state_are_prepared_once(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net()
    scale = net.op("mul", net.parameter("w", 8), net.constant(2.0))
    graph = net.done(out=net.op("add", net.input("x", N, 8), net.op("exp", scale)))
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert [s.node.op for s in plan.prepare if s.node] == ["mul", "exp"]
    assert plan.prepared_bytes == 64, "the second over the first"
    assert not plan_memory(graph).prepare


def test_a_prepared_value_that_a_call_reads_is_not_written_over(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    """The call comes after all that is prepared, wherever it stands in the graph."""
    net = new_net()
    once = net.op("exp", net.parameter("w", 8))
    y = net.op("add", net.input("x", 8), once)
    twice = net.op("neg", once)
    graph = net.done(y=y, z=net.op("mul", y, twice))
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert plan.prepared_bytes == 128


def test_what_depends_on_the_batch_is_not_prepared(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net()
    w = net.parameter("w", 8)
    total = net.op("sum", net.op("broadcast_to", w, shape=(N, 8)), dims=(0,), keepdim=False)
    count = net.op("div", w, net.graph.add("extent", size=N, dtype="f32"))
    graph = fuse_elementwise(net.done(total=total, mean=net.op("neg", count)))
    plan = check_plan(graph, values_of(graph), 3, hoist=True)
    assert not plan.prepare


def test_what_depends_on_state_that_changes_is_not_prepared(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net()
    mean, x = net.buffer("mean", 8), net.input("x", 8)
    kept = net.op("mul", mean, net.constant(0.9))
    net.graph.updates["mean"] = net.op("add", kept, x)
    graph = net.done(out=net.op("neg", x))
    assert not state_only(graph) - {n.name for n in graph.sources("constant")}
    assert not check_plan(graph, values_of(graph), 3, hoist=True).prepare


def test_masks_and_numbers_have_their_own_sizes(
    new_net: Any, values_of: Any, check_plan: Any
) -> None:
    net = new_net(float64)
    x = net.input("x", N, 100)
    mask = net.op("gt", x, net.constant(0.0))
    both = net.op("logical_and", mask, net.input("m", N, 100, dtype=bool_))
    graph = net.done(out=net.op("where", both, x, net.op("softmax", x, dim=1)))
    plan = check_plan(graph, values_of(graph), 3)
    assert in_place(plan, "logical_and")
