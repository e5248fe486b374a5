"""Fuses chains and trees of elementwise operators into one loop over memory.

Before::

    %a: f32[N,8] = mul(%x, %y)
    %b: f32[N,8] = add(%a, %z)
    %c: f32[N,8] = relu(%b)

After::

    %c: f32[N,8] = fused(%x, %y, %z) {kind="elementwise"} { ... }

A value inside a group that is used outside of it becomes one more result of the group.

Skips: operators whose results differ in shape (a producer of a smaller, broadcast shape is not
recomputed); a merge that would make the graph cyclic; ``fused`` groups made before.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from .region import build_region
from .rewriting import Ledger

NAME = "fuse_elementwise"
MAX_GROUP = 64
MAX_OPERANDS = 24


def fuse_elementwise(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with elementwise operators grouped."""
    groups = _Groups(graph)
    for node in graph.nodes:
        if get(node.op).kind == "elementwise" and node.op != "uniform":
            groups.place(node)
    merged = [g for g in groups.members.values() if len(g) > 1]
    new = graph
    for members in merged:
        nodes = [graph.node(name) for name in members]
        new = build_region(new, [n.name for n in nodes], "elementwise")
        if ledger is not None:
            ops = ", ".join(n.op for n in nodes)
            ledger.did(NAME, "F301", nodes[-1], f"{len(nodes)} operators in one loop: {ops}")
    return new


class _Groups:
    """Grows groups in topological order; a merge must not make the grouped graph cyclic."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.group_of: dict[str, int] = {}
        self.members: dict[int, list[str]] = {}

    def place(self, node: Node) -> None:
        for operand in reversed(node.operands):
            group = self.group_of.get(operand.node)
            if group is not None and self._fits(node, group):
                self.members[group].append(node.name)
                self.group_of[node.name] = group
                return
        group = len(self.members)
        self.members[group] = [node.name]
        self.group_of[node.name] = group

    def _fits(self, node: Node, group: int) -> bool:
        names = self.members[group]
        if len(names) >= MAX_GROUP or self.graph.node(names[0]).type.shape != node.type.shape:
            return False
        if len(self._external(names) | self._external([node.name])) > MAX_OPERANDS:
            return False
        outside = [v.node for v in node.operands if self.group_of.get(v.node) != group]
        return not self._reaches(outside, set(names))

    def _external(self, names: list[str]) -> set[Value]:
        inside = set(names)
        return {v for n in names for v in self.graph.node(n).operands if v.node not in inside}

    def _reaches(self, start: list[str], targets: set[str]) -> bool:
        """Whether any start depends on a target, walking whole groups at once."""
        pending, seen = list(start), set(start)
        while pending:
            name = pending.pop()
            if name in targets:
                return True
            group = self.group_of.get(name)
            unit = self.members[group] if group is not None else [name]
            for member in unit:
                for v in self.graph.node(member).operands:
                    if v.node not in seen:
                        seen.add(v.node)
                        pending.append(v.node)
        return False
