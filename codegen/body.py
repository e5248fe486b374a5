"""Emitting the nodes of an elementwise body onto values that are already in registers.

Elementwise loops, and the epilogues of reductions, matrix products and convolutions, all use
``lower_body``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnsupportedError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from ..ir.types import Dim, Shape, float64, int64
from .emitter import Lane, VectorEmitter

PASSED_THROUGH = ("input", "constant", "extent", "broadcast_to", "uniform")
"""What a body may hold besides elementwise operators with a ``lower``."""


def lower_body(
    e: VectorEmitter, body: Graph, inputs: Mapping[str, Any], load: Any = None
) -> list[Lane]:
    """Emits the body of a ``fused`` node for one step; returns its outputs '0', '1', .. in order.

    ``inputs`` maps the path of an input ('0', '1', ..) to its Lane; a path that is missing is
    fetched with ``load(path)`` when it is first used. The key of a ``uniform`` (i64[2]) is a pair
    of i64 Lanes (seed, offset), and ``e.index`` must then hold the linear index of lane 0 in the
    uniform's own shape. Raises UnsupportedError for a node that is not elementwise.
    """
    env: dict[Value, Any] = {}
    lower_nodes(e, body.nodes, env, inputs, load)
    return [cast_to_type(e, env[v], body, v) for v in body.outputs.values()]


def lower_nodes(
    e: VectorEmitter,
    nodes: Sequence[Node],
    env: dict[Value, Any],
    inputs: Mapping[str, Any],
    load: Any = None,
) -> None:
    """Emits ``nodes`` in order; ``env`` holds the values so far and takes the new ones."""
    for node in nodes:
        if node.value not in env:
            if node.op == "input":
                path = node.attrs["path"]
                if path in inputs:
                    env[node.value] = inputs[path]
                elif load is not None:
                    env[node.value] = load(path)
                else:
                    raise UnsupportedError(f"body input {path!r} has no value")
            else:
                env[node.value] = lower_node(e, node, [env[v] for v in node.operands])


def split_by_motion(
    nodes: Sequence[Node], shape: Shape, moving: Sequence[Value] = ()
) -> tuple[list[Node], list[Node]]:
    """Nodes that change along the rows of a loop over ``shape``, and those that do not.

    The lanes of the loop are the last dimension. Inputs are of the whole shape, per channel or
    single numbers (UnsupportedError otherwise); values of ``moving`` change, too.
    """
    along: list[Node] = []
    still: list[Node] = []
    changing = set(moving)
    for node in nodes:
        if node.op == "input":
            moves = node.type.shape == shape
            *outer, last = node.type.shape or (1,)
            if not moves and (last not in (1, shape[-1]) or any(d != 1 for d in outer)):
                raise UnsupportedError(f"%{node.name} is neither of the rows nor per channel")
        else:
            moves = any(v in changing for v in node.operands)
        (along if moves else still).append(node)
        if moves:
            changing.update(node.values)
    return along, still


def lower_node(e: VectorEmitter, node: Node, operands: Sequence[Any]) -> Lane:
    """Emits one elementwise (or constant, or extent) node."""
    dtype = node.type.dtype
    if node.op == "constant":
        value = node.attrs["value"]
        if value.size != 1:
            raise UnsupportedError(f"%{node.name}: a constant inside a body must have one element")
        return e.constant(value.reshape(()).item(), dtype)
    if node.op == "extent":
        return _extent(e, node)
    if node.op == "broadcast_to":
        return operands[0]
    if node.op == "uniform":
        seed, offset = operands[0]
        return e.uniform(seed, offset, node.attrs["stream"])
    op = get(node.op)
    if op.lower is None:
        raise UnsupportedError(f"%{node.name}: {node.op} is not an elementwise operator")
    e.default = dtype
    result = op.lower(e, *operands, **node.attrs)
    return e.cast(result, dtype)


def cast_to_type(e: VectorEmitter, v: Lane, body: Graph, value: Value) -> Lane:
    """``v`` in the dtype that the graph gives to ``value``."""
    return e.cast(v, body.type(value).dtype)


def _extent(e: VectorEmitter, node: Node) -> Lane:
    """An element count; a multiple of the batch is computed from the kernel's argument %N."""
    size, dtype = node.attrs["size"], node.type.dtype
    if not isinstance(size, Dim):
        return e.constant(size, dtype)
    count = e.fn.emit(f"mul i64 %N, {size.coef}")
    if dtype.is_float:
        count = e.fn.emit(f"sitofp i64 {count} to {'double' if dtype is float64 else 'float'}")
    elif dtype is not int64:
        raise UnsupportedError(f"%{node.name}: an extent of dtype {dtype.name}")
    return e.splat(count, dtype)
