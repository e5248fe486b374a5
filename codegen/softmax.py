"""softmax and log_softmax along any dimension, and their gradients.

Along the last dimension a task is one row: its maximum, then the exponentials with their sum, then
the scaling; a short row stays in registers. Along another dimension a task is a block of columns,
one softmax per lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..ir.graph import Graph, Node
from ..ir.types import Dim, DType, Extent, float32, float64, numel
from .emitter import Lane, VectorEmitter, memory_type
from .kernel import Kernel, TaskCount
from .loops import (
    Lanes,
    Position,
    Row,
    greater,
    greater_all,
    sums,
    sweep,
)
from .sizes import (
    Size,
    plus,
    times,
)
from .target import Target
from .writer import (
    KernelWriter,
    for_each_column_block,
)

SOFTMAX = ("softmax", "log_softmax", "softmax_grad", "log_softmax_grad")


def emit_softmax(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for ``softmax``, ``log_softmax`` or the gradient of one of them."""
    w = KernelWriter("softmax", node, graph, target)
    x = w.inputs[0]
    if x.dtype not in (float32, float64):
        return None
    dim = node.attrs["dim"]
    outer, classes, inner = numel(x.shape[:dim]), x.shape[dim], numel(x.shape[dim + 1 :])
    if inner == 1:
        tasks = _rows(w, x.dtype, outer, classes)
    else:
        tasks = _columns(w, x.dtype, outer, classes, inner)
    return w.finish(tasks, flops=numel(x.shape))


# ---- along the last dimension


def _rows(w: KernelWriter, dtype: DType, rows: Extent, classes: Extent) -> TaskCount:
    fn, e, length = w.fn, w.emitter(dtype, classes), w.size(classes)
    kind = memory_type(dtype)
    with fn.loop("%end", "%begin") as task:
        offset = times(fn, task.index, length)
        out = fn.element("%out0", kind, offset)
        inputs = [fn.element(f"%in{k}", kind, offset) for k in range(len(w.inputs))]
        row = Row(e, length)
        if w.node.op == "softmax":
            _softmax_row(row, out, inputs[0], dtype)
        elif w.node.op == "log_softmax":
            _log_softmax_row(row, out, inputs[0], dtype)
        else:
            _grad_row(w.node.op, row, out, inputs[0], inputs[1], dtype)
    return TaskCount(rows)


def exponentials(row: Row, x: str, dtype: DType, keep: str | None) -> tuple[Lane, Lane]:
    """(maximum, sum of exp(x - maximum)) of a row as scalars; keeps the exponentials if asked.

    A NaN in the row makes the sum NaN.
    """
    e = row.e
    top = row.greatest(lambda at: row.load(at, x, dtype), dtype)
    shift = e.splat(top.text, dtype)
    x = row.again(x)

    def term(at: Position, acc: Lanes) -> Lanes:
        p = e.exp(e.sub(row.load(at, x, dtype), shift))
        if keep is not None:
            row.keep(at, p, keep)
        return (e.add(acc[0], at.only(p)),)

    return top, row.sums(term, 1, dtype)[0]


def _softmax_row(row: Row, out: str, x: str, dtype: DType) -> None:
    e = row.e
    scalar = VectorEmitter(e.fn, 1, dtype)
    _, total = exponentials(row, x, dtype, out)
    inverse = scalar.cast(scalar.div(scalar.constant(1, total.dtype), total), dtype)
    factor = e.splat(inverse.text, dtype)

    def scale(at: Position, acc: Lanes) -> Lanes:
        at.store(e.mul(row.load(at, out, dtype), factor), out)
        return ()

    row.sweep(scale)


def _log_softmax_row(row: Row, out: str, x: str, dtype: DType) -> None:
    e = row.e
    scalar = VectorEmitter(e.fn, 1, dtype)
    top, total = exponentials(row, x, dtype, None)
    log = scalar.log(scalar.cast(total, dtype))
    shift, logs = e.splat(top.text, dtype), e.splat(log.text, dtype)
    x = row.again(x)

    def subtract(at: Position, acc: Lanes) -> Lanes:
        # In this order: the first difference is exact near the maximum.
        at.store(e.sub(e.sub(row.load(at, x, dtype), shift), logs), out)
        return ()

    row.sweep(subtract)


