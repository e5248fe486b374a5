"""The graph IR: nodes, values, and the four verbs of graph surgery.

A graph is a list of nodes in topological order. Operands are a tuple on the node, the truth; an
index of the users of each node is derived from it, and ``Graph.digraph`` gives the networkx digraph
for everything that is a graph algorithm (a plain digraph would merge the two edges of ``add(x, x)``
and lose the order of operands).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..errors import DTypeError, NetwrightError, ShapeError, VerifyError
from .ops.record import infer_types
from .types import TensorType


class Value(NamedTuple):
    """One result of a node; its text is ``%name``, or ``%name#1`` for the second result."""

    node: str
    index: int = 0  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"%{self.node}#{self.index}" if self.index else f"%{self.node}"


@dataclass(frozen=True)
class Source:
    """Where a node comes from: the module's path and the line of the user's program."""

    module: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else ""
        return " at ".join(part for part in (self.module, place) if part)


NOWHERE = Source()


class Attrs(Mapping[str, Any]):
    """Immutable attributes of a node; equality looks into arrays (NaN equals NaN)."""

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        self._items = dict(items or {})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping) or self.keys() != other.keys():
            return False
        return all(_same(v, other[k]) for k, v in self._items.items())

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._items)))

    def __repr__(self) -> str:
        return repr(self._items)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return repr(a) == repr(b)  # -0.0 is not 0.0, NaN is NaN
    return type(a) is type(b) and bool(a == b)


@dataclass(frozen=True)
class Node:
    """An operation: its name, ordered operands, attributes, result types and source."""

    name: str
    op: str
    operands: tuple[Value, ...]
    attrs: Attrs
    types: tuple[TensorType, ...]
    source: Source = field(default=NOWHERE, compare=False)

    @property
    def type(self) -> TensorType:
        """Type of the first result."""
        return self.types[0]

    @property
    def value(self) -> Value:
        """The first result."""
        return self.values[0]

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """All results."""
        return tuple(Value(self.name, i) for i in range(len(self.types)))


