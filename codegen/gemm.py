"""Matrix products of any size on top of the micro-kernel: blocking, packing, work division.

The work is a line of units: a unit is a tile's height of rows by one panel of columns. Units are
ordered by product of the batch, block of rows (as many as keep A in the second level cache), panel,
and row, so that a panel of B is reused over the rows of a block. A range of tasks is a range of
units; whole runs of units of one panel are done in one go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.types import Dim, DType, Extent, numel
from .brgemm import MicroKernels, Reduction, Tile, halving_rows, register_rows
from .epilogue import ALL_ONES, TileEpilogue
from .kernel import MAX_CUTS, MAX_TASKS, Kernel, TaskCount, assembled, kernel_params, symbol_for
from .packing import PanelSource, pack_function
from .sizes import Size, extent, greatest, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function

# Reductions longer than this are summed block by block, for the caches and for accuracy.
LONGEST_REDUCTION = 1024
_BLOCK = 256
# With fewer rows than this, B is used where it is instead of being packed first.
_ROWS_WORTH_PACKING = 4
_LINE = 64  # bytes of a cache line
# Rows for which several panels are done at a time.
_FEW_ROWS = 2


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


def gemm_kernel(
    prefix: str,
    spec: Gemm,
    epilogue: TileEpilogue,
    pointers: tuple[str, str],
    inputs: int,
    target: Target,
) -> Kernel:
    """The kernel of a matrix product.

    ``pointers`` are the kernel's parameters (``%in0``) of A and B; ``inputs`` is how many inputs
    the kernel has.
    """
    return _GemmWriter(prefix, spec, epilogue, pointers, inputs, target).kernel()


def is_one_block(rows: int, depth: int, dtype: DType, target: Target) -> bool:
    """Whether so many rows of A are one block: a product then packs each panel of B once."""
    return rows * depth * dtype.itemsize <= target.l2 // 2


def tile_heights(unit: int, rows: int, static: bool, remainder: int) -> list[int]:
    """Heights of the tiles that cover any run of rows that starts at a multiple of ``unit``.

    ``rows`` is the largest height that fits the registers. If ``static``, runs have whole units but
    for one of ``remainder`` rows.
    """
    largest = max(unit, rows // unit * unit)
    if not static:
        return sorted({largest, *halving_rows(min(rows, largest))}, reverse=True)
    return sorted({largest, unit, remainder} - {0}, reverse=True)


class _GemmWriter:
    def __init__(
        self,
        prefix: str,
        spec: Gemm,
        epilogue: TileEpilogue,
        pointers: tuple[str, str],
        inputs: int,
        target: Target,
    ) -> None:
        self.spec, self.epilogue, self.target = spec, epilogue, target
        self.a, self.b = pointers
        shape = (spec, epilogue.key, pointers, inputs, target)
        self.symbol = symbol_for(prefix, *shape)
        self.f = Function(self.symbol, kernel_params(len(epilogue.outputs), inputs))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.lanes = target.lanes(spec.dtype)
        self.scalar = "float" if spec.dtype.itemsize == 4 else "double"
        self.helpers: list[Function] = []
        self.scratch = self.copy_at = 0
        self._plan_rows()
        self._plan_b()
        self._plan_a()
        self.wide_panels = 0
        if self.b_mode == "packed" and not spec.blocked and isinstance(spec.m, Dim):
            sums = 16 if target.registers >= 32 else 8
            self.wide_panels = min(spec.n // spec.panel, sums // (spec.panel // self.lanes))
        self.sums_at = -(-self.scratch // _LINE) * _LINE

    def _plan_rows(self) -> None:
        """The height of a unit: the tallest tile, or less so that static extents divide evenly."""
        spec = self.spec
        vectors = -(-min(spec.panel, spec.n) // self.lanes)
        self.rows = register_rows(self.target)
        if not self._copies_a() and spec.a_row * spec.dtype.itemsize % 4096 == 0:
            # All rows fall into one set of the first level cache, which has 8 ways.
            self.rows = {v: min(r, 6) for v, r in self.rows.items()}
        tallest = self.rows[vectors]
        if isinstance(spec.m, Dim):
            self.unit, self.rest = tallest, 0
        else:
            tiles = max(1, -(-spec.m // tallest))
            self.unit = max(1, -(-spec.m // tiles))
            self.rest = spec.m % self.unit
        depth = spec.block * spec.dtype.itemsize * self.unit
        self.row_block = max(1, self.target.l2 // 2 // max(1, depth))
        if isinstance(spec.m, int):
            units = max(1, -(-spec.m // self.unit))
            # Two threads compute whole rows of a gradient, and later update the same rows. If it is
            # wide, they compute columns instead: each packs half of B, the larger operand.
            tall = spec.m >= spec.n
            blocks = 2 if spec.a_k != 1 and tall and units >= 8 else 1
            self.row_block = min(self.row_block, -(-units // blocks))

    def _copies_a(self) -> bool:
        """Whether blocks of A are copied because what a tile reads falls into too few cache sets.

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
        sets = max(1, self.target.l2 // (8 * _LINE))
        distance = step * self.spec.dtype.itemsize
        apart = math.gcd(sets, distance // _LINE) if distance % _LINE == 0 else 1
        return 8 * sets // apart

    def _plan_a(self) -> None:
        """The steps of A, or of the copy of a block of it, an odd number of cache lines apart."""
        spec = self.spec
        self.a_row, self.a_k, self.a_pitch = spec.a_row, spec.a_k, 0
        if not self._copies_a():
            return
        rows = self.row_block * self.unit
        lines = rows if spec.a_k == 1 else spec.block
        length = spec.block if spec.a_k == 1 else rows
        per_line = _LINE // spec.dtype.itemsize
        self.a_pitch = (-(-length // per_line) | 1) * per_line
        self.a_row, self.a_k = (self.a_pitch, 1) if spec.a_k == 1 else (1, self.a_pitch)
        self.copy_at = -(-self.scratch // _LINE) * _LINE
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

    # -- the kernel

    def kernel(self) -> Kernel:
        spec, f = self.spec, self.f
        m, k = extent(f, spec.m), extent(f, spec.k)
        batch: Size = 1
        for d in spec.batch:
            batch = times(f, batch, extent(f, d))
        units = quotient(f, plus(f, m, self.unit - 1), self.unit)
        work = times(f, batch, times(f, units, spec.panels))
        tasks = self._tasks(work)
        cost = times(f, batch, times(f, units, self._row_cost()))
        first, stop = (
            self._unit_at(quotient(f, times(f, cost, place), tasks), units)
            for place in ("%begin", "%end")
        )
        line = _Line(first, stop, units, m, k)
        if isinstance(spec.k, int) and not spec.blocked:
            self._units(line, 0, spec.k, [(self.epilogue, "true")])
        else:
            self._blocks(line)
        functions = [*self.helpers, *self.micro.functions, f]
        return assembled(
            functions,
            TaskCount(tasks),
            self.scratch,
            numel((spec.m, spec.n, spec.k, *spec.batch)) * 2,
            # Ranges that share a block of A or a panel of B copy it each.
            cuts=2 if self._copies_a() or spec.b != "packed" else MAX_CUTS,
        )

    def _vectors(self) -> tuple[int, int]:
        """Vectors per row of a panel, and of the last one."""
        spec = self.spec
        last = spec.n - (spec.panels - 1) * spec.panel
        return spec.panel // self.lanes, -(-last // self.lanes)

    def _row_cost(self) -> int:
        """Vectors per row: what a unit of rows costs over all panels."""
        wide, last = self._vectors()
        return (self.spec.panels - 1) * wide + last

    def _unit_at(self, cost: Size, units: Size) -> Size:
        """The unit up to which the line costs ``cost``, so that ranges of tasks cost the same:
        the units of a narrow last panel cost less than the others."""
        f, panels = self.f, self.spec.panels
        wide, last = self._vectors()
        if wide == last or panels == 1:
            return quotient(f, cost, last)
        per_row = self._row_cost()
        per_item = greatest(f, times(f, units, per_row), 1)  # without rows there is no cost either
        item, left = quotient(f, cost, per_item), remainder(f, cost, per_item)
        block = quotient(f, left, self.row_block * per_row)
        top = times(f, block, self.row_block)
        inside = minus(f, left, times(f, top, per_row))
        height = least(f, minus(f, units, top), self.row_block)
        of_wide = times(f, height, panels - 1)
        narrow = minus(f, inside, times(f, of_wide, wide))
        # Before the last panel ``narrow`` is negative, and the second term 0.
        narrow = greatest(f, narrow, 0)
        found = plus(f, least(f, quotient(f, inside, wide), of_wide), quotient(f, narrow, last))
        start = plus(f, times(f, item, units), top)
        return plus(f, times(f, start, panels), found)

    def _blocks(self, line: _Line) -> None:
        """All units for one block of the reduction after the other."""
        f, spec = self.f, self.spec
        middle = TileEpilogue((spec.dtype,), self.epilogue.bias, accumulate=True)
        last = replace(self.epilogue, accumulate=True)
        # An empty reduction is one block, too: it applies the epilogue.
        with f.loop(greatest(f, line.k, 1), step=spec.block) as loop:
            count = least(f, minus(f, line.k, loop.index), spec.block)
            epilogues = [(middle, "true")]
            if last != middle:
                final = f.emit(f"icmp sge i64 {plus(f, loop.index, spec.block)}, {line.k}")
                epilogues = [(middle, f.emit(f"xor i1 {final}, true")), (last, final)]
            self._units(line, loop.index, count, epilogues)

    def _units(
        self,
        line: _Line,
        k: Size,
        count: Size,
        epilogues: Sequence[tuple[TileEpilogue, str]],
    ) -> None:
        """All units of the range, for steps [k, k + count) of the reduction.

        The epilogue is the one whose condition holds.
        """
        f, spec = self.f, self.spec
        per_product = times(f, line.units, spec.panels)
        per_block = times(f, spec.panels, self.row_block)
        chunk = f.fresh("chunk")
        with f.loop(line.stop, start=line.first, step=chunk) as place:
            item = quotient(f, place.index, per_product)
            left = remainder(f, place.index, per_product)
            block = quotient(f, left, per_block)
            at = minus(f, left, times(f, block, per_block))
            first_unit = times(f, block, self.row_block)
            height = least(f, minus(f, line.units, first_unit), self.row_block)
            size = minus(f, times(f, height, spec.panels), at)
            size = least(f, size, minus(f, line.stop, place.index))
            f.emit(f"add nsw i64 {size}, 0", chunk)
            top = times(f, first_unit, self.unit)
            rows = least(f, minus(f, line.m, top), times(f, height, self.unit))
            a = self._block_of_a(item, line, top, rows, k, count)
            b = f.element(self.b, self.scalar, self._offsets(item, line)[1])
            base = plus(f, times(f, item, line.m), top)
            end_of_chunk = plus(f, at, chunk)
            at = self._single_rows(line, at, end_of_chunk, a, b, base, rows)
            run = f.fresh("run")
            with f.loop(end_of_chunk, start=at, step=run) as unit:
                panel = quotient(f, unit.index, height)
                offset = remainder(f, unit.index, height)
                size = minus(f, end_of_chunk, unit.index)
                f.emit(f"add nsw i64 {least(f, minus(f, height, offset), size)}, 0", run)
                row = times(f, offset, self.unit)
                end = least(f, rows, times(f, plus(f, offset, run), self.unit))
                self._run(_Run(a, b, base, row, end, panel), k, count, epilogues)

    def _tasks(self, work: Size) -> int:
        return max(1, min(MAX_TASKS, work)) if isinstance(work, int) else MAX_TASKS

    def _single_rows(
        self, line: _Line, at: Size, stop: Size, a: str, b: str, base: Size, rows: Size
    ) -> Size:
        """Does a product of one or two rows for several panels at a time.

        A tile of one row and one panel has too few sums to hide the latency of multiply-add.
        Returns the first unit that is left.
        """
        f, spec = self.f, self.spec
        panels = self.wide_panels
        if panels < 2:
            return at
        whole = spec.n // spec.panel
        few = f.emit(f"icmp sle i64 {rows}, {_FEW_ROWS}")
        alone = f.emit(f"icmp eq i64 {line.units}, 1")
        both = f.emit(f"and i1 {few}, {alone}")
        last = minus(f, least(f, stop, whole), panels - 1)
        limit = f.emit(f"select i1 {both}, i64 {last}, i64 {at}")
        vectors = spec.panel // self.lanes
        depth = int(spec.k) * spec.panel  # type: ignore[arg-type]
        places = tuple(p * depth + j * self.lanes for p in range(panels) for j in range(vectors))
        tile = replace(self._tile(1, len(places), panels * spec.panel), b_vectors=places)
        with f.loop(limit, start=at, step=panels) as loop, f.loop(rows) as row:
            here = f.element(a, self.scalar, times(f, row.index, self.a_row))
            weights = f.element(b, self.scalar, times(f, loop.index, depth))
            column = times(f, loop.index, spec.panel)
            into = plus(f, base, row.index)
            args = [("ptr", here), ("ptr", weights)]
            args += self.epilogue.arguments(f, into, column, spec.c_pitch) + self._private(tile)
            name = self.micro.name(tile, self.epilogue)
            f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")
        return loop.index

    def _run(
        self,
        run: _Run,
        k: Size,
        count: Size,
        epilogues: Sequence[tuple[TileEpilogue, str]],
    ) -> None:
        """Rows [row, end) of one panel."""
        f, spec = self.f, self.spec
        b = self._panel_of_b(run, k, count)
        started = f.emit(f"icmp sgt i64 {k}, 0") if self.spec.blocked else "false"
        keep = f.emit(f"sext i1 {started} to i64") if self.spec.blocked else ALL_ONES
        rest = spec.n - (spec.panels - 1) * spec.panel
        widths = [(rest, "true")]
        if spec.panels > 1 and rest != spec.panel:
            last = f.emit(f"icmp eq i64 {run.panel}, {spec.panels - 1}")
            widths = [(rest, last), (spec.panel, f.emit(f"xor i1 {last}, true"))]
        for width, condition in widths:
            for epilogue, other in epilogues:
                both = condition if other == "true" else other
                if "true" not in (condition, other):
                    both = f.emit(f"and i1 {condition}, {other}")
                with f.when(both):
                    self._rows(run, b, count, width, epilogue, keep)

    def _block_of_a(
        self, item: Size, line: _Line, top: Size, rows: Size, k: Size, count: Size
    ) -> str:
        """The address of row ``top`` of A from step k on, or of a copy with short steps."""
        f, spec = self.f, self.spec
        at = plus(f, times(f, top, spec.a_row), times(f, k, spec.a_k))
        at = plus(f, self._offsets(item, line)[0], at)
        source = f.element(self.a, self.scalar, at)
        if not self.a_pitch:
            return source
        copy = f.element("%scratch", "i8", self.copy_at)
        # Whatever is a row in memory (a row or a column of A) is copied as one.
        lines, length, step = rows, count, spec.a_row
        if spec.a_k != 1:
            lines, length, step = count, rows, spec.a_k
        size = times(f, length, spec.dtype.itemsize)
        with f.loop(lines) as loop:
            into = f.element(copy, self.scalar, times(f, loop.index, self.a_pitch))
            here = f.element(source, self.scalar, times(f, loop.index, step))
            f.call(
                "void", "llvm.memcpy.p0.p0.i64",
                ("ptr", into), ("ptr", here), ("i64", str(size)), ("i1", "false"),
            )  # fmt: skip
        return copy

    def _offsets(self, item: Size, line: _Line) -> tuple[Size, Size]:
        """Elements of A and B before the matrices of one product of the batch."""
        f, spec = self.f, self.spec
        m, k = line.m, line.k
        offsets: list[Size] = []
        for shape, size in ((spec.a_batch, times(f, m, k)), (spec.b_batch, times(f, k, spec.n))):
            if all(d == 1 for d in shape):
                offsets.append(0)
            elif shape == spec.batch:
                offsets.append(times(f, item, size))
            else:
                offsets.append(self._broadcast_offset(item, shape, size))
        return offsets[0], offsets[1]

    def _broadcast_offset(self, item: Size, shape: Sequence[Extent], size: Size) -> Size:
        f = self.f
        total: Size = 0
        for d, full in zip(reversed(shape), reversed(self.spec.batch), strict=True):
            count = extent(f, full)
            if d != 1:
                total = plus(f, total, times(f, remainder(f, item, count), size))
                size = times(f, size, count)
            item = quotient(f, item, count)
        return total

    # -- one panel

    def _panel_of_b(self, run: _Run, k: Size, count: Size) -> str:
        """The address of rows [k, k + count) of the panel, in ``self.b_mode``."""
        f, spec = self.f, self.spec
        if self.b_mode == "packed":
            depth = spec.k if isinstance(spec.k, int) else 0
            line = plus(f, times(f, run.panel, depth), k)
            return f.element(run.b, self.scalar, times(f, line, spec.panel))
        if self.b_mode == "direct":
            at = plus(f, times(f, k, spec.n), times(f, run.panel, spec.panel))
            return f.element(run.b, self.scalar, at)
        by_rows = spec.b == "rows"
        depth = spec.k if isinstance(spec.k, int) else 0
        steps = (spec.n, 1) if by_rows else (1, depth)
        source = PanelSource(spec.dtype, spec.n, spec.panel, spec.block, *steps)
        name = f"{self.symbol}_pack"
        if not self.helpers:
            self.helpers = pack_function(name, source, self.target)
        matrix = f.element(run.b, self.scalar, times(f, k, spec.n if by_rows else 1))
        args = f"ptr %scratch, ptr {matrix}, i64 {run.panel}, i64 {count}"
        f.do(f"call void @{name}({args})")
        return "%scratch"

    def _rows(
        self, run: _Run, b: str, count: Size, width: int, epilogue: TileEpilogue, keep: str
    ) -> None:
        """Tiles over the rows of the run."""
        f, spec = self.f, self.spec
        vectors = -(-width // self.lanes)
        column = times(f, run.panel, spec.panel)
        row: Size = run.row
        for height in self._heights(vectors):
            tile = self._tile(height, vectors, width)
            with f.loop(minus(f, run.end, height - 1), start=row, step=height) as loop:
                a = f.element(run.a, self.scalar, times(f, loop.index, self.a_row))
                args = [("ptr", a), ("ptr", b)]
                at = plus(f, run.base, loop.index)
                args += epilogue.arguments(f, at, column, spec.c_pitch, keep)
                counts: tuple[str, ...] = ()
                if spec.blocked:
                    args.append(("i64", str(count)))
                    counts = ("count",)
                args += self._private(tile)
                name = self.micro.name(tile, epilogue, counts)
                f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")
            row = loop.index

    def _private(self, tile: Tile) -> list[tuple[str, str]]:
        """The last arguments of a micro-kernel."""
        args = [("i64", "0")] if tile.overlap else []
        if tile.blocked:
            args.insert(0, ("ptr", self.f.element("%scratch", "i8", self.sums_at)))
            self.scratch = max(self.scratch, self.sums_at + tile.sums_bytes)
        return args

    def _heights(self, vectors: int) -> list[int]:
        static = isinstance(self.spec.m, int)
        return tile_heights(self.unit, self.rows[vectors], static, self.rest)

    def _tile(self, height: int, vectors: int, width: int) -> Tile:
        spec = self.spec
        trips: int | str = "%count" if spec.blocked else int(spec.k)  # type: ignore[arg-type]
        return Tile(
            spec.dtype,
            self.lanes,
            tuple(i * self.a_row for i in range(height)),
            tuple(i * spec.c_pitch for i in range(height)),
            vectors,
            width - (vectors - 1) * self.lanes,
            (Reduction(trips, self.a_k, self.b_step),),
            self.b_mode != "direct",
            spec.c_pitch,
        )


@dataclass(frozen=True)
class _Line:
    """Units [first, stop) of the work; how many units of rows there are; the extents m and k."""

    first: Size
    stop: Size
    units: Size
    m: Size
    k: Size


@dataclass(frozen=True)
class _Run:
    """Rows [row, end) of a block of A at ``a``, whose row 0 is row ``base`` of the result, and a
    panel of the matrix B at ``b``."""

    a: str
    b: str
    base: Size
    row: Size
    end: Size
    panel: Size
