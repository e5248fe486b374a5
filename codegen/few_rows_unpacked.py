"""Products of a few rows with a weight in memory order, for ``linear_transposed``.

A panel of a few rows would leave most lanes empty, and packing the weight would write all of it
once. Here lanes are outputs: a square of the weight, as many outputs as steps of the reduction, is
transposed in registers, multiplied with all rows, and forgotten. What is read is the weight, once.

The sums are in memory between two squares: a row takes one load and one store for a register full
of multiply-adds, and one function serves any number of rows.
"""

from __future__ import annotations

from ..ir.types import DType
from .brgemm import sum_blocks
from .emitter import Lane, VectorEmitter, scalar_type
from .packing import transpose
from .text import Function
from .tile import LONGEST_SUM

_PARAMETERS = ("rows", "depth", "x_pitch", "w_pitch", "pitch")


def most_rows(lanes: int) -> int:
    """Up to so many rows take less time so than in panels.

    A square costs two shuffles for each of log2(lanes) rounds and row of the square, and a
    multiply-add for each of its steps and row of x; in panels, it costs as many multiply-adds as
    it has elements.
    """
    return lanes // 2


def call_few_rows(
    f: Function, into: str, w: str, x: str, rows: str, depth: int, pitches: tuple[int, int, int],
    dtype: DType, lanes: int, own: str,
) -> Function:  # fmt: skip
    """Adds the products of ``rows`` rows at ``x`` with ``lanes`` rows at ``w`` to the sums at
    ``into``, in the order and in the blocks of a micro-kernel's sum (``brgemm``). Returns the
    function that is called for it.

    ``pitches`` are the elements from row to row of x, of w and of the sums; ``own`` is memory like
    that of the sums, for blocks.
    """
    name = f"nw_few_rows_{dtype.short}x{lanes}"

    def add(sums: str, a: str, b: str, steps: int) -> None:
        numbers = ", ".join(f"i64 {n}" for n in (rows, steps, *pitches))
        f.do(f"call void @{name}(ptr {sums}, ptr {a}, ptr {b}, {numbers})")

    if depth <= LONGEST_SUM:
        add(into, w, x, depth)
        return _few_rows(name, dtype, lanes)
    e, kind = VectorEmitter(f, lanes, dtype), scalar_type(dtype)

    def block(first: str | int, steps: int) -> None:
        with f.loop(rows) as row:
            at = f.emit(f"mul nsw i64 {row.index}, {pitches[2]}")
            e.store(e.constant(0.0, dtype), f.element(own, kind, at))
        add(own, f.element(w, kind, first), f.element(x, kind, first), steps)
        with f.loop(rows) as row:
            at = f.emit(f"mul nsw i64 {row.index}, {pitches[2]}")
            total = f.element(into, kind, at)
            e.store(e.add(e.load(total, dtype), e.load(f.element(own, kind, at), dtype)), total)

    size, blocks, rest = sum_blocks(depth)
    with f.loop(size * blocks, step=size) as loop:
        block(loop.index, size)
    if rest:
        block(size * blocks, rest)
    return _few_rows(name, dtype, lanes)


def _few_rows(symbol: str, dtype: DType, lanes: int) -> Function:
    """``void @symbol(ptr sums, ptr w, ptr x, i64 rows, i64 depth, i64 x_pitch, i64 w_pitch,
    i64 pitch)``, shared by all layers of a dtype."""
    params = [("ptr noalias", "sums"), ("ptr noalias readonly", "w"), ("ptr noalias readonly", "x")]
    f = Function(symbol, [*params, *(("i64", p) for p in _PARAMETERS)], shared=True)
    e, kind = VectorEmitter(f, lanes, dtype), scalar_type(dtype)

    def multiply(step: str, columns: list[Lane]) -> None:
        """Adds the products with neighbouring columns of w, from ``step`` on, for all rows."""
        here = f.element("%x", kind, step)
        with f.loop("%rows") as row:
            a = f.element(here, kind, f.emit(f"mul nsw i64 {row.index}, %x_pitch"))
            at = f.element("%sums", kind, f.emit(f"mul nsw i64 {row.index}, %pitch"))
            total = e.load(at, dtype)
            for k, column in enumerate(columns):
                total = e.fma(e.load_splat(f.element(a, kind, k), dtype), column, total)
            e.store(total, at)

    whole = f.emit(f"sub nsw i64 %depth, {lanes - 1}")
    with f.loop(whole, step=lanes) as square:
        here = f.element("%w", kind, square.index)
        lines = [
            e.load(f.element(here, kind, f.emit(f"mul nsw i64 %w_pitch, {c}")), dtype)
            for c in range(lanes)
        ]
        multiply(square.index, transpose(e, lines))
    with f.loop("%depth", square.index) as step:
        here = f.element("%w", kind, step.index)
        multiply(step.index, [e.load_strided(here, dtype, "%w_pitch")])
    return f
