"""Computes the elementwise operand of a reduction inside the reduction's loop.

Before::

    %d: f32[N,10] = sub(%x, %y)
    %s: f32[N,10] = square(%d)
    %m: f32[] = mean(%s) {dims=(0,1), keepdim=False}

After::

    %m: f32[] = fused(%x, %y) {kind="reduction"} { sub, square, mean }

The operand, a single elementwise operator or an elementwise region of one result, is never written
to memory. Code F401; F402 declines.

Skips: an operand that is used elsewhere or is a result of the graph (F402); ``uniform`` in it,
whose draws need an index that the reduction's loop does not have (F402); argmax and argmin.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from .region import Group, build_regions
from .rewriting import Ledger

NAME = "fuse_reductions"
REDUCTIONS = ("sum", "mean", "amax", "amin", "all", "any")


def fuse_reductions(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with elementwise operands fused into their reductions."""
    groups = []
    for node in graph.nodes:
        if node.op not in REDUCTIONS:
            continue
        prologue = graph.node(node.operands[0])
        if not _is_elementwise(prologue):
            continue
        obstacle = _obstacle(graph, prologue)
        if obstacle:
            if ledger is not None:
                ledger.declined(NAME, "F402", node, obstacle)
            continue
        groups.append(Group((prologue.name, node.name), "reduction", node.name))
        if ledger is not None:
            ops = ", ".join(_ops(prologue))
            ledger.did(NAME, "F401", node, f"{node.op} computes its operand itself: {ops}")
    return build_regions(graph, groups)


def _is_elementwise(node: Node) -> bool:
    if node.op == "fused":
        return bool(node.attrs["kind"] == "elementwise")
    return get(node.op).kind == "elementwise"


def _obstacle(graph: Graph, prologue: Node) -> str:
    if len(prologue.types) > 1:
        return f"%{prologue.name} has other results, too"
    if graph.use_count(prologue.value) > 1:
        return f"%{prologue.name} is also used elsewhere"
    if "uniform" in _ops(prologue):
        return f"%{prologue.name} draws random numbers"
    return ""


def _ops(node: Node) -> list[str]:
    if node.op != "fused":
        return [node.op]
    body: Graph = node.attrs["body"]
    return [n.op for n in body.nodes if get(n.op).kind != "source"]
