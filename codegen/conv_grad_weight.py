"""The kernel of a convolution's gradient with respect to its weight, images channels last.

``dw[o][i][kh][kw]`` is a sum over all output pixels of the gradient times the input pixel under the
kernel element: a matrix product whose rows are (kh, kw, i), whose columns are o, and whose
reduction runs over pixels. Every thread has some tiles of the result and goes over all images; it
adds block after block of pixels to partial sums in its private memory, and at the end writes them
in the order of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.graph import Graph, Node
from ..ir.types import TensorType, numel
from .brgemm import MicroKernels, Reduction, Tile, register_rows
from .depthwise_grad_weight import depthwise_grad_weight
from .epilogue import TileEpilogue
from .gemm import Gemm, gemm_kernel
from .image import PaddedCopy, WeightGradient, even_chunks, forward_axis
from .kernel import MAX_TASKS, Kernel, TaskCount, assembled, kernel_params, symbol_for
from .packing import PanelSource, choose_panel, pack_function
from .sizes import Size, extent, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function

# Pixels per block: the gradient of a panel of channels stays in the first level cache. Images that
# are smaller share a block, because every block reads and writes all partial sums; where these
# exceed the second level cache, blocks are longer.
_PIXELS = 192
_PIXELS_LARGE = 384
# Multiply-adds of all tiles that differ, unrolled four times.
_TILES = 400


def emit_conv_grad_weight(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of ``conv2d_grad_weight(g, x)``; None for images that are not NHWC."""
    if node.op != "conv2d_grad_weight" or node.attrs["layout"] != "NHWC":
        return None
    g, x = (graph.type(v) for v in node.operands)
    spec = _spec(node, g, x)
    if spec is None:
        return None
    if _is_matrix_product(spec) and not _stays_in_cache(spec, target):
        return _matrix_product(spec, node.type, target)
    if spec.groups > 1 and spec.groups == spec.inputs == spec.outputs:
        return depthwise_grad_weight(spec, target)
    return _Writer(spec, target).kernel()


