"""schedule_updates: big updates at their gradient, small ones last, unless somebody could tell."""

from typing import Any

import pytest

from netwright.ir.graph import Graph
from netwright.ir.plan import Location
from netwright.ir.types import Dim, int64
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.plan_memory import plan_memory
from netwright.passes.rewriting import Ledger
from netwright.passes.schedule_updates import FEW, SMALL, schedule_updates

N = Dim(1)
WIDTH = 96
assert 4 * WIDTH * WIDTH > SMALL


def step(new_net: Any, case: str = "") -> Graph:
    """SGD of three layers with biases; all updates are written at the end of the graph."""
    net = new_net()
    lr, x = net.input("lr"), net.input("x", N, WIDTH)
    dy = net.input("dy", N, WIDTH)
    outputs: dict[str, Any] = {}
    if case == "checked":
        table, index = net.parameter("table", 9, 4), net.input("index", N, dtype=int64)
    gradients = []
    for k in range(3):
        w = net.parameter(f"w{k}", WIDTH, WIDTH)
        gradients.append((f"w{k}", w, net.op("linear_grad_weight", dy, x)))
        b = net.parameter(f"b{k}", WIDTH)
        gradients.append((f"b{k}", b, net.op("sum", dy, dims=(0,), keepdim=False)))
        dy = net.op("matmul", dy, w)
        if case == "checked" and k == 1:
            outputs["row"] = net.op("embedding", index, table, padding_idx=None)
    outputs["dx"] = dy
    for path, old, gradient in gradients:
        new = net.op("sub", old, net.op("mul", gradient, lr))
        net.graph.updates[path] = new
    if case == "old_state_is_output":
        outputs["old"] = gradients[0][1]
    if case == "result_is_output":
        outputs["new"] = net.graph.updates["w0"]
    if case == "result_is_read":
        outputs["next"] = net.op("sum", net.graph.updates["w0"], dims=(0, 1), keepdim=False)
    if case == "gradient_is_kept":
        net.graph.updates["w0"] = net.op("mul", gradients[0][2], lr)
    return fuse_elementwise(net.done(**outputs))


def place(graph: Graph, path: str) -> int:
    return [n.name for n in graph.nodes].index(graph.updates[path].node)


def readers(graph: Graph, path: str) -> list[int]:
    """Where the state is read, but for its own update."""
    names = [n.name for n in graph.nodes]
    (state,) = (n for n in graph.nodes if n.attrs.get("path") == path)
    return [names.index(u.name) for u in graph.users(state.value)]


def test_big_updates_follow_the_last_reader_and_small_ones_come_last(
    new_net: Any, assert_same: Any, values_of: Any, check_plan: Any
) -> None:
    graph, ledger = step(new_net), Ledger()
    after = schedule_updates(graph, ledger, few=0)
    assert [e.code for e in ledger.entries] == ["W101", "W102"]
    assert_same(graph, after, 0.0)
    for k in range(3):
        own = place(after, f"w{k}")
        assert sorted(readers(after, f"w{k}"))[-2:] == [own - 1, own]
    assert [place(after, f"b{k}") for k in range(3)] == [len(after.nodes) - i for i in (3, 2, 1)]
    plan = check_plan(after, values_of(after), 3)
    for path, value in after.updates.items():
        assert plan.locations[value] == Location("state:" + path)


def test_gradients_share_memory_that_all_needed_before(new_net: Any) -> None:
    graph = step(new_net)
    weight = 4 * WIDTH * WIDTH
    assert plan_memory(graph).fixed_bytes >= 3 * weight
    assert plan_memory(schedule_updates(graph, few=0)).fixed_bytes < 2 * weight


def test_gradients_that_are_few_together_wait_for_the_end(
    new_net: Any, assert_same: Any, values_of: Any, check_plan: Any
) -> None:
    graph, ledger = step(new_net), Ledger()
    assert 3 * 4 * WIDTH * WIDTH < FEW
    after = schedule_updates(graph, ledger)
    assert [e.code for e in ledger.entries] == ["W102"]
    assert_same(graph, after, 0.0)
    last = [after.updates[f"{kind}{k}"].node for kind in "wb" for k in range(3)]
    assert [n.name for n in after.nodes][-6:] == last
    check_plan(after, values_of(after), 3)


@pytest.mark.parametrize(
    "case", ["old_state_is_output", "result_is_output", "result_is_read", "gradient_is_kept"]
)
def test_an_update_stays_where_it_is_if_somebody_could_tell(
    new_net: Any, assert_same: Any, values_of: Any, check_plan: Any, case: str
) -> None:
    graph = step(new_net, case)
    after = schedule_updates(graph, few=0)
    assert place(after, "w0") > max(place(after, "w1"), place(after, "w2"))
    assert_same(graph, after, 0.0)
    check_plan(after, values_of(after), 3)


def test_no_update_comes_before_the_last_look_at_an_index(new_net: Any) -> None:
    after = schedule_updates(step(new_net, "checked"), few=0)
    check = [n.op for n in after.nodes].index("embedding")
    assert all(place(after, f"w{k}") > check for k in range(3))
    plan = plan_memory(after)
    assert plan.locations[after.updates["w2"]] == Location("state:w2")


def test_sums_of_gradients_are_not_put_off(new_net: Any) -> None:
    """Others may wait for them: data-parallel training sends them while the rest is computed."""
    net = new_net()
    dy, x = net.input("dy", N, 8), net.input("x", N, 4)
    kept = net.buffer("grad:b", 8)
    net.graph.updates["grad:b"] = net.op("add", kept, net.op("sum", dy, dims=(0,), keepdim=False))
    graph = net.done(out=net.op("exp", x))
    names = [n.op for n in schedule_updates(graph).nodes]
    assert names.index("add") == names.index("sum") + 1 < names.index("exp")


def test_a_graph_without_updates_stays_as_it_is(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("exp", net.input("x", N, 4)))
    assert schedule_updates(graph, ledger := Ledger()) is graph
    assert not ledger.entries
