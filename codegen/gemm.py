"""Matrix products of any size on top of the micro-kernel: blocking, packing, work division.

The work is a line of units: a unit is a tile's height of rows by one panel of columns. Units are
ordered by product of the batch, block of rows (as many as keep A in the second level cache), panel,
and row, so that a panel of B is reused over the rows of a block. A range of tasks is a range of
units; whole runs of units of one panel are done in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.types import Dim, DType, Extent, numel
from .brgemm import MicroKernels, Reduction, Tile, halving_rows, register_rows
from .epilogue import TileEpilogue
from .kernel import Kernel, TaskCount, symbol_for
from .packing import PanelSource, pack_function
from .sizes import Size, greatest, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function

# Reductions longer than this are summed block by block, for the caches and for accuracy.
LONGEST_REDUCTION = 1024
_BLOCK = 512
# With fewer rows than this, B is used where it is instead of being packed first.
_ROWS_WORTH_PACKING = 4
# Ranges into which work can be cut; many divisors, so that few threads get equal shares.
MAX_TASKS = 240


@dataclass(frozen=True)
class Gemm:
    """``C[m][n] = sum over k of A[m][k] * B[k][n]`` for every element of a batch.

    ``a_row`` and ``a_k`` are the steps of A in elements. ``b`` is ``packed`` (panels of ``panel``
    columns), ``rows`` (K x N) or ``columns`` (N x K). ``batch`` are the leading extents of the
    result; ``a_batch`` and ``b_batch`` those of A and B, of the same rank (1 where they broadcast).
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


def kernel_params(outputs: int, inputs: int) -> list[tuple[str, str]]:
    """The parameters of a kernel (see ``Kernel``)."""
    params = [("ptr", f"out{i}") for i in range(outputs)]
    params += [("ptr", f"in{i}") for i in range(inputs)]
    params += [("ptr", "scratch"), ("ptr", "status")]
    return [*params, ("i64", "N"), ("i64", "begin"), ("i64", "end")]


