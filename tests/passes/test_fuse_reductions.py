"""fuse_reductions: the elementwise operand of a reduction is computed in its loop."""

from typing import Any

import pytest

from netwright.ir.graph import Graph
from netwright.ir.types import Dim, float64, int64
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.fuse_reductions import fuse_reductions
from netwright.passes.rewriting import Ledger

N = Dim(1)


def regions(graph: Graph) -> list[tuple[str, list[str]]]:
    found = []
    for node in graph.nodes:
        if node.op == "fused":
            ops = [n.op for n in node.attrs["body"].nodes if n.op != "input"]
            found.append((node.attrs["kind"], ops))
    return found


def test_a_region_before_a_reduction_is_absorbed(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    difference = net.op("sub", net.input("x", N, 8), net.input("y", N, 8))
    squared = net.op("square", difference)
    graph = net.done(out=net.op("mean", squared, dims=(0, 1), keepdim=False, module="loss"))
    ledger = Ledger()
    after = fuse_reductions(fuse_elementwise(graph), ledger)
    assert regions(after) == [("reduction", ["sub", "square", "mean"])]
    node = after.node("mean")
    assert node.source.module == "loss"
    assert [n.source.module for n in node.attrs["body"].nodes[-3:]] == ["layer1", "layer2", "loss"]
    assert [e.code for e in ledger.entries] == ["F401"]
    assert_same(graph, after, 1e-14)


@pytest.mark.parametrize("op", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize(("dims", "keepdim"), [((0,), False), ((1,), True), ((0, 1), False)])
def test_a_single_operator_is_absorbed(
    new_net: Any, assert_same: Any, op: str, dims: Any, keepdim: bool
) -> None:
    net = new_net()
    graph = net.done(
        out=net.op(op, net.op("exp", net.input("x", N, 8)), dims=dims, keepdim=keepdim)
    )
    after = fuse_reductions(graph)
    assert regions(after) == [("reduction", ["exp", op])]
    assert_same(graph, after, 0.0)


@pytest.mark.parametrize("op", ["all", "any"])
def test_quantifiers_absorb_comparisons(new_net: Any, assert_same: Any, op: str) -> None:
    net = new_net(int64)
    same = net.op("eq", net.input("x", N, 4), net.input("y", N, 4))
    graph = net.done(out=net.op(op, same, dims=(1,), keepdim=False))
    after = fuse_reductions(graph)
    assert regions(after) == [("reduction", ["eq", op])]
    assert_same(graph, after, 0.0)


def test_operands_that_broadcast_stay_small(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x, b = net.input("x", N, 3, 8), net.input("b", 3, 1)
    scaled = net.op("mul", net.op("sub", x, b), net.constant(0.5))
    graph = net.done(out=net.op("sum", scaled, dims=(0, 2), keepdim=False))
    after = fuse_reductions(fuse_elementwise(graph))
    assert regions(after) == [("reduction", ["sub", "constant", "mul", "sum"])]
    assert after.node("sum").operands == (x, b)
    assert_same(graph, after, 1e-5)


def test_an_operand_that_is_used_elsewhere_stays(new_net: Any) -> None:
    net = new_net()
    e = net.op("exp", net.input("x", N, 8))
    graph = net.done(
        total=net.op("sum", e, dims=(1,), keepdim=True), other=net.op("permute", e, dims=(1, 0))
    )
    ledger = Ledger()
    assert fuse_reductions(graph, ledger) == graph
    assert [(e.code, e.done) for e in ledger.entries] == [("F402", False)]


def test_an_operand_that_is_a_result_stays(new_net: Any) -> None:
    net = new_net()
    e = net.op("exp", net.input("x", N, 8))
    graph = net.done(total=net.op("sum", e, dims=(1,), keepdim=True), e=e)
    assert fuse_reductions(graph) == graph


def test_an_operand_that_two_reductions_read_stays(new_net: Any) -> None:
    net = new_net()
    e = net.op("exp", net.input("x", N, 8))
    graph = net.done(
        a=net.op("sum", e, dims=(1,), keepdim=True), b=net.op("amax", e, dims=(1,), keepdim=True)
    )
    assert fuse_reductions(graph) == graph


def test_a_region_of_two_results_stays(new_net: Any) -> None:
    net = new_net()
    e = net.op("exp", net.input("x", N, 8))
    n = net.op("neg", e)
    graph = fuse_elementwise(net.done(out=net.op("sum", n, dims=(1,), keepdim=True), e=e))
    ledger = Ledger()
    assert fuse_reductions(graph, ledger) == graph
    assert [e.code for e in ledger.entries] == ["F402"]


@pytest.mark.parametrize("alone", [False, True])
def test_random_numbers_stay_outside(new_net: Any, alone: bool) -> None:
    net = new_net()
    value = net.op("uniform", net.input("rng", 2, dtype=int64), shape=(N, 8), stream=0)
    if not alone:
        value = net.op("mul", value, net.input("x", N, 8))
    graph = fuse_elementwise(net.done(out=net.op("sum", value, dims=(1,), keepdim=False)))
    ledger = Ledger()
    assert fuse_reductions(graph, ledger) == graph
    assert [e.code for e in ledger.entries] == ["F402"]


def test_argmax_and_other_producers_stay(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 8)
    graph = net.done(
        index=net.op("argmax", net.op("exp", x), dim=1, keepdim=False),
        total=net.op("sum", net.op("softmax", x, dim=1), dims=(1,), keepdim=False),
        plain=net.op("sum", x, dims=(1,), keepdim=False),
    )
    assert fuse_reductions(graph) == graph


def test_a_reduction_of_a_reduction_is_two_regions(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    rows = net.op("sum", net.op("exp", net.input("x", N, 8)), dims=(1,), keepdim=False)
    graph = net.done(out=net.op("mean", net.op("log", rows), dims=(0,), keepdim=False))
    after = fuse_reductions(graph)
    assert regions(after) == [("reduction", ["exp", "sum"]), ("reduction", ["log", "mean"])]
    assert_same(graph, after, 1e-13)
