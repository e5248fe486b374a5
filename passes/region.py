"""Turning sets of nodes into ``fused`` nodes with a body, all of a graph at once."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from ..errors import NetwrightError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get


@dataclass(frozen=True)
class Group:
    """Nodes that become one ``fused`` node: their names in topological order, the region's kind,
    and the member from which the region takes name and source."""

    members: tuple[str, ...]
    kind: str
    named_after: str


def build_regions(graph: Graph, groups: Sequence[Group]) -> Graph:
    """The graph with each group replaced by one ``fused`` node.

    Operands are the values from outside in order of first use; constants of one element and extents
    move into the body. Results are the members' values that are used outside. A member that is a
    region itself is inlined. Groups are disjoint, and no path may lead from a member over a node
    outside of its group back to a member (NetwrightError).
    """
    if not groups:
        return graph
    new = Graph(graph.name)
    env: dict[Value, Value] = {}
    escaping = _escaping(graph, groups)
    for unit in _ordered_units(graph, groups):
        if isinstance(unit, Group):
            _emit_region(graph, new, unit, env, escaping)
        else:
            results = new.add_copy(unit, [env[v] for v in unit.operands], graph)
            env.update(zip(unit.values, results, strict=True))
    new.outputs = {k: env[v] for k, v in graph.outputs.items()}
    new.updates = {k: env[v] for k, v in graph.updates.items()}
    return new


def is_immediate(node: Node) -> bool:
    """Whether a region holds the node itself instead of taking its value as an operand."""
    return (node.op == "constant" and node.attrs["value"].size == 1) or node.op == "extent"


def is_elementwise(node: Node) -> bool:
    """Whether a node is an elementwise operator, or a loop of such operators."""
    if node.op == "fused":
        return bool(node.attrs["kind"] == "elementwise")
    return get(node.op).kind == "elementwise"


def anchor_of(node: Node, operators: Container[str]) -> Node | None:
    """The node itself or, in a region of a contraction, the member that is one of ``operators``."""
    if node.op in operators:
        return node
    if node.op != "fused" or node.attrs["kind"] != "contraction":
        return None
    body: Graph = node.attrs["body"]
    return next((n for n in body.nodes if n.op in operators), None)


def external_operands(graph: Graph, members: Sequence[str]) -> set[Value]:
    """The operands that a region of these members would have."""
    inside = set(members)
    return {
        v
        for name in members
        for v in graph.node(name).operands
        if v.node not in inside and not is_immediate(graph.node(v))
    }


def _escaping(graph: Graph, groups: Sequence[Group]) -> set[Value]:
    """Values of members that are results of the graph or are used outside of their group."""
    home = {name: i for i, g in enumerate(groups) for name in g.members}
    found = {*graph.outputs.values(), *graph.updates.values()}
    for node in graph.nodes:
        own = home.get(node.name, -1)
        found.update(v for v in node.operands if home.get(v.node, own) != own)
    return found


def _ordered_units(graph: Graph, groups: Sequence[Group]) -> Iterator[Group | Node]:
    """Groups and single nodes in a topological order: each as late as its last member, or earlier
    where one that comes before needs it."""
    group_of = {name: g for g in groups for name in g.members}
    done: dict[str, bool] = {}
    for start in graph.nodes:
        own = group_of.get(start.name)
        pending = [(start.name, False)] if own is None or start.name == own.members[-1] else []
        while pending:
            name, ready = pending.pop()
            group = group_of.get(name)
            members = group.members if group is not None else (name,)
            key = members[0]
            if ready:
                done[key] = True
                yield group if group is not None else graph.node(name)
            elif key not in done:
                done[key] = False
                pending.append((name, True))
                operands = [v.node for m in members for v in graph.node(m).operands]
                pending += [(n, False) for n in reversed(operands) if n not in members]
            elif not done[key]:
                raise NetwrightError(
                    f"graph {graph.name!r}: a region would depend on itself by way of "
                    f"%{', %'.join(members)}: a bug in the pass that grouped these nodes"
                )


class _Body:
    """The body of one region while it is made."""

    def __init__(self, graph: Graph, kind: str) -> None:
        self.graph = graph
        self.body = Graph(kind)
        self.env: dict[Value, Value] = {}
        self.operands: list[Value] = []

    def add(self, node: Node) -> None:
        """Adds a member."""
        operands = [self._value(v) for v in node.operands]
        if node.op == "fused":
            results = self._inline(node.attrs["body"], operands)
        else:
            results = self.body.add_copy(node, operands, self.graph)
        self.env.update(zip(node.values, results, strict=True))

    def _value(self, value: Value) -> Value:
        """The value inside the body; from outside, it becomes an operand."""
        if value not in self.env:
            producer = self.graph.node(value)
            if is_immediate(producer):
                (self.env[value],) = self.body.add_copy(producer, [], self.graph)
            else:
                path = str(len(self.operands))
                self.operands.append(value)
                self.env[value] = self.body.add(
                    "input", name="arg" + path, path=path, type=self.graph.type(value)
                )
        return self.env[value]

    def _inline(self, inner: Graph, operands: list[Value]) -> tuple[Value, ...]:
        env: dict[Value, Value] = {}
        for node in inner.nodes:
            if node.op == "input":
                env[node.value] = operands[int(node.attrs["path"])]
            else:
                results = self.body.add_copy(node, [env[v] for v in node.operands], inner)
                env.update(zip(node.values, results, strict=True))
        return tuple(env[v] for v in inner.outputs.values())


def _emit_region(
    graph: Graph, new: Graph, group: Group, env: dict[Value, Value], escaping: set[Value]
) -> None:
    made = _Body(graph, group.kind)
    for name in group.members:
        made.add(graph.node(name))
    results = [v for name in group.members for v in graph.node(name).values if v in escaping]
    made.body.outputs = {str(i): made.env[v] for i, v in enumerate(results)}
    if not results:
        return  # nothing uses the region
    leader = graph.node(group.named_after)
    value = new.add(
        "fused",
        *(env[v] for v in made.operands),
        name=leader.name,
        source=leader.source,
        kind=group.kind,
        body=made.body,
    )
    values = (value,) if isinstance(value, Value) else value
    env.update(zip(results, values, strict=True))
