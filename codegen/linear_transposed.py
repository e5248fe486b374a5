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
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..ir.types import DType, Extent, numel
from .brgemm import MicroKernels
from .emitter import Lane, VectorEmitter, scalar_type
from .epilogue import TileEpilogue
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
    """
    lanes = target.lanes(dtype)
    here = -(-rows // lanes) * lanes * outputs + lanes // 2 * rows
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
        chunk = f.fresh("chunk")
        with f.loop(stop, start=first, step=chunk) as line:
            panel = quotient(f, line.index, self.strips)
            strip = minus(f, line.index, times(f, panel, self.strips))
            end = least(f, plus(f, strip, minus(f, stop, line.index)), self.strips)
            f.emit(f"sub nsw i64 {end}, {strip}", chunk)
            self._panel(m, panel, strip, end)
        return assembled(
            [*([self.pack] if self.pack else []), *self.micro.functions,
             *self.finishers.functions, f],
            TaskCount(tasks),
            self.scratch,
            numel((spec.rows, spec.outputs, spec.depth)) * 2,
            cuts=1,  # every range packs a panel
        )  # fmt: skip

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
        name = self.finishers.name(
            f"finish_{width}_{count}", lambda symbol: self._finish(symbol, width, count)
        )
        args = [into, f.element("%scratch", "i8", self.turned_at)]
        rest = self.epilogue.arguments(f, top, first, spec.y_pitch)
        typed = [f"ptr {a}" for a in args] + [f"{t} {v}" for t, v in rest] + [f"i64 {height}"]
        f.do(f"call void @{name}({', '.join(typed)})")

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

    def _finish(self, symbol: str, width: int, count: int) -> Function:
        """``void @symbol(ptr strip, ptr turned, <epilogue's parameters>, i64 rows)``: transposes a
        strip of ``count`` outputs and finishes its first ``rows`` rows."""
        lanes, dtype = self.lanes, self.spec.dtype
        params = [("ptr noalias readonly", "strip"), ("ptr noalias", "turned")]
        params += [*self.epilogue.params(), ("i64", "rows")]
        f = Function(symbol, params, attributes="noinline nounwind")
        e = VectorEmitter(f, lanes, dtype)
        vectors = -(-count // lanes)
        with f.loop("%rows", step=lanes) as loop:
            source = f.element("%strip", self.scalar, loop.index)
            into = f.element("%turned", self.scalar, times(f, loop.index, vectors * lanes))
            for j in range(vectors):
                outputs = range(j * lanes, (j + 1) * lanes)
                places = [f.element(source, self.scalar, o * width * lanes) for o in outputs]
                square = transpose(e, [e.load(at, dtype) for at in places])
                for i, row in enumerate(square):
                    e.store(row, f.element(into, self.scalar, (i * vectors + j) * lanes))
        tail = count - (vectors - 1) * lanes
        one = Tile(dtype, lanes, (0,), (0,), vectors, tail, (), c_pitch=self.spec.y_pitch)
        self.epilogue.finish_rows(e, one, "%turned", "%rows")
        return f
