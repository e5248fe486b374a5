"""What attention and its gradient share: where heads are, and products of blocks of their rows.

Heads have any steps between batch, head and row, so that heads that are columns of a projection are
read and written in place. Products go through the micro-kernel; the right factor is packed in
scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..ir.types import DType, Extent, TensorType
from .attention_scores import ScoreEpilogue
from .brgemm import Epilogue, MicroKernels
from .emitter import memory_type
from .epilogue import TileEpilogue
from .packing import PanelSource, pack_function
from .sizes import Size, least, minus, plus, times
from .target import LINE, Target
from .text import Function
from .tile import LONGEST_SUM, Reduction, Tile, halving_rows

# Keys whose products with the weights are summed in one go; more are summed block by block.
_BLOCK = 256


@dataclass(frozen=True)
class Place:
    """Where the rows of a head are: element 0, and the steps of batch, head and row in elements."""

    start: int
    batch: int
    head: int
    row: int


def place_of(x: TensorType, dim: int, start: int) -> Place:
    """The place of heads of ``dim`` columns in an operand; see ``ir/ops/attention.py``."""
    sizes = fixed(x.shape[1:])
    if x.rank == 3:
        rows, features = sizes
        return Place(start, rows * features, dim, features)
    heads, rows, columns = sizes
    return Place(start, heads * rows * columns, rows * columns, columns)


def mask_steps(mask: TensorType) -> tuple[int, int, int, int]:
    """The steps of batch, head, query and key in a mask; 0 where it repeats."""
    heads, rows, keys = fixed(mask.shape[1:])
    steps = (heads * rows * keys, rows * keys, keys, 1)
    batch, head, query, key = (
        0 if extent == 1 else step for extent, step in zip(mask.shape, steps, strict=True)
    )
    return batch, head, query, key


def fixed(shape: Sequence[Extent]) -> list[int]:
    """Extents that the record's shape rule has found to be numbers."""
    return [d for d in shape if isinstance(d, int)]


