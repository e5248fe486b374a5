"""Kernels of 2-D convolution and its gradient with respect to the input, images channels last.

The rows of the matrix product are output pixels; the channels and columns of one kernel row are
neighbours in memory, so that they make one long step of the reduction. Images with padding are
copied block by block into private memory with zeros around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.graph import Graph, Node
from ..ir.ops.packing import packed_conv_size
from ..ir.types import TensorType, fixed, is_fixed, numel, shape_at
from .brgemm import MicroKernels
from .contraction import Contraction, contraction_of
from .conv_blocking import Blocking
from .conv_grad_weight import emit_conv_grad_weight
from .depthwise import depthwise_kernel
from .epilogue import ALL_ONES, TileEpilogue
from .gemm import gemm_kernel
from .gemm_blocking import Gemm
from .image import (
    Convolution,
    Phase,
    even_chunks,
    forward_axis,
    gradient_axis,
    runs,
)
from .kernel import (
    MAX_CUTS,
    Kernel,
    TaskCount,
    assembled,
    kernel_params,
    symbol_for,
    tasks_for,
    traffic,
)
from .moments import Sums, TileMoments
from .packing import PanelSource, choose_panel, conv_source, pack_function
from .sizes import Size, extent, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function
from .tile import Reduction, Tile
from .winograd import winograd_kernel

_OPERATORS = (
    "conv2d", "conv2d_packed", "conv2d_winograd", "conv2d_grad_input", "conv2d_grad_input_packed",
)  # fmt: skip
_PLAIN = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}


def emit_convolution(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of conv2d, its two gradients and the packed forms, alone or with an epilogue.

    None for images that are not NHWC and for epilogues that are not elementwise on the result.
    """
    operands = [graph.type(v) for v in node.operands]
    if node.op.startswith("conv2d_grad_weight"):
        kernel = emit_conv_grad_weight(node, graph, target)
    else:
        kernel = _emit_product(node, operands, target)
    return kernel and replace(kernel, bytes=traffic([*operands, *node.types]))


def _emit_product(node: Node, operands: Sequence[TensorType], target: Target) -> Kernel | None:
    """The kernel of a convolution whose result is images."""
    found = contraction_of(node, operands)
    if found is None or found.attrs.get("layout") != "NHWC" or not found.result.dtype.is_float:
        return None
    spec = convolution_of(found, target)
    if spec is None:
        return None
    pool = found.epilogue.pool
    if spec.depthwise:
        if pool is not None or found.moments is not None:
            return None
        return depthwise_kernel(found, spec, len(operands), target)
    if found.epilogue.sums:
        return None
    if found.moments is not None and not takes_moments(found):
        return None
    if found.op == "conv2d_winograd":
        if found.moments is not None:
            return None
        return winograd_kernel(found, spec, len(operands), target)
    if pool is None and is_matrix_product(spec):
        return _matrix_product(found, spec, len(operands), target)
    writer = _Writer(found, spec, len(operands), target)
    return writer.kernel() if writer.takes_moments() else None


def takes_moments(found: Contraction) -> bool:
    """Whether the direct kernel of a contraction, or that of a product, could take the moments of
    its result: of a convolution with nothing but a bias behind it."""
    body = found.epilogue.body
    plain = found.epilogue.pool is None and not found.epilogue.sums
    return plain and not (body and body.nodes) and found.op in ("conv2d", "conv2d_packed")


