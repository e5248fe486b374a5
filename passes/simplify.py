"""Algebra and data movement: local rewrites to a fixpoint, each exact in floating point.

Before::

    %a: f32[N,4] = mul(%x, 1.0)
    %b: f32[4,N] = permute(%a) {dims=(1,0)}
    %c: f32[N,4] = permute(%b) {dims=(1,0)}

After: users of ``%c`` use ``%x``.

Rules: x * 1, x / 1, x + (-0.0), x - 0.0, x ** 1 -> x; x ** 2 -> square(x); -(-x) -> x; relu(relu(x)) ->
relu(x); a cast to its own dtype; reshape of reshape, reshape to the same shape; permute of permute,
identity permute, permute that moves only dimensions of extent one (a reshape); broadcast_to the
same shape; sum over dimensions of extent one (a reshape); a broadcast_to that feeds an elementwise
operator which broadcasts anyway.

Skips: x * 0 and x - x (wrong for NaN and infinities); x + 0.0 (wrong for -0.0); reassociation.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import NetwrightError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from ..ir.types import broadcast_shapes
from .rewriting import Ledger, erase_dead

NAME = "simplify"
MAX_ROUNDS = 100


def simplify(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph after all rules have stopped applying."""
    new = graph.copy()
    for _ in range(MAX_ROUNDS):
        if not _round(new, ledger):
            return new
        erase_dead(new)
    raise NetwrightError(f"simplify did not settle in {MAX_ROUNDS} rounds: a bug in a rule")


def _round(graph: Graph, ledger: Ledger | None) -> bool:
    changed = False
    for name in [n.name for n in graph.nodes]:
        node = graph.node(name)
        rule = _RULES.get(node.op)
        result = rule(graph, node) if rule is not None else None
        if result is None and get(node.op).kind == "elementwise":
            result = _drop_broadcast(graph, node)
        if result is None or result == node.value or not graph.use_count(node.value):
            continue
        if ledger is not None:
            ledger.did(NAME, "D401", node, f"%{node.name} = {node.op} became {result}")
        graph.replace_uses(node.value, result)
        changed = True
    return changed


def _scalar(graph: Graph, value: Value) -> float | None:
    """The number of a 0-d constant."""
    node = graph.node(value)
    if node.op != "constant" or node.attrs["value"].ndim:
        return None
    return node.attrs["value"].item()


def _same_type(graph: Graph, node: Node, value: Value) -> Value | None:
    return value if graph.type(value) == node.type else None


def _mul(graph: Graph, node: Node) -> Value | None:
    a, b = node.operands
    if _scalar(graph, b) == 1:
        return _same_type(graph, node, a)
    if _scalar(graph, a) == 1:
        return _same_type(graph, node, b)
    return None


def _div(graph: Graph, node: Node) -> Value | None:
    a, b = node.operands
    return _same_type(graph, node, a) if _scalar(graph, b) == 1 else None


def _add(graph: Graph, node: Node) -> Value | None:
    a, b = node.operands
    integer = not node.type.dtype.is_float
    for x, zero in ((a, b), (b, a)):
        number = _scalar(graph, zero)
        if number == 0 and (integer or str(float(number)).startswith("-")):
            return _same_type(graph, node, x)
    return None


def _sub(graph: Graph, node: Node) -> Value | None:
    a, b = node.operands
    number = _scalar(graph, b)
    if number == 0 and not str(float(number)).startswith("-"):
        return _same_type(graph, node, a)
    return None


def _pow(graph: Graph, node: Node) -> Value | None:
    exponent = _scalar(graph, node.operands[1])
    if exponent == 1:
        return _same_type(graph, node, node.operands[0])
    if exponent == 2 and node.type.dtype.is_float:
        return graph.add("square", node.operands[0], source=node.source)
    return None


def _involution(graph: Graph, node: Node) -> Value | None:
    inner = graph.node(node.operands[0])
    return inner.operands[0] if inner.op == node.op else None


def _idempotent(graph: Graph, node: Node) -> Value | None:
    inner = graph.node(node.operands[0])
    return inner.value if inner.op == node.op else None


def _cast(graph: Graph, node: Node) -> Value | None:
    return _same_type(graph, node, node.operands[0])


def _reshape(graph: Graph, node: Node) -> Value | None:
    (x,) = node.operands
    if graph.type(x).shape == node.type.shape:
        return x
    inner = graph.node(x)
    if inner.op == "reshape":
        return graph.add(
            "reshape", inner.operands[0], source=node.source, shape=node.type.shape
        )
    return None


def _permute(graph: Graph, node: Node) -> Value | None:
    (x,) = node.operands
    dims = node.attrs["dims"]
    if dims == tuple(range(len(dims))):
        return x
    inner = graph.node(x)
    if inner.op == "permute":
        both = tuple(inner.attrs["dims"][d] for d in dims)
        return graph.add("permute", inner.operands[0], source=node.source, dims=both)
    shape = graph.type(x).shape
    moved = [d for d in dims if shape[d] != 1]
    if moved == sorted(moved):
        return graph.add("reshape", x, source=node.source, shape=node.type.shape)
    return None


def _broadcast_to(graph: Graph, node: Node) -> Value | None:
    return _same_type(graph, node, node.operands[0])


def _sum(graph: Graph, node: Node) -> Value | None:
    shape = graph.type(node.operands[0]).shape
    if all(shape[d] == 1 for d in node.attrs["dims"]):
        return graph.add(
            "reshape", node.operands[0], source=node.source, shape=node.type.shape
        )
    return None


def _drop_broadcast(graph: Graph, node: Node) -> Value | None:
    """The same operator on operands before their broadcast, if its result keeps its shape."""
    for i, operand in enumerate(node.operands):
        producer = graph.node(operand)
        if producer.op != "broadcast_to":
            continue
        operands = list(node.operands)
        operands[i] = producer.operands[0]
        shapes = [graph.type(v).shape for v in operands]
        if broadcast_shapes(*shapes) == node.type.shape:
            return graph.add(
                node.op, *operands, name=node.name, source=node.source, **node.attrs
            )
    return None


_RULES: dict[str, Callable[[Graph, Node], Value | None]] = {
    "mul": _mul,
    "div": _div,
    "add": _add,
    "sub": _sub,
    "pow": _pow,
    "neg": _involution,
    "relu": _idempotent,
    "abs": _idempotent,
    "cast": _cast,
    "reshape": _reshape,
    "permute": _permute,
    "broadcast_to": _broadcast_to,
    "sum": _sum,
}
