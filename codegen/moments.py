"""Means and squares around them of blocks of rows, and of rows that a kernel has just written.

Lanes are neighbouring channels. A block is read twice: for its mean, and for the squares around
it, so that a large mean does not spoil them. It is then added to the moments of its part in float64
(T. Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
``batch_norm_parts.py`` does so for any tensor. A convolution does so for its own result, block by
block while that is in the first level cache (``RowMoments``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.types import DType, float64
from .emitter import Lane, VectorEmitter, memory_type
from .loops import Body, Lanes, Position, add_all, sweep, widen
from .sizes import Size, plus, times
from .target import Target
from .text import Function
from .writer import column_blocks, in_column_block

# Bytes of a block that are read a second time from the first level cache, and the most rows.
_BLOCK_BYTES = 16 * 1024
_BLOCK_ROWS = 128


def sums_shape(target: Target, vectors: int, held: int) -> tuple[int, int]:
    """(vectors of channels at a time, rows at a time) of a loop over rows of ``vectors`` vectors.

    Each vector has two sums per row of the step, and ``held`` values that stay in registers.
    More rows only hide the latency of the additions, which several vectors do, too.
    """
    free = target.registers - 8
    for group, unroll in ((4, 1), (2, 2), (2, 1), (1, 4), (1, 2)):
        if group <= vectors and group * (2 * unroll + held) <= free:
            return group, unroll
    return 1, 1


def row_count(fn: Function, e: VectorEmitter, number: Size) -> Lane:
    """A number of rows in every lane, in float64."""
    if isinstance(number, int):
        return e.constant(number, float64)
    # Opaque: otherwise the vector would wait in a register while the sums need them.
    text = fn.emit(f"sitofp i64 {fn.opaque('i64', number)} to double")
    return e.splat(text, float64)


def block_moments(
    e: VectorEmitter,
    over: Callable[[Body, Sequence[Lane]], Lanes],
    read: tuple[Callable[[Size], Lanes], Callable[[Size], Lanes]],
    vectors: int,
    dtype: DType,
    number: Lane,
) -> list[tuple[Lane, Lane]]:
    """(mean, sum of squares around it) in float64 of each vector of channels of a block of rows.

    ``over(body, zeros)`` sums over the ``number`` rows; ``read`` gives the elements of a row, in
    the first and in the second pass.
    """
    zeros = [e.constant(0, dtype)] * vectors
    totals = over(lambda at, acc: add_all(e, acc, read[0](at.at)), zeros)
    share = e.div(e.constant(1, float64), number)
    means = [e.cast(e.mul(widen(e, v), share), dtype) for v in totals]

    def around(at: Position, acc: Lanes) -> Lanes:
        d = [e.sub(x, mean) for x, mean in zip(read[1](at.at), means, strict=True)]
        firsts = [e.add(a, v) for a, v in zip(acc[:vectors], d, strict=True)]
        return (*firsts, *(e.fma(v, v, a) for a, v in zip(acc[vectors:], d, strict=True)))

    found = over(around, zeros * 2)
    exact = []
    for k, mean in enumerate(means):
        # The mean is rounded to the dtype of the elements: what it is off.
        first = widen(e, found[k])
        off = e.mul(first, share)
        squares = e.sub(widen(e, found[vectors + k]), e.mul(off, first))
        exact.append((e.add(widen(e, mean), off), squares))
    return exact


@dataclass(frozen=True)
class Merging:
    """What moves the moments of a part when ``number`` rows are added to ``before`` rows."""

    before: Lane
    share: Lane

    @classmethod
    def of(cls, e: VectorEmitter, number: Lane, before: Lane) -> Merging:
        return cls(before, e.div(number, e.add(before, number)))

    def merged(
        self, e: VectorEmitter, known: tuple[Lane, Lane], found: tuple[Lane, Lane]
    ) -> tuple[Lane, Lane]:
        delta = e.sub(found[0], known[0])
        cross = e.mul(e.mul(delta, delta), e.mul(self.before, self.share))
        return e.fma(delta, self.share, known[0]), e.add(known[1], e.add(found[1], cross))


# -- of rows that a kernel has just written --------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What a kernel is asked for: the moments of each ``rows`` neighbouring rows of its result, in
    its output number ``output``."""

    rows: int
    output: int