def extent(f: Function, size: Extent) -> Size:
    """An extent as a number or as the i64 that holds it."""
    return times(f, "%N", size.coef) if isinstance(size, Dim) else size


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
        self._plan_rows()
        self._plan_b()

    def _plan_rows(self) -> None:
        """The height of a unit: the tallest tile, or less so that static extents divide evenly."""
        spec = self.spec
        vectors = -(-min(spec.panel, spec.n) // self.lanes)
        self.rows = register_rows(self.target)
        stride = spec.a_row * spec.dtype.itemsize
        if stride and stride % 4096 == 0:
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
        self.scratch = 0
        if self.b_mode == "scratch":
            self.scratch = spec.block * spec.panel * spec.dtype.itemsize

    # -- the kernel

    def kernel(self) -> Kernel:
        spec, f = self.spec, self.f
        m = extent(f, spec.m)
        batch: Size = 1
        for d in spec.batch:
            batch = times(f, batch, extent(f, d))
        units = quotient(f, plus(f, m, self.unit - 1), self.unit)
        per_product = times(f, units, spec.panels)
        work = times(f, batch, per_product)
        tasks = self._tasks(work)
        first = quotient(f, times(f, work, "%begin"), tasks)
        stop = quotient(f, times(f, work, "%end"), tasks)
        with f.loop(stop, start=first, step="%run") as line:
            item = quotient(f, line.index, per_product)
            left = remainder(f, line.index, per_product)
            per_block = times(f, spec.panels, self.row_block)
            block = quotient(f, left, per_block)
            left = minus(f, left, times(f, block, per_block))
            first_unit = times(f, block, self.row_block)
            height = least(f, minus(f, units, first_unit), self.row_block)
            panel = quotient(f, left, height)
            at = remainder(f, left, height)
            run = least(f, minus(f, height, at), minus(f, stop, line.index))
            f.emit(f"add nsw i64 {run}, 0", "%run")
            start = plus(f, first_unit, at)
            row = times(f, start, self.unit)
            end = least(f, m, times(f, plus(f, start, "%run"), self.unit))
            self._product(item, panel, row, end, m)
        functions = [*self.helpers, *self.micro.functions, f]
        return Kernel(
            self.symbol,
            "".join(g.render() for g in functions),
            frozenset().union(*(g.declarations for g in functions)),
            TaskCount(tasks),
            self.scratch,
            _twice(numel((spec.m, spec.n, spec.k, *spec.batch))),
        )

    def _tasks(self, work: Size) -> int:
        return max(1, min(MAX_TASKS, work)) if isinstance(work, int) else MAX_TASKS

    def _product(self, item: Size, panel: Size, row: Size, end: Size, m: Size) -> None:
        """Rows [row, end) of one panel of one product of the batch."""
        f, spec = self.f, self.spec
        k = extent(f, spec.k)
        a, b = self._batch_offsets(item, m, k)
        line = plus(f, times(f, item, m), row)
        delta = minus(f, line, row)  # rows of the result before this product
        where = _Place(self.a, a, self.b, b, delta, row, end, panel)
        rest = spec.n - (spec.panels - 1) * spec.panel
        if spec.panels == 1 or rest == spec.panel:
            self._panel(where, k, rest)
            return
        last = f.emit(f"icmp eq i64 {panel}, {spec.panels - 1}")
        other = f.emit(f"xor i1 {last}, true")
        with f.when(other):
            self._panel(where, k, spec.panel)
        with f.when(last):
            self._panel(where, k, rest)

    def _batch_offsets(self, item: Size, m: Size, k: Size) -> tuple[Size, Size]:
        """Elements of A and B before this product's matrices."""
        f, spec = self.f, self.spec
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

    def _panel(self, where: _Place, k: Size, width: int) -> None:
        """All rows of the run for a panel of ``width`` columns, block by block of the reduction."""
        f, spec = self.f, self.spec
        if isinstance(spec.k, int) and not spec.blocked:
            b = self._panel_of_b(where, 0, spec.k, width)
            self._rows(where, b, 0, spec.k, width, self.epilogue)
            return
        start = TileEpilogue((spec.dtype,), self.epilogue.bias)
        middle = TileEpilogue((spec.dtype,), accumulate=True)
        last = replace(self.epilogue, bias=None, accumulate=True)
        self._rows(where, None, 0, 0, width, start)
        # An empty reduction is one block, too: it applies the epilogue.
        with f.loop(greatest(f, k, 1), step=spec.block) as loop:
            count = least(f, minus(f, k, loop.index), spec.block)
            b = self._panel_of_b(where, loop.index, count, width)
            final = f.emit(f"icmp sge i64 {plus(f, loop.index, spec.block)}, {k}")
            before = "true" if last == middle else f.emit(f"xor i1 {final}, true")
            with f.when(before):
                self._rows(where, b, loop.index, count, width, middle)
            if last != middle:
                with f.when(final):
                    self._rows(where, b, loop.index, count, width, last)

    def _panel_of_b(self, where: _Place, k: Size, count: Size, width: int) -> str:
        """The address of rows [k, k + count) of the panel, in ``self.b_mode``."""
        f, spec = self.f, self.spec
        if self.b_mode == "packed":
            depth = spec.k if isinstance(spec.k, int) else 0
            line = plus(f, times(f, where.panel, depth), k)
            return f.element(where.b, self.scalar, times(f, line, spec.panel))
        if self.b_mode == "direct":
            at = plus(f, times(f, k, spec.n), times(f, where.panel, spec.panel))
            return f.element(where.b, self.scalar, plus(f, at, where.b_offset))
        by_rows = spec.b == "rows"
        depth = spec.k if isinstance(spec.k, int) else 0
        steps = (spec.n, 1) if by_rows else (1, depth)
        source = PanelSource(spec.dtype, spec.n, spec.panel, spec.block, *steps)
        name = f"{self.symbol}_pack"
        if not self.helpers:
            self.helpers = pack_function(name, source, self.target)
        at = plus(f, where.b_offset, times(f, k, spec.n if by_rows else 1))
        matrix = f.element(where.b, self.scalar, at)
        args = f"ptr %scratch, ptr {matrix}, i64 {where.panel}, i64 {count}"
        f.do(f"call void @{name}({args})")
        return "%scratch"

    def _rows(
        self, where: _Place, b: str | None, k: Size, count: Size, width: int, epilogue: TileEpilogue
    ) -> None:
        """Tiles over the rows of the run; without ``b`` they are what the epilogue starts from."""
        f, spec = self.f, self.spec
        vectors = -(-width // self.lanes)
        column = times(f, where.panel, spec.panel)
        row: Size = where.row
        for height in self._heights(vectors) if b is not None else [1]:
            tile = self._tile(height, vectors, width, count if b is not None else None)
            with f.loop(minus(f, where.end, height - 1), start=row, step=height) as loop:
                at = plus(f, times(f, loop.index, spec.a_row), times(f, k, spec.a_k))
                a = f.element(where.a, self.scalar, plus(f, at, where.a_offset))
                line = plus(f, where.delta, loop.index)
                args = [("ptr", a), ("ptr", b or "null")]
                args += epilogue.arguments(f, line, column, spec.n)
                counts: tuple[str, ...] = ()
                if tile.loops and not isinstance(tile.loops[0].count, int):
                    args.append(("i64", str(count)))
                    counts = ("count",)
                args += [("i64", "0")] if tile.overlap else []
                name = self.micro.name(tile, epilogue, counts)
                f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")
            row = loop.index

    def _heights(self, vectors: int) -> list[int]:
        static = isinstance(self.spec.m, int)
        return tile_heights(self.unit, self.rows[vectors], static, self.rest)

    def _tile(self, height: int, vectors: int, width: int, count: Size | None) -> Tile:
        spec = self.spec
        trips: int | str = "%count" if spec.blocked else int(spec.k)  # type: ignore[arg-type]
        loops = () if count is None else (Reduction(trips, spec.a_k, self.b_step),)
        return Tile(
            spec.dtype,
            self.lanes,
            tuple(i * spec.a_row for i in range(height)),
            tuple(i * spec.n for i in range(height)),
            vectors,
            width - (vectors - 1) * self.lanes,
            loops,
            self.b_mode != "direct",
            spec.n,
        )


@dataclass(frozen=True)
class _Place:
    """A run of rows [row, end) of one product: pointers, element offsets of its matrices, the row
    of the result that its row 0 is, and the panel."""

    a: str
    a_offset: Size
    b: str
    b_offset: Size
    delta: Size
    row: Size
    end: Size
    panel: Size


def _twice(size: Extent) -> Extent:
    return size * 2