SOURCE_OPS = ("input", "parameter", "buffer", "constant")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Graph:
    """Nodes in topological order, named outputs, and named updates of state.

    ``outputs`` maps a name to a value; ``updates`` maps the path of a parameter, buffer or
    optimizer state to the value that the runtime commits to it after a run.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.outputs: dict[str, Value] = {}
        self.updates: dict[str, Value] = {}
        self._nodes: dict[str, Node] = {}
        self._users: dict[str, dict[str, None]] = {}
        self._counters: dict[str, int] = {}
        self._ordered = True

    # -- the four verbs ---------------------------------------------------------------------

    def add(
        self,
        op: str,
        *operands: Value,
        name: str | None = None,
        source: Source | None = None,
        **attrs: Any,
    ) -> Any:
        """Appends a node; returns its value, or a tuple for an operator with several results.

        The operator's shape rule runs at once, so every value has a type.
        """
        for operand in operands:
            if not isinstance(operand, Value) or operand.node not in self._nodes:
                raise NetwrightError(f"{op}: operand {operand} is not a value of this graph")
        try:
            types = infer_types(op, [self.type(v) for v in operands], attrs)
        except (ShapeError, DTypeError) as error:
            where = f" ({source})" if source and str(source) else ""
            raise type(error)(f"{error}{where}") from None
        node = Node(
            self._fresh_name(name or op),
            op,
            tuple(operands),
            Attrs(attrs),
            types,
            source or NOWHERE,
        )
        self._insert(node)
        return node.values if len(types) > 1 else node.value

    def add_copy(self, node: Node, operands: Sequence[Value], origin: Graph) -> tuple[Value, ...]:
        """Appends what ``node`` of the graph ``origin`` does, on operands of this graph.

        Operands of the same types give the same results, so the shape rule runs only for others.
        """
        for new, old in zip(operands, node.operands, strict=True):
            if self.type(new) != origin.type(old):
                result = self.add(
                    node.op, *operands, name=node.name, source=node.source, **node.attrs
                )
                return (result,) if isinstance(result, Value) else result
        name = self._fresh_name(node.name)
        uses = tuple(operands)
        if name != node.name or uses != node.operands:
            node = Node(name, node.op, uses, node.attrs, node.types, node.source)
        self._insert(node)
        return node.values

    def replace_uses(self, old: Value, new: Value) -> None:
        """Makes every user of ``old``, and the graph's results, use ``new`` instead."""
        if self.type(old) != self.type(new):
            raise VerifyError(f"cannot replace {old}: {self.type(old)} by {new}: {self.type(new)}")
        for user in self.users(old):
            if user.name == new.node:
                continue
            operands = tuple(new if v == old else v for v in user.operands)
            self._forget_uses(user)
            self._insert(replace(user, operands=operands))
        for results in (self.outputs, self.updates):
            for key, value in results.items():
                if value == old:
                    results[key] = new
        self._ordered = False

    def erase(self, name: str) -> None:
        """Removes a node that nothing uses."""
        users = [u.name for u in self.users(name)]
        results = [k for d in (self.outputs, self.updates) for k, v in d.items() if v.node == name]
        if users or results:
            raise VerifyError(f"cannot erase %{name}: used by {', '.join(users + results)}")
        self._forget_uses(self._nodes.pop(name))
        del self._users[name]

    def users(self, value: Value | str) -> tuple[Node, ...]:
        """The nodes that use a value (or any result of the named node), in order."""
        name = value if isinstance(value, str) else value.node
        found = [self._nodes[user] for user in self._users[name]]
        if isinstance(value, Value):
            found = [u for u in found if value in u.operands]
        return tuple(found)

    def ancestors(self, values: Iterable[Value]) -> set[str]:
        """Names of the nodes on which the values depend, their own included."""
        pending = [v.node for v in values]
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending += [v.node for v in self.node(name).operands]
        return seen

    # -- reading ----------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """All nodes in a deterministic topological order."""
        if not self._ordered:
            self._sort()
            self._ordered = True
        return list(self._nodes.values())

    def digraph(self) -> Any:
        """A new ``networkx.DiGraph``: the nodes' names, an edge from each node to its users."""
        import networkx as nx

        digraph = nx.DiGraph()
        digraph.add_nodes_from(self._nodes)
        digraph.add_edges_from((name, user) for name in self._users for user in self._users[name])
        return digraph

    def node(self, ref: str | Value) -> Node:
        """The node of a name or value."""
        name = ref if isinstance(ref, str) else ref.node
        try:
            return self._nodes[name]
        except KeyError:
            raise NetwrightError(f"graph {self.name!r} has no node %{name}") from None

    def type(self, value: Value) -> TensorType:
        """The type of a value."""
        node = self._nodes.get(value.node) or self.node(value)
        return node.types[value.index]

    def sources(self, kind: str) -> list[Node]:
        """The ``input``, ``parameter``, ``buffer`` or ``constant`` nodes."""
        return [n for n in self.nodes if n.op == kind]

    def is_result(self, value: Value | str) -> bool:
        """Whether the value (or any result of the named node) is an output or an update."""
        results = (*self.outputs.values(), *self.updates.values())
        if isinstance(value, str):
            return any(v.node == value for v in results)
        return value in results

    def use_count(self, value: Value) -> int:
        """How often a value is used: operands of nodes, outputs and updates."""
        uses = sum(u.operands.count(value) for u in self.users(value))
        results = (*self.outputs.values(), *self.updates.values())
        return uses + sum(v == value for v in results)

    def copy(self) -> Graph:
        """An independent graph with the same (immutable) nodes."""
        other = Graph(self.name)
        other.outputs = dict(self.outputs)
        other.updates = dict(self.updates)
        for node in self.nodes:
            other._insert(node)
        other._counters = dict(self._counters)
        return other

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Graph)
            and self.name == other.name
            and self.nodes == other.nodes
            and list(self.outputs.items()) == list(other.outputs.items())
            and list(self.updates.items()) == list(other.updates.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        from .text import format_graph

        return format_graph(self)

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self)} nodes>"

    # -- internals --------------------------------------------------------------------------

    def insert(self, node: Node) -> None:
        """Appends a finished node under its own name (the parser and copies use it)."""
        if node.name in self._nodes:
            raise NetwrightError(f"%{node.name} is defined twice")
        for operand in node.operands:
            if operand.node not in self._nodes:
                raise NetwrightError(f"%{node.name} uses {operand} before its definition")
        self._insert(node)

    def _insert(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._users.setdefault(node.name, {})
        for operand in node.operands:
            self._users[operand.node][node.name] = None

    def _forget_uses(self, node: Node) -> None:
        for operand in node.operands:
            self._users[operand.node].pop(node.name, None)

    def _sort(self) -> None:
        import networkx as nx

        digraph = self.digraph()
        rank = {name: i for i, name in enumerate(self._nodes)}
        order = nx.lexicographical_topological_sort(digraph, key=rank.__getitem__)
        try:
            self._nodes = {name: self._nodes[name] for name in order}
        except nx.NetworkXUnfeasible:
            cycle = " -> ".join("%" + a for a, _ in nx.find_cycle(digraph))
            raise VerifyError(f"graph {self.name!r} has a cycle: {cycle}") from None

    def _fresh_name(self, wanted: str) -> str:
        if not _IDENTIFIER.fullmatch(wanted):
            wanted = re.sub(r"\W", "_", wanted)
            if not wanted or wanted[0].isdigit():
                wanted = "_" + wanted
        if wanted not in self._nodes:
            return wanted
        number = self._counters.get(wanted, 0) + 1
        while f"{wanted}_{number}" in self._nodes:
            number += 1
        self._counters[wanted] = number
        return f"{wanted}_{number}"