def convolution_of(found: Contraction, target: Target) -> Convolution | None:
    """The geometry of a contraction that is a convolution."""
    attrs = found.attrs
    x, w = found.operands[:2]
    packed = found.op.endswith(("_packed", "_winograd"))
    gradient = found.op.startswith("conv2d_grad_input")
    if found.op not in _OPERATORS:
        return None
    if found.op == "conv2d_winograd":
        attrs = {**_PLAIN, **attrs}
    if not is_fixed((*x.shape[1:], *w.shape, *found.result.shape[1:])):
        return None
    groups = attrs["groups"]
    kernel = attrs["kernel_size"] if packed else shape_at(w.shape[2:], 1)
    *source, inputs = shape_at(x.shape[1:], 1)
    *result, outputs = shape_at(found.result.shape[1:], 1)
    pool = found.epilogue.pool
    if pool is not None:
        result = [*pool.covered((result[0], result[1]))]
    columns = outputs // groups if not groups == inputs == outputs else outputs
    panel = attrs["panel"] if packed else choose_panel(columns, target, x.dtype)
    if panel % target.lanes(x.dtype):
        return None
    axes = []
    for i in (0, 1):
        geometry = (kernel[i], attrs["stride"][i], attrs["padding"][i], attrs["dilation"][i])
        if gradient:
            axes.append(gradient_axis(result[i], source[i], *geometry))
        else:
            axes.append(forward_axis(source[i], *geometry).first(result[i]))
    pixels = source if gradient else result
    work = numel((x.shape[0], *pixels, inputs, outputs // groups, *kernel))
    return Convolution(
        x.dtype, x.shape[0], axes[0], axes[1], (result[0], result[1]), inputs, outputs, groups,
        (kernel[0], kernel[1]), panel, gradient, None if packed else w, work * 2,
        fixed(x.pitch), fixed(found.pitch),
    )  # fmt: skip


def is_matrix_product(spec: Convolution) -> bool:
    """1 x 1 kernels without stride and padding: pixels are rows, whatever image they are in."""
    if spec.kernel != (1, 1) or spec.groups != 1:
        return False
    return all(
        axis.plain and axis.advance == 1 and axis.phases[0].step == 1 and axis.count == axis.size
        for axis in (spec.rows, spec.columns)
    )


def _matrix_product(
    found: Contraction, spec: Convolution, inputs: int, target: Target
) -> Kernel | None:
    rows = numel((spec.batch, *spec.size))
    form = "packed"
    if spec.weight is not None:
        form = "rows" if spec.flip else "columns"
    gemm = Gemm(
        spec.dtype,
        rows,
        spec.outputs,
        spec.inputs,
        spec.x_pitch,
        1,
        form,
        spec.panel,
        c_row=spec.y_pitch,
    )
    if gemm.blocked and found.epilogue.outputs[0] is not spec.dtype:
        return None
    pointers = found.pointer(0), found.pointer(1)
    if found.moments is not None and (gemm.blocked or gemm.b != "packed"):
        return None
    return gemm_kernel(found.op, gemm, found.epilogue, pointers, inputs, target, found.moments)


@dataclass(frozen=True)
class _Block:
    """``count`` rows of each phase of an image, from ``start`` on, of ``width`` channels from
    ``column`` on."""

    image: Size
    start: Size
    count: Size
    column: Size
    width: int


class _Writer:
    """Writes a kernel; its work is a line of units: image, block of rows, panel of channels."""

    def __init__(self, found: Contraction, spec: Convolution, inputs: int, target: Target) -> None:
        self.spec, self.epilogue, self.target = spec, found.epilogue, target
        self.x, self.w = found.pointer(0), found.pointer(1)
        self.symbol = symbol_for(
            found.op, spec, found.epilogue.key, found.moments, self.x, self.w, inputs, target
        )
        results = len(found.epilogue.outputs) + (found.moments is not None)
        self.f = Function(self.symbol, kernel_params(results, inputs))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.lanes = target.lanes(spec.dtype)
        self.scalar = "float" if spec.dtype.itemsize == 4 else "double"
        self.helpers: list[Function] = []
        self.group_inputs = spec.inputs // spec.groups
        self.group_outputs = spec.outputs // spec.groups
        self.moments: TileMoments | None = None
        self.part_lines = 1
        if found.moments is not None:
            self.part_lines = found.moments.rows // spec.size[1]
            width = min(spec.panel, self.group_outputs)
            sums = Sums(found.epilogue.outputs[0], self.lanes, width)
            self.moments = TileMoments(self.symbol, found.moments, sums, spec.outputs, target)
            self.epilogue = replace(self.epilogue, moments=sums)
        self.cut = Blocking(spec, found.epilogue, target, self.part_lines)
        self.scratch = self._block_bytes() + self._weight_bytes()
        self.sums_at = -(-self.scratch // 64) * 64
        if self.moments is not None:
            self.scratch = self.sums_at + self.moments.sums.bytes
        self.private_at = -(-self.scratch // 64) * 64

    def takes_moments(self) -> bool:
        """Whether the parts whose moments are asked for, if any, are whole lines of tiles."""
        if self.moments is None:
            return True
        height, width = self.spec.size
        whole = self.moments.parts.rows == self.part_lines * width
        return whole and not height % self.part_lines and not self.part_lines % self.cut.lines

    # -- the kernel

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        parts = spec.groups * spec.panels
        blocks = -(-spec.rows.count // self.cut.block_rows)
        batch = extent(f, spec.batch)
        work = times(f, batch, blocks * parts)
        tasks = tasks_for(work)
        first = quotient(f, times(f, work, "%begin"), tasks)
        stop = quotient(f, times(f, work, "%end"), tasks)
        weights = self._prepare(first, stop)
        with f.loop(stop, start=first, step="%run") as line:
            image = quotient(f, line.index, blocks * parts)
            left = remainder(f, line.index, blocks * parts)
            block = quotient(f, left, parts)
            part = remainder(f, left, parts)
            run = least(f, minus(f, parts, part), minus(f, stop, line.index))
            f.emit(f"add nsw i64 {run}, 0", "%run")
            begins = f.emit(f"icmp eq i64 {line.index}, {first}")
            begins = f.emit(f"or i1 {begins}, {f.emit(f'icmp eq i64 {left}, 0')}")
            source = self._source(image, block, begins)
            with f.loop(plus(f, part, "%run"), start=part) as loop:
                self._part(image, block, loop.index, source, weights)
        functions = [*self.helpers, *self.micro.functions, f]
        if self.moments is not None:
            functions[:0] = self.moments.functions
        return assembled(
            functions,
            TaskCount(tasks),
            self.scratch,
            spec.flops,
            cuts=self._cuts(),
        )

    def _cuts(self) -> int:
        """Every range packs a weight that is not, and may copy a block that another one copies."""
        if self.spec.weight is not None:
            return 1
        return 2 if self.cut.copied else MAX_CUTS

    def _block_bytes(self) -> int:
        return -(-self.cut.copy.bytes // 64) * 64 if self.cut.copied else 0

    def _weight_bytes(self) -> int:
        spec = self.spec
        if spec.weight is None:
            return 0
        channels = (spec.outputs, spec.inputs)
        o, i = channels[::-1] if spec.flip else channels
        size = packed_conv_size(o, i, spec.kernel, spec.groups, spec.panel, spec.flip)
        return size * spec.dtype.itemsize

    def _prepare(self, first: Size, stop: Size) -> str:
        """Clears the padded block and packs a weight that is not; returns the weight's address."""
        f, spec = self.f, self.spec
        packed = self.w
        source: tuple[PanelSource, int, int] | None = None
        if spec.weight is not None:
            packed = f.element("%scratch", "i8", self._block_bytes())
            source = conv_source(spec.weight, spec.panel, spec.flip, spec.groups)
            self.helpers = pack_function(f"{self.symbol}_pack", source[0], self.target)
        with f.when(f.emit(f"icmp slt i64 {first}, {stop}")):
            if self.cut.copied:
                self.cut.copy.clear(f, "%scratch")
            if source is not None:
                with f.loop(spec.groups * spec.panels) as loop:
                    group = quotient(f, loop.index, spec.panels)
                    panel = remainder(f, loop.index, spec.panels)
                    at = times(f, loop.index, spec.panel_elements)
                    into = f.element(packed, self.scalar, at)
                    matrix = f.element(self.w, self.scalar, times(f, group, source[1]))
                    args = f"ptr {into}, ptr {matrix}, i64 {panel}, i64 {source[0].inner}"
                    f.do(f"call void @{self.symbol}_pack({args})")
        return packed

    def _source(self, image: Size, block: Size, begins: str) -> str:
        """The address of the first padded row of a block.

        A small image is copied whole by the first of its blocks (``begins``). The copy is read
        right after it was written, and where a load does not get its data from a store in flight
        it waits until all results before that store are in the cache.
        """
        f, spec = self.f, self.spec
        elements = spec.rows.size * spec.columns.size * spec.x_pitch
        start = f.element(self.x, self.scalar, times(f, image, elements))
        row = times(f, block, self.cut.block_rows * spec.rows.advance)
        if not self.cut.copied:
            return f.element(start, self.scalar, times(f, row, self.cut.pitch))
        if not self.cut.keeps_image:
            self.cut.copy.fill(f, "%scratch", start, row)
            return "%scratch"
        with f.when(begins):
            self.cut.copy.fill(f, "%scratch", start, 0)
        return f.element("%scratch", self.scalar, times(f, row, self.cut.pitch))

    def _part(self, image: Size, block: Size, part: Size, source: str, weights: str) -> None:
        """One panel of output channels for a block of rows."""
        f, spec = self.f, self.spec
        group = quotient(f, part, spec.panels)
        panel = remainder(f, part, spec.panels)
        a = f.element(source, self.scalar, times(f, group, self.group_inputs))
        b = f.element(weights, self.scalar, times(f, part, spec.panel_elements))
        column = plus(f, times(f, group, self.group_outputs), times(f, panel, spec.panel))
        rest = self.group_outputs - (spec.panels - 1) * spec.panel
        widths = {rest: "true"}
        if spec.panels > 1 and rest != spec.panel:
            last = f.emit(f"icmp eq i64 {panel}, {spec.panels - 1}")
            widths = {rest: last, spec.panel: f.emit(f"xor i1 {last}, true")}
        for width, condition in widths.items():
            with f.when(condition):
                for rows in spec.rows.phases:
                    for columns in self._column_phases(rows):
                        self._phase(image, block, a, b, column, width, rows, columns)

    def _column_phases(self, rows: Phase) -> list[tuple[Phase, ...]]:
        """The phases of the columns in rows of one phase, grouped by what is done line by line.

        Pixels that no tap reaches are stored beside those that they lie between, and a line without
        any other in one run: half-lines here and there are slow to write, and to read for an
        epilogue.
        """
        columns = self.spec.columns.phases
        reached = [phase for phase in columns if phase.taps]
        if not rows.taps or not reached:
            return [(Phase(0, 1, self.spec.size[1], 0, 0, 0),)]
        rest = [phase for phase in columns if not phase.taps]
        return [(reached[0], *rest), *((phase,) for phase in reached[1:])]

    def _phase(
        self,
        image: Size,
        block: Size,
        a: str,
        b: str,
        column: Size,
        width: int,
        rows: Phase,
        columns: tuple[Phase, ...],
    ) -> None:
        """The outputs of one phase of the rows and one of the columns, and of those columns' phases
        that no tap reaches."""
        f, spec = self.f, self.spec
        taps = columns[0].first_tap + rows.first_tap * spec.kernel[1]
        b = f.element(b, self.scalar, taps * self.group_inputs * spec.panel)
        a = f.element(a, self.scalar, rows.at * self.cut.pitch + columns[0].at * self.cut.pixel)
        start = times(f, block, self.cut.block_rows)
        count = least(f, minus(f, rows.count, start), self.cut.block_rows)
        outputs = _Block(image, start, count, column, width)
        if not self.cut.splits:
            self._finished_lines(outputs, a, b, rows, columns, self.epilogue)
            return
        one = replace(rows, taps=1)
        down = rows.tap_advance * self.cut.pitch
        row = rows.tap_step * spec.kernel[1] * self.group_inputs * spec.panel
        sums = TileEpilogue((spec.dtype,), self.epilogue.bias, accumulate=True)
        with f.loop(rows.taps - 1) as tap:
            begun = f.emit(f"icmp sgt i64 {tap.index}, 0")
            here = f.element(a, self.scalar, times(f, tap.index, down))
            weights = f.element(b, self.scalar, times(f, tap.index, row))
            keep = f.emit(f"sext i1 {begun} to i64")
            self._lines(outputs, here, weights, one, columns, sums, keep)
        a = f.element(a, self.scalar, (rows.taps - 1) * down)
        b = f.element(b, self.scalar, (rows.taps - 1) * row)
        last = replace(self.epilogue, accumulate=True)
        self._finished_lines(outputs, a, b, one, columns, last)

    def _sums_at(self) -> str:
        """The address of the sums for the moments, if they are taken."""
        if self.moments is None:
            return ""
        return self.f.element("%scratch", "i8", self.sums_at)

    def _finished_lines(
        self,
        block: _Block,
        a: str,
        b: str,
        rows: Phase,
        columns: tuple[Phase, ...],
        epilogue: TileEpilogue,
    ) -> None:
        """All outputs of these phases in a block, and the moments of them."""
        moments, width = self.moments, self.spec.size[1]
        if moments is None:
            self._lines(block, a, b, rows, columns, epilogue)
            return
        f, lines = self.f, self.part_lines
        together = moments.parts.run(self.cut.lines * width) // width
        with f.loop(block.count, step=together) as loop:
            here = replace(block, start=plus(f, block.start, loop.index), count=together)
            moved = times(f, loop.index, rows.advance * self.cut.pitch)
            moments.sums.clear(f, self._sums_at())
            self._lines(here, f.element(a, self.scalar, moved), b, rows, columns, epilogue)
            part = quotient(f, here.start, lines)
            part = plus(f, times(f, block.image, self.spec.size[0] // lines), part)
            before = times(f, remainder(f, here.start, lines), width)
            moments.finish(
                f, self._sums_at(), part, together * width, before, block.column, block.width
            )

    def _lines(
        self,
        block: _Block,
        a: str,
        b: str,
        rows: Phase,
        columns: tuple[Phase, ...],
        epilogue: TileEpilogue,
        keep: str = ALL_ONES,
    ) -> None:
        """All outputs of these phases in a block."""
        f = self.f
        tallest = self.cut.tallest[-(-block.width // self.lanes)]
        with f.loop(block.count, step=self.cut.lines) as loop:
            line = f.element(a, self.scalar, times(f, loop.index, rows.advance * self.cut.pitch))
            y = plus(f, times(f, plus(f, block.start, loop.index), rows.step), rows.first)
            y = quotient(f, y, self.cut.window[0])
            y = plus(f, times(f, block.image, self.cut.stored[0]), y)
            row = times(f, y, self.cut.stored[1])
            for phase in columns:
                tiles = runs(self._heights(phase, tallest))
                at = plus(f, row, phase.first)
                self._tiles(line, b, at, block, tiles, rows, phase, epilogue, keep)

    def _heights(self, columns: Phase, tallest: int) -> list[int]:
        """Outputs per tile of ``cut.lines`` rows: pixels or, if they are pooled, windows."""
        down, across = self.cut.window
        outputs = self.cut.lines // down * (columns.count // across)
        return even_chunks(outputs, max(1, tallest // (down * across)))

    def _tiles(
        self,
        a: str,
        b: str,
        row: Size,
        block: _Block,
        tiles: list[tuple[int, int, int]],
        rows: Phase,
        columns: Phase,
        epilogue: TileEpilogue,
        keep: str,
    ) -> None:
        """``cut.lines`` rows of the output, as many tiles of each height as ``tiles`` says."""
        f, spec = self.f, self.spec
        if self.cut.lines > self.cut.window[0]:
            tiles = [(t, at + k * t, 1) for t, at, n in tiles for k in range(n)]
        for height, first, how_many in tiles:
            tile, origin = self._tile(height, first, block.width, rows, columns)
            with f.loop(how_many) as loop:
                step = height * self.cut.window[1] * columns.advance
                moved = times(f, loop.index, step * self.cut.pixel)
                here = f.element(a, self.scalar, plus(f, moved, origin))
                pixel = plus(f, times(f, loop.index, height * columns.step), first * columns.step)
                args = [("ptr", here), ("ptr", b)]
                at = plus(f, row, pixel)
                args += epilogue.arguments(f, at, block.column, spec.y_pitch, keep, self._sums_at())
                args += self._private(tile)
                name = self.micro.name(tile, epilogue)
                f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")

    def _private(self, tile: Tile) -> list[tuple[str, str]]:
        """The last arguments of a micro-kernel."""
        args = [("i64", "0")] if tile.overlap else []
        if tile.blocked:
            args.insert(0, ("ptr", self.f.element("%scratch", "i8", self.private_at)))
            self.scratch = max(self.scratch, self.private_at + tile.sums_bytes)
        return args

    def _tile(
        self, height: int, first: int, width: int, rows: Phase, columns: Phase
    ) -> tuple[Tile, int]:
        """The tile of outputs ``first`` and following, and the offset in A of its first row."""
        spec = self.spec
        down, across = self.cut.window
        pixels = [divmod(output, columns.count) for output in range(first, first + height)]
        if down * across > 1:
            of_row = range(first * across, (first + height) * across)
            pixels = [(y, x) for y in range(down) for x in of_row]
        row, column = rows.advance * self.cut.pitch, columns.advance * self.cut.pixel
        offsets = [y * row + x * column for y, x in pixels]
        vectors = -(-width // self.lanes)
        step = columns.step * spec.y_pitch
        tile = Tile(
            spec.dtype,
            self.lanes,
            tuple(o - offsets[0] for o in offsets),
            tuple(i // across % height * step for i in range(len(pixels))),
            vectors,
            width - (vectors - 1) * self.lanes,
            self._loops(rows, columns),
            c_pitch=spec.y_pitch,
        )
        return tile, offsets[0]

    def _loops(self, rows: Phase, columns: Phase) -> tuple[Reduction, ...]:
        spec = self.spec
        if not rows.taps or not columns.taps:
            return ()
        tap = self.group_inputs * spec.panel
        down = Reduction(
            rows.taps, rows.tap_advance * self.cut.pitch, rows.tap_step * spec.kernel[1] * tap
        )
        together = columns.tap_advance == columns.tap_step == 1 and self.cut.pixel == spec.inputs
        if spec.groups == 1 and (columns.taps == 1 or together):
            return down, Reduction(columns.taps * spec.inputs, 1, spec.panel)
        advance = columns.tap_advance * self.cut.pixel
        across = Reduction(columns.taps, advance, columns.tap_step * tap)
        return down, across, Reduction(self.group_inputs, 1, spec.panel)
