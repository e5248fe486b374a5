"""The scores of attention: what becomes of a tile of them, the softmax of a row, its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..ir.types import DType
from .emitter import Lane, VectorEmitter, memory_type
from .loops import Lanes, Position, Row, add_all, fold, longest_straight, sums
from .sizes import plus
from .text import Function
from .tile import Tile


@dataclass(frozen=True)
class ScoreEpilogue:
    """Scales a tile of scores, adds the mask, hides later keys, and stores the tile.

    ``mask`` has the steps of query and key in the mask. ``dense``: nothing may be written behind
    the last column of a row.
    """

    scale: float
    mask: tuple[int, int] | None
    causal: bool
    dense: bool

    def params(self) -> list[tuple[str, str]]:
        """``ahead`` is the number of the first query less that of the first key."""
        params = [("ptr noalias", "c")]
        if self.mask is not None:
            params.append(("ptr noalias readonly", "mask"))
        if self.causal:
            params.append(("i64", "ahead"))
        return params

    def initial(self, e: VectorEmitter, tile: Tile) -> list[Lane | None]:
        return [None] * tile.vectors

    def finish(self, e: VectorEmitter, tile: Tile, values: list[list[Lane]]) -> None:
        kind = memory_type(tile.dtype)
        scale = e.constant(self.scale, tile.dtype)
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if self.mask is not None:
                    value = e.fma(value, scale, self._mask(e, tile, i, j))
                elif self.scale != 1:
                    value = e.mul(value, scale)
                if self.causal:
                    value = self._visible(e, tile, i, j, value)
                at = e.fn.element("%c", kind, tile.c_rows[i] + j * tile.lanes)
                active = tile.active(j) if self.dense else None
                if active is None:
                    e.store(value, at)
                else:
                    e.store_masked(value, at, active)

    def _mask(self, e: VectorEmitter, tile: Tile, row: int, vector: int) -> Lane:
        assert self.mask is not None
        query, key = self.mask
        at = row * query + vector * tile.lanes * key
        address = e.fn.element("%mask", memory_type(tile.dtype), at)
        active = tile.active(vector)
        if not key:
            return e.load_splat(address, tile.dtype)
        if active is None:
            return e.load(address, tile.dtype)
        return e.load_masked(address, tile.dtype, active)

    def _visible(self, e: VectorEmitter, tile: Tile, row: int, vector: int, value: Lane) -> Lane:
        """The scores of keys up to the query's own number; -inf for later ones."""
        f, lanes = e.fn, tile.lanes
        last = plus(f, "%ahead", row - vector * lanes)
        kind, flags = e.type(tile.dtype), f"<{lanes} x i1>"
        hidden = e.constant(-math.inf, tile.dtype).text
        if lanes == 1:
            seen, flags = f.emit(f"icmp sge i64 {last}, 0"), "i1"
        else:
            numbers = f"<{lanes} x i32>"
            word = f.splat(numbers, f.emit(f"trunc i64 {last} to i32"))
            iota = "<" + ", ".join(f"i32 {k}" for k in range(lanes)) + ">"
            seen = f.emit(f"icmp sge {numbers} {word}, {iota}")
        return Lane(
            f.emit(f"select {flags} {seen}, {kind} {value.text}, {kind} {hidden}"), tile.dtype
        )


def softmax_function(
    symbol: str, dtype: DType, lanes: int, length: int | None, registers: int
) -> Function:
    """``void @symbol(ptr row, i64 length)``: the softmax of a row, in place.

    A row of -inf becomes zeros. ``length`` is the number of columns if it is always the same; a
    short row stays in registers then.
    """
    params = [("ptr noalias", "row"), ("i64", "length")]
    f = Function(symbol, params, attributes="noinline nounwind")
    e = VectorEmitter(f, lanes, dtype, registers=registers)
    scalar = VectorEmitter(f, 1, dtype)
    short = length is not None and -(-length // lanes) <= longest_straight(e)
    row = Row(e, length if length is not None and short else "%length")
    factor = e.splat(_exponentials(row, scalar, "%row", dtype, registers).text, dtype)

    def normalize(at: Position, acc: Lanes) -> Lanes:
        at.store(e.mul(row.load(at, "%row", dtype), factor), "%row")
        return ()

    row.sweep(normalize)
    return f


def _exponentials(row: Row, scalar: VectorEmitter, base: str, dtype: DType, registers: int) -> Lane:
    """Makes a row its exponentials, less the maximum; returns one over their sum, a scalar.

    A row of -inf becomes zeros.
    """
    e = row.e
    top = row.greatest(lambda at: row.load(at, base, dtype), dtype)
    nothing = scalar.eq(top, scalar.constant(-math.inf, dtype))
    shift = e.splat(scalar.select(nothing, scalar.constant(0, dtype), top).text, dtype)

    def term(at: Position, acc: Lanes) -> Lanes:
        p = e.exp(e.sub(row.load(at, base, dtype), shift))
        row.keep(at, p, base)
        return (e.add(acc[0], at.only(p)),)

    # More exponentials at a time need more registers for constants and values than there are.
    wide = registers >= 32 and e.lanes * dtype.itemsize >= 64
    unroll = 4 if wide else 1 if registers < 32 else 2
    found = sums(e, row.length, term, [e.constant(0, dtype)], unroll=unroll)
    (total,) = fold(e, found, add_all)
    one = scalar.constant(1, total.dtype)
    empty = scalar.eq(total, scalar.constant(0, total.dtype))
    inverse = scalar.div(one, scalar.select(empty, one, total))
    return scalar.cast(inverse, dtype)


def grad_function(
    symbol: str, dtype: DType, lanes: int, length: int | None, scale: float, registers: int
) -> Function:
    """``void @symbol(ptr p, ptr dp, i64 length)``: a row of scores ``p`` becomes its softmax, the
    gradient ``dp`` of the softmax ``scale`` times that of the scores.

    A row of -inf has the gradient zero. ``length`` as in `softmax_function`.
    """
    params = [("ptr noalias", "p"), ("ptr noalias", "dp"), ("i64", "length")]
    f = Function(symbol, params, attributes="noinline nounwind")
    e = VectorEmitter(f, lanes, dtype, registers=registers)
    scalar = VectorEmitter(f, 1, dtype)
    short = length is not None and -(-length // lanes) <= longest_straight(e)
    row = Row(e, length if length is not None and short else "%length")
    factor = e.splat(_exponentials(row, scalar, "%p", dtype, registers).text, dtype)

    def weigh(at: Position, acc: Lanes) -> Lanes:
        weight = e.mul(row.load(at, "%p", dtype), factor)
        at.store(weight, "%p")
        return (e.fma(at.only(weight), at.load("%dp", dtype), acc[0]),)

    (total,) = fold(e, sums(e, row.length, weigh, [e.constant(0, dtype)]), add_all)
    mean = e.splat(scalar.cast(total, dtype).text, dtype)
    scales = e.constant(scale, dtype)

    def spread(at: Position, acc: Lanes) -> Lanes:
        weight = e.mul(at.load("%p", dtype), scales)
        at.store(e.mul(weight, e.sub(at.load("%dp", dtype), mean)), "%dp")
        return ()

    row.sweep(spread)
    return f
