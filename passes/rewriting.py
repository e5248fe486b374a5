"""The two drivers of all passes, and the ledger in which they say what they did."""

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
    """What the passes did and declined, in order, behind ``explain()``."""

    entries: list[Entry] = field(default_factory=list)
    changes_semantics: bool = False

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
        if entry not in self.entries:
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
            results = copy_node(new, node, operands)
        env.update(zip(node.values, results, strict=True))
    new.outputs = {k: env[v] for k, v in graph.outputs.items()}
    new.updates = {k: env[v] for k, v in graph.updates.items()}
    return new


def copy_node(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...]:
    """Adds the same operation on other operands, under the same name where it is free."""
    result = new.add(node.op, *operands, name=node.name, source=node.source, **node.attrs)
    return (result,) if isinstance(result, Value) else result


def erase_dead(graph: Graph) -> list[Node]:
    """Erases, in place, every node that no result depends on (inputs stay); returns them."""
    erased = []
    for node in reversed(graph.nodes):
        if node.op == "input" or graph.users(node.name) or graph.is_result(node.name):
            continue
        graph.erase(node.name)
        erased.append(node)
    return erased


def follow(graph: Graph, value: Value, through: Callable[[Node], bool]) -> Value:
    """Walks up from ``value`` over single-operand-like nodes for which ``through`` holds."""
    node = graph.node(value)
    while through(node):
        value = node.operands[0]
        node = graph.node(value)
    return value
