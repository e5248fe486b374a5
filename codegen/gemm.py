"""Matrix products of any size on top of the micro-kernel: the loops around it.

``gemm_blocking.py`` decides how a product is cut, ``gemm_operands.py`` knows where A and B are,
``gemm_work.py`` where a range of the work begins.

The work is a line of units: a unit is a tile's height of rows by one panel of columns. Units are
ordered by product of the batch, block of rows (as many as keep A in the second level cache), panel,
and row, so that a panel of B is reused over the rows of a block. A range of tasks is a range of
units; whole runs of units of one panel are done in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.types import fixed, numel
from . import few_rows
from .brgemm import Epilogue, MicroKernels
from .chunks import MAX_CUTS
from .emitter import scalar_type
from .epilogue import ALL_ONES, TileEpilogue
from .few_rows import FewRows
from .gemm_blocking import Blocking, Gemm
from .gemm_operands import Operands
from .gemm_work import Chunk, Following, Line, Run, unit_at
from .kernel import Kernel, TaskCount, assembled, kernel_params, symbol_for, tasks_for
from .moments import Parts, Sums, TileMoments
from .sizes import Size, extent, greatest, least, minus, plus, quotient, remainder, times
from .target import LINE, Target
from .text import Function
from .tile import Reduction, Tile, halving_rows


def gemm_kernel(
    prefix: str,
    spec: Gemm,
    epilogue: TileEpilogue,
    pointers: tuple[str, str],
    inputs: int,
    target: Target,
    moments: Parts | None = None,
) -> Kernel:
    """The kernel of a matrix product.

    ``pointers`` are the kernel's parameters (``%in0``) of A and B; ``inputs`` is how many inputs
    the kernel has. ``moments``: also those of parts of the result's rows, whose number they divide.
    """
    return GemmWriter(prefix, spec, epilogue, pointers, inputs, target, moments).kernel()


def tile_heights(unit: int, rows: int, static: bool, remainder: int) -> list[int]:
    """Heights of the tiles that cover any run of rows that starts at a multiple of ``unit``.

    ``rows`` is the largest height that fits the registers. If ``static``, runs have whole units but
    for one of ``remainder`` rows.
    """
    largest = max(unit, rows // unit * unit)
    if not static:
        return sorted({largest, *halving_rows(min(rows, largest))}, reverse=True)
    return sorted({largest, unit, remainder} - {0}, reverse=True)


class GemmWriter:
    """Writes the kernel of a product."""

    packs_in_tiles = True
    """Whether the first tile of a panel may pack it while it computes."""

    def __init__(
        self,
        prefix: str,
        spec: Gemm,
        epilogue: TileEpilogue,
        pointers: tuple[str, str],
        inputs: int,
        target: Target,
        moments: Parts | None = None,
    ) -> None:
        self.spec, self.epilogue, self.target = spec, epilogue, target
        self.pointers = pointers
        shape = (spec, epilogue.key, moments, pointers, inputs, target)
        self.symbol = symbol_for(prefix, *shape)
        results = len(epilogue.outputs) + (moments is not None)
        self.f = Function(self.symbol, kernel_params(results, inputs))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.lanes = target.lanes(spec.dtype)
        self.scalar = scalar_type(spec.dtype)
        self.helpers: list[Function] = []
        self.blocking = Blocking(spec, target, moments.rows if moments is not None else 0)
        self.operands = Operands(self.f, self.blocking, pointers)
        self.scratch = self.blocking.scratch
        self.moments: TileMoments | None = None
        self.moments_at = -(-self.scratch // LINE) * LINE
        if moments is not None:
            sums = Sums(epilogue.outputs[0], self.lanes, min(spec.panel, spec.n))
            self.moments = TileMoments(self.symbol, moments, sums, spec.n, target)
            self.epilogue = replace(epilogue, moments=sums)
            self.scratch = self.moments_at + sums.bytes
        self.sums_at = -(-self.scratch // LINE) * LINE

    # -- the kernel

    def kernel(self) -> Kernel:
        spec, f = self.spec, self.f
        m, k = extent(f, spec.m), extent(f, spec.k)
        batch: Size = 1
        for d in spec.batch:
            batch = times(f, batch, extent(f, d))
        units = quotient(f, plus(f, m, self.blocking.unit - 1), self.blocking.unit)
        work = times(f, batch, times(f, units, spec.panels))
        tasks = tasks_for(work)
        cost = times(f, batch, times(f, units, self.blocking.row_cost))
        first, stop = (
            unit_at(f, self.blocking, quotient(f, times(f, cost, place), tasks), units)
            for place in ("%begin", "%end")
        )
        if few_rows.serves(spec) and self.moments is None:
            few = f.emit(f"icmp sle i64 {m}, {few_rows.MOST_ROWS}")
            with f.when(few):
                self._few_rows(m, tasks)
            stop = f.emit(f"select i1 {few}, i64 {first}, i64 {stop}")
        line = Line(first, stop, units, m, k)
        self._work(line)
        functions = [*self.operands.packs, *self.helpers, *self.micro.functions, f]
        if self.moments is not None:
            functions[:0] = self.moments.functions
        return assembled(
            functions,
            TaskCount(tasks),
            self.scratch,
            numel((spec.m, spec.n, spec.k, *spec.batch)) * 2,
            # Ranges that share a block of A or a panel of B copy it each.
            cuts=2 if self.blocking.copies_a or spec.b != "packed" else MAX_CUTS,
        )

    def _few_rows(self, rows: Size, tasks: int) -> None:
        """The whole range, if the product turns out to have few rows."""

        def tile(vectors: int, width: int) -> Tile:
            return self._tile(1, vectors, width)

        FewRows(
            self.f, self.spec, self.target, self.pointers, self.epilogue, self.micro, tile,
            self._private,
        ).emit(rows, tasks)  # fmt: skip

    def _work(self, line: Line) -> None:
        """All units of the range."""
        spec = self.spec
        if isinstance(spec.k, int) and not spec.blocked:
            self._units(line, 0, spec.k, [(self.epilogue, "true")])
        else:
            self._blocks(line)

    def _blocks(self, line: Line) -> None:
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
        line: Line,
        k: Size,
        count: Size,
        epilogues: Sequence[tuple[Epilogue, str]],
    ) -> None:
        """All units of the range, for steps [k, k + count) of the reduction.

        The epilogue is the one whose condition holds.
        """
        f, spec = self.f, self.spec
        per_product = times(f, line.units, spec.panels)
        per_block = times(f, spec.panels, self.blocking.row_block)
        chunk = f.fresh("chunk")
        with f.loop(line.stop, start=line.first, step=chunk) as place:
            item = quotient(f, place.index, per_product)
            left = remainder(f, place.index, per_product)
            block = quotient(f, left, per_block)
            at = minus(f, left, times(f, block, per_block))
            first_unit = times(f, block, self.blocking.row_block)
            height = least(f, minus(f, line.units, first_unit), self.blocking.row_block)
            size = minus(f, times(f, height, spec.panels), at)
            size = least(f, size, minus(f, line.stop, place.index))
            f.emit(f"add nsw i64 {size}, 0", chunk)
            top = times(f, first_unit, self.blocking.unit)
            rows = least(f, minus(f, line.m, top), times(f, height, self.blocking.unit))
            a = self.operands.block_of_a(item, line, top, rows, k, count)
            b = self.operands.matrix_of_b(item, line)
            base = plus(f, times(f, item, line.m), top)
            end_of_chunk = plus(f, at, chunk)
            here = Chunk(item, line, top, rows, quotient(f, at, height))
            run = f.fresh("run")
            with f.loop(end_of_chunk, start=at, step=run) as unit:
                panel = quotient(f, unit.index, height)
                offset = remainder(f, unit.index, height)
                size = minus(f, end_of_chunk, unit.index)
                f.emit(f"add nsw i64 {least(f, minus(f, height, offset), size)}, 0", run)
                row = times(f, offset, self.blocking.unit)
                end = least(f, rows, times(f, plus(f, offset, run), self.blocking.unit))
                after = plus(f, unit.index, run)
                more = f.emit(f"icmp slt i64 {after}, {end_of_chunk}")
                following = Following(quotient(f, after, height), more)
                part = Run(a, b, base, row, end, panel)
                self._panel(part, here, following, k, count, epilogues)

    def _panel(
        self,
        run: Run,
        chunk: Chunk,
        following: Following,
        k: Size,
        count: Size,
        epilogues: Sequence[tuple[Epilogue, str]],
    ) -> None:
        """A run of units of one panel; what follows it in the chunk is ``following``."""
        later = self.operands.later(run.b, k, chunk.first, following)
        self._run(replace(run, later=later), k, count, epilogues)

    def _run(
        self,
        run: Run,
        k: Size,
        count: Size,
        epilogues: Sequence[tuple[Epilogue, str]],
    ) -> None:
        """Rows [row, end) of one panel."""
        f, spec = self.f, self.spec
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
                    if self.moments is None:
                        self._rows(run, k, count, width, epilogue, keep)
                    else:
                        self._summed_rows(self.moments, run, count, width)

    # -- one panel

    def _rows(
        self, run: Run, k: Size, count: Size, width: int, epilogue: Epilogue, keep: str
    ) -> None:
        """Tiles over the rows of the run."""
        f, spec = self.f, self.spec
        vectors = -(-width // self.lanes)
        column = times(f, run.panel, spec.panel)
        row: Size = run.row
        heights = self._heights(vectors)
        if self._tile_packs(width):
            row, b = self._first_tile(run, heights[0], k, count, width, epilogue, keep)
        else:
            b = self.operands.panel_of_b(run, k, count)
        if run.later:
            tiles = greatest(f, quotient(f, minus(f, run.end, run.row), heights[0]), 1)
            share = quotient(f, plus(f, count, minus(f, tiles, 1)), tiles)
        for height in heights:
            tile = self._tile(height, vectors, width)
            with f.loop(minus(f, run.end, height - 1), start=row, step=height) as loop:
                if run.later:
                    number = quotient(f, minus(f, loop.index, run.row), heights[0])
                    self.operands.ask(run.later, number, share, count)
                a = f.element(run.a, self.scalar, times(f, loop.index, self.blocking.a_row))
                made, args = self._finish(tile, epilogue, run, row, loop.index, column, keep)
                self._call(made, epilogue, a, b, args, count)
            self._finished(tile, epilogue, run, row, loop.index, column)
            row = loop.index

    def _summed_rows(self, moments: TileMoments, run: Run, count: Size, width: int) -> None:
        """Tiles over the rows of the run, whole parts, and their moments."""
        f, parts = self.f, moments.parts
        rows, sums = parts.run(1), self._sums()
        column = times(f, run.panel, self.spec.panel)
        with f.loop(run.end, start=run.row, step=rows) as loop:
            moments.sums.clear(f, sums)
            here = replace(run, row=loop.index, end=plus(f, loop.index, rows))
            self._rows(here, 0, count, width, self.epilogue, ALL_ONES)
            at = plus(f, run.base, loop.index)
            part, before = quotient(f, at, parts.rows), remainder(f, at, parts.rows)
            moments.finish(f, sums, part, rows, before, column, width)

    def _sums(self) -> str:
        """The address of the sums for the moments, if they are taken."""
        if self.moments is None:
            return ""
        return self.f.element("%scratch", "i8", self.moments_at)

    def _tile_packs(self, width: int) -> bool:
        """Whether the first tile of a panel of so many columns packs it on its way."""
        spec = self.spec
        if not self.packs_in_tiles or spec.blocked or self.blocking.b_mode != "scratch":
            return False
        return spec.b == "rows" and width == spec.panel <= spec.n

    def _first_tile(
        self,
        run: Run,
        height: int,
        k: Size,
        count: Size,
        width: int,
        epilogue: Epilogue,
        keep: str,
    ) -> tuple[Size, str]:
        """The first tile of the run, if it has enough rows for one of the height: it reads B where
        it is, and packs it meanwhile. Otherwise packs B. Returns the next row and the packed B."""
        f, spec = self.f, self.spec
        after = plus(f, run.row, height)
        whole = f.emit(f"icmp sle i64 {after}, {run.end}")
        with f.when(whole):
            tile = self._tile(height, width // self.lanes, width)
            reduction = replace(tile.loops[0], b_step=spec.n)
            tile = replace(tile, loops=(reduction,), b_copy=spec.panel)
            column = times(f, run.panel, spec.panel)
            a = f.element(run.a, self.scalar, times(f, run.row, self.blocking.a_row))
            b = f.element(run.b, self.scalar, column)
            tile, args = self._finish(tile, epilogue, run, run.row, run.row, column, keep)
            self._call(tile, epilogue, a, b, [*args, ("ptr", "%scratch")], count)
        with f.when(f.emit(f"xor i1 {whole}, true")):
            packed = self.operands.panel_of_b(run, k, count)
        return f.emit(f"select i1 {whole}, i64 {after}, i64 {run.row}"), packed

    def _finish(
        self,
        tile: Tile,
        epilogue: Epilogue,
        run: Run,
        start: Size,
        row: Size,
        column: Size,
        keep: str,
    ) -> tuple[Tile, list[tuple[str, str]]]:
        """The tile that begins at ``row`` of the run, in a loop from row ``start`` on, with the
        places of its results; and the arguments of its epilogue."""
        assert isinstance(epilogue, TileEpilogue)
        at = plus(self.f, run.base, row)
        return tile, epilogue.arguments(self.f, at, column, self.spec.c_pitch, keep, self._sums())

    def _finished(
        self,
        tile: Tile,
        epilogue: Epilogue,
        run: Run,
        start: Size,
        row: Size,
        column: Size,
    ) -> None:
        """What follows the loop over tiles of one height, from row ``start`` to ``row``."""

    def _call(
        self,
        tile: Tile,
        epilogue: Epilogue,
        a: str,
        b: str,
        arguments: Sequence[tuple[str, str]],
        count: Size,
    ) -> None:
        """Calls the micro-kernel of a tile; ``arguments`` are those of the epilogue."""
        args = [("ptr", a), ("ptr", b), *arguments]
        counts: tuple[str, ...] = ()
        if self.spec.blocked:
            args.append(("i64", str(count)))
            counts = ("count",)
        args += self._private(tile)
        name = self.micro.name(tile, epilogue, counts)
        self.f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")

    def _private(self, tile: Tile) -> list[tuple[str, str]]:
        """The last arguments of a micro-kernel."""
        args = [("i64", "0")] if tile.overlap else []
        if tile.blocked:
            args.insert(0, ("ptr", self.f.element("%scratch", "i8", self.sums_at)))
            self.scratch = max(self.scratch, self.sums_at + tile.sums_bytes)
        return args

    def _heights(self, vectors: int) -> list[int]:
        cut, static = self.blocking, isinstance(self.spec.m, int)
        if self.moments is not None:  # a unit is many tiles
            return tile_heights(cut.rows[vectors], cut.rows[vectors], False, 0)
        return tile_heights(cut.unit, cut.rows[vectors], static, cut.rest)

    def _tile(self, height: int, vectors: int, width: int) -> Tile:
        spec = self.spec
        trips: int | str = "%count" if spec.blocked else fixed(spec.k)
        return Tile(
            spec.dtype,
            self.lanes,
            tuple(i * self.blocking.a_row for i in range(height)),
            tuple(i * spec.c_pitch for i in range(height)),
            vectors,
            width - (vectors - 1) * self.lanes,
            (Reduction(trips, self.blocking.a_k, self.blocking.b_step),),
            self.blocking.b_mode != "direct",
            spec.c_pitch,
        )