def _grad_row(op: str, row: Row, out: str, g: str, y: str, dtype: DType) -> None:
    e = row.e

    def term(at: Position, acc: Lanes) -> Lanes:
        gradient = row.load(at, g, dtype)
        if op == "log_softmax_grad":
            return (e.add(acc[0], gradient),)
        return (e.fma(gradient, row.load(at, y, dtype), acc[0]),)

    total = row.sums(term, 1, dtype)[0]
    scalar = VectorEmitter(e.fn, 1, dtype)
    spread = e.splat(scalar.cast(total, dtype).text, dtype)

    def store(at: Position, acc: Lanes) -> Lanes:
        at.store(_gradient(op, e, row.load(at, g, dtype), row.load(at, y, dtype), spread), out)
        return ()

    row.sweep(store)


def _gradient(op: str, e: VectorEmitter, g: Lane, y: Lane, total: Lane) -> Lane:
    """``y (g - sum(g y))``, or ``g - exp(y) sum(g)`` for log_softmax."""
    if op == "softmax_grad":
        return e.mul(y, e.sub(g, total))
    return e.sub(g, e.mul(e.exp(y), total))


# ---- along another dimension


def _columns(
    w: KernelWriter, dtype: DType, outer: Extent, classes: Extent, inner: Extent
) -> TaskCount:
    fn, e = w.fn, w.emitter(dtype, inner)
    kind, length, stride = memory_type(dtype), w.size(classes), w.size(inner)
    plane: Extent = inner * classes if isinstance(inner, Dim) else classes * inner

    def block(o: Size, columns: list[Position]) -> None:
        (column,) = columns
        offset = times(fn, o, w.size(plane))
        out = fn.element("%out0", kind, offset)
        inputs = [fn.element(f"%in{k}", kind, offset) for k in range(len(w.inputs))]

        def at(row: Position) -> Position:
            return Position(e, plus(fn, times(fn, row.at, stride), column.at), column.active)

        def over(body: Callable[[Position], None]) -> None:
            def step(row: Position, acc: Lanes) -> Lanes:
                body(at(row))
                return ()

            sweep(e, length, step, width=1, unroll=2)

        def total(term: Callable[[Position, Lane], Lane]) -> Lane:
            found = sums(
                e,
                length,
                lambda row, acc: [term(at(row), acc[0])],
                [e.constant(0, dtype)],
                width=1,
                unroll=2,
            )
            return found[0]

        if w.node.op in ("softmax", "log_softmax"):
            _softmax_columns(w.node.op, e, length, at, over, total, inputs[0], out, dtype)
        else:
            _grad_columns(w.node.op, e, over, total, inputs[0], inputs[1], out, dtype)

    return for_each_column_block(w, e, outer, inner, block)


_Over = Callable[[Callable[[Position], None]], None]
_Total = Callable[[Callable[[Position, Lane], Lane]], Lane]


def _softmax_columns(
    op: str,
    e: VectorEmitter,
    length: Size,
    at: Callable[[Position], Position],
    over: _Over,
    total: _Total,
    x: str,
    out: str,
    dtype: DType,
) -> None:
    (top,) = sweep(
        e,
        length,
        lambda row, best: [greater(e, at(row).load(x, dtype), best[0])],
        [e.constant(-math.inf, dtype)],
        greater_all,
        width=1,
        unroll=2,
    )

    def term(place: Position, acc: Lane) -> Lane:
        p = e.exp(e.sub(place.load(x, dtype), top))
        if op == "softmax":
            place.store(p, out)
        return e.add(acc, p)

    found = total(term)
    if op == "softmax":
        factor = e.cast(e.div(e.constant(1, found.dtype), found), dtype)
        over(lambda place: place.store(e.mul(place.load(out, dtype), factor), out))
    else:
        log = e.log(e.cast(found, dtype))
        over(lambda place: place.store(e.sub(e.sub(place.load(x, dtype), top), log), out))


def _grad_columns(
    op: str,
    e: VectorEmitter,
    over: _Over,
    total: _Total,
    g: str,
    y: str,
    out: str,
    dtype: DType,
) -> None:
    def term(place: Position, acc: Lane) -> Lane:
        gradient = place.load(g, dtype)
        if op == "log_softmax_grad":
            return e.add(acc, gradient)
        return e.fma(gradient, place.load(y, dtype), acc)

    found = e.cast(total(term), dtype)

    def store(place: Position) -> None:
        place.store(_gradient(op, e, place.load(g, dtype), place.load(y, dtype), found), out)

    over(store)
