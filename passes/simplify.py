"""Algebra and data movement: local rewrites to a fixpoint, each exact in floating point.

Before::

    %one: f32[] = constant {value=1.0}
    %a: f32[N,4] = mul(%x, %one)
    %b: f32[4,N] = permute(%a) {dims=(1,0)}
    %c: f32[N,4] = permute(%b) {dims=(1,0)}
    output "out" = %c

After::

    output "out" = %x

Rules (D401): x * 1, x / 1, x + (-0.0), x - 0.0, x ** 1 -> x; x ** 2 -> square(x); -(-x) -> x;
relu(relu(x)) -> relu(x), also abs; a cast to its own dtype; reshape of reshape, reshape to the same
shape; permute of permute, identity permute, a permute or reshape behind which the elements of a
value are in its own order again (a reshape); broadcast_to the same shape or of a broadcast_to; a
reduction over dimensions of extent one (a reshape); a slice of everything, a pad by nothing, a cat
of one; a broadcast_to that feeds an elementwise operator which broadcasts anyway.

Skips: x * 0 and x - x (wrong for NaN and infinities); x + 0.0 and 0.0 + x (wrong for -0.0);
reassociation of sums and products (rounds differently); a broadcast_to that gives the result of an
elementwise operator its shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ..errors import NetwrightError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from ..ir.types import broadcast_shapes
from .rewriting import Ledger, add_like, erase_dead, rebuild
from .views import View, is_dense, through, views

NAME = "simplify"
MAX_ROUNDS = 100
_IDENTITY = {"mul": 1.0, "div": 1.0, "pow": 1.0, "add": -0.0, "sub": 0.0}
_COMMUTATIVE = ("mul", "add")

Rule = Callable[[Graph, Node, "list[Value]"], "Value | None"]
"""``(new, node, operands)``: the value in ``new`` that replaces ``node``, or None. ``operands`` are
the values of ``new`` for the operands of ``node``, which belongs to the graph before."""


def simplify(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph after all rules have stopped applying."""
    for _ in range(MAX_ROUNDS):
        new, changed = _round(graph, ledger)
        if not changed:
            return graph
        erase_dead(new)
        graph = new
    raise NetwrightError(f"simplify did not settle in {MAX_ROUNDS} rounds: a bug in a rule")


def _round(graph: Graph, ledger: Ledger | None) -> tuple[Graph, bool]:
    changed = False

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        nonlocal changed
        result = _apply_rules(new, node, operands)
        if result is None:
            return None
        changed = True
        if ledger is not None:
            became = result if new.node(result).name != node.name else new.node(result).op
            ledger.did(NAME, "D401", node, f"%{node.name} = {node.op} became {became}")
        return (result,)

    return rebuild(graph, emit), changed


def _apply_rules(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    rule = _RULES.get(node.op)
    result = rule(new, node, operands) if rule is not None else None
    if result is None and get(node.op).kind == "elementwise" and node.op != "uniform":
        return _drop_broadcast(new, node, operands)
    return result


def _number(graph: Graph, value: Value) -> float | None:
    """The number of a constant of one element."""
    node = graph.node(value)
    if node.op != "constant" or node.attrs["value"].size != 1:
        return None
    return float(node.attrs["value"].reshape(()))


def _same_type(new: Graph, node: Node, value: Value) -> Value | None:
    return value if new.type(value) == node.type else None


def _identity_element(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    """``x op e`` where e changes nothing. For integers the sign of zero does not matter."""
    wanted = _IDENTITY[node.op]
    pairs = [operands]
    if node.op in _COMMUTATIVE:
        pairs = [operands, operands[::-1]]
    for x, e in pairs:
        number = _number(new, e)
        if number != wanted:
            continue
        same_sign = math.copysign(1.0, wanted) == math.copysign(1.0, number)
        if same_sign or not node.type.dtype.is_float:
            result = _same_type(new, node, x)
            if result is not None:
                return result
    return None


def _pow(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    if _number(new, operands[1]) == 2 and new.type(operands[0]) == node.type:
        return add_like(new, node, "square", operands[:1])[0]
    return _identity_element(new, node, operands)


def _involution(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    inner = new.node(operands[0])
    return inner.operands[0] if inner.op == node.op else None


def _idempotent(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    return operands[0] if new.node(operands[0]).op == node.op else None


def _to_own_type(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    """A cast, slice, pad or cat that changes nothing: the type alone shows it."""
    return _same_type(new, node, operands[0]) if len(operands) == 1 else None


def _reshape(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    (x,) = operands
    if new.type(x) == node.type:
        return x
    inner = new.node(x)
    if inner.op == "reshape":
        return _reshaped(new, node, inner.operands[0])
    return _in_place(new, node, [v for v in views(new, x) if v.moved])


def _reshaped(new: Graph, node: Node, x: Value) -> Value:
    return add_like(new, node, "reshape", [x], shape=node.type.shape)[0]


def _permute(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    (x,) = operands
    dims = node.attrs["dims"]
    if dims == tuple(range(len(dims))):
        return x
    found = _in_place(new, node, views(new, x))
    inner = new.node(x)
    if found is None and inner.op == "permute":
        both = tuple(inner.attrs["dims"][d] for d in dims)
        return add_like(new, node, "permute", [inner.operands[0]], dims=both)[0]
    return found


def _in_place(new: Graph, node: Node, operand: Iterable[View]) -> Value | None:
    """The value of which a permute or reshape shows all elements in order, in the new shape.

    ``operand`` is the operand as a view of that value.
    """
    for view in operand:
        seen = through(node, view)
        if seen is not None and is_dense(seen, new.type(view.base).size):
            same = _same_type(new, node, view.base)
            return same if same is not None else _reshaped(new, node, view.base)
    return None


def _broadcast_to(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    (x,) = operands
    if new.type(x) == node.type:
        return x
    inner = new.node(x)
    if inner.op == "broadcast_to":
        return add_like(new, node, "broadcast_to", [inner.operands[0]], **node.attrs)[0]
    return None


def _reduction(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    shape = new.type(operands[0]).shape
    if any(shape[d] != 1 for d in node.attrs["dims"]):
        return None
    return operands[0] if shape == node.type.shape else _reshaped(new, node, operands[0])


def _drop_broadcast(new: Graph, node: Node, operands: list[Value]) -> Value | None:
    """The same operator on operands before their broadcast, if its result keeps its shape."""
    found = list(operands)
    for i, operand in enumerate(operands):
        producer = new.node(operand)
        if producer.op != "broadcast_to":
            continue
        shorter = [*found[:i], producer.operands[0], *found[i + 1 :]]
        if broadcast_shapes(*(new.type(v).shape for v in shorter)) == node.type.shape:
            found = shorter
    return add_like(new, node, node.op, found, **node.attrs)[0] if found != operands else None


_RULES: dict[str, Rule] = {
    "mul": _identity_element,
    "div": _identity_element,
    "add": _identity_element,
    "sub": _identity_element,
    "pow": _pow,
    "neg": _involution,
    "relu": _idempotent,
    "abs": _idempotent,
    "cast": _to_own_type,
    "cat": _to_own_type,
    "slice": _to_own_type,
    "slice_grad": _to_own_type,
    "pad": _to_own_type,
    "reshape": _reshape,
    "permute": _permute,
    "broadcast_to": _broadcast_to,
    **dict.fromkeys(("sum", "mean", "amax", "amin", "all", "any"), _reduction),
}
