"""fuse_update: the kernel of a weight's gradient updates the weight, unless somebody could tell."""

from typing import Any

import pytest

from netwright.ir.graph import Graph
from netwright.ir.plan import Location
from netwright.ir.types import Dim, int64
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.fuse_update import fuse_update
from netwright.passes.rewriting import Ledger
from netwright.passes.schedule_updates import schedule_updates

N = Dim(1)


def step(new_net: Any, case: str = "") -> Graph:
    """SGD with momentum of one layer, whose weight the gradient of its input reads, too."""
    net = new_net()
    dy, x = net.input("dy", N, 6), net.input("x", N, 4)
    lr, momentum = net.input("lr"), net.input("momentum")
    w, v = net.parameter("w", 6, 4), net.buffer("v", 6, 4)
    outputs: dict[str, Any] = {}
    g = net.op("linear_grad_weight", dy, x, module="layer")
    if case == "clipped":
        outputs["norm"] = net.op("sum", net.op("square", g), dims=(0, 1), keepdim=False)
    if case == "gradient_is_output":
        outputs["g"] = g
    scaled = net.op("mul", g, net.input("rows", 6, 1)) if case == "other_shape" else g
    new_v = net.op("add", net.op("mul", v, momentum), scaled)
    new_w = net.op("sub", w, net.op("mul", new_v, lr))
    if case == "random":
        key = net.input("key", 2, dtype=int64)
        new_w = net.op("mul", new_w, net.op("uniform", key, shape=(6, 4), stream=1))
    net.graph.updates |= {"w": new_w, "v": new_v}
    outputs["dx"] = net.op("matmul", dy, w)
    if case == "old_state_is_output":
        outputs["old"] = w
    if case == "result_is_read":
        outputs["next"] = net.op("sum", new_w, dims=(0, 1), keepdim=False)
    if case == "checked_later":
        table, index = net.parameter("table", 9, 4), net.input("index", N, dtype=int64)
        outputs["row"] = net.op("embedding", index, table, padding_idx=None)
    return fuse_elementwise(net.done(**outputs))


def bodies(graph: Graph) -> list[list[str]]:
    return [
        [n.op for n in node.attrs["body"].nodes if n.op != "input"]
        for node in graph.nodes
        if node.op == "fused" and node.attrs["kind"] == "contraction"
    ]


def test_the_update_joins_the_gradient_and_writes_over_the_state(
    new_net: Any, assert_same: Any, values_of: Any, check_plan: Any
) -> None:
    graph, ledger = step(new_net), Ledger()
    after = fuse_update(graph, ledger)
    assert bodies(after) == [["linear_grad_weight", "mul", "add", "mul", "sub"]]
    assert [e.code for e in ledger.entries] == ["F501"]
    assert_same(graph, after, 0.0)
    placed = schedule_updates(after)
    order = [n.op for n in placed.nodes]
    assert order.index("fused") > order.index("matmul"), "the old weight is still to be read"
    plan = check_plan(placed, values_of(placed), 3)
    for path in ("w", "v"):
        assert plan.locations[placed.updates[path]] == Location("state:" + path)


@pytest.mark.parametrize(
    "case",
    ["clipped", "gradient_is_output", "other_shape", "random", "old_state_is_output",
     "result_is_read", "checked_later"],
)  # fmt: skip
def test_it_stays_alone_where_somebody_could_tell(new_net: Any, case: str) -> None:
    graph, ledger = step(new_net, case), Ledger()
    assert bodies(fuse_update(graph, ledger)) == []
    assert [e.code for e in ledger.entries] == ["F502"]


def test_it_stays_alone_where_it_is_not_faster(new_net: Any) -> None:
    asked = []

    def never(weight: Any, arrays: int) -> bool:
        asked.append((weight.shape, arrays))
        return False

    ledger = Ledger()
    assert bodies(fuse_update(step(new_net), ledger, never)) == []
    assert asked == [((6, 4), 2)]
    assert "not faster" in ledger.entries[0].message


def test_one_of_two_gradients_of_a_shared_weight_takes_the_update(
    new_net: Any, assert_same: Any
) -> None:
    net = new_net()
    w, lr = net.parameter("w", 6, 4), net.input("lr")
    parts = [
        net.op("linear_grad_weight", net.input(f"dy{k}", N, 6), net.input(f"x{k}", N, 4))
        for k in range(2)
    ]
    net.graph.updates["w"] = net.op("sub", w, net.op("mul", net.op("add", *parts), lr))
    graph = fuse_elementwise(net.done(out=net.op("exp", lr)))
    after = fuse_update(graph)
    assert len(bodies(after)) == 1
    assert sum(n.op == "linear_grad_weight" for n in after.nodes) == 1
    assert_same(graph, after, 0.0)
