"""fuse_elementwise: which operators share a loop, and which must not."""

from typing import Any

import numpy as np
import pytest

from netwright.ir.graph import Graph
from netwright.ir.types import Dim, int64
from netwright.passes import fuse_elementwise as module
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.plan_memory import plan_memory
from netwright.passes.rewriting import Ledger

N = Dim(1)


def bodies(graph: Graph) -> list[list[str]]:
    """The operators of each region, sources included."""
    return [[n.op for n in r.attrs["body"].nodes] for r in graph.nodes if r.op == "fused"]


def members(graph: Graph) -> list[list[str]]:
    return [
        [op for op in body if op not in ("input", "constant", "extent")] for body in bodies(graph)
    ]


def test_a_chain_is_one_loop(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x, y = net.input("x", N, 8), net.input("y", N, 8)
    graph = net.done(out=net.op("relu", net.op("add", net.op("mul", x, y), y), module="act"))
    ledger = Ledger()
    after = fuse_elementwise(graph, ledger)
    assert members(after) == [["mul", "add", "relu"]]
    region = after.node("relu")
    assert region.operands == (x, y) and region.source.module == "act"
    assert [e.code for e in ledger.entries] == ["F301"]
    assert_same(graph, after, 0.0)


def test_a_tree_is_one_loop(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x, y = net.input("x", N, 8), net.input("y", N, 8)
    graph = net.done(out=net.op("add", net.op("exp", x), net.op("neg", net.op("abs", y))))
    after = fuse_elementwise(graph)
    assert [sorted(m) for m in members(after)] == [["abs", "add", "exp", "neg"]]
    assert_same(graph, after, 0.0)


def test_a_value_used_outside_is_a_second_result(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    e = net.op("exp", net.input("x", N, 8))
    graph = net.done(out=net.op("neg", e), total=net.op("sum", e, dims=(0,), keepdim=False), e=e)
    after = fuse_elementwise(graph)
    assert members(after) == [["exp", "neg"]]
    assert len(after.node("neg").types) == 2
    assert_same(graph, after, 0.0)


def test_numbers_are_immediate_operands(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x = net.input("x", N, 8)
    graph = net.done(out=net.op("add", net.op("mul", x, net.constant(2.0)), net.constant([[1.0]])))
    after = fuse_elementwise(graph)
    assert after.node("add").operands == (x,)
    assert sorted(bodies(after)[0]) == ["add", "constant", "constant", "input", "mul"]
    assert_same(graph, after, 0.0)


@pytest.mark.parametrize("count", [False, True])
def test_one_operator_with_a_number_is_a_region(
    new_net: Any, assert_same: Any, count: bool
) -> None:
    net = new_net()
    x = net.input("x", N, 8)
    number = net.graph.add("extent", size=N, dtype="f32") if count else net.constant(2.0)
    graph = net.done(out=net.op("div", x, number))
    ledger = Ledger()
    after = fuse_elementwise(graph, ledger)
    assert members(after) == [["div"]] and after.node("div").operands == (x,)
    assert [e.code for e in ledger.entries] == ["F302"]
    assert_same(graph, after, 0.0)


def test_one_operator_without_a_number_is_left_alone(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 8)
    graph = net.done(
        a=net.op("exp", x), b=net.op("add", net.input("y", 3), net.constant([1, 2, 3]))
    )
    assert fuse_elementwise(graph) == graph


def test_random_numbers_join_a_loop_of_their_shape(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x, key = net.input("x", N, 8), net.input("rng", 2, dtype=int64)
    keep = net.op("ge", net.op("uniform", key, shape=(N, 8), stream=0), net.constant(0.5))
    scaled = net.op("mul", x, net.constant(2.0))
    graph = net.done(out=net.op("where", keep, scaled, net.constant(0.0)))
    after = fuse_elementwise(graph)
    assert [sorted(m) for m in members(after)] == [["ge", "mul", "uniform", "where"]]
    region = after.nodes[-1]
    assert set(region.operands) == {x, key}
    assert_same(graph, after, 0.0)


def test_random_numbers_of_another_shape_stay_outside(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x, key = net.input("x", N, 4, 5), net.input("rng", 2, dtype=int64)
    draw = net.op("uniform", key, shape=(N, 4, 1), stream=0)
    graph = net.done(out=net.op("neg", net.op("mul", x, draw)))
    after = fuse_elementwise(graph)
    assert members(after) == [["mul", "neg"]]
    assert "uniform" in [n.op for n in after.nodes]
    assert_same(graph, after, 0.0)


def test_a_smaller_operand_is_not_computed_again_and_again(new_net: Any) -> None:
    net = new_net()
    scale = net.op("exp", net.input("s", 8))
    graph = net.done(out=net.op("mul", net.input("x", N, 8), scale))
    assert fuse_elementwise(graph) == graph


def test_a_merge_that_would_be_cyclic_does_not_happen(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x = net.input("x", N, 8)
    e = net.op("exp", x)
    soft = net.op("softmax", e, dim=1)
    graph = net.done(out=net.op("add", e, soft))
    after = fuse_elementwise(graph)
    assert members(after) == []
    assert_same(graph, after, 0.0)


def test_a_cycle_through_another_group_is_seen(new_net: Any, assert_same: Any) -> None:
    """a -> softmax -> b, where b shares a group with c, on which the group of a depends."""
    net = new_net()
    x = net.input("x", N, 8)
    a = net.op("exp", x)
    b = net.op("neg", net.op("softmax", a, dim=1))
    c = net.op("abs", b)
    other = net.op("softmax", c, dim=1)
    graph = net.done(out=net.op("add", net.op("mul", a, other), net.op("sin", c)))
    after = fuse_elementwise(graph)
    assert_same(graph, after, 0.0)
    assert sum(map(len, members(after))) <= 6


def test_state_alone_is_not_mixed_with_the_rest(new_net: Any, assert_same: Any) -> None:
    """What depends on parameters alone runs once; in one loop with an input it would not."""
    net = new_net()
    w = net.op("exp", net.op("neg", net.parameter("w", 8)))
    graph = net.done(out=net.op("neg", net.op("mul", net.input("x", 8), w)))
    after = fuse_elementwise(graph)
    assert members(after) == [["neg", "exp"], ["mul", "neg"]]
    assert len(plan_memory(after, hoist=True).prepare) == 1
    assert_same(graph, after, 0.0)


def test_state_that_the_graph_updates_is_no_obstacle(new_net: Any) -> None:
    net = new_net()
    w, g = net.parameter("w", 8), net.input("g", 8)
    decayed = net.op("mul", w, net.constant(0.9))
    net.graph.updates["w"] = net.op("sub", decayed, g)
    assert members(fuse_elementwise(net.graph)) == [["mul", "sub"]]


def test_groups_made_before_are_kept(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 8)
    once = fuse_elementwise(net.done(out=net.op("neg", net.op("exp", x))))
    assert fuse_elementwise(once) == once


def test_groups_have_a_largest_size(
    new_net: Any, assert_same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_GROUP", 8)
    net = new_net()
    value = net.input("x", N, 4)
    for _ in range(20):
        value = net.op("sin", value)
    graph = net.done(out=value)
    after = fuse_elementwise(graph)
    assert [len(m) for m in members(after)] == [8, 8, 4]
    assert_same(graph, after, 0.0)


def test_groups_have_a_largest_number_of_operands(
    new_net: Any, assert_same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPERANDS", 4)
    net = new_net()
    value = net.input("x", N)
    for i in range(10):
        value = net.op("add", value, net.input(f"y{i}", N))
    graph = net.done(out=value)
    after = fuse_elementwise(graph)
    assert all(len(n.operands) <= 4 for n in after.nodes)
    assert_same(graph, after, 0.0)


def test_integers_and_masks_share_a_loop(new_net: Any, assert_same: Any) -> None:
    net = new_net(int64)
    x, y = net.input("x", N, 4), net.input("y", N, 4)
    small = net.op("lt", x, y)
    graph = net.done(out=net.op("where", small, x, y), mask=net.op("logical_not", small))
    after = fuse_elementwise(graph)
    assert [sorted(m) for m in members(after)] == [["logical_not", "lt", "where"]]
    assert_same(graph, after, 0.0)


def test_thousands_of_operators_are_grouped(new_net: Any) -> None:
    """Quadratic behaviour would take minutes here."""
    net = new_net()
    values = [net.input("x", N, 4)]
    rng = np.random.default_rng(0)
    for _ in range(2000):
        a, b = (values[-1 - int(i)] for i in rng.integers(0, min(len(values), 6), 2))
        values.append(net.op("add", a, net.op("softmax", b, dim=1) if rng.random() < 0.1 else b))
    after = fuse_elementwise(net.done(out=values[-1]))
    assert sum(len(m) for m in members(after)) > 1000
