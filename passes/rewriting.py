"""The driver of the passes that rebuild a graph, and the ledger of what passes say they did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: a rewrite that was done, or declined with the reason."""

    pass_name: str
    code: str
    done: bool
    node: str
    where: str
    message: str

    def __str__(self) -> str:
        verdict = "done    " if self.done else "declined"
        place = f" [{self.where}]" if self.where else ""
        return f"{self.code} {verdict} {self.pass_name}: {self.message}{place}"


@dataclass
class Ledger:
    """What the passes did and declined, in order and each line once, behind ``explain()``."""

    entries: list[Entry] = field(default_factory=list)
    changes_semantics: bool = False
    _known: set[Entry] = field(default_factory=set, repr=False)

    def did(self, pass_name: str, code: str, node: Node, message: str) -> None:
        """Notes a rewrite."""
        self._note(Entry(pass_name, code, True, node.name, str(node.source), message))

    def declined(self, pass_name: str, code: str, node: Node, message: str) -> None:
        """Notes a rewrite that looked possible and was not done."""
        self._note(Entry(pass_name, code, False, node.name, str(node.source), message))

    def note(self, pass_name: str, code: str, done: bool, message: str) -> None:
        """Notes something about the whole graph."""
        self._note(Entry(pass_name, code, done, "", "", message))

    def _note(self, entry: Entry) -> None:
        if entry not in self._known:
            self._known.add(entry)
            self.entries.append(entry)


Emit = Callable[[Graph, Node, list[Value]], "tuple[Value, ...] | None"]


def rebuild(graph: Graph, emit: Emit) -> Graph:
    """Re-interprets a graph into a new one, node by node in topological order.

    ``emit(new, node, operands)`` adds what stands for ``node`` to ``new`` and returns its results,
    or returns None to copy the node as it is.
    """
    new = Graph(graph.name)
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        operands = [env[v] for v in node.operands]
        results = emit(new, node, operands)
        if results is None:
            results = new.add_copy(node, operands, graph)
        env.update(zip(node.values, results, strict=True))
    new.outputs = {k: env[v] for k, v in graph.outputs.items()}
    new.updates = {k: env[v] for k, v in graph.updates.items()}
    return new


def add_like(
    new: Graph, node: Node, op: str, operands: list[Value], **attrs: object
) -> tuple[Value, ...]:
    """Adds an operation that takes the place of ``node``: with its name and its source."""
    result = new.add(op, *operands, name=node.name, source=node.source, **attrs)
    return (result,) if isinstance(result, Value) else result


def erase_dead(graph: Graph) -> list[Node]:
    """Erases, in place, every node that no result depends on (inputs stay); returns them."""
    results = {v.node for v in (*graph.outputs.values(), *graph.updates.values())}
    erased = []
    for node in reversed(graph.nodes):
        if node.op == "input" or node.name in results or graph.users(node.name):
            continue
        graph.erase(node.name)
        erased.append(node)
    return erased
