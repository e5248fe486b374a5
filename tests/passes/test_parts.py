"""Placement of concatenations and slices: what lies inside of what, and what must not."""

from typing import Any

import numpy as np
import pytest

from netwright.codegen.columns import accepts_columns
from netwright.ir.graph import Graph, Node, Value
from netwright.ir.plan import Columns, Plan
from netwright.ir.types import Dim, numel
from netwright.passes.live_set import largest_live_set
from netwright.passes.plan_memory import plan_memory

N = Dim(1)


def copies(plan: Plan) -> list[str]:
    """The concatenations and slices that are left."""
    steps = [s.node for s in plan.steps if s.node]
    return [n.name for n in steps if n.op in ("cat", "slice")]


@pytest.fixture
def placed(check_plan: Any, values_of: Any) -> Any:
    """``placed(graph)``: its plan, after a run on real memory, and the copies that are left."""

    def check(graph: Graph, hoist: bool = True) -> tuple[Plan, list[str]]:
        plan = check_plan(graph, values_of(graph), 3, hoist, accepts_columns)
        assert len(copies(plan_memory(graph, hoist))) == sum(
            n.op in ("cat", "slice") for n in graph.nodes
        ), "without kernels that accept columns nothing is placed"
        return plan, copies(plan)

    return check


def cat(net: Any, *values: Value, dim: int = 1) -> Value:
    return net.op("cat", *values, dim=dim)


def columns(net: Any, x: Value, start: int, stop: int) -> Value:
    return net.op("slice", x, dim=1, start=start, stop=stop, step=1)


