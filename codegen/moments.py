"""Moments of the rows of a result: means, and sums of squares around them, per channel.

``merged`` adds the moments of some rows to those of others (T. Chan et al., "Updating Formulae and
a Pairwise Algorithm for Computing Sample Variances", 1979). ``TileMoments`` takes them of the tiles
of a contraction while they are in registers: sums of d and of d^2 for d = x - shift, where shift is
the mean of the first tile of a run of rows, so that a large mean does not spoil the squares. A run
has few hundred rows; its sums, in the dtype of the result, are added to the moments of its part in
float64. Parts belong to pieces of a kernel's work, never to a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from ..ir.types import DType, float64
from .emitter import Lane, VectorEmitter
from .kernel import LocalFunctions
from .loops import Position, mask_of, widen
from .sizes import Size, plus, times
from .target import LINE, Target
from .text import Function

# The most rows whose sums are taken in the dtype of the result.
_RUN_ROWS = 256


def row_count(fn: Function, e: VectorEmitter, number: Size) -> Lane:
    """A number of rows in every lane, in float64."""
    if isinstance(number, int):
        return e.constant(number, float64)
    # Opaque: otherwise the vector would wait in a register while the sums need them.
    text = fn.emit(f"sitofp i64 {fn.opaque('i64', number)} to double")
    return e.splat(text, float64)


def merged(
    e: VectorEmitter, known: Sequence[Lane], found: Sequence[Lane], before: Lane, number: Lane
) -> tuple[Lane, Lane]:
    """(mean, squares) of ``before`` rows, ``known``, and ``number`` rows, ``found``, together."""
    share = e.div(number, e.add(before, number))
    delta = e.sub(found[0], known[0])
    cross = e.mul(e.mul(delta, delta), e.mul(before, share))
    return e.fma(delta, share, known[0]), e.add(known[1], e.add(found[1], cross))


# -- of tiles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """What a kernel is asked for: the moments of each ``rows`` neighbouring rows of its result, in
    its output number ``output``."""

    rows: int
    output: int

    def run(self, multiple: int) -> int:
        """The rows of a run: as many as are summed at a time, a divisor of a part's and, unless it
        is the part itself, a multiple of ``multiple``."""
        runs = range(multiple, min(_RUN_ROWS, self.rows) + 1, multiple)
        return max((n for n in runs if not self.rows % n), default=self.rows)


@dataclass(frozen=True)
class Sums:
    """How sums of a run lie in private memory, for ``width`` columns in vectors of ``lanes``: a
    line with a word that says whether there are shifts, then shifts, sums and squares."""

    dtype: DType
    lanes: int
    width: int

    @property
    def padded(self) -> int:
        return -(-self.width // self.lanes) * self.lanes

    @property
    def bytes(self) -> int:
        size = LINE + 3 * self.padded * self.dtype.itemsize
        return -(-size // LINE) * LINE

    def place(self, e: VectorEmitter, base: str, j: int, which: int) -> str:
        """The address of vector j of the shifts (0), sums (1) or squares (2)."""
        at = LINE + (which * self.padded + j * self.lanes) * self.dtype.itemsize
        return e.fn.element(base, "i8", at)

    def clear(self, f: Function, base: str) -> None:
        f.call(
            "void", "llvm.memset.p0.i64",
            ("ptr", base), ("i8", "0"), ("i64", str(self.bytes)), ("i1", "false"),
        )  # fmt: skip

    def add(self, e: VectorEmitter, base: str, columns: Sequence[Sequence[Lane]]) -> None:
        """Adds the rows of a tile: for each vector of columns, its elements."""
        f = e.fn
        with f.when(f.emit(f"icmp eq i64 {f.load('i64', base, 8)}, 0")):
            f.store("i64", "1", base, 8)
            for j, values in enumerate(columns):
                share = e.constant(1 / len(values), self.dtype)
                e.store(e.mul(reduce(e.add, values), share), self.place(e, base, j, 0))
        for j, values in enumerate(columns):
            shift = e.load(self.place(e, base, j, 0), self.dtype)
            sums: list[Lane] = []
            for value in values:
                d = e.sub(value, shift)
                sums = [e.add(sums[0], d), e.fma(d, d, sums[1])] if sums else [d, e.mul(d, d)]
            for which, found in enumerate(sums, 1):
                place = self.place(e, base, j, which)
                e.store(e.add(e.load(place, self.dtype), found), place)


class TileMoments:
    """What one kernel needs to take the moments of its tiles, which add to ``sums`` (in a
    ``TileEpilogue``). ``channels`` is the length of the rows of the result."""

    def __init__(
        self, symbol: str, parts: Parts, sums: Sums, channels: int, target: Target
    ) -> None:
        self.parts, self.sums, self.channels, self.target = parts, sums, channels, target
        self.helpers = LocalFunctions(symbol)

    @property
    def functions(self) -> list[Function]:
        return self.helpers.functions

    def finish(
        self, f: Function, base: str, part: Size, count: Size, before: Size, column: Size,
        width: int,
    ) -> None:  # fmt: skip
        """Adds the sums at ``base``, of ``count`` rows, to the moments of a part, of which
        ``before`` rows were added; ``width`` channels from ``column`` on."""
        name = self.helpers.name(f"moments_{width}", lambda s: self._function(s, width))
        into = plus(f, times(f, part, 2 * self.channels), column)
        into = f.element(f"%out{self.parts.output}", "double", into)
        f.do(f"call void @{name}(ptr {base}, ptr {into}, i64 {count}, i64 {before})")

    def _function(self, symbol: str, width: int) -> Function:
        """``void @symbol(ptr sums, ptr moments, i64 count, i64 before)``."""
        params = [("ptr noalias readonly", "sums"), ("ptr noalias", "moments")]
        params += [("i64", "count"), ("i64", "before")]
        f = Function(symbol, params, attributes="noinline nounwind")
        sums = self.sums
        e = VectorEmitter(f, sums.lanes, sums.dtype, registers=self.target.registers)
        begins = f.emit("icmp eq i64 %before, 0")
        number, before = row_count(f, e, "%count"), row_count(f, e, "%before")
        share = e.div(e.constant(1, float64), number)
        places = ("%moments", f.element("%moments", "double", self.channels))
        for j in range(-(-width // sums.lanes)):
            left = width - j * sums.lanes
            at = Position(e, j * sums.lanes, mask_of(e, left) if left < sums.lanes else None)
            shift, total, squares = (
                widen(e, e.load(sums.place(e, "%sums", j, which), sums.dtype)) for which in range(3)
            )
            off = e.mul(total, share)
            found = e.add(shift, off), e.sub(squares, e.mul(off, total))
            # What memory holds before the first run counts as zeros, whatever it is.
            known = [_unless(e, begins, at.load(place, float64)) for place in places]
            for value, place in zip(merged(e, known, found, before, number), places, strict=True):
                at.store(value, place)
        return f


def _unless(e: VectorEmitter, condition: str, value: Lane) -> Lane:
    """Zeros if an i1 is set."""
    kind, zero = e.type(value.dtype), e.constant(0, value.dtype).text
    text = e.fn.emit(f"select i1 {condition}, {kind} {zero}, {kind} {value.text}")
    return Lane(text, value.dtype)
