"""Depthwise convolution and its gradient with respect to the input, images channels last.

Every channel has its own kernel and is summed over nothing else: a vector holds neighbouring
channels, and a tile is a few neighbouring output pixels. An input vector is loaded once per row of
the kernel and used by all outputs of the tile that it reaches.
"""

from __future__ import annotations

from collections.abc import Sequence

from .brgemm import Tile
from .emitter import Lane, VectorEmitter
from .epilogue import Contraction
from .image import Convolution, PaddedCopy, Phase, even_chunks, runs
from .kernel import MAX_TASKS, Kernel, TaskCount, assembled, kernel_params, symbol_for
from .packing import conv_source, pack_function
from .sizes import Size, extent, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function

# Outputs of a tile: enough sums to hide the latency of multiply-add.
_OUTPUTS = 8
# Multiply-adds of a micro-kernel whose loop over kernel rows is unrolled.
_STRAIGHT = 160
_PARTS = 8


def depthwise_kernel(
    found: Contraction, spec: Convolution, inputs: int, target: Target
) -> Kernel:
    """The kernel of a convolution whose channels are groups of one."""
    return _Writer(found, spec, inputs, target).kernel()


class _Writer:
    """Writes a kernel; a unit of work is a block of rows of one image."""

    def __init__(self, found: Contraction, spec: Convolution, inputs: int, target: Target) -> None:
        self.spec, self.epilogue, self.target = spec, found.epilogue, target
        self.x, self.w = found.pointer(0), found.pointer(1)
        self.symbol = symbol_for(
            f"depthwise_{found.op}", spec, found.epilogue.key, self.x, self.w, inputs, target
        )
        self.f = Function(self.symbol, kernel_params(len(found.epilogue.outputs), inputs))
        self.lanes = target.lanes(spec.dtype)
        self.scalar = "float" if spec.dtype.itemsize == 4 else "double"
        self.micro: dict[tuple[int, int, Phase, Phase], Function] = {}
        self.helpers: list[Function] = []
        self.copied = not (spec.rows.plain and spec.columns.plain)
        self.block_rows = self._block_rows()
        self.copy = self._copy(self.block_rows)
        self.pitch = (self.copy.width if self.copied else spec.columns.size) * spec.inputs

    def _copy(self, rows: int) -> PaddedCopy:
        spec = self.spec
        height = spec.rows.extent(rows)
        return PaddedCopy(spec.dtype, spec.rows, spec.columns, spec.inputs, height)

    def _block_rows(self) -> int:
        rows = -(-self.spec.rows.count // _PARTS)
        while rows > 1 and self._copy(rows).bytes > self.target.l2 // 4:
            rows -= 1
        return max(1, rows)

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        blocks = -(-spec.rows.count // self.block_rows)
        work = times(f, extent(f, spec.batch), blocks)
        tasks = max(1, min(MAX_TASKS, work)) if isinstance(work, int) else MAX_TASKS
        first = quotient(f, times(f, work, "%begin"), tasks)
        stop = quotient(f, times(f, work, "%end"), tasks)
        block_bytes = -(-self.copy.bytes // 64) * 64 if self.copied else 0
        weights, weight_bytes = self._prepare(first, stop, block_bytes)
        with f.loop(stop, start=first) as line:
            image = quotient(f, line.index, blocks)
            block = remainder(f, line.index, blocks)
            source = self._source(image, block)
            for rows in spec.rows.phases:
                for columns in spec.columns.phases:
                    self._phase(image, block, source, weights, rows, columns)
        functions = [*self.helpers, *self.micro.values(), f]
        return assembled(
            functions,
            TaskCount(tasks),
            block_bytes + weight_bytes,
            spec.flops,
        )

    def _prepare(self, first: Size, stop: Size, at: int) -> tuple[str, int]:
        """Clears the padded block and packs a weight that is not: its address and its bytes."""
        f, spec = self.f, self.spec
        packed, size = self.w, 0
        source = None
        if spec.weight is not None:
            packed = f.element("%scratch", "i8", at)
            source, _, _ = conv_source(spec.weight, spec.panel, spec.flip, spec.groups)
            self.helpers = pack_function(f"{self.symbol}_pack", source, self.target)
            size = spec.panels_of_all * spec.panel_elements * spec.dtype.itemsize
        with f.when(f.emit(f"icmp slt i64 {first}, {stop}")):
            if self.copied:
                self.copy.clear(f, "%scratch")
            if source is not None:
                with f.loop(source.panels) as loop:
                    start = times(f, loop.index, spec.panel_elements)
                    into = f.element(packed, self.scalar, start)
                    args = f"ptr {into}, ptr {self.w}, i64 {loop.index}, i64 {source.inner}"
                    f.do(f"call void @{self.symbol}_pack({args})")
        return packed, size

    def _source(self, image: Size, block: Size) -> str:
        f, spec = self.f, self.spec
        elements = spec.rows.size * spec.columns.size * spec.inputs
        start = f.element(self.x, self.scalar, times(f, image, elements))
        row = times(f, block, self.block_rows * spec.rows.advance)
        if not self.copied:
            return f.element(start, self.scalar, times(f, row, self.pitch))
        self.copy.fill(f, "%scratch", start, row)
        return "%scratch"

    def _phase(
        self, image: Size, block: Size, a: str, b: str, rows: Phase, columns: Phase
    ) -> None:
        f, spec = self.f, self.spec
        taps = (columns.first_tap + rows.first_tap * spec.kernel[1]) * spec.panel
        b = f.element(b, self.scalar, taps)
        a = f.element(a, self.scalar, rows.at * self.pitch + columns.at * spec.inputs)
        start = times(f, block, self.block_rows)
        count = least(f, minus(f, rows.count, start), self.block_rows)
        tiles = runs(even_chunks(columns.count, _OUTPUTS))
        rest = spec.outputs - (spec.panels_of_all - 1) * spec.panel
        with f.loop(count) as loop:
            line = f.element(a, self.scalar, times(f, loop.index, rows.advance * self.pitch))
            y = plus(f, times(f, plus(f, start, loop.index), rows.step), rows.first)
            y = plus(f, times(f, image, spec.size[0]), y)
            row = plus(f, times(f, y, spec.size[1]), columns.first)
            for height, first, how_many in tiles:
                with f.loop(how_many) as tile:
                    moved = plus(f, times(f, tile.index, height), first)
                    pixel = plus(f, row, times(f, moved, columns.step))
                    shift = times(f, moved, columns.advance * spec.inputs)
                    here = f.element(line, self.scalar, shift)
                    with f.loop(spec.panels_of_all - 1) as panel:
                        self._call(here, b, panel.index, pixel, height, spec.panel, rows, columns)
                    last = spec.panels_of_all - 1
                    self._call(here, b, last, pixel, height, rest, rows, columns)

    def _call(
        self,
        a: str,
        b: str,
        panel: Size,
        pixel: Size,
        height: int,
        width: int,
        rows: Phase,
        columns: Phase,
    ) -> None:
        f, spec = self.f, self.spec
        column = times(f, panel, spec.panel)
        here = f.element(a, self.scalar, column)
        weights = f.element(b, self.scalar, times(f, panel, spec.panel_elements))
        args = [("ptr", here), ("ptr", weights)]
        args += self.epilogue.arguments(f, pixel, column, spec.outputs)
        key = (height, width, rows, columns)
        if key not in self.micro:
            self.micro[key] = self._micro(f"{self.symbol}_tile_{len(self.micro)}", *key)
        f.do(f"call void @{self.micro[key].name}({', '.join(f'{t} {v}' for t, v in args)})")

    # -- the micro-kernel

    def _micro(
        self, symbol: str, height: int, width: int, rows: Phase, columns: Phase
    ) -> Function:
        """``void @symbol(ptr a, ptr b, <parameters of the epilogue>)``: a tile of outputs."""
        spec = self.spec
        params = [("ptr noalias readonly", "a"), ("ptr noalias readonly", "b")]
        f = Function(symbol, params + self.epilogue.params(), attributes="noinline nounwind")
        e = VectorEmitter(f, self.lanes, spec.dtype)
        vectors = -(-width // self.lanes)
        step = columns.step * spec.outputs
        tile = Tile(
            spec.dtype, self.lanes, tuple(range(height)), tuple(i * step for i in range(height)),
            vectors, width - (vectors - 1) * self.lanes, (), c_pitch=spec.outputs,
        )  # fmt: skip
        zero = e.constant(0.0, spec.dtype)
        starts = self.epilogue.initial(e, tile)
        results: list[list[Lane]] = [[] for _ in range(height)]
        inline = not self.epilogue.in_memory(tile)
        for j in range(vectors):
            sums = self._column(e, tile, j, [starts[j] or zero] * height, rows, columns)
            if inline:
                self.epilogue.finish_column(e, tile, j, sums)
            for i, value in enumerate(sums):
                results[i].append(value)
        if not inline:
            self.epilogue.finish(e, tile, results)
        return f

    def _column(
        self,
        e: VectorEmitter,
        tile: Tile,
        j: int,
        sums: list[Lane],
        rows: Phase,
        columns: Phase,
    ) -> list[Lane]:
        """The sums of one vector of channels over all kernel elements."""
        f, spec = e.fn, self.spec
        size, kind = spec.dtype.itemsize, e.type(spec.dtype)
        a = f.element("%a", self.scalar, j * self.lanes)
        b = f.element("%b", self.scalar, j * self.lanes)
        down = rows.tap_advance * self.pitch * size
        tap_row = rows.tap_step * spec.kernel[1] * spec.panel * size
        if rows.taps * columns.taps * tile.rows * tile.vectors <= _STRAIGHT:
            for t in range(rows.taps):
                here = f.element(a, "i8", t * down)
                sums = self._kernel_row(e, tile, j, here, f.element(b, "i8", t * tap_row),
                                        sums, columns)  # fmt: skip
            return sums
        carry = [("ptr", a), ("ptr", b), *((kind, s.text) for s in sums)]
        with f.loop(rows.taps, carry=carry) as loop:
            here, weights, *texts = loop.carried
            sums = self._kernel_row(
                e, tile, j, here, weights, [Lane(t, spec.dtype) for t in texts], columns
            )
            loop.next = [f.element(here, "i8", down), f.element(weights, "i8", tap_row)]
            loop.next += [s.text for s in sums]
        return [Lane(t, spec.dtype) for t in loop.results[2:]]

    def _kernel_row(
        self,
        e: VectorEmitter,
        tile: Tile,
        j: int,
        a: str,
        b: str,
        sums: Sequence[Lane],
        columns: Phase,
    ) -> list[Lane]:
        """Adds the products of one row of the kernel, input pixel by input pixel."""
        f, spec, result = e.fn, self.spec, list(sums)
        weights = [
            e.load(f.element(b, self.scalar, t * columns.tap_step * spec.panel), spec.dtype)
            for t in range(columns.taps)
        ]
        uses: dict[int, list[tuple[int, int]]] = {}
        for i in range(tile.rows):
            for t in range(columns.taps):
                uses.setdefault(i * columns.advance + t * columns.tap_advance, []).append((i, t))
        active = tile.active(j)
        for pixel in sorted(uses):
            at = f.element(a, self.scalar, pixel * spec.inputs)
            x = e.load(at, spec.dtype) if active is None else e.load_masked(at, spec.dtype, active)
            for i, t in uses[pixel]:
                result[i] = e.fma(x, weights[t], result[i])
        return result
