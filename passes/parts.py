"""Which values lie inside of others: the operands of a concatenation, the results of a split.

A ``cat`` along the last dimension moves nothing if the kernels of its operands write their columns
into its memory. That asks for kernels that leave a distance between rows, so the caller says which
ones can; all others get values of their own memory, and the ``cat`` copies. DenseNet's growing
concatenations are prefixes of the last one of a block, and lie in its memory. A ``slice`` of
columns is a part of its operand in the same way, if all that read it can.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ..ir.graph import SOURCE_OPS, Graph, Node, Value
from ..ir.plan import Columns


@dataclass(frozen=True)
class Part:
    """Columns ``column`` and following of the value ``whole``."""

    whole: Value
    column: int


Accepts = Callable[[Node, Graph], Columns]


@dataclass
class Parts:
    """``place`` maps values (those that reshapes rename) to what they are part of; the nodes
    ``elided`` have nothing to do."""

    place: dict[Value, Part] = field(default_factory=dict)
    elided: set[str] = field(default_factory=set)


def find_parts(
    graph: Graph, root: Mapping[Value, Value], accepts: Accepts, excluded: Collection[str]
) -> Parts:
    """The parts of a graph; ``root`` maps values to what reshapes rename.

    Not placed: results of the graph and state, the values of ``excluded`` nodes, and a
    concatenation that is an update, because state may only be written at the end.
    """
    return _Finder(graph, root, accepts, excluded).run()


class _Finder:
    def __init__(
        self, graph: Graph, root: Mapping[Value, Value], accepts: Accepts, excluded: Collection[str]
    ) -> None:
        self.graph, self.root, self.accepts, self.excluded = graph, root, accepts, excluded
        self.known: dict[str, Columns] = {}
        self.found = Parts()
        self.names: dict[Value, list[Value]] = {}
        self.uses: dict[Value, list[tuple[Node, int]]] = {}
        for value, origin in root.items():
            self.names.setdefault(origin, []).append(value)
        for node in graph.nodes:
            if node.op != "reshape":
                for i, v in enumerate(node.operands):
                    self.uses.setdefault(root[v], []).append((node, i))
        self.updated = {root[v] for v in graph.updates.values()}
        self.kept = self.updated | {root[v] for v in graph.outputs.values()}

    def run(self) -> Parts:
        nodes = [n for n in self.graph.nodes if self._moves_columns(n)]
        # The last one first: the operands of the others may be a part of its memory.
        for node in reversed(nodes):
            if node.op == "cat" and node.value not in self.updated:
                self._cat(node)
        for node in nodes:
            if node.op == "slice":
                self._slice(node)
        return self.found

    def _moves_columns(self, node: Node) -> bool:
        """Whether a node is a concatenation or slice of columns whose numbers are known."""
        if node.op not in ("cat", "slice") or node.name in self.excluded:
            return False
        last = len(node.type.shape) - 1
        if node.attrs["dim"] != last or node.attrs.get("step", 1) != 1:
            return False
        return all(self._width(v) > 0 for v in (*node.operands, node.value))

    def _width(self, value: Value) -> int:
        extent = self.graph.type(value).shape[-1]
        return extent if isinstance(extent, int) else 0

    def _cat(self, node: Node) -> None:
        roots = [self.root[v] for v in node.operands]
        place = self.found.place
        if len(set(roots)) < len(roots):
            return
        home = place.get(node.value, Part(node.value, 0))
        first = place.get(roots[0])
        if first and node.value not in place and self._may_move(node.value, written=False):
            home = first
        wanted, column = {}, home.column
        for v, r in zip(node.operands, roots, strict=True):
            wanted[r] = Part(home.whole, column)
            column += self._width(v)
            if r in place and place[r] != wanted[r]:
                return
            if r not in place and (home is first or not self._may_move(r)):
                return
        if home is first:
            place[node.value] = home
        place.update(wanted)
        self.found.elided.add(node.name)

    def _slice(self, node: Node) -> None:
        (operand,) = node.operands
        origin = self.root[operand]
        if self._width(operand) != self._width(origin) or not isinstance(node.attrs["start"], int):
            return
        if self._may_move(node.value, written=False):
            whole = self.found.place.get(origin, Part(origin, 0))
            self.found.place[node.value] = Part(whole.whole, whole.column + node.attrs["start"])
            self.found.elided.add(node.name)

    def _may_move(self, value: Value, written: bool = True) -> bool:
        """Whether all kernels that read (and the one that writes) a value accept columns."""
        producer = self.graph.node(value)
        if value in self.kept or producer.op in SOURCE_OPS or producer.name in self.excluded:
            return False
        if written and value.index not in self._accepted(producer).results:
            return False
        if any(self._width(name) != self._width(value) for name in self.names[value]):
            return False
        return all(i in self._accepted(n).operands for n, i in self.uses.get(value, []))

    def _accepted(self, node: Node) -> Columns:
        if node.name not in self.known:
            self.known[node.name] = self.accepts(node, self.graph)
        return self.known[node.name]
