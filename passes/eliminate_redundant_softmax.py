"""Removes a softmax that the operator after it makes redundant.

CrossEntropyLoss contains a log-softmax, so a softmax in front of it is the user's mistake: the
loss of the softmax of a softmax cannot reach zero. Before::

    %p: f32[N,10] = softmax(%logits) {dim=1}
    %loss: f32[] = cross_entropy(%p, %target) {...}

After::

    %loss: f32[] = cross_entropy(%logits, %target) {...}

Rules, each also through reshapes that keep rows (Flatten) and Identity:

- S001 softmax -> cross_entropy: **changes the result** to that of the corrected program; a
  LintWarning says so, ``strict=True`` keeps the softmax.
- S002 log_softmax -> cross_entropy: exact, log_softmax of a log_softmax is itself.
- S003 softmax -> log: exact, becomes log_softmax (so Softmax, log, NLLLoss is stable).
- S004 softmax or log_softmax -> argmax over the same dim: exact, the order is the same.

Skips: a softmax over another dimension; a value in between that something else changes; a softmax
whose probabilities are also used elsewhere stays for those users.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from .rewriting import Ledger, erase_dead

NAME = "eliminate_redundant_softmax"


def eliminate_redundant_softmax(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph without redundant softmax nodes."""
    ledger = ledger if ledger is not None else Ledger()
    new = graph.copy()
    for node in graph.nodes:
        if node.name in new:
            _rewrite(new, new.node(node.name), ledger)
    erase_dead(new)
    return new


def softmax_before(graph: Graph, value: Value, dim: int) -> Node | None:
    """The softmax or log_softmax over ``dim`` that produces a value, seen through reshapes that
    keep the rows."""
    node = graph.node(value)
    while node.op == "reshape" and _keeps_rows(graph, node):
        node = graph.node(node.operands[0])
    if node.op not in ("softmax", "log_softmax"):
        return None
    rank = node.type.rank
    wanted = rank - 1 if dim == graph.type(value).rank - 1 else dim
    return node if node.attrs["dim"] == wanted else None


def _keeps_rows(graph: Graph, node: Node) -> bool:
    """A reshape that only changes dimensions before the last, or adds or drops ones."""
    before = graph.type(node.operands[0]).shape
    after = node.type.shape
    return bool(before) and bool(after) and before[-1] == after[-1]


def _rewrite(graph: Graph, node: Node, ledger: Ledger) -> None:
    if node.op == "cross_entropy":
        found = softmax_before(graph, node.operands[0], 1)
        if found is None:
            return
        logits = _bypass(graph, node.operands[0], found)
        exact = found.op == "log_softmax"
        _replace(graph, node, (logits, *node.operands[1:]))
        ledger.did(
            NAME,
            "S002" if exact else "S001",
            found,
            f"removed {found.op} %{found.name} before cross_entropy %{node.name}"
            + ("" if exact else "; the loss is that of the logits (strict=True keeps it)"),
        )
        ledger.changes_semantics |= not exact
    elif node.op == "log":
        producer = graph.node(node.operands[0])
        if producer.op != "softmax":
            return
        result = graph.add(
            "log_softmax", producer.operands[0], source=node.source, dim=producer.attrs["dim"]
        )
        graph.replace_uses(node.value, result)
        ledger.did(NAME, "S003", node, f"log of softmax %{producer.name} became log_softmax")
    elif node.op == "argmax":
        producer = graph.node(node.operands[0])
        if producer.op in ("softmax", "log_softmax") and (
            producer.attrs["dim"] == node.attrs["dim"]
        ):
            _replace(graph, node, (producer.operands[0],))
            ledger.did(NAME, "S004", node, f"argmax reads the logits, not %{producer.name}")


def _bypass(graph: Graph, value: Value, softmax: Node) -> Value:
    """The logits in the shape of ``value``: reshapes after the softmax are repeated on them."""
    logits = softmax.operands[0]
    shape = graph.type(value).shape
    if graph.type(logits).shape == shape:
        return logits
    return graph.add("reshape", logits, source=softmax.source, shape=shape)


def _replace(graph: Graph, node: Node, operands: tuple[Value, ...]) -> None:
    result = graph.add(
        node.op, *operands, name=node.name, source=node.source, **node.attrs
    )
    graph.replace_uses(node.value, result)