def test_operands_are_written_into_the_concatenation(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = net.input("x", N, 5)
    a, b = net.linear(x, 7, "a"), net.op("relu", net.linear(x, 9, "b"))
    both = cat(net, a, b)
    plan, left = placed(net.done(out=net.op("softmax", both, dim=1)))
    assert left == []
    whole = plan.locations[both]
    assert plan.locations[a] == type(whole)(whole.slot, whole.offset, 0, 64)
    assert plan.locations[b] == type(whole)(whole.slot, whole.offset, 28, 64)


def test_a_concatenation_that_is_a_result_is_written_there(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = net.input("x", N, 5)
    both = cat(net, net.linear(x, 7, "a"), net.linear(x, 9, "b"))
    plan, left = placed(net.done(out=both))
    assert left == [] and plan.batch_bytes == 0
    assert {s.results[0].slot for s in plan.steps} == {"output:out"}


def test_growing_concatenations_are_prefixes_of_the_last_one(new_net: Any, placed: Any) -> None:
    """DenseNet: every layer reads all features so far; they lie where the last layer wants them."""
    net = new_net()
    features = [net.linear(net.input("x", N, 5), 6, "first")]
    for k in range(4):
        seen = net.op("relu", cat(net, *features)) if k else features[0]
        features.append(net.linear(seen, 4, f"layer{k}"))
    last = cat(net, *features)
    graph = net.done(out=net.op("softmax", last, dim=1))
    plan, left = placed(graph)
    assert left == []
    assert {plan.locations[f].offset for f in features} == {plan.locations[last].offset}
    assert largest_live_set(graph, plan, 3) <= plan.arena_bytes(3)


def test_concatenations_nest(new_net: Any, placed: Any) -> None:
    """The end of Inception's last blocks."""
    net = new_net()
    x = net.input("x", N, 5)
    a, b, c = (net.linear(x, size, f"l{size}") for size in (4, 6, 3))
    inner = cat(net, b, c)
    outer = cat(net, a, inner)
    plan, left = placed(net.done(out=net.op("softmax", outer, dim=1)))
    assert left == []
    assert [plan.locations[v].start for v in (a, inner, b, c)] == [0, 16, 16, 40]


def test_slices_of_columns_are_parts_of_their_operand(new_net: Any, placed: Any) -> None:
    net = new_net()
    gates = net.linear(net.input("x", N, 5), 12, "gates")
    i, o = columns(net, gates, 0, 6), columns(net, gates, 6, 12)
    y = net.op("mul", net.op("sigmoid", i), net.op("tanh", o))
    plan, left = placed(net.done(out=net.op("softmax", y, dim=1)))
    assert left == []
    assert plan.locations[o].start == 24 and plan.locations[o].pitch == 48


def test_a_slice_of_a_slice_of_an_input(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = columns(net, net.input("x", N, 12), 2, 11)
    y = columns(net, x, 3, 8)
    plan, left = placed(net.done(out=net.linear(y, 3, "l")))
    assert left == []
    assert (plan.locations[y].slot, plan.locations[y].start) == ("input:x", 20)


def test_halves_of_one_value_are_not_written_over(new_net: Any, placed: Any) -> None:
    """Both halves die in the product, but it is smaller than what they are parts of."""
    net = new_net()
    x = net.linear(net.input("x", N, 5), 12, "l")
    y = net.op("mul", columns(net, x, 0, 6), columns(net, x, 6, 12))
    plan, _ = placed(net.done(out=net.op("softmax", y, dim=1)))
    assert plan.locations[y].offset != plan.locations[x].offset


def test_what_follows_may_write_over_the_whole(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = net.input("x", N, 5)
    both = cat(net, net.linear(x, 7, "a"), net.linear(x, 9, "b"))
    y = net.op("exp", both)
    plan, left = placed(net.done(out=net.op("softmax", y, dim=1)))
    assert left == [] and plan.locations[y] == plan.locations[both]


def test_reshapes_that_keep_the_columns_are_followed(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = net.input("x", N, 2, 5)
    a = net.op("reshape", net.linear(x, 4, "a"), shape=(Dim(2), 4))
    b = net.op("reshape", net.linear(x, 3, "b"), shape=(Dim(2), 3))
    _, left = placed(net.done(out=net.op("softmax", cat(net, a, b), dim=1)))
    assert left == []


# -- what stays a copy ----------------------------------------------------------------------------


def parts(net: Any) -> tuple[Value, Value, Value]:
    x = net.input("x", N, 5)
    return x, net.linear(x, 7, "a"), net.linear(x, 9, "b")


def test_an_operand_that_is_a_result(new_net: Any, placed: Any) -> None:
    net = new_net()
    _, a, b = parts(net)
    _, left = placed(net.done(out=net.op("softmax", cat(net, a, b), dim=1), a=a))
    assert len(left) == 1


def test_an_operand_that_is_an_input(new_net: Any, placed: Any) -> None:
    net = new_net()
    x, a, _ = parts(net)
    _, left = placed(net.done(out=net.op("softmax", cat(net, a, x), dim=1)))
    assert len(left) == 1


def test_an_operand_twice(new_net: Any, placed: Any) -> None:
    net = new_net()
    _, a, _ = parts(net)
    _, left = placed(net.done(out=net.op("softmax", cat(net, a, a), dim=1)))
    assert len(left) == 1


def test_an_operand_in_two_concatenations_at_different_places(new_net: Any, placed: Any) -> None:
    net = new_net()
    _, a, b = parts(net)
    y, z = (net.op("softmax", cat(net, *pair), dim=1) for pair in ((a, b), (b, a)))
    _, left = placed(net.done(y=y, z=z))
    assert len(left) == 1, "one of them can have it"


def test_an_operand_whose_kernel_writes_rows_of_its_own(new_net: Any, placed: Any) -> None:
    net = new_net()
    _, a, b = parts(net)
    both = cat(net, net.op("softmax", a, dim=1), b)
    _, left = placed(net.done(out=net.op("softmax", both, dim=1)))
    assert len(left) == 1


def test_an_operand_that_is_also_read_by_a_kernel_that_wants_rows(
    new_net: Any, placed: Any
) -> None:
    net = new_net()
    _, a, b = parts(net)
    both, other = cat(net, a, b), net.op("softmax", a, dim=1)
    _, left = placed(net.done(out=net.op("softmax", both, dim=1), other=other))
    assert len(left) == 1


def test_a_prefix_that_is_read_by_a_kernel_that_wants_rows(new_net: Any, placed: Any) -> None:
    net = new_net()
    x, a, b = parts(net)
    seen = cat(net, a, b)
    last = cat(net, a, b, net.linear(x, 3, "c"))
    y, z = net.op("softmax", seen, dim=1), net.op("softmax", last, dim=1)
    _, left = placed(net.done(y=y, z=z))
    assert left == [seen.node], "it is copied from where its operands lie"


def test_another_dimension_than_the_last(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = net.input("x", N, 2, 5)
    a, b = net.linear(x, 4, "a"), net.linear(x, 4, "b")
    _, left = placed(net.done(out=net.op("softmax", cat(net, a, b, dim=1), dim=2)))
    assert len(left) == 1


def test_columns_with_a_step(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = net.linear(net.input("x", N, 5), 12, "l")
    every = net.op("slice", x, dim=1, start=0, stop=12, step=2)
    _, left = placed(net.done(out=net.op("exp", every)))
    assert len(left) == 1


def test_a_slice_that_is_a_result(new_net: Any, placed: Any) -> None:
    net = new_net()
    x = net.linear(net.input("x", N, 5), 12, "l")
    _, left = placed(net.done(out=columns(net, x, 2, 5)))
    assert len(left) == 1


def test_what_depends_on_state_alone(new_net: Any, placed: Any, values_of: Any) -> None:
    net = new_net()
    w = net.op("cat", net.op("neg", net.parameter("a", 3, 5)), net.parameter("b", 3, 4), dim=1)
    graph = net.done(out=net.op("linear", net.input("x", N, 9), w))
    plan = plan_memory(graph, True, accepts_columns)
    assert [s.node.op for s in plan.prepare if s.node] == ["neg", "cat"]


def test_an_update_is_not_written_in_pieces(new_net: Any, check_plan: Any, values_of: Any) -> None:
    """State changes at the end of a run; its parts would be written before others read it."""
    net = new_net()
    old = net.buffer("history", 4, 6)
    total = net.op("sum", net.input("x", N, 4, 3), dims=(0,), keepdim=False)
    new = net.op("cat", net.op("neg", total), net.op("exp", total), dim=1)
    graph = net.done(out=net.op("mul", old, net.input("y", 4, 6)))
    graph.updates["history"] = new
    plan = check_plan(graph, values_of(graph), 3, False, accepts_columns)
    assert copies(plan) == [new.node]


# -- random graphs --------------------------------------------------------------------------------


def everything(node: Node, graph: Graph) -> Columns:
    """More than real kernels accept, so that random graphs have many parts."""
    return Columns(frozenset(range(len(node.operands))), frozenset(range(len(node.types))))


@pytest.mark.parametrize("hoist", [False, True])
def test_random_graphs(random_graph: Any, graph_values: Any, check_plan: Any, hoist: bool) -> None:
    elided = 0
    for seed in range(60):
        graph = random_graph(seed, size=40)
        shapes = [t.shape for n in graph.nodes for t in n.types]
        if any(sum(isinstance(d, Dim) for d in s) > 1 for s in shapes):
            continue
        plan = check_plan(graph, graph_values(graph, n=3, seed=seed), 3, hoist, everything)
        moved = [n for n in graph.nodes if n.op in ("cat", "slice")]
        elided += len(moved) - len(
            [s for s in (*plan.prepare, *plan.steps) if s.node and s.node.op in ("cat", "slice")]
        )
        for value, place in plan.locations.items():
            if place.pitch and numel(graph.type(value).shape):
                width = int(graph.type(value).shape[-1]) * graph.type(value).dtype.itemsize
                assert np.all([place.start + width <= place.pitch, place.start >= 0])
    assert elided >= 10
