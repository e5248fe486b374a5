"""Fuses chains and trees of elementwise operators into one loop over memory.

Before::

    %a: f32[N,8] = mul(%x, %y)
    %b: f32[N,8] = add(%a, %z)
    %c: f32[N,8] = relu(%b)

After::

    %c: f32[N,8] = fused(%x, %y, %z) {kind="elementwise"} { mul, add, relu }

A value inside a group that is used outside of it becomes one more result of the group (code F301).
An operator alone becomes a region if a constant or a batch-dependent count is among its operands:
inside a region these are immediate operands and not read from memory (code F302). ``uniform`` may
be in a group: the shape of its draws is the shape of the loop.

Skips: operators whose results differ in shape (a producer of a smaller, broadcast shape is not
recomputed); a merge that would make the graph cyclic; a merge of what depends on parameters alone
with what does not (the former runs once, not in every call); groups of more than 64 operators or
with more than 24 operands; ``fused`` groups made before.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from .region import Group, build_regions, external_operands, is_immediate
from .rewriting import Ledger
from .state import state_only

NAME = "fuse_elementwise"
MAX_GROUP = 64
MAX_OPERANDS = 24


def fuse_elementwise(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with elementwise operators grouped."""
    groups = _Groups(graph)
    for node in graph.nodes:
        if get(node.op).kind == "elementwise":
            groups.place(node)
    found = []
    for members in groups.members.values():
        nodes = [graph.node(name) for name in members]
        if len(nodes) == 1 and not _has_immediate(graph, nodes[0]):
            continue
        found.append(Group(tuple(members), "elementwise", members[-1]))
        if ledger is not None:
            _report(ledger, nodes)
    return build_regions(graph, found)


def _report(ledger: Ledger, nodes: list[Node]) -> None:
    ops = ", ".join(n.op for n in nodes)
    if len(nodes) == 1:
        ledger.did(NAME, "F302", nodes[0], f"{ops} with its constants as immediate operands")
    else:
        ledger.did(NAME, "F301", nodes[-1], f"{len(nodes)} operators in one loop: {ops}")


def _has_immediate(graph: Graph, node: Node) -> bool:
    return any(is_immediate(graph.node(v)) for v in node.operands)


class _Groups:
    """Grows groups in topological order; a merge must not make the grouped graph cyclic."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.position = {n.name: i for i, n in enumerate(graph.nodes)}
        self.prepared = state_only(graph)
        self.group_of: dict[str, int] = {}
        self.members: dict[int, list[str]] = {}
        self._made = 0

    def place(self, node: Node) -> None:
        """Puts a node into the groups of its operands, which it joins into one where it can."""
        own = self._made
        self._made += 1
        self.members[own] = [node.name]
        self.group_of[node.name] = own
        for operand in reversed(node.operands):
            other = self.group_of.get(operand.node)
            if other is not None and other != own and self._mergeable(other, own):
                own = self._merge(other, own)

    def _merge(self, kept: int, absorbed: int) -> int:
        names = self.members[kept] + self.members.pop(absorbed)
        self.members[kept] = sorted(names, key=self.position.__getitem__)
        for name in names:
            self.group_of[name] = kept
        return kept

    def _mergeable(self, a: int, b: int) -> bool:
        first, second = self.members[a], self.members[b]
        one, other = self.graph.node(first[0]), self.graph.node(second[0])
        if one.type.shape != other.type.shape or len(first) + len(second) > MAX_GROUP:
            return False
        if (one.name in self.prepared) != (other.name in self.prepared):
            return False
        if len(external_operands(self.graph, [*first, *second])) > MAX_OPERANDS:
            return False
        return not (self._path(first, second) or self._path(second, first))

    def _path(self, source: list[str], target: list[str]) -> bool:
        """Whether a path leads from ``source`` over something outside of both to ``target``."""
        earliest = min(map(self.position.__getitem__, source))
        sources, both = set(source), {*source, *target}
        pending = [n for n in self._operands(target) if n not in both]
        seen = set(pending)
        while pending:
            unit = self._unit(pending.pop())
            if max(map(self.position.__getitem__, unit)) < earliest:
                continue
            for name in self._operands(unit):
                if name in sources:
                    return True
                if name not in seen and name not in both:
                    seen.add(name)
                    pending.append(name)
        return False

    def _unit(self, name: str) -> list[str]:
        """All that has to be computed at once with a node: its group."""
        group = self.group_of.get(name)
        return [name] if group is None else self.members[group]

    def _operands(self, names: Iterable[str]) -> list[str]:
        return [v.node for n in names for v in self.graph.node(n).operands]
