"""Register tiles: what one call of the micro-kernel (``brgemm.py``) computes, and how large a tile
may be on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.types import DType
from .target import Target

LONGEST_SUM = 512
"""A reduction of more steps than this is summed in blocks."""


@dataclass(frozen=True)
class Reduction:
    """One loop of the reduction: its trip count and how far A and B move, in elements.

    ``count`` is a number, or the name of an i64 parameter of the micro-kernel.
    """

    count: int | str
    a_step: int
    b_step: int


@dataclass(frozen=True)
class Tile:
    """A register tile: ``rows`` x ``vectors`` accumulators.

    ``a_rows`` and ``c_rows`` are the offsets of each row in A and C, in elements; ``c_pitch`` is
    the distance of neighbouring rows of C (a tile may skip some). The last vector has ``tail``
    active lanes. ``loops`` is the reduction, outermost loop first; the steps of one loop do not
    include those of the loops in it; without loops the tile is what the epilogue starts from.
    ``padded`` says that B may be read to the end of its last vector; ``b_vectors`` are the offsets
    of the vectors of a row of B if they are not neighbours. ``b_ahead``, if not 0, is how many
    elements before their use B's vectors are asked for from the second level cache. ``b_copy``, if
    not 0, says that the rows of B are also written, so many elements apart, to a copy that later
    tiles read; the reduction is then one loop of a number of steps, and all vectors are stored.
    """

    dtype: DType
    lanes: int
    a_rows: tuple[int, ...]
    c_rows: tuple[int, ...]
    vectors: int
    tail: int
    loops: tuple[Reduction, ...]
    padded: bool = True
    c_pitch: int = 1
    b_vectors: tuple[int, ...] = ()
    b_ahead: int = 0
    b_copy: int = 0

    @property
    def rows(self) -> int:
        return len(self.a_rows)

    @property
    def width(self) -> int:
        """Columns that the tile computes."""
        return (self.vectors - 1) * self.lanes + self.tail

    @property
    def overlap(self) -> int:
        """How many neighbouring rows read the same elements in the loops that are unrolled."""
        if not self.loops or len(self.a_rows) < 2:
            return 0
        step = min(abs(b - a) for a, b in zip(self.a_rows, self.a_rows[1:], strict=False))
        reach, span = 0, max(self.a_rows) - min(self.a_rows)
        for loop in self.loops[-2:]:
            trips = loop.count if isinstance(loop.count, int) and loop.count < 16 else 4
            if loop.a_step <= span:  # else a step leads past the elements of all rows
                reach = max(reach, (trips - 1) * loop.a_step)
        count = reach // step + 1 if step > 0 else 0
        return min(count, 5) if count > 1 else 0

    @property
    def steps(self) -> int | None:
        """Length of the reduction; None if it is known at run time only."""
        return constant_trips(self.loops)

    @property
    def blocked(self) -> bool:
        """Whether the sum is cut into blocks that are added in memory."""
        return self.steps is not None and self.steps > LONGEST_SUM

    @property
    def sums_bytes(self) -> int:
        """Memory that the blocks of the sum need."""
        size = self.rows * self.vectors * self.lanes * self.dtype.itemsize
        return size if self.blocked else 0

    def active(self, vector: int) -> str | None:
        """The mask of the lanes in use, or None if all are."""
        if vector < self.vectors - 1 or self.tail == self.lanes:
            return None
        return tail_mask(self.lanes, self.tail)


def tail_mask(lanes: int, active: int) -> str:
    """An i1 vector constant with the first ``active`` lanes set."""
    bits = ", ".join(f"i1 {str(k < active).lower()}" for k in range(lanes))
    return f"<{bits}>"


# Rows of the largest tile of 1, 2, 3 or 4 vectors that LLVM keeps in registers, found by counting
# spills (LLVM 22). AArch64 has as many registers as AVX-512, but its loads reach less far, so that
# distant rows cost address registers and the scheduler holds more rows of B at a time.
_ROWS_16_REGISTERS = {1: 12, 2: 6, 3: 4}
_ROWS_AVX512 = {1: 28, 2: 12, 3: 7, 4: 6}
_ROWS_NEON = {1: 12, 2: 8, 3: 6, 4: 5}


def register_rows(target: Target) -> dict[int, int]:
    """Rows of the largest register tile for each number of vectors per row."""
    if target.registers < 32:
        return _ROWS_16_REGISTERS
    return _ROWS_AVX512 if target.vector_bytes >= 64 else _ROWS_NEON


def halving_rows(largest: int) -> list[int]:
    """Tile heights that cover any number of rows: the largest, then the powers of two below it."""
    sizes = [largest]
    power = 1 << max(0, (largest - 1).bit_length() - 1)
    while power and largest > 1:
        sizes.append(power)
        power //= 2
    return sizes


def constant_trips(loops: Sequence[Reduction]) -> int | None:
    """The product of the trip counts, if all are numbers."""
    total = 1
    for loop in loops:
        if not isinstance(loop.count, int):
            return None
        total *= loop.count
    return total
