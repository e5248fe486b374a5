"""Computes the elementwise operand of a reduction inside the reduction's loop.

Before::

    %d: f32[N,10] = sub(%x, %y)
    %s: f32[N,10] = square(%d)
    %m: f32[] = mean(%s) {dims=(0,1), keepdim=False}

After::

    %m: f32[] = fused(%x, %y) {kind="reduction"} { sub, square, mean }

The operand, a single elementwise operator or an elementwise region of one result, is never written
to memory. Code F401; F402 declines. The sums of batch normalisation (``split_batch_norm.py``) are
sweeps over whole tensors: they write the operand if it is used elsewhere, too.

Skips: an operand that is used elsewhere or is a result of the graph (F402; not for the sums of
batch normalisation); ``uniform`` in it, whose draws need an index that the reduction's loop does
not have (F402); argmax and argmin; for the sums, operands that are neither of all rows nor per
channel, and what another operand of the sums depends on (F402).
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from .region import Group, build_regions, is_elementwise
from .rewriting import Ledger

NAME = "fuse_reductions"
REDUCTIONS = ("sum", "mean", "amax", "amin", "all", "any")
SUMS = ("batch_norm_moments", "batch_norm_grad_sums")
"""Sweeps over whole tensors that can write what they sum, if it is used elsewhere, too."""


def fuse_reductions(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with elementwise operands fused into their reductions."""
    groups: list[Group] = []
    taken: dict[str, Group] = {}
    for node in graph.nodes:
        if node.op not in (*REDUCTIONS, *SUMS):
            continue
        prologue = graph.node(node.operands[0])
        if not is_elementwise(prologue) or prologue.name in taken:
            continue
        sums = node.op in SUMS
        group = Group((prologue.name, node.name), "reduction", node.name)
        obstacle = _sums_obstacle(graph, group, taken) if sums else _obstacle(graph, prologue)
        if obstacle:
            if ledger is not None:
                ledger.declined(NAME, "F402", node, obstacle)
            continue
        taken.update(dict.fromkeys(group.members, group))
        groups.append(group)
        if ledger is not None:
            ops = ", ".join(_ops(prologue))
            ledger.did(NAME, "F401", node, f"{node.op} computes its operand itself: {ops}")
    return build_regions(graph, groups)


def _obstacle(graph: Graph, prologue: Node) -> str:
    if len(prologue.types) > 1:
        return f"%{prologue.name} has other results, too"
    if graph.use_count(prologue.value) > 1:
        return f"%{prologue.name} is also used elsewhere"
    return _random(prologue)


def _random(prologue: Node) -> str:
    return f"%{prologue.name} draws random numbers" if "uniform" in _ops(prologue) else ""


def _sums_obstacle(graph: Graph, group: Group, taken: dict[str, Group]) -> str:
    """For sums per channel, in the last dimension, of rows that they may write, too."""
    prologue, sums = (graph.node(name) for name in group.members)
    shape = graph.type(sums.operands[0]).shape
    for value in prologue.operands:
        kind = graph.type(value).shape
        per_channel = all(d == 1 for d in kind[:-1]) and kind[-1:] in ((), (1,), shape[-1:])
        if kind != shape and not per_channel:
            return f"{value} is neither of the rows nor per channel"
    if any(t.shape != shape for t in prologue.types):
        return f"%{prologue.name} has results of other shapes"
    if _needs_itself(graph, group, taken):
        return f"other operands of %{sums.name} depend on %{prologue.name}"
    return _random(prologue)


def _needs_itself(graph: Graph, group: Group, taken: dict[str, Group]) -> bool:
    """Whether a region of the group would depend on itself by way of nodes and regions outside."""
    inside = set(group.members)
    pending = [v.node for m in inside for v in graph.node(m).operands if v.node not in inside]
    seen = set(pending)
    while pending:
        name = pending.pop()
        unit = taken[name].members if name in taken else (name,)
        operands = {v.node for m in unit for v in graph.node(m).operands}
        if operands & inside:
            return True
        pending += operands - seen
        seen |= operands
    return False


def _ops(node: Node) -> list[str]:
    if node.op != "fused":
        return [node.op]
    body: Graph = node.attrs["body"]
    return [n.op for n in body.nodes if get(n.op).kind != "source"]
