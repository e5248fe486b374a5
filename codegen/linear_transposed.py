"""Linear layers whose weight changes in every call: the product computed transposed.

A weight is [outputs][depth] in memory: a row of it is what the micro-kernel broadcasts, so it needs
no packing if it is the *left* factor, ``y^T = W x^T``. What is packed instead are the rows of the
batch, a panel of some vectors of them at a time::

    panel    x^T: ``depth`` lines of up to four vectors of rows; it stays in the second level cache
    strip    y^T: 16 outputs of all rows of the panel, from a few tiles of the micro-kernel
    turned   y: the strip, transposed in registers square by square
    result   the rows of ``turned``, through the epilogue

The weight is read once for every panel, from front to end. Panels and strips are a line of work,
all strips of one panel after those of another; a range of tasks packs the panels of its own.

The number of rows is known at run time. If it turns out to be a fraction of a vector, strips come
from squares of the weight (``few_rows_unpacked.py``), in the same order of additions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..ir.types import DType, Extent, numel
from .brgemm import MicroKernels
from .emitter import Lane, VectorEmitter, scalar_type
from .epilogue import TileEpilogue
from .few_rows_unpacked import call_few_rows, most_rows
from .kernel import (
    Kernel,
    LocalFunctions,
    TaskCount,
    assembled,
    kernel_params,
    symbol_for,
    tasks_for,
)
from .packing import call_pack, transpose
from .sizes import Size, extent, greatest, least, minus, plus, quotient, times
from .target import LINE, Target
from .text import Function
from .tile import Reduction, Tile, register_rows

STRIP = 16
"""Outputs of a strip: whole registers of every target."""


@dataclass(frozen=True)
class TransposedLinear:
    """``y[m][n] = sum over k of x[m][k] * w[n][k]`` for ``rows`` of x, ``outputs`` and ``depth``.

    ``x_pitch`` and ``y_pitch`` are the elements from row to row of x and of y.
    """

    dtype: DType
    rows: Extent
    outputs: int
    depth: int
    x_pitch: int
    y_pitch: int


def panel_vectors(depth: int, target: Target) -> int:
    """Vectors of rows per panel: as wide as the widest tile, if half of the second level cache
    holds it, or half as wide, or one."""
    widest = 4 if target.registers >= 32 else 2
    fits = (v for v in (widest, 2) if depth * v * target.vector_bytes <= target.l2 // 2)
    return next(fits, 1)


def is_faster(rows: int, depth: int, outputs: int, dtype: DType, target: Target) -> bool:
    """Whether this is faster than packing the weight panel by panel.

    Counted are, for a step of the reduction, the multiply-adds, also in lanes that stay empty (of
    rows here, of outputs there), and the elements that are packed. One of these takes about as long
    as half a vector of multiply-adds: it goes from one cache to the other, and no shuffles helped.
    What is transposed for a few rows goes nowhere and takes half of that.
    """
    lanes = target.lanes(dtype)
    few = rows <= most_rows(lanes)
    squares = outputs // STRIP * STRIP if few else 0
    rest = outputs - squares
    here = squares * (rows + lanes // 4)
    if rest:
        here += -(-rows // lanes) * lanes * rest + lanes // 2 * rows
    there = rows * -(-outputs // lanes) * lanes + lanes // 2 * outputs
    return panel_vectors(depth, target) > 1 and here < there


def transposed_kernel(
    spec: TransposedLinear,
    epilogue: TileEpilogue,
    pointers: tuple[str, str],
    inputs: int,
    target: Target,
) -> Kernel:
    """The kernel of the product with this epilogue.

    ``pointers`` are the kernel's parameters (``%in0``) of x and w; ``inputs`` is how many inputs
    the kernel has.
    """
    return _Writer(spec, epilogue, pointers, inputs, target).kernel()


@dataclass(frozen=True)
class _Strip:
    """Accumulators that start from the bias of their row and go to the strip."""

    bias: bool

    def params(self) -> list[tuple[str, str]]:
        bias = [("ptr noalias readonly", "bias")] if self.bias else []
        return [("ptr noalias", "strip"), *bias]

    def initial(self, e: VectorEmitter, tile: Tile) -> list[Lane | None]:
        if not self.bias:
            return [None]
        kind = scalar_type(tile.dtype)
        places = [e.fn.element("%bias", kind, i) for i in range(tile.rows)]
        starts = [e.load_splat(at, tile.dtype) for at in places]
        return [start for start in starts for _ in range(tile.vectors)]

    def finish(self, e: VectorEmitter, tile: Tile, values: list[list[Lane]]) -> None:
        kind = scalar_type(tile.dtype)
        for start, row in zip(tile.c_rows, values, strict=True):
            for j, value in enumerate(row):
                e.store(value, e.fn.element("%strip", kind, start + j * tile.lanes))


class _Writer:
    def __init__(
        self,
        spec: TransposedLinear,
        epilogue: TileEpilogue,
        pointers: tuple[str, str],
        inputs: int,
        target: Target,
    ) -> None:
        self.spec, self.target = spec, target
        self.x, self.w = pointers
        self.bias = epilogue.bias
        self.epilogue = replace(epilogue, bias=None)  # the accumulators start from it
        self.symbol = symbol_for("linear_transposed", spec, epilogue.key, pointers, inputs, target)
        self.f = Function(self.symbol, kernel_params(len(epilogue.outputs), inputs))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.finishers = LocalFunctions(self.symbol)
        self.lanes = target.lanes(spec.dtype)
        self.scalar = scalar_type(spec.dtype)
        self.vectors = panel_vectors(spec.depth, target)
        self.strips = -(-spec.outputs // STRIP)
        # Rows that are a multiple of 4096 bytes apart fall into one set of the first level cache,
        # which has 8 ways.
        most = 6 if spec.depth * spec.dtype.itemsize % 4096 == 0 else 8
        self.rows = {v: min(r, most) for v, r in register_rows(target).items()}
        panel = spec.depth * self.vectors * target.vector_bytes
        self.strip_at = -(-panel // LINE) * LINE
        self.turned_at = self.strip_at + STRIP * self.vectors * target.vector_bytes
        self.scratch = self.sums_at = 2 * self.turned_at - self.strip_at
        self.pack: Function | None = None
        self.few: Function | None = None
        self.turn: Function | None = None

    def kernel(self) -> Kernel:
        spec, f = self.spec, self.f
        m = extent(f, spec.rows)
        vectors = quotient(f, plus(f, m, self.lanes - 1), self.lanes)
        work = times(f, vectors, self.strips)
        tasks = tasks_for(work)
        first, stop = (
            self._place(quotient(f, times(f, work, place), tasks), vectors)
            for place in ("%begin", "%end")
        )
        first = self._few_rows(m, first, stop)
        chunk = f.fresh("chunk")
        if not (self._always_few and spec.outputs % STRIP == 0):
            with f.loop(stop, start=first, step=chunk) as line:
                panel = quotient(f, line.index, self.strips)
                strip = minus(f, line.index, times(f, panel, self.strips))
                end = least(f, plus(f, strip, minus(f, stop, line.index)), self.strips)
                f.emit(f"sub nsw i64 {end}, {strip}", chunk)
                self._panel(m, panel, strip, end)
        return assembled(
            [*(g for g in (self.pack, self.few, self.turn) if g is not None), *self.micro.functions,
             *self.finishers.functions, f],
            TaskCount(tasks),
            self.scratch,
            numel((spec.rows, spec.outputs, spec.depth)) * 2,
            cuts=1,  # every range packs a panel
        )  # fmt: skip

    @property
    def _always_few(self) -> bool:
        return isinstance(self.spec.rows, int) and self.spec.rows <= most_rows(self.lanes)

    def _place(self, cost: Size, vectors: Size) -> Size:
        """The strip (of the line) up to which the work is ``cost``: strips of a vector of rows.

        Ranges of equal cost take equally long, also if the last panel has fewer vectors.
        """
        f = self.f
        panel = quotient(f, quotient(f, cost, self.strips), self.vectors)
        before = times(f, panel, self.vectors)
        width = greatest(f, least(f, minus(f, vectors, before), self.vectors), 1)
        strip = quotient(f, minus(f, cost, times(f, before, self.strips)), width)
        return plus(f, times(f, panel, self.strips), strip)

    def _widths(self) -> list[int]:
        """Vectors of the panels that there are: full ones, and the last one."""
        if not isinstance(self.spec.rows, int):
            return list(range(1, self.vectors + 1))
        full, last = divmod(-(-self.spec.rows // self.lanes), self.vectors)
        return sorted({self.vectors * (full > 0), last} - {0})

    def _panel(self, m: Size, panel: Size, strip: Size, end: Size) -> None:
        """Strips [strip, end) of a panel."""
        f = self.f
        top = times(f, panel, self.vectors * self.lanes)
        height = least(f, minus(f, m, top), self.vectors * self.lanes)
        vectors = quotient(f, plus(f, height, self.lanes - 1), self.lanes)
        for width in self._widths():
            with f.when(f.emit(f"icmp eq i64 {vectors}, {width}")):
                self._pack(top, height, width)
                whole = self.spec.outputs // STRIP
                with f.loop(least(f, end, whole), start=strip) as loop:
                    self._strip(loop.index, STRIP, top, height, width)
                if whole < self.strips:
                    with f.when(f.emit(f"icmp eq i64 {end}, {self.strips}")):
                        self._strip(whole, self.spec.outputs % STRIP, top, height, width)

    def _pack(self, top: Size, height: Size, width: int) -> None:
        """Packs ``height`` rows of x from row ``top`` on; lanes without a row become zeros."""
        f, spec = self.f, self.spec
        rows = f.element(self.x, self.scalar, times(f, top, spec.x_pitch))
        geometry = (height, width * self.lanes, spec.depth, spec.x_pitch, 1, 0, 0, 1, 0)
        self.pack = call_pack(f, "%scratch", rows, geometry, spec.dtype, self.lanes, False)

    def _strip(self, strip: Size, count: int, top: Size, height: Size, width: int) -> None:
        """``count`` outputs of all rows of the panel."""
        f, spec = self.f, self.spec
        first = times(f, strip, STRIP)
        into = f.element("%scratch", "i8", self.strip_at)
        tiles, done = -(-count // self.rows[width]), 0
        for k in range(tiles):
            tall = count // tiles + (k < count % tiles)
            at = f.element(into, self.scalar, done * width * self.lanes)
            self._tile(plus(f, first, done), tall, width, at)
            done += tall
        vectors = -(-count // self.lanes)
        turned = f.element("%scratch", "i8", self.turned_at)
        name = f"nw_turn_{spec.dtype.short}x{self.lanes}"
        numbers = f"i64 {height}, i64 {width * self.lanes}, i64 {vectors}"
        f.do(f"call void @{name}(ptr {into}, ptr {turned}, {numbers})")
        self.turn = _turn(name, spec.dtype, self.lanes)
        self._finish(turned, count, top, first, height)

    def _finish(self, turned: str, count: int, top: Size, first: Size, height: Size) -> None:
        """Rows from ``top`` on of outputs from ``first`` on, through the epilogue."""
        f = self.f
        name = self.finishers.name(f"rows_{count}", lambda symbol: self._rows(symbol, count))
        args = self.epilogue.arguments(f, top, first, self.spec.y_pitch)
        args = [("ptr", turned), *args, ("i64", str(height))]
        f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")

    def _few_rows(self, m: Size, first: Size, stop: Size) -> Size:
        """Whole strips of the range [first, stop), if there are few rows; what is left begins at
        the strip that is returned."""
        spec, f = self.spec, self.f
        most, whole = most_rows(self.lanes), spec.outputs // STRIP
        if not whole or (isinstance(m, int) and not self._always_few):
            return first
        few = f.emit(f"icmp sle i64 {m}, {most}")
        end = f.emit(f"select i1 {few}, i64 {least(f, stop, whole)}, i64 {first}")
        e = VectorEmitter(f, self.lanes, spec.dtype)
        sums, own = (f.element("%scratch", "i8", at) for at in (self.turned_at, self.strip_at))
        with f.loop(end, start=first) as strip:
            output = times(f, strip.index, STRIP)
            for j in range(0, STRIP, self.lanes):
                start, into = e.constant(0.0, spec.dtype), f.element(sums, self.scalar, j)
                if self.bias is not None:
                    bias = f.element(f"%in{self.bias}", self.scalar, plus(f, output, j))
                    start = e.load(bias, spec.dtype)
                with f.loop(m) as row:
                    e.store(start, f.element(into, self.scalar, times(f, row.index, STRIP)))
                at = times(f, plus(f, output, j), spec.depth)
                self.few = call_few_rows(
                    f, into, f.element(self.w, self.scalar, at), self.x, str(m), spec.depth,
                    (spec.x_pitch, spec.depth, STRIP), spec.dtype, self.lanes, own,
                )  # fmt: skip
            self._finish(sums, STRIP, 0, output, m)
        return greatest(f, first, end)

    def _tile(self, output: Size, tall: int, width: int, into: str) -> None:
        """Outputs [output, output + tall) of all rows of the panel, to the address ``into``."""
        f, spec = self.f, self.spec
        tile = Tile(
            spec.dtype,
            self.lanes,
            tuple(i * spec.depth for i in range(tall)),
            tuple(i * width * self.lanes for i in range(tall)),
            width,
            self.lanes,
            (Reduction(spec.depth, 1, width * self.lanes),),
            c_pitch=width * self.lanes,
        )
        weights = f.element(self.w, self.scalar, times(f, output, spec.depth))
        args = [weights, "%scratch", into]
        if self.bias is not None:
            args.append(f.element(f"%in{self.bias}", self.scalar, output))
        if tile.blocked:
            args.append(f.element("%scratch", "i8", self.sums_at))
            self.scratch = max(self.scratch, self.sums_at + tile.sums_bytes)
        typed = [f"ptr {a}" for a in args] + ["i64 0"] * bool(tile.overlap)
        name = self.micro.name(tile, _Strip(self.bias is not None))
        f.do(f"call void @{name}({', '.join(typed)})")

    def _rows(self, symbol: str, count: int) -> Function:
        """``void @symbol(ptr turned, <epilogue's parameters>, i64 rows)``: finishes ``rows`` rows
        of ``count`` outputs."""
        lanes, dtype = self.lanes, self.spec.dtype
        params = [("ptr noalias", "turned"), *self.epilogue.params(), ("i64", "rows")]
        f = Function(symbol, params, attributes="noinline nounwind")
        vectors = -(-count // lanes)
        tail = count - (vectors - 1) * lanes
        one = Tile(dtype, lanes, (0,), (0,), vectors, tail, (), c_pitch=self.spec.y_pitch)
        self.epilogue.finish_rows(VectorEmitter(f, lanes, dtype), one, "%turned", "%rows")
        return f


def _turn(symbol: str, dtype: DType, lanes: int) -> Function:
    """``void @symbol(ptr strip, ptr turned, i64 rows, i64 pitch, i64 vectors)``: transposes a strip
    whose outputs are ``pitch`` elements apart; a row becomes ``vectors`` vectors of outputs."""
    params = [("ptr noalias readonly", "strip"), ("ptr noalias", "turned")]
    params += [("i64", name) for name in ("rows", "pitch", "vectors")]
    f = Function(symbol, params, shared=True)
    e, kind = VectorEmitter(f, lanes, dtype), scalar_type(dtype)
    apart = f.emit(f"mul nsw i64 %vectors, {lanes}")
    with f.loop("%rows", step=lanes) as rows, f.loop("%vectors") as vector:
        output = f.emit(f"mul nsw i64 {vector.index}, {lanes}")
        at = f.emit(f"add nsw i64 {rows.index}, {f.emit(f'mul nsw i64 {output}, %pitch')}")
        source = f.element("%strip", kind, at)
        places = [f.element(source, kind, f.emit(f"mul nsw i64 %pitch, {o}")) for o in range(lanes)]
        at = f.emit(f"add nsw i64 {output}, {f.emit(f'mul nsw i64 {rows.index}, {apart}')}")
        into = f.element("%turned", kind, at)
        for i, row in enumerate(transpose(e, [e.load(place, dtype) for place in places])):
            e.store(row, f.element(into, kind, f.emit(f"mul nsw i64 {apart}, {i}")))
    return f
