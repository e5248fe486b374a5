"""Kernels of 3x3 convolution by Winograd's minimal filtering, images channels last.

``ir/ops/winograd.py`` has the algorithm. A thread takes a line of tiles, over all images, block by
block: it transforms the inputs of a block to a * a matrices V of (tiles, input channels), and then,
for one panel of output channels after the other, multiplies each with its transformed weights and
transforms the products back. V and the products M of a panel stay in the thread's second level
cache; weights are read front to back once per block. No pixel is padded: a tile at the border
reads zeros through pointers to a line of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..ir.ops.winograd import INPUT, KERNEL, OUTPUT, WEIGHT
from ..ir.types import DType, TensorType, float32, is_fixed
from .brgemm import MicroKernels
from .contraction import Contraction
from .emitter import Lane, VectorEmitter, scalar_type
from .epilogue import TileEpilogue
from .image import Convolution
from .kernel import (
    Kernel,
    LocalFunctions,
    TaskCount,
    assembled,
    kernel_params,
    symbol_for,
    tasks_for,
)
from .packing import conv_source, pack_function
from .sizes import Size, extent, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function
from .tile import Reduction, Tile, halving_rows, register_rows
from .winograd_transforms import row_groups, transform_2d

# Tiles per block: rows of the products that share one pass over the weights.
_BLOCK_TILES = 48
# An image of up to so many tiles is one block.
_MOST_TILES = 64
# The most ranges per thread: each transforms blocks of its own and reads all weights for them.
_CUTS = 2
# Transforming the inputs of a few tiles takes an eighth of the products of one panel: where ranges
# divide panels, and there are no more than this, a thread does it once.
_FEW_PANELS = 4
_LINE = 16  # elements of padding that keep matrices out of the same cache sets


# -- which convolutions ---------------------------------------------------------------------------


def is_faster(
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    dtype: DType,
    target: Target,
    tile: int = 2,
) -> bool:
    """Whether F(tile x tile, 3x3) beats the direct sum for a stride of 1 and one group.

    ``size`` is that of the output. `python benchmarks/decisions.py winograd` measures it; on Zen 4
    with AVX-512 it is 1.3 times faster with 16 channels at 32 x 32, 1.6 to 1.9 times with 64 and
    256, and about breaks even at 2 x 2 outputs.
    """
    if dtype is not float32 or inputs % target.lanes(dtype):
        return False
    return min(inputs, outputs) >= 16 and min(size) >= (4 if tile == 2 else 7)


# -- weights --------------------------------------------------------------------------------------


def pack_winograd(
    w: TensorType, tile: int, panel: int, flip: bool, target: Target
) -> Kernel | None:
    """The kernel of ``pack_winograd``: one task per panel.

    Panels are packed as for the direct convolution first, which makes the channels neighbours.
    """
    if not is_fixed(w.shape) or panel % target.lanes(w.dtype):
        return None
    inputs = w.shape[0 if flip else 1]
    taps = KERNEL * KERNEL
    source, _, _ = conv_source(w, panel, flip, 1)
    count = int(source.inner)
    symbol = symbol_for("pack_winograd", source, tile, target)
    f = Function(symbol, kernel_params(1, 1))
    scalar = scalar_type(w.dtype)
    points = (tile + KERNEL - 1) ** 2
    parts = pack_function(f"{symbol}_panel", source, target)
    transform = _transform_weights(f"{symbol}_points", w.dtype, inputs, tile, panel, target)
    with f.loop("%end", start="%begin") as task:
        args = f"ptr %scratch, ptr %in0, i64 {task.index}, i64 {count}"
        f.do(f"call void @{symbol}_panel({args})")
        at = f.element("%out0", scalar, times(f, task.index, points * inputs * panel))
        f.do(f"call void @{symbol}_points(ptr %scratch, ptr {at})")
    elements = source.panels * panel * inputs
    return assembled(
        [*parts, transform, f],
        TaskCount(source.panels),
        taps * inputs * panel * w.dtype.itemsize,
        bytes=elements * (taps + points) * w.dtype.itemsize,
    )


def _transform_weights(
    symbol: str, dtype: DType, inputs: int, tile: int, panel: int, target: Target
) -> Function:
    """``void @symbol(ptr kernels, ptr result)``: ``G g G^T`` for all rows of a panel."""
    params = [("ptr noalias readonly", "g"), ("ptr noalias", "u")]
    f = Function(symbol, params, attributes="noinline nounwind")
    e = VectorEmitter(f, target.lanes(dtype), dtype)
    scalar, step, matrix = scalar_type(dtype), inputs * panel, WEIGHT[tile]
    for rows in row_groups(matrix, KERNEL, target.registers):
        with f.loop(step, step=e.lanes) as loop:
            source = f.element("%g", scalar, loop.index)
            result = f.element("%u", scalar, loop.index)

            def load(row: int, column: int, source: str = source) -> Lane:
                return e.load(f.element(source, scalar, (row * KERNEL + column) * step), dtype)

            def store(row: int, values: list[Lane], result: str = result) -> None:
                for column, value in enumerate(values):
                    at = (row * len(values) + column) * step
                    e.store(value, f.element(result, scalar, at))

            transform_2d(e, matrix, matrix, rows, load, store)
    return f


# -- the kernel -----------------------------------------------------------------------------------


def winograd_kernel(found: Contraction, spec: Convolution, inputs: int, target: Target) -> Kernel:
    """The kernel of ``conv2d_winograd``; ``inputs`` is how many inputs the kernel has."""
    return _Writer(found, spec, inputs, target).kernel()


@dataclass(frozen=True)
class _Blocks:
    """Where a thread's private memory holds what: offsets in elements.

    ``v_step`` and ``m_step`` are the distances of the a * a matrices of V and of M.
    """

    zeros: int
    v: int
    v_step: int
    m: int
    m_step: int
    sums: int


class _Writer:
    def __init__(self, found: Contraction, spec: Convolution, inputs: int, target: Target) -> None:
        self.spec, self.epilogue, self.target = spec, found.epilogue, target
        self.x, self.w = found.pointer(0), found.pointer(1)
        self.tile: int = found.attrs["tile"]
        self.size = self.tile + KERNEL - 1
        self.points = self.size * self.size
        self.symbol = symbol_for(
            found.op, spec, self.tile, found.epilogue.key, self.x, self.w, inputs, target
        )
        self.f = Function(self.symbol, kernel_params(len(found.epilogue.outputs), inputs))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.helpers = LocalFunctions(self.symbol)
        # Pixels of a window that is pooled, and the size of what is stored.
        pool = found.epilogue.pool
        self.window = pool.kernel if pool is not None else (1, 1)
        self.stored = pool.pooled(spec.size) if pool is not None else spec.size
        self.lanes = target.lanes(spec.dtype)
        self.scalar = scalar_type(spec.dtype)
        self.down, self.across = (-(-n // self.tile) for n in spec.size)
        tiles = self.down * self.across
        self.block = tiles if _BLOCK_TILES < tiles <= _MOST_TILES else _BLOCK_TILES
        zeros = spec.inputs
        v_step = self.block * spec.inputs + _LINE
        m_step = self.block * spec.panel + _LINE
        v = -(-zeros // _LINE) * _LINE
        m = v + self.points * v_step
        self.at = _Blocks(0, v, v_step, m, m_step, m + self.points * m_step)
        self.scratch = self.at.sums * spec.dtype.itemsize

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        work = times(f, extent(f, spec.batch), self.down * self.across)
        tasks = tasks_for(work)
        first, stop, panels = self._range(work, tasks)
        count = minus(f, stop, first)
        with f.when(f.emit(f"icmp sgt i64 {count}, 0")):
            f.call(
                "void", "llvm.memset.p0.i64", ("ptr", self._scratch(self.at.zeros)), ("i8", "0"),
                ("i64", str(spec.inputs * spec.dtype.itemsize)), ("i1", "false"),
            )  # fmt: skip
        step = self._even_blocks(count)
        with f.loop(stop, start=first, step=step) as loop:
            size = least(f, minus(f, stop, loop.index), step)
            self._inputs(loop.index, size)
            self._panels(loop.index, size, panels)
        functions = [*self.helpers.functions, *self.micro.functions, f]
        # Below so many samples, panels are divided.
        divided = self.block // (self.down * self.across) + 1
        since = divided if spec.panels <= _FEW_PANELS else 0
        return assembled(
            functions, TaskCount(tasks), self.scratch, spec.flops, cuts=_CUTS, cuts_from=since
        )

    def _range(self, work: Size, tasks: int) -> tuple[str, str, tuple[str, str]]:
        """Tiles [first, stop) and panels [first, stop) of this range of tasks.

        Tiles are divided, and each range does all panels. If there are no more tiles than one block
        has, panels are divided: every range reads its part of the weights instead of all, which are
        the most of what it reads, and transforms all inputs.
        """
        f, panels = self.f, self.spec.panels
        few = f.emit(f"icmp sle i64 {work}, {self.block if panels > 1 else 0}")

        def choose(of_panels: Size, of_tiles: Size) -> str:
            return f.emit(f"select i1 {few}, i64 {of_panels}, i64 {of_tiles}")

        def part(total: Size, place: str) -> Size:
            return quotient(f, times(f, total, place), tasks)

        low, high = choose(part(panels, "%begin"), 0), choose(part(panels, "%end"), panels)
        some = f.emit(f"icmp slt i64 {low}, {high}")
        everything = f.emit(f"select i1 {some}, i64 {work}, i64 0")
        first, stop = choose(0, part(work, "%begin")), choose(everything, part(work, "%end"))
        return first, stop, (low, high)

    def _even_blocks(self, count: Size) -> Size:
        """Tiles per block: blocks of the same size, in whole register tiles."""
        f = self.f
        rows = self._rows(self.spec.panel // self.lanes)
        blocks = quotient(f, plus(f, count, self.block - 1), self.block)
        # No tiles, no blocks: any positive step will do.
        blocks = f.call("i64", "llvm.smax.i64", ("i64", str(blocks)), ("i64", "1"))
        size = quotient(f, minus(f, plus(f, count, blocks), 1), blocks)
        size = times(f, quotient(f, plus(f, size, rows - 1), rows), rows)
        size = f.call("i64", "llvm.smax.i64", ("i64", str(size)), ("i64", "1"))
        return least(f, size, self.block)

    def _rows(self, vectors: int) -> int:
        return register_rows(self.target)[vectors]

    def _scratch(self, elements: Size) -> str:
        return self.f.element("%scratch", self.scalar, elements)

    def _place(self, number: Size) -> tuple[Size, Size, Size]:
        """Image, row and column of a tile by its number."""
        f = self.f
        per_image = self.down * self.across
        image = quotient(f, number, per_image)
        left = remainder(f, number, per_image)
        return image, quotient(f, left, self.across), remainder(f, left, self.across)

    # -- the inputs of a block

    def _inputs(self, first: Size, count: Size) -> None:
        """V for tiles ``first`` and following."""
        f, spec = self.f, self.spec
        groups = row_groups(INPUT[self.tile], self.size, self.target.registers)
        names = [
            self.helpers.name(f"inputs{k}", partial(self._transform_inputs, rows=rows))
            for k, rows in enumerate(groups)
        ]
        height, width = spec.rows.size, spec.columns.size
        zeros = self._scratch(self.at.zeros)
        with f.loop(count) as loop:
            image, row, column = self._place(plus(f, first, loop.index))
            top = minus(f, times(f, row, self.tile), spec.rows.low)
            left = minus(f, times(f, column, self.tile), spec.columns.low)
            start = f.element(self.x, self.scalar, times(f, image, height * width * spec.x_pitch))
            inside_x = [self._inside(plus(f, left, k), width) for k in range(self.size)]
            pixels = []
            for r in range(self.size):
                y = plus(f, top, r)
                inside_y = self._inside(y, height)
                line = plus(f, times(f, y, width), left)
                for c, inside in enumerate(inside_x):
                    at = times(f, plus(f, line, c), spec.x_pitch)
                    # Addresses outside of the image are never used, only computed.
                    pixel = f.emit(f"getelementptr {self.scalar}, ptr {start}, i64 {at}")
                    both = f.emit(f"and i1 {inside_y}, {inside}")
                    pixels.append(f.emit(f"select i1 {both}, ptr {pixel}, ptr {zeros}"))
            into = self._scratch(plus(f, times(f, loop.index, spec.inputs), self.at.v))
            args = ", ".join(f"ptr {p}" for p in [into, *pixels])
            for name in names:
                f.do(f"call void @{name}({args})")

    def _inside(self, position: Size, size: int) -> str:
        return self.f.emit(f"icmp ult i64 {position}, {size}")

    def _transform_inputs(self, symbol: str, rows: range) -> Function:
        """``void @symbol(ptr v, ptr pixel0, ..)``: one tile, all channels."""
        spec = self.spec
        names = [f"x{k}" for k in range(self.points)]
        params = [("ptr noalias", "v"), *(("ptr readonly", n) for n in names)]
        f = Function(symbol, params, attributes="noinline nounwind")
        e = VectorEmitter(f, self.lanes, spec.dtype)
        matrix = INPUT[self.tile]
        with f.loop(spec.inputs, step=self.lanes) as loop:

            def load(row: int, column: int) -> Lane:
                pixel = f"%x{row * self.size + column}"
                return e.load(f.element(pixel, self.scalar, loop.index), spec.dtype)

            result = f.element("%v", self.scalar, loop.index)

            def store(row: int, values: list[Lane]) -> None:
                for column, value in enumerate(values):
                    at = (row * self.size + column) * self.at.v_step
                    e.store(value, f.element(result, self.scalar, at))

            transform_2d(e, matrix, matrix, rows, load, store)
        return f

    # -- the panels of output channels

    def _panels(self, first: Size, count: Size, panels: tuple[str, str]) -> None:
        f, spec = self.f, self.spec
        rest = spec.outputs - (spec.panels - 1) * spec.panel
        with f.loop(panels[1], start=panels[0]) as loop:
            widths = {rest: "true"}
            if spec.panels > 1 and rest != spec.panel:
                last = f.emit(f"icmp eq i64 {loop.index}, {spec.panels - 1}")
                widths = {rest: last, spec.panel: f.emit(f"xor i1 {last}, true")}
            for width, condition in widths.items():
                with f.when(condition):
                    self._products(loop.index, count, width)
                    self._outputs(loop.index, first, count, width)

    def _products(self, panel: Size, count: Size, width: int) -> None:
        """M of one panel: a * a matrix products."""
        f, spec = self.f, self.spec
        vectors = -(-width // self.lanes)
        store = TileEpilogue((spec.dtype,))
        matrix = spec.inputs * spec.panel
        with f.loop(self.points) as point:
            v = self._scratch(plus(f, times(f, point.index, self.at.v_step), self.at.v))
            m = self._scratch(plus(f, times(f, point.index, self.at.m_step), self.at.m))
            number = plus(f, times(f, panel, self.points), point.index)
            b = f.element(self.w, self.scalar, times(f, number, matrix))
            row: Size = 0
            for height in halving_rows(self._rows(vectors)):
                tile = self._product_tile(height, vectors)
                with f.loop(minus(f, count, height - 1), start=row, step=height) as loop:
                    a = f.element(v, self.scalar, times(f, loop.index, spec.inputs))
                    c = f.element(m, self.scalar, times(f, loop.index, spec.panel))
                    args = [("ptr", a), ("ptr", b), ("ptr", c), *self._private(tile)]
                    name = self.micro.name(tile, store)
                    f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")
                row = loop.index

    def _product_tile(self, height: int, vectors: int) -> Tile:
        spec = self.spec
        return Tile(
            spec.dtype,
            self.lanes,
            tuple(i * spec.inputs for i in range(height)),
            tuple(i * spec.panel for i in range(height)),
            vectors,
            self.lanes,
            (Reduction(spec.inputs, 1, spec.panel),),
            c_pitch=spec.panel,
        )

    def _private(self, tile: Tile) -> list[tuple[str, str]]:
        args = [("i64", "0")] if tile.overlap else []
        if tile.blocked:
            at = -(-self.at.sums // _LINE) * _LINE
            args.insert(0, ("ptr", self._scratch(at)))
            self.scratch = max(self.scratch, at * tile.dtype.itemsize + tile.sums_bytes)
        return args

    def _outputs(self, panel: Size, first: Size, count: Size, width: int) -> None:
        """Transforms the products of one panel back and finishes the pixels."""
        f, spec = self.f, self.spec
        column = times(f, panel, spec.panel)
        with f.loop(count) as loop:
            image, down, across = self._place(plus(f, first, loop.index))
            rows, columns = (self.tile // n for n in self.window)
            y = plus(f, times(f, image, self.stored[0]), times(f, down, rows))
            pixel = plus(f, times(f, y, self.stored[1]), times(f, across, columns))
            m = self._scratch(plus(f, times(f, loop.index, spec.panel), self.at.m))
            args = [("ptr", m), *self.epilogue.arguments(f, pixel, column, spec.y_pitch)]
            text = ", ".join(f"{t} {v}" for t, v in args)
            for height, is_row in self._extents(down, self.down, spec.size[0]):
                for length, is_column in self._extents(across, self.across, spec.size[1]):
                    with f.when(f.emit(f"and i1 {is_row}, {is_column}")):
                        for name in self._finishers(height, length, width):
                            f.do(f"call void @{name}({text})")

    def _extents(self, index: Size, tiles: int, size: int) -> list[tuple[int, str]]:
        """How many outputs of a tile there are along one axis, and when."""
        rest = size - (tiles - 1) * self.tile
        if rest == self.tile:
            return [(rest, "true")]
        last = self.f.emit(f"icmp eq i64 {index}, {tiles - 1}")
        found = [(rest, last)]
        if tiles > 1:
            found.append((self.tile, self.f.emit(f"xor i1 {last}, true")))
        return found

    def _finishers(self, height: int, length: int, width: int) -> list[str]:
        """The functions that finish ``height`` x ``length`` outputs of a tile."""
        groups = row_groups(OUTPUT[self.tile][:height], self.size, self.target.registers)
        if any(len(group) % self.window[0] for group in groups):
            groups = [range(r, r + self.window[0]) for r in range(0, height, self.window[0])]
        return [
            self.helpers.name(
                f"outputs{k}_{height}x{length}_{width}",
                partial(self._finish, height=height, length=length, width=width, rows=group),
            )
            for k, group in enumerate(groups)
        ]

    def _finish(self, symbol: str, height: int, length: int, width: int, rows: range) -> Function:
        """``void @symbol(ptr m, <parameters of the epilogue>)``: some rows of ``height`` x
        ``length`` outputs of one tile, ``width`` channels."""
        spec = self.spec
        params = [("ptr noalias readonly", "m"), *self.epilogue.params()]
        f = Function(symbol, params, attributes="noinline nounwind")
        e = VectorEmitter(f, self.lanes, spec.dtype)
        matrix = OUTPUT[self.tile]
        vectors = -(-width // self.lanes)
        tail = width - (vectors - 1) * self.lanes
        down, across = self.window
        places = [
            [(r // down * self.stored[1] + c // across) * spec.y_pitch for c in range(length)]
            for r in range(height)
        ]
        lines = [
            Tile(
                spec.dtype, self.lanes, tuple(range(down * length)), tuple(places[r] * down),
                vectors, tail, (), c_pitch=spec.y_pitch,
            )
            for r in range(0, height, down)
        ]  # fmt: skip
        starts = self.epilogue.initial(e, lines[0])
        for j in range(vectors):
            m = f.element("%m", self.scalar, j * self.lanes)
            start = starts[j]

            def load(row: int, column: int, m: str = m) -> Lane:
                at = (row * self.size + column) * self.at.m_step
                return e.load(f.element(m, self.scalar, at), spec.dtype)

            window: list[Lane] = []

            def store(
                row: int, values: list[Lane], j: int = j, start: Lane | None = start,
                window: list[Lane] = window,
            ) -> None:  # fmt: skip
                window += values if start is None else [e.add(v, start) for v in values]
                if row % down == down - 1:
                    self.epilogue.finish_column(e, lines[row // down], j, window)
                    window.clear()

            # The groups that they would be without pooling, for the same bits.
            for group in row_groups(matrix[:height], self.size, self.target.registers):
                if group.start in rows:
                    transform_2d(e, matrix[:height], matrix[:length], group, load, store)
        return f