class RowMoments:
    """The functions of one kernel that take the moments of rows of its first result.

    ``channels`` is the length of its rows and ``pitch`` how many elements they are apart.
    """

    def __init__(
        self, symbol: str, parts: Parts, dtype: DType, channels: int, pitch: int, target: Target
    ) -> None:
        self.symbol, self.parts, self.dtype, self.target = symbol, parts, dtype, target
        self.channels, self.pitch = channels, pitch
        self.made: dict[int, Function] = {}

    @property
    def functions(self) -> list[Function]:
        return list(self.made.values())

    def block_rows(self, width: int) -> int:
        """How many rows of ``width`` channels are best taken at a time."""
        return min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // (width * self.dtype.itemsize)))

    def add(
        self, f: Function, part: Size, row: Size, count: Size, before: Size, column: Size,
        width: int,
    ) -> None:  # fmt: skip
        """Adds ``count`` rows of the result from ``row`` on to the moments of a part, of which
        ``before`` rows were added; ``width`` channels from ``column`` on."""
        if width not in self.made:
            self.made[width] = self._function(f"{self.symbol}_moments_{width}", width)
        at = plus(f, times(f, row, self.pitch), column)
        into = plus(f, times(f, part, 2 * self.channels), column)
        rows = f.element("%out0", memory_type(self.dtype), at)
        sums = f.element(f"%out{self.parts.output}", "double", into)
        name = self.made[width].name
        f.do(f"call void @{name}(ptr {rows}, ptr {sums}, i64 {count}, i64 {before})")

    def _function(self, symbol: str, width: int) -> Function:
        """``void @symbol(ptr rows, ptr sums, i64 count, i64 before)``."""
        params = [("ptr noalias readonly", "rows"), ("ptr noalias", "sums")]
        params += [("i64", "count"), ("i64", "before")]
        f = Function(symbol, params, attributes="noinline nounwind")
        lanes = self.target.lanes(self.dtype)
        while lanes > 1 and lanes // 2 >= width:
            lanes //= 2
        e = VectorEmitter(f, lanes, self.dtype, registers=self.target.registers)
        group, unroll = sums_shape(self.target, -(-width // lanes), 1)
        begins = f.emit("icmp eq i64 %before, 0")

        def columns(positions: list[Position]) -> None:
            self._columns(f, e, positions, unroll, begins)

        blocks = column_blocks(e, width, group)
        if blocks == 1:
            in_column_block(e, width, group, 0, columns)
        else:
            with f.loop(blocks) as b:
                in_column_block(e, width, group, b.index, columns)
        return f

    def _columns(
        self, f: Function, e: VectorEmitter, positions: list[Position], unroll: int, begins: str
    ) -> None:
        number = row_count(f, e, "%count")

        def over(body: Body, zeros: Sequence[Lane]) -> Lanes:
            return sweep(e, "%count", body, zeros, width=1, unroll=unroll)

        def read(row: Size) -> Lanes:
            base = f.element("%rows", memory_type(self.dtype), times(f, row, self.pitch))
            return tuple(p.load(base, self.dtype) for p in positions)

        found = block_moments(e, over, (read, read), len(positions), self.dtype, number)
        merging = Merging.of(e, number, row_count(f, e, "%before"))
        places = ("%sums", f.element("%sums", "double", self.channels))
        for at, block in zip(positions, found, strict=True):
            # What memory holds before the first block counts as zeros, whatever it is.
            known = tuple(_unless(e, begins, at.load(place, float64)) for place in places)
            for value, place in zip(merging.merged(e, known, block), places, strict=True):  # type: ignore[arg-type]
                at.store(value, place)


def _unless(e: VectorEmitter, condition: str, value: Lane) -> Lane:
    """Zeros if an i1 is set."""
    kind, zero = e.type(value.dtype), e.constant(0, value.dtype).text
    text = e.fn.emit(f"select i1 {condition}, {kind} {zero}, {kind} {value.text}")
    return Lane(text, value.dtype)


