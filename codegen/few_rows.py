"""Products of one or two rows with a packed matrix: reading the matrix is all that takes time.

Threads get equal parts of the columns, in *pieces* of half a panel where a panel has cache lines
enough for that: with whole ones, 196 columns in panels of 64 would be 4 vectors for one thread and
9 for the other. What is left of the columns after the last whole panel is one more piece. A range
of pieces is read panel by panel, each from front to end, with as many sums at a time as hide the
latency of multiply-add; the narrow last panel goes together with the one before it, because its
sums alone would not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..ir.types import Dim, fixed
from .brgemm import MicroKernels
from .epilogue import TileEpilogue
from .gemm_blocking import Gemm
from .sizes import Size, least, minus, plus, quotient, times
from .target import Target
from .text import Function
from .tile import Tile

MOST_ROWS = 2

# So many bytes of sums hide the latency of multiply-add, some 4 cycles, behind the 32 to 64 bytes
# that a second level cache gives per cycle.
_SUM_BYTES = 256
# Two cache lines come together; less than that of each row of a panel is not read alone.
_PIECE_BYTES = 128


def serves(spec: Gemm) -> bool:
    """Whether a product may turn out to have few rows, and its matrix is packed for it."""
    return spec.b == "packed" and not spec.blocked and isinstance(spec.m, Dim) and not spec.batch


class FewRows:
    """Writes such a product into a kernel.

    ``pointers`` are A and B; ``tile(vectors, width)`` is the micro-kernel's tile of one row for
    neighbouring vectors, and ``private(tile)`` its last arguments.
    """

    def __init__(
        self,
        f: Function,
        spec: Gemm,
        target: Target,
        pointers: tuple[str, str],
        epilogue: TileEpilogue,
        micro: MicroKernels,
        tile: Callable[[int, int], Tile],
        private: Callable[[Tile], list[tuple[str, str]]],
    ) -> None:
        self.f, self.spec, self.pointers = f, spec, pointers
        self.epilogue, self.micro = epilogue, micro
        self.tile, self.private = tile, private
        self.lanes = target.lanes(spec.dtype)
        self.kind = "float" if spec.dtype.itemsize == 4 else "double"
        self.per_panel = spec.panel // self.lanes
        half = self.per_panel // 2
        fine = self.per_panel % 2 == 0 and half * target.vector_bytes >= _PIECE_BYTES
        self.piece = half if fine else self.per_panel
        self.whole = spec.n // spec.panel
        self.rest = spec.n - self.whole * spec.panel
        self.narrow = -(-self.rest // self.lanes)
        self.depth = fixed(spec.k) * spec.panel
        panel_bytes = spec.panel * spec.dtype.itemsize
        self.at_a_time = max(1, min(self.whole, _SUM_BYTES // panel_bytes))

    def emit(self, rows: Size, tasks: int) -> None:
        """The columns of tasks ``%begin`` to ``%end``, of ``tasks`` in all, for all ``rows``."""
        f, panel = self.f, self.per_panel // self.piece
        of_panels = self.whole * panel
        pieces = of_panels + bool(self.rest)
        # Forwards: the last columns, the larger part of what cannot be divided equally, are not
        # those of thread 0, whose caches also hold what the caller does between two calls.
        at, stop = (self._piece_at(place, tasks, of_panels, pieces) for place in ("%begin", "%end"))
        if panel > 1 and self.whole:
            second = f.emit(f"trunc i64 {at} to i1")
            some = f.emit(f"icmp slt i64 {at}, {least(f, stop, of_panels)}")
            alone = f.emit(f"and i1 {second}, {some}")
            with f.when(alone):
                self._tile(rows, at, self.piece)
            at = plus(f, at, f.emit(f"zext i1 {alone} to i64"))
        end, last, joined = least(f, stop, of_panels), "false", "false"
        if self.rest:
            last = f.emit(f"icmp eq i64 {stop}, {pieces}")
            last = f.emit(f"and i1 {last}, {f.emit(f'icmp slt i64 {at}, {pieces}')}")
        if self.rest and self.whole:
            there = f.emit(f"icmp sle i64 {at}, {of_panels - panel}")
            joined = f.emit(f"and i1 {last}, {there}")
            end = f.emit(f"select i1 {joined}, i64 {of_panels - panel}, i64 {end}")
        for many in sorted({self.at_a_time, 1} if self.whole else set(), reverse=True):
            step = many * panel
            with f.loop(minus(f, end, step - 1), start=at, step=step) as loop:
                self._tile(rows, loop.index, many * self.per_panel)
            at = loop.index
        if panel > 1 and self.whole:
            with f.when(f.emit(f"icmp slt i64 {at}, {end}")):
                self._tile(rows, at, self.piece)
        if joined != "false":
            with f.when(joined):
                self._tile(rows, of_panels - panel, self.per_panel + self.narrow, self.rest)
        if last != "false":
            alone = last if joined == "false" else f.emit(f"xor i1 {joined}, {last}")
            with f.when(alone):
                self._tile(rows, of_panels, self.narrow, self.rest)

    def _piece_at(self, place: Size, tasks: int, of_panels: int, pieces: int) -> Size:
        """The piece at a place from 0 to ``tasks``, where the last piece ends."""
        f = self.f
        vectors = self.whole * self.per_panel + self.narrow
        done = quotient(f, times(f, place, vectors), tasks * self.piece)
        over = f.emit(f"icmp sge i64 {place}, {tasks}")
        return f.emit(f"select i1 {over}, i64 {pieces}, i64 {least(f, done, of_panels)}")

    def _tile(self, rows: Size, piece: Size, vectors: int, rest: int = 0) -> None:
        """All rows of so many vectors from a piece on; ``rest`` is the width of the narrow panel
        if they end with it."""
        f, spec, lanes = self.f, self.spec, self.lanes
        wide = vectors - self.narrow if rest else vectors
        tile = self.tile(vectors, wide * lanes + rest)
        if vectors > self.per_panel:
            places = [
                j // self.per_panel * self.depth + j % self.per_panel * lanes
                for j in range(vectors)
            ]
            tile = replace(tile, b_vectors=tuple(places))
        vector = times(f, piece, self.piece)
        panel = quotient(f, vector, self.per_panel)
        inside = minus(f, vector, times(f, panel, self.per_panel))
        place = plus(f, times(f, panel, self.depth), times(f, inside, lanes))
        a, b = self.pointers
        weights = f.element(b, self.kind, place)
        column = times(f, vector, lanes)
        name = self.micro.name(tile, self.epilogue)
        with f.loop(rows) as row:
            args = [("ptr", f.element(a, self.kind, times(f, row.index, spec.a_row)))]
            args.append(("ptr", weights))
            args += self.epilogue.arguments(f, row.index, column, spec.c_pitch)
            args += self.private(tile)
            f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")