def _spec(node: Node, g: TensorType, x: TensorType) -> WeightGradient | None:
    fixed = (*g.shape[1:], *x.shape[1:])
    if not all(isinstance(d, int) for d in fixed) or not g.dtype.is_float:
        return None
    oh, ow, outputs, height, width, inputs = (int(d) for d in fixed)  # type: ignore[arg-type]
    attrs = node.attrs
    axes = [
        forward_axis(
            (height, width)[i],
            attrs["kernel_size"][i],
            attrs["stride"][i],
            attrs["padding"][i],
            attrs["dilation"][i],
        )
        for i in (0, 1)
    ]
    groups, kernel = attrs["groups"], tuple(attrs["kernel_size"])
    work = numel((g.shape[0], oh, ow, outputs, inputs // groups, *kernel))
    return WeightGradient(
        g.dtype, g.shape[0], axes[0], axes[1], (oh, ow), inputs, outputs, groups, kernel,
        tuple(attrs["dilation"]), work * 2,
    )  # fmt: skip


def _is_matrix_product(spec: WeightGradient) -> bool:
    """1 x 1 kernels without stride and padding."""
    return (
        spec.kernel == (1, 1)
        and spec.groups == 1
        and all(a.plain and a.advance == 1 for a in (spec.rows, spec.columns))
        and spec.out == (spec.rows.size, spec.columns.size)
    )


def _stays_in_cache(spec: WeightGradient, target: Target) -> bool:
    """Whether the sums of the whole gradient stay in the second level cache beside a block.

    Then they are better kept there while each block of pixels is read once: a plain matrix product
    copies the pixels for every panel of channels. On MobileNetV2's layers of 112 x 112 to 14 x 14
    pixels that takes 1.2 to 3 times as long, while for larger gradients of few pixels it is faster.
    """
    return spec.outputs * spec.inputs * spec.dtype.itemsize <= target.l2 // 4


def _matrix_product(spec: WeightGradient, result: TensorType, target: Target) -> Kernel:
    pixels = numel((spec.batch, *spec.out))
    panel = choose_panel(spec.inputs, target, spec.dtype)
    gemm = Gemm(spec.dtype, spec.outputs, spec.inputs, pixels, 1, spec.outputs, "rows", panel)
    epilogue = TileEpilogue((result.dtype,))
    return gemm_kernel("conv2d_grad_weight", gemm, epilogue, ("%in0", "%in1"), 2, target)


class _Writer:
    def __init__(self, spec: WeightGradient, target: Target) -> None:
        self.spec, self.target = spec, target
        self.symbol = symbol_for("conv2d_grad_weight", spec, target)
        self.f = Function(self.symbol, kernel_params(1, 2))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.lanes = target.lanes(spec.dtype)
        self.scalar = "float" if spec.dtype.itemsize == 4 else "double"
        self.panel = choose_panel(spec.group_outputs, target, spec.dtype)
        self.panels = -(-spec.group_outputs // self.panel)
        self.tallest = register_rows(target)[self.panel // self.lanes]
        taps = spec.kernel[0] * spec.kernel[1]
        large = spec.outputs * spec.group_inputs * taps * spec.dtype.itemsize > target.l2
        pixels = _PIXELS_LARGE if large else _PIXELS
        self.block_rows = max(1, min(spec.out[0], pixels // spec.out[1]))
        self.block_images = max(1, pixels // (spec.out[0] * spec.out[1]))
        self.copied = not (spec.rows.plain and spec.columns.plain)
        height = spec.rows.extent(self.block_rows)
        self.copy = PaddedCopy(spec.dtype, spec.rows, spec.columns, spec.inputs, height)
        self.pitch = (self.copy.width if self.copied else spec.columns.size) * spec.inputs
        self.tiles = self._plan_tiles()
        self.tile_elements = max(len(rows) for _, rows in self.tiles) * self.panel
        self.tables: list[str] = []
        self.helpers: list[Function] = []
        self.image_step = 0
        self.packed_at = 0

    def _plan_tiles(self) -> list[tuple[int, tuple[int, ...]]]:
        """The row tiles of one group: (first row, offsets of the rows in the input).

        Rows are in the order (kh, kw, i). A tile keeps to rows that are neighbours in memory, which
        makes most tiles alike, unless these are too few for a good tile.
        """
        spec = self.spec
        offsets = [
            kh * spec.dilation[0] * self.pitch + kw * spec.dilation[1] * spec.inputs + i
            for kh in range(spec.kernel[0])
            for kw in range(spec.kernel[1])
            for i in range(spec.group_inputs)
        ]
        together = spec.group_inputs
        if spec.groups == 1 and spec.dilation[1] == 1:
            together *= spec.kernel[1]
        if together < self.tallest and len(offsets) * self.panel // self.lanes * 4 <= _TILES:
            together = len(offsets)
        tiles = []
        for segment in range(0, len(offsets), together):
            at = segment
            for height in even_chunks(together, self.tallest):
                tiles.append((at, tuple(offsets[at : at + height])))
                at += height
        return tiles

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        count = spec.groups * self.panels * len(self.tiles)
        tasks = max(1, min(MAX_TASKS, count))
        first = quotient(f, times(f, count, "%begin"), tasks)
        stop = quotient(f, times(f, count, "%end"), tasks)
        size = spec.dtype.itemsize
        image_bytes = -(-self.copy.bytes // 64) * 64 if self.copied else 0
        self.image_step = image_bytes // size or spec.rows.size * self.pitch
        self.packed_at = image_bytes * self.block_images
        pixels = self.block_images * self.block_rows * spec.out[1]
        block_bytes = self.packed_at + -(-pixels * self.panel * size // 64) * 64
        sums = f.element("%scratch", "i8", block_bytes)
        mine = minus(f, stop, first)
        with f.when(f.emit(f"icmp sgt i64 {mine}, 0")):
            f.call(
                "void", "llvm.memset.p0.i64", ("ptr", sums), ("i8", "0"),
                ("i64", str(times(f, mine, self.tile_elements * size))), ("i1", "false"),
            )  # fmt: skip
            if self.copied:
                with f.loop(self.block_images) as image:
                    self.copy.clear(f, self._copy_of(image.index))
            origins = self._table("origins", [rows[0] for _, rows in self.tiles])
            patterns = [tuple(r - rows[0] for r in rows) for _, rows in self.tiles]
            kinds = list(dict.fromkeys(patterns))
            kind_of = self._table("kinds", [kinds.index(p) for p in patterns])
            batch = extent(f, spec.batch)
            with f.loop(batch, step=self.block_images) as image, f.loop(
                spec.out[0], step=self.block_rows
            ) as line:
                images = least(f, minus(f, batch, image.index), self.block_images)
                rows = least(f, minus(f, spec.out[0], line.index), self.block_rows)
                x, g = self._block(image.index, line.index, images)
                steps = times(f, times(f, images, rows), spec.out[1])
                with f.loop(stop, start=first, step="%run") as run:
                    column, number = self._place(run.index)
                    b = self._pack(g, column, steps)
                    end = least(f, minus(f, stop, run.index), minus(f, len(self.tiles), number))
                    f.emit(f"add nsw i64 {end}, 0", "%run")
                    a = f.element(x, self.scalar, times(f, column.group, spec.group_inputs))
                    with f.loop("%run") as tile:
                        into = self._sums(sums, plus(f, run.index, tile.index), first)
                        which = plus(f, number, tile.index)
                        origin = f.load("i64", f.element(origins, "i64", which), 8)
                        kind = f.load("i64", f.element(kind_of, "i64", which), 8)
                        here = f.element(a, self.scalar, origin)
                        shared = images if self.block_images > 1 else rows
                        self._tile(here, b, into, column, kind, kinds, shared)
            self._write(sums, first, stop)
        functions = [*self.helpers, *self.micro.functions, f]
        return assembled(
            functions,
            TaskCount(tasks),
            block_bytes + count * self.tile_elements * size,
            spec.flops,
            tables=self.tables,
            cuts=1,  # every range goes over all images
        )

    def _table(self, name: str, values: list[int]) -> str:
        """A constant array of i64."""
        symbol = f"@{self.symbol}_{name}"
        items = ", ".join(f"i64 {v}" for v in values)
        self.tables.append(f"{symbol} = internal constant [{len(values)} x i64] [{items}]")
        return symbol

    def _copy_of(self, image: Size) -> str:
        """Where the padded copy of an image of the block is."""
        return self.f.element("%scratch", self.scalar, times(self.f, image, self.image_step))

    def _block(self, image: Size, line: Size, images: Size) -> tuple[str, str]:
        """Addresses of the input and of the gradient of a block of output rows of some images."""
        f, spec = self.f, self.spec
        elements = spec.rows.size * spec.columns.size * spec.inputs
        row = times(f, line, spec.rows.advance)
        start = f.element("%in1", self.scalar, times(f, image, elements))
        x = f.element(start, self.scalar, times(f, row, self.pitch))
        if self.copied:
            x = "%scratch"
            with f.loop(images) as loop:
                source = f.element(start, self.scalar, times(f, loop.index, elements))
                self.copy.fill(f, self._copy_of(loop.index), source, row)
        y = plus(f, times(f, image, spec.out[0]), line)
        return x, f.element("%in0", self.scalar, times(f, y, spec.out[1] * spec.outputs))

    def _pack(self, g: str, column: _Column, pixels: Size) -> str:
        """Packs the panel of channels of the gradient of all pixels of a block."""
        f, spec = self.f, self.spec
        source = PanelSource(
            spec.dtype, spec.group_outputs, self.panel, "%inner", spec.outputs, 1
        )
        name = f"{self.symbol}_pack"
        if not self.helpers:
            self.helpers = pack_function(name, source, self.target)
        packed = f.element("%scratch", "i8", self.packed_at)
        matrix = f.element(g, self.scalar, times(f, column.group, spec.group_outputs))
        args = f"ptr {packed}, ptr {matrix}, i64 {column.panel}, i64 {pixels}"
        f.do(f"call void @{name}({args})")
        return packed

    def _sums(self, sums: str, tile: Size, first: Size) -> str:
        at = times(self.f, minus(self.f, tile, first), self.tile_elements)
        return self.f.element(sums, self.scalar, at)

    def _place(self, tile: Size) -> tuple[_Column, Size]:
        """The columns of a tile, and the number of its rows in ``self.tiles``."""
        f, spec = self.f, self.spec
        number = remainder(f, tile, len(self.tiles))
        part = quotient(f, tile, len(self.tiles))
        panel = remainder(f, part, self.panels)
        group = quotient(f, part, self.panels)
        column = plus(f, times(f, group, spec.group_outputs), times(f, panel, self.panel))
        return _Column(group, panel, column), number

    def _widths(self, panel: Size) -> list[tuple[int, str]]:
        """(columns, condition) for each width of a panel."""
        f = self.f
        rest = self.spec.group_outputs - (self.panels - 1) * self.panel
        if rest == self.panel or self.panels == 1:
            return [(rest, "true")]
        last = f.emit(f"icmp eq i64 {panel}, {self.panels - 1}")
        return [(rest, last), (self.panel, f.emit(f"xor i1 {last}, true"))]

    def _tile(
        self,
        a: str,
        b: str,
        into: str,
        column: _Column,
        kind: str,
        kinds: list[tuple[int, ...]],
        count: Size,
    ) -> None:
        """Adds a block of pixels (``count`` images, or rows of one) to the sums of a tile."""
        f, spec = self.f, self.spec
        epilogue = TileEpilogue((spec.dtype,), accumulate=True)
        row = spec.out[1] * self.panel
        loops: tuple[Reduction, ...] = (
            Reduction("%count", spec.rows.advance * self.pitch, row),
            Reduction(spec.out[1], spec.columns.advance * spec.inputs, self.panel),
        )
        if self.block_images > 1:
            loops = (
                Reduction("%count", self.image_step, spec.out[0] * row),
                Reduction(spec.out[0], *(loops[0].a_step, loops[0].b_step)),
                loops[1],
            )
        for width, condition in self._widths(column.panel):
            vectors = -(-width // self.lanes)
            for k, pattern in enumerate(kinds):
                same = f.emit(f"icmp eq i64 {kind}, {k}")
                with f.when(f.emit(f"and i1 {same}, {condition}")):
                    tile = Tile(
                        spec.dtype, self.lanes, pattern,
                        tuple(i * self.panel for i in range(len(pattern))),
                        vectors, width - (vectors - 1) * self.lanes, loops, c_pitch=self.panel,
                    )  # fmt: skip
                    name = self.micro.name(tile, epilogue, ("count",))
                    extra = ", i64 0" if tile.overlap else ""
                    args = f"ptr {a}, ptr {b}, ptr {into}, i64 -1, i64 {count}{extra}"
                    f.do(f"call void @{name}({args})")

    def _write(self, sums: str, first: Size, stop: Size) -> None:
        """Writes the finished tiles as (O, I, KH, KW)."""
        f, spec = self.f, self.spec
        taps = spec.kernel[0] * spec.kernel[1]
        starts = self._table("starts", [at for at, _ in self.tiles])
        heights = self._table("heights", [len(rows) for _, rows in self.tiles])
        with f.loop(stop, start=first) as tile:
            source = self._sums(sums, tile.index, first)
            column, number = self._place(tile.index)
            start = f.load("i64", f.element(starts, "i64", number), 8)
            height = f.load("i64", f.element(heights, "i64", number), 8)
            left = minus(f, spec.group_outputs, times(f, column.panel, self.panel))
            with f.loop(height) as row:
                position = plus(f, start, row.index)
                tap = quotient(f, position, spec.group_inputs)
                channel = remainder(f, position, spec.group_inputs)
                at = plus(f, times(f, channel, taps), tap)
                line = f.element(source, self.scalar, times(f, row.index, self.panel))
                with f.loop(least(f, left, self.panel)) as c:
                    value = f.load(
                        self.scalar, f.element(line, self.scalar, c.index), spec.dtype.itemsize
                    )
                    o = times(f, plus(f, column.column, c.index), spec.group_inputs * taps)
                    there = f.element("%out0", self.scalar, plus(f, o, at))
                    f.store(self.scalar, value, there, spec.dtype.itemsize)


@dataclass(frozen=True)
class _Column:
    """The group and panel of a tile, and the first of its output channels."""

    group: Size
    panel: Size
    column: Size
