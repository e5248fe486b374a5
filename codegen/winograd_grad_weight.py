"""The gradient of a 3x3 convolution's weight by Winograd's algorithm, images channels last.

``ir/ops/winograd.py`` has the algorithm: for every point of the transformed kernel a matrix product
``M = V^T U`` of transformed inputs V (tiles, input channels) and gradients U (tiles, output
channels), whose reduction runs over the tiles of all images.

The result is divided into units of some input channels by a panel of output channels. A thread
takes a line of units that share a panel and goes over all tiles, block by block: it transforms the
gradients of the block, then the inputs of one unit after the other, and adds their products to M.
Blocks are small enough for U and V to stay in the second level cache. M is in the thread's private
memory until it is complete; only the weight's gradient leaves it. No image is padded: a tile at the
border reads zeros through pointers to a line of zeros.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from ..ir.ops.winograd import INPUT, KERNEL, OUTPUT, WEIGHT
from ..ir.types import DType, float32
from .brgemm import MicroKernels
from .emitter import Lane, VectorEmitter, scalar_type
from .epilogue import ALL_ONES, TileEpilogue
from .image import WeightGradient, even_chunks
from .kernel import (
    MAX_TASKS,
    Kernel,
    LocalFunctions,
    TaskCount,
    assembled,
    kernel_params,
    symbol_for,
)
from .packing import choose_panel
from .sizes import Size, extent, greatest, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function
from .tile import Reduction, Tile, register_rows, tail_mask
from .weight_rows import rows_to_weight
from .winograd_transforms import Matrix, row_groups, transform_2d

# Input channels of a unit, if they divide all channels.
_UNIT = 16
# Tiles per block: the length of the reductions between two accesses to M.
_BLOCK_TILES = 64
# Units whose M a thread holds at a time.
_MOST_UNITS = 8
_LINE = 16  # elements of padding that keep matrices out of the same cache sets
_TAPS = KERNEL * KERNEL
_POINTER = 8  # bytes


def is_faster(
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    dtype: DType,
    target: Target,
    tile: int = 2,
) -> bool:
    """Whether F(tile x tile, 3x3) beats the direct sum for the gradient of a weight.

    ``size`` is that of the gradient's images. `python benchmarks/decisions.py winograd_grad_weight`
    measures it; on Zen 4 with AVX-512, F(2x2, 3x3) is 1.4 to 1.6 times faster with 32 to 512
    channels, and breaks even at 2 x 2. A single unit would be the work of one thread.
    """
    if dtype is not float32 or inputs % target.lanes(dtype) or min(inputs, outputs) < 16:
        return False
    units = inputs // _UNIT * -(-outputs // choose_panel(outputs, target, dtype))
    return units > 1 and min(size) >= tile


def winograd_grad_weight(spec: WeightGradient, tile: int, target: Target) -> Kernel | None:
    """The kernel of ``conv2d_grad_weight_winograd(g, x)``; None if input channels are no whole
    vectors."""
    if spec.inputs % target.lanes(spec.dtype):
        return None
    return _Writer(spec, tile, target).kernel()


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


class _Writer:
    def __init__(self, spec: WeightGradient, tile: int, target: Target) -> None:
        self.spec, self.tile, self.target = spec, tile, target
        self.size = tile + KERNEL - 1
        self.points = self.size * self.size
        self.symbol = symbol_for("conv2d_grad_weight_winograd", spec, tile, target)
        self.f = Function(self.symbol, kernel_params(1, 2))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.helpers = LocalFunctions(self.symbol)
        self.lanes = target.lanes(spec.dtype)
        self.scalar = scalar_type(spec.dtype)
        self.panel = choose_panel(spec.outputs, target, spec.dtype)
        self.panels = -(-spec.outputs // self.panel)
        self.unit = _UNIT if spec.inputs % _UNIT == 0 else self.lanes
        self.units = spec.inputs // self.unit
        self.group = min(_MOST_UNITS, self.units)
        self.down, self.across = (-(-n // tile) for n in spec.out)
        self._lay_out()

    def _lay_out(self) -> None:
        """Places in the private memory, in elements; the tables of pointers follow in bytes."""
        block = _BLOCK_TILES
        # A line of zeros for the pixels outside of an image.
        zeros = max(self.spec.inputs, self.panels * self.panel)
        self.u_step = block * self.panel + _LINE
        self.v_step = block * self.unit + _LINE
        self.m_step = self.unit * self.panel + _LINE
        self.u = -(-zeros // _LINE) * _LINE
        self.v = self.u + self.points * self.u_step
        self.m = self.v + self.points * self.v_step
        self.rows = self.m + self.group * self.points * self.m_step
        end = self.rows + self.unit * _TAPS * self.lanes
        self.x_places = -(-end * self.spec.dtype.itemsize // 64) * 64
        self.g_places = self.x_places + block * self.points * _POINTER
        self.scratch = self.g_places + block * self.tile * self.tile * _POINTER

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        count = self.panels * self.units
        tasks = min(MAX_TASKS, count)
        first = quotient(f, times(f, count, "%begin"), tasks)
        stop = quotient(f, times(f, count, "%end"), tasks)
        f.call(
            "void", "llvm.memset.p0.i64", ("ptr", "%scratch"), ("i8", "0"),
            ("i64", str(self.u * spec.dtype.itemsize)), ("i1", "false"),
        )  # fmt: skip
        tiles = times(f, extent(f, spec.batch), self.down * self.across)
        step = self._even_blocks(tiles)
        with f.loop(stop, start=first, step="%run") as place:
            panel = quotient(f, place.index, self.units)
            unit = remainder(f, place.index, self.units)
            left = least(f, minus(f, stop, place.index), minus(f, self.units, unit))
            f.emit(f"add nsw i64 {least(f, left, self.group)}, 0", "%run")
            for width, condition in self._widths(panel):
                with f.when(condition):
                    self._group(panel, unit, width, tiles, step)
        functions = [*self.helpers.functions, *self.micro.functions, f]
        return assembled(
            functions,
            TaskCount(tasks),
            self.scratch,
            spec.flops,
            cuts=1,  # every range transforms the gradients of all images
        )

    def _even_blocks(self, tiles: Size) -> Size:
        """Tiles per block: all tiles in blocks of the same size."""
        f = self.f
        blocks = greatest(f, quotient(f, plus(f, tiles, _BLOCK_TILES - 1), _BLOCK_TILES), 1)
        size = quotient(f, minus(f, plus(f, tiles, blocks), 1), blocks)
        return greatest(f, size, 1)

    def _widths(self, panel: Size) -> list[tuple[int, str]]:
        """(columns, condition) for each width of a panel."""
        rest = self.spec.outputs - (self.panels - 1) * self.panel
        if rest == self.panel or self.panels == 1:
            return [(rest, "true")]
        last = self.f.emit(f"icmp eq i64 {panel}, {self.panels - 1}")
        return [(rest, last), (self.panel, self.f.emit(f"xor i1 {last}, true"))]

    def _group(self, panel: Size, unit: Size, width: int, tiles: Size, step: Size) -> None:
        """The gradient for ``%run`` units of one panel."""
        f = self.f
        column = times(f, panel, self.panel)
        # Without tiles there is one empty block: it makes M zero.
        with f.loop(greatest(f, tiles, 1), step=step) as block:
            count = least(f, minus(f, tiles, block.index), step)
            begins = f.emit(f"icmp eq i64 {block.index}, 0")
            keep = f.emit(f"select i1 {begins}, i64 0, i64 {ALL_ONES}")
            self._places(block.index, count)
            self._gradients(column, count, width)
            with f.loop("%run") as k:
                self._inputs(times(f, plus(f, unit, k.index), self.unit), count)
                self._products(k.index, count, keep, width)
        with f.loop("%run") as k:
            self._weights(k.index, column, times(f, plus(f, unit, k.index), self.unit), width)

    # -- the pixels of a block

    def _places(self, first: Size, count: Size) -> None:
        """Writes the address of every pixel of every tile, of inputs and gradients."""
        f, spec = self.f, self.spec
        images = (
            ("%in1", self.size, spec.inputs, (spec.rows.size, spec.columns.size), self.x_places),
            ("%in0", self.tile, spec.outputs, spec.out, self.g_places),
        )
        with f.loop(count) as loop:
            number = plus(f, first, loop.index)
            image = quotient(f, number, self.down * self.across)
            left = remainder(f, number, self.down * self.across)
            row = times(f, quotient(f, left, self.across), self.tile)
            column = times(f, remainder(f, left, self.across), self.tile)
            for base, side, channels, (height, width), places in images:
                top, start = row, column
                if side == self.size:
                    top, start = minus(f, row, spec.rows.low), minus(f, column, spec.columns.low)
                pixels = f.element(base, self.scalar, times(f, image, height * width * channels))
                into = f.element("%scratch", "i8", places)
                into = f.element(into, "ptr", times(f, loop.index, side * side))
                inside_x = [self._inside(plus(f, start, k), width) for k in range(side)]
                for r in range(side):
                    y = plus(f, top, r)
                    inside_y = self._inside(y, height)
                    line = plus(f, times(f, y, width), start)
                    for c, inside in enumerate(inside_x):
                        at = times(f, plus(f, line, c), channels)
                        # Addresses outside of the image are never used, only computed.
                        pixel = f.emit(f"getelementptr {self.scalar}, ptr {pixels}, i64 {at}")
                        both = f.emit(f"and i1 {inside_y}, {inside}")
                        pixel = f.emit(f"select i1 {both}, ptr {pixel}, ptr %scratch")
                        f.store("ptr", pixel, f.element(into, "ptr", r * side + c), _POINTER)

    def _inside(self, position: Size, size: int) -> str:
        return self.f.emit(f"icmp ult i64 {position}, {size}")

    # -- transforms of a block

    def _gradients(self, column: Size, count: Size, width: int) -> None:
        """U of a panel."""
        vectors = -(-width // self.lanes)
        tail = width - (vectors - 1) * self.lanes
        self._transform(
            f"gradients_{width}", _transposed(OUTPUT[self.tile]), self.g_places,
            (self.u, self.u_step), (self.panel, vectors, tail), column, count,
        )  # fmt: skip

    def _inputs(self, channel: Size, count: Size) -> None:
        """V of a unit."""
        self._transform(
            "inputs", INPUT[self.tile], self.x_places, (self.v, self.v_step),
            (self.unit, self.unit // self.lanes, self.lanes), channel, count,
        )  # fmt: skip

    def _transform(
        self,
        name: str,
        matrix: Matrix,
        places: int,
        into: tuple[int, int],
        shape: tuple[int, int, int],
        channel: Size,
        count: Size,
    ) -> None:
        """Transforms ``count`` tiles at the addresses at ``places`` to matrices of the private
        memory: ``into`` is (where the first is, how far they are apart), ``shape`` (elements from
        tile to tile, vectors, lanes of the last one)."""
        f = self.f
        pitch, vectors, tail = shape
        side = len(matrix[0])
        pointers = f.element("%scratch", "i8", places)
        result = f.element("%scratch", self.scalar, into[0])
        args = f"ptr {result}, ptr {pointers}, i64 {channel}, i64 {count}"
        for k, rows in enumerate(row_groups(matrix, side, self.target.registers)):
            make = partial(
                self._transformer, matrix=matrix, rows=rows, step=into[1], pitch=pitch,
                vectors=vectors, tail=tail,
            )  # fmt: skip
            f.do(f"call void @{self.helpers.name(f'{name}_{k}', make)}({args})")

    def _transformer(
        self,
        symbol: str,
        matrix: Matrix,
        rows: range,
        step: int,
        pitch: int,
        vectors: int,
        tail: int,
    ) -> Function:
        """``void @symbol(ptr result, ptr pointers, i64 channel, i64 count)``: some ``rows`` of the
        transforms of all tiles of a block."""
        dtype, side = self.spec.dtype, len(matrix[0])
        params = [("ptr noalias", "result"), ("ptr noalias readonly", "pointers")]
        params += [("i64", "channel"), ("i64", "count")]
        f = Function(symbol, params, attributes="noinline nounwind")
        e = VectorEmitter(f, self.lanes, dtype)
        with f.loop("%count") as tile:
            pointers = f.element("%pointers", "ptr", times(f, tile.index, side * side))
            result = f.element("%result", self.scalar, times(f, tile.index, pitch))
            with f.loop(vectors - (tail < self.lanes)) as vector:
                at = times(f, vector.index, self.lanes)
                self._transform_vector(e, matrix, rows, (pointers, result), at, step, self.lanes)
            if tail < self.lanes:
                at = (vectors - 1) * self.lanes
                self._transform_vector(e, matrix, rows, (pointers, result), at, step, tail)
        return f

    def _transform_vector(
        self,
        e: VectorEmitter,
        matrix: Matrix,
        rows: range,
        ends: tuple[str, str],
        at: Size,
        step: int,
        active: int,
    ) -> None:
        """Transforms the ``active`` channels from ``at`` on of the tile whose pixels ``ends`` says,
        and where its result begins."""
        f, dtype = e.fn, self.spec.dtype
        pointers, result = ends
        result = f.element(result, self.scalar, at)

        def load(row: int, column: int) -> Lane:
            pixel = f.element(pointers, "ptr", row * len(matrix[0]) + column)
            channel = plus(f, "%channel", at)
            address = f.element(f.load("ptr", pixel, _POINTER), self.scalar, channel)
            if active < self.lanes:
                return e.load_masked(address, dtype, tail_mask(self.lanes, active))
            return e.load(address, dtype)

        def store(row: int, values: list[Lane]) -> None:
            for column, value in enumerate(values):
                e.store(value, f.element(result, self.scalar, (row * self.size + column) * step))

        with ExitStack() as stack:
            if self.target.registers < 32:  # none is left for the factors of 4 x 4 tiles
                e = stack.enter_context(e.constants_in_memory(dtype))
            transform_2d(e, matrix, matrix, rows, load, store)

    # -- products

    def _products(self, k: Size, count: Size, keep: str, width: int) -> None:
        """Adds the products of the block's V and U to M of unit ``k``; 0 in ``keep`` begins it."""
        f, spec = self.f, self.spec
        vectors = -(-width // self.lanes)
        epilogue = TileEpilogue((spec.dtype,), accumulate=True)
        m = f.element("%scratch", self.scalar, self.m)
        m = f.element(m, self.scalar, times(f, k, self.points * self.m_step))
        u = f.element("%scratch", self.scalar, self.u)
        v = f.element("%scratch", self.scalar, self.v)
        with f.loop(self.points) as point:
            a = f.element(v, self.scalar, times(f, point.index, self.v_step))
            b = f.element(u, self.scalar, times(f, point.index, self.u_step))
            c = f.element(m, self.scalar, times(f, point.index, self.m_step))
            row = 0
            for height in even_chunks(self.unit, register_rows(self.target)[vectors]):
                tile = Tile(
                    spec.dtype, self.lanes, tuple(range(height)),
                    tuple(i * self.panel for i in range(height)), vectors, self.lanes,
                    (Reduction("%count", self.unit, self.panel),), c_pitch=self.panel,
                )  # fmt: skip
                name = self.micro.name(tile, epilogue, ("count",))
                here = f.element(a, self.scalar, row)
                into = f.element(c, self.scalar, row * self.panel)
                extra = ", i64 0" if tile.overlap else ""
                args = f"ptr {here}, ptr {b}, ptr {into}, i64 {keep}, i64 {count}{extra}"
                f.do(f"call void @{name}({args})")
                row += height

    # -- the result

    def _weights(self, k: Size, column: Size, channel: Size, width: int) -> None:
        """Transforms M of unit ``k`` to the gradient and writes it as (O, I, KH, KW)."""
        f = self.f
        m = f.element("%scratch", self.scalar, self.m)
        m = f.element(m, self.scalar, times(f, k, self.points * self.m_step))
        rows = f.element("%scratch", self.scalar, self.rows)
        at = times(f, plus(f, times(f, column, self.spec.inputs), channel), _TAPS)
        out = f.element("%out0", self.scalar, at)
        for j in range(-(-width // self.lanes)):
            here = f.element(m, self.scalar, j * self.lanes)
            matrix = _transposed(WEIGHT[self.tile])
            for n, group in enumerate(row_groups(matrix, self.size, self.target.registers)):
                name = self.helpers.name(f"weights{n}", partial(self._transform_back, rows=group))
                f.do(f"call void @{name}(ptr {rows}, ptr {here})")
            active = min(self.lanes, width - j * self.lanes)
            make = partial(
                rows_to_weight, dtype=self.spec.dtype, lanes=self.lanes, pitch=self.lanes,
                step=self.spec.inputs * _TAPS, active=active,
            )  # fmt: skip
            name = self.helpers.name(f"write_{active}", make)
            there = f.element(out, self.scalar, j * self.lanes * self.spec.inputs * _TAPS)
            f.do(f"call void @{name}(ptr {there}, ptr {rows}, i64 {self.unit * _TAPS})")

    def _transform_back(self, symbol: str, rows: range) -> Function:
        """``void @symbol(ptr rows, ptr m)``: some ``rows`` of the kernels of a unit and a vector of
        output channels, as (input channel, tap, output channel)."""
        dtype, matrix = self.spec.dtype, _transposed(WEIGHT[self.tile])
        params = [("ptr noalias", "rows"), ("ptr noalias readonly", "m")]
        f = Function(symbol, params, attributes="noinline nounwind")
        e = VectorEmitter(f, self.lanes, dtype)
        with f.loop(self.unit) as channel:
            m = f.element("%m", self.scalar, times(f, channel.index, self.panel))
            result = f.element("%rows", self.scalar, times(f, channel.index, _TAPS * self.lanes))

            def load(row: int, column: int) -> Lane:
                at = (row * self.size + column) * self.m_step
                return e.load(f.element(m, self.scalar, at), dtype)

            def store(row: int, values: list[Lane]) -> None:
                for column, value in enumerate(values):
                    at = (row * KERNEL + column) * self.lanes
                    e.store(value, f.element(result, self.scalar, at))

            transform_2d(e, matrix, matrix, rows, load, store)
        return f
