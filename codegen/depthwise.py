"""Depthwise convolution and its gradient with respect to the input, images channels last.

Every channel has its own kernel and is summed over nothing else: a vector holds neighbouring
channels, and a tile is a few neighbouring output pixels. An input vector is loaded once per row of
the kernel and used by all outputs of the tile that it reaches.

Images are read where they are. Rows outside of the image are read from a line of zeros; which
columns are outside is known for each tile, and its code leaves these taps out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import groupby

from .contraction import Contraction
from .emitter import Lane, VectorEmitter, scalar_type
from .image import Convolution, Phase, even_chunks
from .kernel import (
    MAX_CUTS,
    Kernel,
    TaskCount,
    assembled,
    kernel_params,
    symbol_for,
    tasks_for,
)
from .packing import conv_source, pack_function
from .sizes import Size, extent, plus, quotient, remainder, times
from .target import LINE, Target
from .text import Function
from .tile import Tile

# Outputs of a tile: enough sums to hide the latency of multiply-add.
_OUTPUTS = 8
# Multiply-adds of a micro-kernel: those of several vectors of channels, if they are few.
_STRAIGHT = 300


def depthwise_kernel(found: Contraction, spec: Convolution, inputs: int, target: Target) -> Kernel:
    """The kernel of a convolution whose channels are groups of one."""
    return _Writer(found, spec, inputs, target).kernel()


@dataclass(frozen=True)
class _Taps:
    """What the outputs of a tile read in one row of the image.

    ``pairs`` are (output, kernel element, column of the image relative to the tile's first).
    """

    outputs: int
    pairs: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class _Run:
    """``count`` tiles of one kind side by side: the first one's first output and first column."""

    taps: _Taps
    output: int
    column: int
    count: int


class _Writer:
    """Writes a kernel; a unit of work is one row of one image (of each phase)."""

    def __init__(self, found: Contraction, spec: Convolution, inputs: int, target: Target) -> None:
        self.spec, self.epilogue, self.target = spec, found.epilogue, target
        self.x, self.w = found.pointer(0), found.pointer(1)
        self.symbol = symbol_for(
            f"depthwise_{found.op}", spec, found.epilogue.key, self.x, self.w, inputs, target
        )
        results = len(found.epilogue.outputs) + found.epilogue.sums
        self.f = Function(self.symbol, kernel_params(results, inputs))
        self.lanes = target.lanes(spec.dtype)
        self.scalar = scalar_type(spec.dtype)
        self.micro: dict[tuple[_Taps, int, Phase, Phase], Function] = {}
        self.helpers: list[Function] = []
        self.line = spec.columns.size * spec.x_pitch
        vectors = spec.panel // self.lanes
        multiplies = spec.kernel[0] * spec.kernel[1] * _OUTPUTS
        # The scheduler for AArch64 moves loads of the next vector up until it spills.
        straightest = _STRAIGHT if target.vector_bytes > 16 else 0
        self.piece = spec.panel if vectors * multiplies <= straightest else self.lanes

    def kernel(self) -> Kernel:
        f, spec = self.f, self.spec
        work = times(f, extent(f, spec.batch), spec.rows.count)
        tasks = tasks_for(work)
        first = quotient(f, times(f, work, "%begin"), tasks)
        stop = quotient(f, times(f, work, "%end"), tasks)
        zero_bytes = 0 if spec.rows.plain else self.line * spec.dtype.itemsize
        packed_at = -(-zero_bytes // LINE) * LINE
        weights, weight_bytes = self._prepare(first, stop, zero_bytes, packed_at)
        with f.loop(stop, start=first) as loop:
            image = quotient(f, loop.index, spec.rows.count)
            line = remainder(f, loop.index, spec.rows.count)
            for rows in spec.rows.phases:
                exists = "true"
                if rows.count < spec.rows.count:
                    exists = f.emit(f"icmp slt i64 {line}, {rows.count}")
                with f.when(exists):
                    self._row(image, line, weights, rows)
        functions = [*self.helpers, *self.micro.values(), f]
        # Every range packs a weight that is not packed yet.
        cuts = 1 if spec.weight is not None else MAX_CUTS
        scratch = packed_at + weight_bytes
        return assembled(functions, TaskCount(tasks), scratch, spec.flops, cuts=cuts)

    def _prepare(self, first: Size, stop: Size, zero_bytes: int, at: int) -> tuple[str, int]:
        """Clears the line of zeros and packs a weight that is not: its address and its bytes."""
        f, spec = self.f, self.spec
        packed, size, source = self.w, 0, None
        if spec.weight is not None:
            packed = f.element("%scratch", "i8", at)
            source, _, _ = conv_source(spec.weight, spec.panel, spec.flip, spec.groups)
            self.helpers = pack_function(f"{self.symbol}_pack", source, self.target)
            size = spec.panels_of_all * spec.panel_elements * spec.dtype.itemsize
        with f.when(f.emit(f"icmp slt i64 {first}, {stop}")):
            if zero_bytes:
                _zero(f, "%scratch", zero_bytes)
            if source is not None:
                with f.loop(source.panels) as loop:
                    start = times(f, loop.index, spec.panel_elements)
                    into = f.element(packed, self.scalar, start)
                    args = f"ptr {into}, ptr {self.w}, i64 {loop.index}, i64 {source.inner}"
                    f.do(f"call void @{self.symbol}_pack({args})")
        return packed, size

    # -- one row of outputs

    def _row(self, image: Size, line: Size, weights: str, rows: Phase) -> None:
        f, spec = self.f, self.spec
        pixels = spec.rows.size * self.line
        start = f.element(self.x, self.scalar, times(f, image, pixels))
        sources = [self._source(start, line, rows, t) for t in range(rows.taps)]
        y = plus(f, times(f, line, rows.step), rows.first)
        y = plus(f, times(f, image, spec.size[0]), y)
        means = ""
        if self.epilogue.sums:
            means = f.element(
                f"%out{len(self.epilogue.outputs)}", self.scalar, times(f, y, spec.outputs)
            )
            _zero(f, means, spec.outputs * spec.dtype.itemsize)
        for columns in spec.columns.phases:
            taps = (columns.first_tap + rows.first_tap * spec.kernel[1]) * spec.panel
            b = f.element(weights, self.scalar, taps)
            row = plus(f, times(f, y, spec.size[1]), columns.first)
            for run in self._runs(columns):
                with f.loop(run.count) as tile:
                    output = plus(f, times(f, tile.index, run.taps.outputs), run.output)
                    pixel = plus(f, row, times(f, output, columns.step))
                    moved = times(f, tile.index, run.taps.outputs * columns.advance)
                    shift = times(f, plus(f, moved, run.column), spec.x_pitch)
                    self._channels(sources, shift, b, pixel, means, run.taps, rows, columns)

    def _source(self, start: str, line: Size, rows: Phase, tap: int) -> str:
        """The address of the image's row for one row of the kernel; zeros outside."""
        f, axis = self.f, self.spec.rows
        at = plus(f, times(f, line, rows.advance), rows.at + tap * rows.tap_advance - axis.low)
        inside = f.emit(f"icmp ult i64 {at}, {(axis.size - 1) * axis.spread + 1}")
        if axis.spread > 1:
            between = f.emit(f"icmp eq i64 {remainder(f, at, axis.spread)}, 0")
            inside = f.emit(f"and i1 {inside}, {between}")
            at = quotient(f, at, axis.spread)
        offset = times(f, at, self.line)
        address = f.emit(f"getelementptr {self.scalar}, ptr {start}, i64 {offset}")
        if axis.plain:
            return address
        return f.emit(f"select i1 {inside}, ptr {address}, ptr %scratch")

    def _runs(self, columns: Phase) -> Iterator[_Run]:
        """The tiles of a row, equal neighbours together."""
        axis = self.spec.columns
        tiles: list[tuple[_Taps, int, int]] = []
        output = 0
        for outputs in even_chunks(columns.count, _OUTPUTS):
            found = []
            for i in range(outputs):
                for t in range(columns.taps):
                    at = columns.at + (output + i) * columns.advance + t * columns.tap_advance
                    column, between = divmod(at - axis.low, axis.spread)
                    if not between and 0 <= column < axis.size:
                        found.append((i, t, column))
            # Relative to a position that moves with the outputs, so that equal tiles look equal.
            first = columns.at + output * columns.advance - axis.low
            if axis.spread > 1 or not found:
                first = 0
            pairs = tuple((i, t, column - first) for i, t, column in found)
            tiles.append((_Taps(outputs, pairs), output, first))
            output += outputs
        for taps, group in groupby(tiles, key=lambda tile: tile[0]):
            members = list(group)
            yield _Run(taps, members[0][1], members[0][2], len(members))

    def _channels(
        self, sources: list[str], shift: Size, b: str, pixel: Size, means: str, taps: _Taps,
        rows: Phase, columns: Phase,
    ) -> None:  # fmt: skip
        """One tile, all channels; ``means`` is the address of the row's means, if they are made."""
        f, spec = self.f, self.spec
        whole, rest = divmod(spec.outputs, self.piece)

        def call(channel: Size, width: int) -> None:
            panel = quotient(f, channel, spec.panel)
            inside = remainder(f, channel, spec.panel)
            at = plus(f, times(f, panel, spec.panel_elements), inside)
            args = [("ptr", s) for s in sources]
            args += [("i64", str(plus(f, shift, channel)))]
            args += [("ptr", f.element(b, self.scalar, at))]
            if means:
                args.append(("ptr", f.element(means, self.scalar, channel)))
            args += self.epilogue.arguments(f, pixel, channel, spec.y_pitch)
            key = (taps, width, rows, columns)
            if key not in self.micro:
                self.micro[key] = self._micro(f"{self.symbol}_tile_{len(self.micro)}", *key)
            f.do(f"call void @{self.micro[key].name}({', '.join(f'{t} {v}' for t, v in args)})")

        with f.loop(whole) as loop:
            call(times(f, loop.index, self.piece), self.piece)
        if rest:
            call(whole * self.piece, rest)

    # -- the micro-kernel

    def _micro(self, symbol: str, taps: _Taps, width: int, rows: Phase, columns: Phase) -> Function:
        """``void @symbol(ptr row0.., i64 shift, ptr b, [ptr means], <those of the epilogue>)``."""
        spec = self.spec
        params = [("ptr readonly", f"row{k}") for k in range(rows.taps)]
        params += [("i64", "shift"), ("ptr noalias readonly", "b")]
        if self.epilogue.sums:
            params.append(("ptr noalias", "means"))
        f = Function(symbol, params + self.epilogue.params(), attributes="noinline nounwind")
        e = VectorEmitter(f, self.lanes, spec.dtype)
        vectors = -(-width // self.lanes)
        step = columns.step * spec.y_pitch
        tile = Tile(
            spec.dtype, self.lanes, tuple(range(taps.outputs)),
            tuple(i * step for i in range(taps.outputs)),
            vectors, width - (vectors - 1) * self.lanes, (), c_pitch=spec.y_pitch,
        )  # fmt: skip
        zero = e.constant(0.0, spec.dtype)
        starts = self.epilogue.initial(e, tile)
        results: list[list[Lane]] = [[] for _ in range(taps.outputs)]
        inline = not self.epilogue.in_memory(tile)
        bases = [
            f.emit(f"getelementptr {self.scalar}, ptr %row{k}, i64 %shift")
            for k in range(rows.taps)
        ]
        for j in range(vectors):
            sums = [starts[j] or zero] * taps.outputs
            for k, base in enumerate(bases):
                weights = k * rows.tap_step * spec.kernel[1] * spec.panel + j * self.lanes
                sums = self._kernel_row(e, tile, j, base, weights, sums, taps, columns)
            if inline:
                stored = self.epilogue.finish_column(e, tile, j, sums)
                if self.epilogue.sums:
                    self._add_mean(e, tile, j, reduce(e.add, stored))
            for i, value in enumerate(sums):
                results[i].append(value)
        if not inline and self.epilogue.sums:
            for j, total in enumerate(self.epilogue.finish_summed(e, tile, results)):
                self._add_mean(e, tile, j, total)
        elif not inline:
            self.epilogue.finish(e, tile, results)
        return f

    def _add_mean(self, e: VectorEmitter, tile: Tile, j: int, total: Lane) -> None:
        """Adds the share of a tile to the means of its row: ``total`` is a sum over its outputs."""
        dtype, active = total.dtype, tile.active(j)
        at = e.fn.element("%means", self.scalar, j * self.lanes)
        share = e.constant(1 / self.spec.size[1], dtype)
        if active is None:
            e.store(e.fma(total, share, e.load(at, dtype)), at)
        else:
            e.store_masked(e.fma(total, share, e.load_masked(at, dtype, active)), at, active)

    def _kernel_row(
        self, e: VectorEmitter, tile: Tile, j: int, base: str, weights: int, sums: list[Lane],
        taps: _Taps, columns: Phase,
    ) -> list[Lane]:  # fmt: skip
        """Adds the products of one row of the kernel, input pixel by input pixel."""
        f, spec, result = e.fn, self.spec, list(sums)
        kernel = {
            t: e.load(
                f.element("%b", self.scalar, weights + t * columns.tap_step * spec.panel),
                spec.dtype,
            )
            for t in sorted({t for _, t, _ in taps.pairs})
        }
        uses: dict[int, list[tuple[int, int]]] = {}
        for i, t, column in taps.pairs:
            uses.setdefault(column, []).append((i, t))
        active = tile.active(j)
        for column in sorted(uses):
            offset = (column * spec.x_pitch + j * self.lanes) * spec.dtype.itemsize
            at = f.emit(f"getelementptr i8, ptr {base}, i64 {offset}")
            x = e.load(at, spec.dtype) if active is None else e.load_masked(at, spec.dtype, active)
            for i, t in uses[column]:
                result[i] = e.fma(x, kernel[t], result[i])
        return result


def _zero(f: Function, address: str, size: int) -> None:
    f.call(
        "void", "llvm.memset.p0.i64",
        ("ptr", address), ("i8", "0"), ("i64", str(size)), ("i1", "false"),
    )  # fmt: skip
