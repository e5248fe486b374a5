"""Removes a softmax that the operator after it makes redundant.

CrossEntropyLoss contains a log-softmax, so a softmax in front of it is the user's mistake: the
loss of the softmax of a softmax cannot reach zero. Before::

    %p: f32[N,10] = softmax(%logits) {dim=1}
    %loss: f32[] = cross_entropy(%p, %target) {...}

After::

    %loss: f32[] = cross_entropy(%logits, %target) {...}

Rules, each also through reshapes and permutes that keep the rows (Flatten; Identity and Dropout in
eval mode leave no node):

- S001 softmax -> cross_entropy: **changes the result** to that of the corrected program; a
  LintWarning says so, ``strict=True`` keeps the softmax.
- S002 log_softmax -> cross_entropy or log_softmax: exact, log_softmax of a log_softmax is itself.
- S003 softmax -> log: exact, becomes log_softmax (so Softmax, log, NLLLoss is stable).
- S004 softmax or log_softmax -> argmax over the same dim: the order is the same. (Rounding can make
  the probabilities of different logits equal; the argmax of the logits still tells them apart.)

Skips: a softmax over another dimension; a value in between that something else changes (S001 to
S004 do not fire); a softmax whose probabilities are also used elsewhere stays for those users.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node, Value
from .rewriting import Ledger, add_like, erase_dead, rebuild
from .rows import repeat, trace_rows

NAME = "eliminate_redundant_softmax"

_Rule = Callable[[Graph, Node, list[Value], Ledger], tuple[Value, ...] | None]


def eliminate_redundant_softmax(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph without redundant softmax nodes."""
    ledger = ledger if ledger is not None else Ledger()
    rules = {
        "cross_entropy": _cross_entropy,
        "log_softmax": _log_softmax,
        "log": _log,
        "argmax": _argmax,
    }

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        rule = rules.get(node.op)
        return rule(new, node, operands, ledger) if rule is not None else None

    new = rebuild(graph, emit)
    erase_dead(new)
    return new


def softmax_before(graph: Graph, value: Value, dim: int) -> Node | None:
    """The softmax or log_softmax over ``dim`` that produces a value, seen through operators that
    keep the rows."""
    origin, row_dim, _ = trace_rows(graph, value, dim)
    node = graph.node(origin)
    is_softmax = node.op in ("softmax", "log_softmax")
    return node if is_softmax and node.attrs["dim"] == row_dim else None


def _logits(new: Graph, value: Value, dim: int, softmax: Node) -> Value:
    """The softmax's operand in the shape of ``value``."""
    _, _, passed = trace_rows(new, value, dim)
    return repeat(new, passed, softmax.operands[0], softmax.source)


def _cross_entropy(
    new: Graph, node: Node, operands: list[Value], ledger: Ledger
) -> tuple[Value, ...] | None:
    found = softmax_before(new, operands[0], 1)
    if found is None:
        return None
    exact = found.op == "log_softmax"
    ledger.did(
        NAME,
        "S002" if exact else "S001",
        found,
        f"removed {found.op} %{found.name} before cross_entropy %{node.name}"
        + ("" if exact else "; the loss is that of the logits (strict=True keeps it)"),
    )
    ledger.changes_semantics |= not exact
    logits = _logits(new, operands[0], 1, found)
    return _again(new, node, [logits, *operands[1:]], ledger, _cross_entropy)


def _log_softmax(
    new: Graph, node: Node, operands: list[Value], ledger: Ledger
) -> tuple[Value, ...] | None:
    found = softmax_before(new, operands[0], node.attrs["dim"])
    if found is None or found.op != "log_softmax":
        return None
    ledger.did(NAME, "S002", node, f"log_softmax of log_softmax %{found.name} is the same")
    return (operands[0],)


def _log(new: Graph, node: Node, operands: list[Value], ledger: Ledger) -> tuple[Value, ...] | None:
    producer = new.node(operands[0])
    if producer.op != "softmax":
        return None
    ledger.did(NAME, "S003", node, f"log of softmax %{producer.name} became log_softmax")
    return add_like(new, node, "log_softmax", [producer.operands[0]], **producer.attrs)


def _argmax(
    new: Graph, node: Node, operands: list[Value], ledger: Ledger
) -> tuple[Value, ...] | None:
    found = softmax_before(new, operands[0], node.attrs["dim"])
    if found is None:
        return None
    ledger.did(NAME, "S004", node, f"argmax reads the logits, not %{found.name}")
    logits = _logits(new, operands[0], node.attrs["dim"], found)
    return _again(new, node, [logits], ledger, _argmax)


def _again(
    new: Graph, node: Node, operands: list[Value], ledger: Ledger, rule: _Rule
) -> tuple[Value, ...]:
    """The node on new operands, after the rule has seen those, too (a softmax of a softmax)."""
    further = rule(new, node, operands, ledger)
    return further or add_like(new, node, node.op, operands, **node.attrs)
