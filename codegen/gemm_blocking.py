"""How a matrix product is cut: the height of units, blocks of rows, copies of A and packs of B."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..ir.types import Dim, DType, Extent
from .target import LINE, Target
from .tile import register_rows

# Reductions longer than this are summed block by block, for the caches and for accuracy.
LONGEST_REDUCTION = 1024
_BLOCK = 256
# With fewer rows than this, B is used where it is instead of being packed first.
_ROWS_WORTH_PACKING = 4
# Units of rows in a block below which it is not made smaller for the sake of threads.
_UNITS_WORTH_DIVIDING = 32


@dataclass(frozen=True)
class Gemm:
    """``C[m][n] = sum over k of A[m][k] * B[k][n]`` for every element of a batch.

    ``a_row`` and ``a_k`` are the steps of A in elements. ``b`` is ``packed`` (panels of ``panel``
    columns), ``rows`` (K x N) or ``columns`` (N x K). ``batch`` are the leading extents of the
    result; ``a_batch`` and ``b_batch`` those of A and B, of the same rank (1 where they broadcast).
    ``c_row`` is the step from row to row of C, ``n`` if it is 0.
    """

    dtype: DType
    m: Extent
    n: int
    k: Extent
    a_row: int
    a_k: int
    b: str
    panel: int
    batch: tuple[Extent, ...] = ()
    a_batch: tuple[Extent, ...] = ()
    b_batch: tuple[Extent, ...] = ()
    c_row: int = 0

    @property
    def c_pitch(self) -> int:
        """Elements from row to row of C."""
        return self.c_row or self.n

    @property
    def panels(self) -> int:
        return -(-self.n // self.panel)

    @property
    def blocked(self) -> bool:
        """Whether the reduction is cut into blocks."""
        return isinstance(self.k, Dim) or self.k > LONGEST_REDUCTION

    @property
    def block(self) -> int:
        """Longest block of the reduction."""
        if isinstance(self.k, Dim):
            return _BLOCK
        if not self.blocked:
            return self.k
        blocks = -(-self.k // _BLOCK)
        return -(-self.k // (blocks * 8)) * 8


def is_one_block(rows: int, depth: int, dtype: DType, target: Target) -> bool:
    """Whether so many rows of A are one block: a product then packs each panel of B once."""
    return rows * depth * dtype.itemsize <= target.l2 // 2


class Blocking:
    """The decisions for one product on one target, made without timing.

    unit: rows of a unit, and rest, rows of the last one; rows: the tallest tile by vectors of a
    panel; row_block: units per block of rows. copies_a: whether blocks of A are copied, to copy_at
    in the scratch memory and with a_pitch; a_row, a_k: the steps of A, or of its copy. b_mode: B is
    read ``packed``, ``direct`` or from a pack in ``scratch`` memory; b_step: from row to row of it.
    scratch: bytes of private memory for both.
    """

    def __init__(self, spec: Gemm, target: Target, part: int = 0) -> None:
        """``part``: the rows of a unit, if it has more than a tile; a divisor of those of A."""
        self.spec, self.target, self.part = spec, target, part
        self.scratch = self.copy_at = 0
        self.copies_a = self._few_sets()
        self._plan_rows()
        self._plan_b()
        self._plan_a()

    @property
    def panel_vectors(self) -> tuple[int, int]:
        """Vectors per row of a panel, and of the last one."""
        spec, lanes = self.spec, self.target.lanes(self.spec.dtype)
        last = spec.n - (spec.panels - 1) * spec.panel
        return spec.panel // lanes, -(-last // lanes)

    @property
    def row_cost(self) -> int:
        """Vectors per row: what a unit of rows costs over all panels."""
        wide, last = self.panel_vectors
        return (self.spec.panels - 1) * wide + last

    def _plan_rows(self) -> None:
        """The height of a unit: the tallest tile, or less so that static extents divide evenly."""
        spec = self.spec
        vectors = -(-min(spec.panel, spec.n) // self.target.lanes(spec.dtype))
        self.rows = register_rows(self.target)
        if not self.copies_a and spec.a_row * spec.dtype.itemsize % 4096 == 0:
            # All rows fall into one set of the first level cache, which has 8 ways.
            self.rows = {v: min(r, 6) for v, r in self.rows.items()}
        tallest = self.rows[vectors]
        if self.part:
            self.unit, self.rest = self.part, 0
        elif isinstance(spec.m, Dim):
            self.unit, self.rest = tallest, 0
        else:
            tiles = max(1, -(-spec.m // tallest))
            self.unit = max(1, -(-spec.m // tiles))
            self.rest = spec.m % self.unit
        depth = spec.block * spec.dtype.itemsize * self.unit
        most = max(1, self.target.l2 // 2 // max(1, depth))
        rows = spec.m if isinstance(spec.m, int) else spec.m.coef
        units = max(1, -(-rows // self.unit))
        # Blocks of equal height: the last one, too, reads all of B. A quarter more than half of the
        # cache is better than a second block.
        blocks = 1 if 4 * units <= 5 * most else -(-units // most)
        if units >= 2 * _UNITS_WORTH_DIVIDING and self._b_bytes <= self.target.l2 // 2:
            # Two threads have rows of their own, of A and of the result, and both all of B.
            blocks += blocks % 2
        self.row_block = -(-units // blocks)
        if isinstance(spec.m, Dim):
            self.row_block = max(self.row_block, most) if blocks == 1 else self.row_block
        # Two threads compute whole rows of a gradient, and later update the same rows. If it is
        # wide, they compute columns instead: each packs half of B, the larger operand.
        elif spec.a_k != 1 and spec.m >= spec.n and units >= 8:
            self.row_block = min(self.row_block, -(-units // 2))

    @property
    def _b_bytes(self) -> int:
        spec = self.spec
        return spec.block * spec.panels * spec.panel * spec.dtype.itemsize

    def _few_sets(self) -> bool:
        """Whether what a tile reads of A falls into too few cache sets, so that blocks are copied.

        Rows (columns, if A is transposed) that are a multiple of a large power of two apart map to
        the same sets: 8 ways of each are all that a cache can hold of them.
        """
        spec = self.spec
        if not spec.blocked:
            return False
        if spec.a_k != 1:
            return self._lines_held(spec.a_k) < spec.block
        if isinstance(spec.m, int) and spec.m < 16:
            return False
        return self._lines_held(spec.a_row) < 64

    def _lines_held(self, step: int) -> int:
        """How many lines, ``step`` elements apart, the second level cache can hold."""
        sets = max(1, self.target.l2 // (8 * LINE))
        distance = step * self.spec.dtype.itemsize
        apart = math.gcd(sets, distance // LINE) if distance % LINE == 0 else 1
        return 8 * sets // apart

    def _plan_a(self) -> None:
        """The steps of A, or of the copy of a block of it, an odd number of cache lines apart."""
        spec = self.spec
        self.a_row, self.a_k, self.a_pitch = spec.a_row, spec.a_k, 0
        if not self.copies_a:
            return
        rows = self.row_block * self.unit
        lines = rows if spec.a_k == 1 else spec.block
        length = spec.block if spec.a_k == 1 else rows
        per_line = LINE // spec.dtype.itemsize
        self.a_pitch = (-(-length // per_line) | 1) * per_line
        self.a_row, self.a_k = (self.a_pitch, 1) if spec.a_k == 1 else (1, self.a_pitch)
        self.copy_at = -(-self.scratch // LINE) * LINE
        self.scratch = self.copy_at + lines * self.a_pitch * spec.dtype.itemsize

    def _plan_b(self) -> None:
        """Where the micro-kernel reads B: packed as it comes, packed here, or as it is."""
        spec = self.spec
        small = isinstance(spec.m, int) and spec.m < _ROWS_WORTH_PACKING
        if spec.b == "packed":
            self.b_mode, self.b_step = "packed", spec.panel
        elif spec.b == "rows" and small:
            self.b_mode, self.b_step = "direct", spec.n
        else:
            self.b_mode, self.b_step = "scratch", spec.panel
        if self.b_mode == "scratch":
            self.scratch = spec.block * spec.panel * spec.dtype.itemsize