def row_pitch(columns: int, dtype: DType) -> int:
    """Elements from row to row of a strip in scratch: an odd number of cache lines, so that rows do
    not fall into the same cache sets."""
    size = dtype.itemsize
    return (-(-columns * size // LINE) | 1) * LINE // size


def row_lanes(columns: int, lanes: int) -> int:
    """Lanes for work on rows of so many columns."""
    while lanes > 1 and lanes // 2 >= columns:
        lanes //= 2
    return lanes


@dataclass(frozen=True)
class Rows:
    """Tiles that cover the rows of a block: heights, the tallest first."""

    heights: tuple[int, ...]

    @classmethod
    def of(cls, tallest: int, counts: Sequence[int]) -> Rows:
        """For blocks of any of ``counts`` rows: equal tiles, and one for what is left of each."""
        most = max(counts)
        unit = -(-most // -(-most // tallest))
        return cls(tuple(sorted({unit, *(n % unit for n in counts)} - {0}, reverse=True)))

    @classmethod
    def any(cls, tallest: int) -> Rows:
        """For any number of rows."""
        return cls(tuple(halving_rows(tallest)))


@dataclass(frozen=True)
class Packed:
    """A matrix that is packed in scratch: ``columns`` in panels of ``panel``, ``depth`` rows."""

    at: int
    columns: int
    panel: int
    depth: int


class HeadWriter:
    """Part of a kernel that works on one head after the other."""

    def __init__(self, symbol: str, f: Function, dtype: DType, target: Target) -> None:
        self.symbol, self.f, self.dtype, self.target = symbol, f, dtype, target
        self.micro = MicroKernels(f"{symbol}_tile")
        self.lanes = target.lanes(dtype)
        self.kind = memory_type(dtype)
        self.helpers: list[Function] = []
        self.scratch = 0
        self._sums_bytes = 0

    @property
    def scratch_bytes(self) -> int:
        """Scratch with the room for the sums of long tiles, which is at its end."""
        return self.scratch + self._sums_bytes

    def room(self, elements: int) -> int:
        """The place of so many more elements in scratch, in bytes."""
        at = self.scratch
        self.scratch += -(-elements * self.dtype.itemsize // LINE) * LINE
        return at

    def packed(self, columns: int, panel: int, depth: int) -> Packed:
        """Room for a packed matrix."""
        return Packed(self.room(-(-columns // panel) * panel * depth), columns, panel, depth)

    def address(self, base: str, at: Place, batch: Size, head: Size, row: Size = 0) -> str:
        """The first element of a row of a head."""
        f = self.f
        offset = plus(f, times(f, batch, at.batch), times(f, head, at.head))
        offset = plus(f, offset, plus(f, times(f, row, at.row), at.start))
        return f.element(base, self.kind, offset)

    def pack(self, name: str, matrix: str, row_step: int, to: Packed, transposed: bool) -> None:
        """Packs a head. ``transposed``: the columns of the matrix are the rows of the head."""
        f = self.f
        steps = (1, row_step) if transposed else (row_step, 1)
        source = PanelSource(self.dtype, to.columns, to.panel, to.depth, *steps)
        name = f"{self.symbol}_pack_{name}"
        self.helpers += pack_function(name, source, self.target)
        start = f.element("%scratch", "i8", to.at)
        with f.loop(source.panels) as loop:
            into = f.element(start, self.kind, times(f, loop.index, to.panel * to.depth))
            f.do(f"call void @{name}(ptr {into}, ptr {matrix}, i64 {loop.index}, i64 {to.depth})")

    # -- products

    def wide(
        self,
        a: str,
        a_row: int,
        b: Packed,
        limit: Size,
        c: str,
        c_row: int,
        rows: tuple[Rows, Size],
        epilogue: Epilogue,
        more: Callable[[Size, Size], list[tuple[str, str]]] = lambda row, column: [],
    ) -> None:
        """``C = A B`` for the first ``limit`` columns of B, panel by panel.

        ``more(row, column)`` are further arguments of the epilogue for a tile that begins there.
        """
        f, panel = self.f, b.panel
        start = f.element("%scratch", "i8", b.at)

        def panel_of(column: Size, width: int) -> None:
            right = f.element(start, self.kind, times(f, column, b.depth))

            def tile_at(row: Size, height: int) -> None:
                here = f.element(a, self.kind, times(f, row, a_row))
                there = f.element(c, self.kind, plus(f, times(f, row, c_row), column))
                args = [("ptr", here), ("ptr", right), ("ptr", there), *more(row, column)]
                tile = self._tile(height, width, a_row, c_row, Reduction(b.depth, 1, panel))
                self._call(tile, epilogue, args)

            self._over_rows(rows, tile_at)

        whole = b.columns // panel * panel
        if whole:
            with f.loop(least(f, limit, whole), step=panel) as loop:
                panel_of(loop.index, panel)
        if whole < b.columns:
            with f.when(f.emit(f"icmp sgt i64 {limit}, {whole}")):
                panel_of(whole, b.columns - whole)

    def scores(
        self,
        queries: str,
        query_row: int,
        keys: Packed,
        limit: Size,
        strip: str,
        pitch: int,
        rows: tuple[Rows, Size],
        epilogue: ScoreEpilogue,
        mask: str,
        first: Size,
    ) -> None:
        """A strip of scores: queries ``first`` and following times the first ``limit`` keys.

        ``mask`` is the address of the mask of the query ``first``, if the epilogue adds one.
        """
        f = self.f

        def more(row: Size, column: Size) -> list[tuple[str, str]]:
            args = []
            if epilogue.mask is not None:
                query, key = epilogue.mask
                at = plus(f, times(f, row, query), times(f, column, key))
                args.append(("ptr", f.element(mask, self.kind, at)))
            if epilogue.causal:
                args.append(("i64", str(minus(f, plus(f, first, row), column))))
            return args

        self.wide(queries, query_row, keys, limit, strip, pitch, rows, epilogue, more)

    def deep(
        self,
        a: str,
        a_row: int,
        b: Packed,
        limit: Size,
        c: str,
        c_row: int,
        rows: tuple[Rows, Size],
    ) -> None:
        """``C = A B`` over the first ``limit`` rows of B, summed in blocks if B has many rows."""
        f = self.f
        plain = TileEpilogue((self.dtype,))
        blocks = -(-b.depth // _BLOCK) if b.depth > LONGEST_SUM else 1
        if blocks == 1:
            self._columns(a, a_row, 1, b, 0, limit, c, c_row, rows, plain, "")
            return
        length = -(-b.depth // (8 * blocks)) * 8
        with f.loop(limit, step=length) as loop:
            started = f.emit(f"icmp sgt i64 {loop.index}, 0")
            keep = f.emit(f"sext i1 {started} to i64")
            count = least(f, minus(f, limit, loop.index), length)
            here = f.element(a, self.kind, loop.index)
            adding = replace(plain, accumulate=True)
            self._columns(here, a_row, 1, b, loop.index, count, c, c_row, rows, adding, keep)

    def turned(
        self,
        a: str,
        a_row: int,
        b: Packed,
        first: Size,
        count: Size,
        c: str,
        c_row: int,
        rows: tuple[Rows, Size],
        keep: str | None,
    ) -> None:
        """``C = A^T B`` over the rows ``first`` and following of B, ``count`` rows of A; added to
        C if the i64 ``keep`` is -1."""
        epilogue = TileEpilogue((self.dtype,), accumulate=keep is not None)
        self._columns(a, 1, a_row, b, first, count, c, c_row, rows, epilogue, keep or "")

    def _columns(
        self,
        a: str,
        a_row: int,
        a_k: int,
        b: Packed,
        first: Size,
        count: Size,
        c: str,
        c_row: int,
        rows: tuple[Rows, Size],
        epilogue: TileEpilogue,
        keep: str,
    ) -> None:
        """All columns of B, panel by panel, over ``count`` of its rows from ``first`` on."""
        f, panel = self.f, b.panel
        packed = f.element("%scratch", "i8", b.at)
        static = isinstance(count, int)

        def panel_of(column: Size, width: int) -> None:
            line = plus(f, times(f, column, b.depth), times(f, first, panel))
            right, columns = f.element(packed, self.kind, line), f.element(c, self.kind, column)

            def tile_at(row: Size, height: int) -> None:
                here = f.element(a, self.kind, times(f, row, a_row))
                there = f.element(columns, self.kind, times(f, row, c_row))
                args = [("ptr", here), ("ptr", right), ("ptr", there)]
                if epilogue.accumulate:
                    args.append(("i64", keep))
                loop = Reduction(count if isinstance(count, int) else "%count", a_k, panel)
                tile = self._tile(height, width, a_row, c_row, loop)
                if static:
                    self._call(tile, epilogue, args)
                else:
                    self._call(tile, epilogue, [*args, ("i64", str(count))], ("count",))

            self._over_rows(rows, tile_at)

        whole = b.columns // panel * panel
        for start, stop, width in ((0, whole, panel), (whole, b.columns, b.columns - whole)):
            if start < stop:
                with f.loop(stop, start=start, step=panel) as loop:
                    panel_of(loop.index, width)

    def _over_rows(self, rows: tuple[Rows, Size], body: Callable[[Size, int], None]) -> None:
        """``body(row, height)`` for the tiles that cover a number of rows."""
        f, (tiles, count) = self.f, rows
        row: Size = 0
        for height in tiles.heights:
            with f.loop(minus(f, count, height - 1), start=row, step=height) as loop:
                body(loop.index, height)
            row = loop.index

    def _tile(self, height: int, width: int, a_row: int, c_row: int, loop: Reduction) -> Tile:
        vectors = -(-width // self.lanes)
        return Tile(
            self.dtype,
            self.lanes,
            tuple(i * a_row for i in range(height)),
            tuple(i * c_row for i in range(height)),
            vectors,
            width - (vectors - 1) * self.lanes,
            (loop,),
            c_pitch=c_row,
        )

    def _call(
        self,
        tile: Tile,
        epilogue: Epilogue,
        args: list[tuple[str, str]],
        counts: tuple[str, ...] = (),
    ) -> None:
        if tile.blocked:
            args = [*args, ("ptr", self.f.element("%scratch", "i8", self.scratch))]
            self._sums_bytes = max(self._sums_bytes, tile.sums_bytes)
        if tile.overlap:
            args = [*args, ("i64", "0")]
        name = self.micro.name(tile, epilogue, counts)
        self.f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")
