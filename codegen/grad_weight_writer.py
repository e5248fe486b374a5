"""The direct kernel of a convolution's gradient with respect to its weight.

A matrix product whose rows are (i, kh, kw), whose columns are o, and whose reduction runs over
pixels. Blocks of pixels are added one after the other to partial sums in private memory; complete
sums are written in the order of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from .brgemm import MicroKernels
from .chunks import MAX_CUTS
from .emitter import scalar_type
from .epilogue import ALL_ONES, TileEpilogue
from .grad_weight_units import Source, Units, plan_units
from .image import PaddedCopy, WeightGradient
from .kernel import (
    Kernel,
    LocalFunctions,
    TaskCount,
    assembled,
    kernel_params,
    symbol_for,
    tasks_for,
)
from .packing import PanelSource, choose_panel, pack_function
from .sizes import Size, extent, greatest, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function
from .tile import Reduction, Tile
from .weight_rows import rows_to_weight

# Pixels per block: the gradient of a panel of channels stays in the first level cache. Images that
# are smaller share a block, because every block reads and writes all partial sums; where these
# exceed the second level cache, blocks are longer.
PIXELS = 192
_PIXELS_LARGE = 384
# A part is read once: the hardware's prefetching stops at the ends of pages, and where only a panel
# of each row is read it is late. So many pixels before their use are enough.
_PIXELS_AHEAD = 384
# Channels that copies of images keep together: a cache line of float32, so that a tile reads lines
# that are neighbours.
_SPLIT = 16
# Vectors of a row of the gradient up to which it is not packed.
_SHORT_ROW = 8
# The same for parts, in bytes.
_SHORT_PART = 512
# Input channels so few that a thread reads much more of the gradient than of the input.
FEW_INPUTS = 4


class GradWeightWriter:
    """Writes a kernel whose tasks are units of the gradient; with ``parts``, which sums parts of
    the batch apart (`conv_grad_weight_parts`), a task has all units."""

    def __init__(self, spec: WeightGradient, target: Target, parts: int = 0) -> None:
        self.spec, self.target, self.parts = spec, target, parts
        self.symbol = symbol_for("conv2d_grad_weight", spec, parts, target)
        self.f = Function(self.symbol, kernel_params(1, 2))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.lanes = target.lanes(spec.dtype)
        self.scalar = scalar_type(spec.dtype)
        self.panel = self._choose_panel()
        self.panels = -(-spec.group_outputs // self.panel)
        self.taps = spec.kernel[0] * spec.kernel[1]
        self._plan_blocks()
        # Of 1 x 1 kernels with a stride, only the pixels that count are copied.
        plain = spec.rows.plain and spec.columns.plain
        sparse = plain and self.taps == 1
        every = (spec.rows.advance, spec.columns.advance) if sparse else (1, 1)
        self.copied = every != (1, 1) or not plain
        self.advance = (spec.rows.advance // every[0], spec.columns.advance // every[1])
        height = -(-spec.rows.extent(self.block_rows) // every[0])
        split = _SPLIT if self.copied and spec.inputs % _SPLIT == 0 and spec.groups == 1 else 0
        self.copy = PaddedCopy(
            spec.dtype, spec.rows, spec.columns, spec.inputs, height, every, split
        )
        self.pixel = self.copy.pixel if self.copied else spec.inputs
        self.pitch = (self.copy.width if self.copied else spec.columns.size) * self.pixel
        source = Source(self.pitch, self.pixel, split or spec.inputs, self.copy.part)
        self.units: Units = plan_units(spec, source, self.panel, target, not self.parts)
        self.unit_elements = self.units.most_rows * self.panel
        # Short rows of a gradient are read where they are.
        longest = _SHORT_PART // spec.dtype.itemsize if parts else _SHORT_ROW * self.lanes
        short = spec.outputs % self.lanes == 0 and spec.outputs <= longest
        self.packed = spec.groups > 1 or not short
        self.g_pitch = self.panel if self.packed else spec.outputs
        self.ahead = _PIXELS_AHEAD * spec.outputs if self.parts and not self.packed else 0
        self.tables: list[str] = []
        self.helpers: list[Function] = []
        self.writers = LocalFunctions(self.symbol)
        self.unit_count = spec.groups * self.panels * self.units.count
        size = spec.dtype.itemsize
        image_bytes = -(-self.copy.bytes // 64) * 64 if self.copied else 0
        self.image_step = image_bytes // size or spec.rows.size * self.pitch
        self.packed_at = image_bytes * self.block_images
        pixels = self.block_images * self.block_rows * spec.out[1]
        panel_bytes = pixels * self.panel * size if self.packed else 0
        self.sums_at = self.packed_at + -(-panel_bytes // 64) * 64
        self.out = "%out0"

    def _choose_panel(self) -> int:
        """Columns of a panel: those of the best register tile, but half of all where these are one
        panel and rows are few: threads that share columns read the same gradient at the same time,
        which is slow, and it is the most of what they read."""
        spec = self.spec
        panel = choose_panel(spec.group_outputs, self.target, spec.dtype)
        vectors = panel // self.lanes
        few = spec.groups == 1 and spec.inputs <= FEW_INPUTS and not self.parts
        return -(-vectors // 2) * self.lanes if few and spec.outputs <= panel else panel

    def _plan_blocks(self) -> None:
        """Pixels per block: some rows of one image, or some whole images."""
        spec = self.spec
        large = spec.outputs * spec.group_inputs * self.taps * spec.dtype.itemsize > self.target.l2
        pixels = _PIXELS_LARGE if large else PIXELS
        if self.parts:
            fitting = self.target.l1 * 3 // 4 // (self.panel * spec.dtype.itemsize)
            pixels = min(pixels, fitting)
        rows = max(1, min(spec.out[0], pixels // spec.out[1]))
        self.block_rows = -(-spec.out[0] // -(-spec.out[0] // rows))
        most = 1 if self.parts else pixels // (spec.out[0] * spec.out[1])
        self.block_images = max(1, most)

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        count = self.unit_count
        tasks = tasks_for(count)
        first = quotient(f, times(f, count, "%begin"), tasks)
        stop = quotient(f, times(f, count, "%end"), tasks)
        with f.when(f.emit(f"icmp slt i64 {first}, {stop}")):
            self.prepare()
            batch = extent(f, spec.batch)
            step = self._images_per_block(batch)
            # Without images there is one empty block: it makes the sums zero.
            with (
                f.loop(greatest(f, batch, 1), step=step) as image,
                f.loop(spec.out[0], step=self.block_rows) as line,
            ):
                images = least(f, minus(f, batch, image.index), step)
                rows = least(f, minus(f, spec.out[0], line.index), self.block_rows)
                at = plus(f, image.index, line.index)
                begins = f.emit(f"icmp eq i64 {at}, 0")
                complete = self._is_last(batch, plus(f, image.index, step), line.index)
                block = Block(image.index, line.index, images, rows, begins, complete)
                self.add_block(block, first, stop)
        return self.assembled(tasks, cuts=1)  # every range goes over all images

    def prepare(self) -> None:
        """What comes before the first block: zeros around the copies, tables."""
        if self.copied:
            with self.f.loop(self.block_images) as image:
                self.copy.clear(self.f, self._copy_of(image.index))
        for name in ("origins", "kinds", "starts", "heights"):
            values = getattr(self.units, name)
            items = ", ".join(f"i64 {v}" for v in values)
            kind = f"[{len(values)} x i64]"
            self.tables.append(f"{self._table(name)} = internal constant {kind} [{items}]")

    def assembled(self, tasks: int, cuts: int = MAX_CUTS) -> Kernel:
        """The kernel, when ``f`` is complete."""
        functions = [*self.helpers, *self.writers.functions, *self.micro.functions, self.f]
        spare = (self.lanes - 1) * self.panel  # rows that are read, but are of no unit
        sums = self.unit_count * self.unit_elements + spare
        return assembled(
            functions,
            TaskCount(tasks),
            self.sums_at + sums * self.spec.dtype.itemsize,
            self.spec.flops,
            tables=self.tables,
            cuts=cuts,
        )

    def add_block(self, block: Block, first: Size, stop: Size) -> None:
        """Adds a block of pixels to the sums of the units from ``first`` to ``stop``, and writes
        these units if it is their last one."""
        f, spec = self.f, self.spec
        x, g = self._operands(block)
        shared = times(f, block.images, 1 if self.block_images > 1 else block.rows)
        steps = times(f, times(f, block.images, block.rows), spec.out[1])
        keep = f.emit(f"select i1 {block.begins}, i64 0, i64 {ALL_ONES}")
        sums = f.element("%scratch", "i8", self.sums_at)
        with f.loop(stop, start=first, step="%run") as run:
            column, number = self._place(run.index)
            b = f.element(g, self.scalar, column.column)
            if self.packed:
                b = self._pack(g, column, steps)
            left = minus(f, self.units.count, number)
            f.emit(f"add nsw i64 {least(f, minus(f, stop, run.index), left)}, 0", "%run")
            a = f.element(x, self.scalar, times(f, column.group, spec.group_inputs))
            with f.loop("%run") as unit:
                place = minus(f, plus(f, run.index, unit.index), first)
                into = f.element(sums, self.scalar, times(f, place, self.unit_elements))
                which = plus(f, number, unit.index)
                kind = f.load("i64", f.element(self._table("kinds"), "i64", which), 8)
                with f.loop(self.units.tiles) as tile:
                    to = f.element(into, self.scalar, times(f, tile.index, self.panel))
                    at = plus(f, times(f, which, self.units.tiles), tile.index)
                    origin = f.load("i64", f.element(self._table("origins"), "i64", at), 8)
                    here = f.element(a, self.scalar, origin)
                    self._tile(here, b, to, column, kind, shared, keep)
                with f.when(block.complete):
                    self._write(into, column, which)

    def _table(self, name: str) -> str:
        """A constant array of i64."""
        return f"@{self.symbol}_{name}"

    def _images_per_block(self, batch: Size) -> Size:
        """The batch in blocks of the same size."""
        f, most = self.f, self.block_images
        blocks = greatest(f, quotient(f, plus(f, batch, most - 1), most), 1)
        step = quotient(f, minus(f, plus(f, batch, blocks), 1), blocks)
        return 1 if most == 1 else greatest(f, step, 1)

    def _copy_of(self, image: Size) -> str:
        """Where the padded copy of an image of the block is."""
        return self.f.element("%scratch", self.scalar, times(self.f, image, self.image_step))

    def _operands(self, block: Block) -> tuple[str, str]:
        """Addresses of the input and of the gradient of a block."""
        f, spec = self.f, self.spec
        image, line, images = block.image, block.line, block.images
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
        source = PanelSource(spec.dtype, spec.group_outputs, self.panel, "%inner", spec.outputs, 1)
        name = f"{self.symbol}_pack"
        if not self.helpers:
            self.helpers = pack_function(name, source, self.target)
        packed = f.element("%scratch", "i8", self.packed_at)
        matrix = f.element(g, self.scalar, times(f, column.group, spec.group_outputs))
        args = f"ptr {packed}, ptr {matrix}, i64 {column.panel}, i64 {pixels}"
        f.do(f"call void @{name}({args})")
        return packed

    def _is_last(self, batch: Size, following: Size, line: Size) -> str:
        """Whether a block is the last one."""
        f = self.f
        images = f.emit(f"icmp sge i64 {following}, {batch}")
        rows = f.emit(f"icmp sge i64 {plus(f, line, self.block_rows)}, {self.spec.out[0]}")
        return f.emit(f"and i1 {images}, {rows}")

    def _place(self, unit: Size) -> tuple[_Column, Size]:
        """The columns of a unit, and its number among those of a group."""
        f, spec = self.f, self.spec
        number = remainder(f, unit, self.units.count)
        part = quotient(f, unit, self.units.count)
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
        self, a: str, b: str, into: str, column: _Column, kind: str, count: Size, keep: str
    ) -> None:
        """Adds a block of pixels (``count`` images, or rows of one) to the sums of a tile; they
        begin with 0 if ``keep`` is 0."""
        f, spec = self.f, self.spec
        epilogue = TileEpilogue((spec.dtype,), accumulate=True)
        row = spec.out[1] * self.g_pitch
        loops: tuple[Reduction, ...] = (
            Reduction("%count", self.advance[0] * self.pitch, row),
            Reduction(spec.out[1], self.advance[1] * self.pixel, self.g_pitch),
        )
        if self.block_images > 1:
            loops = (
                Reduction("%count", self.image_step, spec.out[0] * row),
                Reduction(spec.out[0], *(loops[0].a_step, loops[0].b_step)),
                loops[1],
            )
        c_pitch = self.units.tiles * self.panel
        for width, condition in self._widths(column.panel):
            vectors = -(-width // self.lanes)
            for k, pattern in enumerate(self.units.patterns):
                same = f.emit(f"icmp eq i64 {kind}, {k}")
                with f.when(f.emit(f"and i1 {same}, {condition}")):
                    tile = Tile(
                        spec.dtype, self.lanes, pattern,
                        tuple(i * c_pitch for i in range(len(pattern))),
                        vectors, width - (vectors - 1) * self.lanes, loops, c_pitch=c_pitch,
                        b_ahead=self.ahead,
                    )  # fmt: skip
                    name = self.micro.name(tile, epilogue, ("count",))
                    extra = ", i64 0" if tile.overlap else ""
                    args = f"ptr {a}, ptr {b}, ptr {into}, i64 {keep}, i64 {count}{extra}"
                    f.do(f"call void @{name}({args})")

    def _write(self, sums: str, column: _Column, number: Size) -> None:
        """Writes a finished unit as (O, I, KH, KW)."""
        f, channel = self.f, self.spec.group_inputs * self.taps
        start, height = (
            f.load("i64", f.element(self._table(table), "i64", number), 8)
            for table in ("starts", "heights")
        )
        at = plus(f, times(f, column.column, channel), start)
        there = f.element(self.out, self.scalar, at)
        for width, condition in self._widths(column.panel):
            with f.when(condition):
                for j in range(0, width, self.lanes):
                    name = self._writer(min(self.lanes, width - j))
                    into = f.element(there, self.scalar, j * channel)
                    rows = f.element(sums, self.scalar, j)
                    f.do(f"call void @{name}(ptr {into}, ptr {rows}, i64 {height})")

    def _writer(self, active: int) -> str:
        """The function that writes ``active`` output channels of a unit."""
        make = partial(
            rows_to_weight, dtype=self.spec.dtype, lanes=self.lanes, pitch=self.panel,
            step=self.spec.group_inputs * self.taps, active=active,
        )  # fmt: skip
        return self.writers.name(f"write{active}", make)


@dataclass(frozen=True)
class Block:
    """Pixels that are summed together: ``rows`` output rows from ``line`` on of ``images`` images.

    ``begins`` and ``complete`` are i1: whether it is the first or the last block of its sums.
    """

    image: Size
    line: Size
    images: Size
    rows: Size
    begins: str
    complete: str


@dataclass(frozen=True)
class _Column:
    """The group and panel of a unit, and the first of its output channels."""

    group: Size
    panel: Size
    column: Size
