"""Geometry of convolution kernels: which input pixels an output pixel reads, and copies of images.

Copies have zeros around (and between) the pixels, so that kernels need no code for the borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.types import DType, Extent, TensorType
from .sizes import Size, minus, plus, quotient, remainder, times
from .text import Function


@dataclass(frozen=True)
class Phase:
    """Along one axis, the outputs ``first + step * j`` for j < ``count``.

    Output j reads the padded input at ``at + advance * j + tap_advance * t`` for tap t < ``taps``,
    which meets the packed kernel element ``first_tap + tap_step * t``. A convolution is one phase;
    the gradient of a strided one has as many as the stride, each with its own share of the taps.
    """

    first: int
    step: int
    count: int
    at: int
    advance: int
    taps: int
    first_tap: int = 0
    tap_step: int = 1
    tap_advance: int = 1

    @property
    def reach(self) -> int:
        """One past the last padded position that the first output reads."""
        return self.at + (self.taps - 1) * self.tap_advance + 1 if self.taps else 0


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution: ``size`` source pixels, pixel j at padded position
    ``low + spread * j``, and the phases of the outputs."""

    size: int
    low: int
    spread: int
    phases: tuple[Phase, ...]

    @property
    def count(self) -> int:
        """Outputs of the longest phase."""
        return max(p.count for p in self.phases)

    @property
    def advance(self) -> int:
        return self.phases[0].advance

    def first(self, count: int) -> Axis:
        """The axis with its first ``count`` outputs only, of one phase."""
        (phase,) = self.phases
        return replace(self, phases=(replace(phase, count=count),))

    def extent(self, count: int) -> int:
        """Padded positions that the first ``count`` outputs of each phase need."""
        reach = max(p.reach for p in self.phases)
        return reach + (count - 1) * self.advance if reach and count else 0

    @property
    def plain(self) -> bool:
        """Whether the source can be read as it is."""
        return self.low == 0 and self.spread == 1 and self.extent(self.count) <= self.size

    def inside(self, extent: int) -> tuple[int, int]:
        """The padded positions [start, stop) below ``extent`` between the first and last pixel."""
        start = max(0, self.low)
        return start, max(start, min(extent, self.low + (self.size - 1) * self.spread + 1))


def forward_axis(
    size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> Axis:
    """An axis of a convolution."""
    count = (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
    phase = Phase(0, 1, count, 0, stride, kernel, tap_advance=dilation)
    return Axis(size, padding[0], 1, (phase,))


def gradient_axis(
    size: int, out: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int
) -> Axis:
    """An axis of a convolution's gradient with respect to its input of ``size`` pixels; ``out`` is
    the size of the output, whose gradient is read. The kernel is packed back to front.

    Input i meets output o in kernel element k if ``o * stride - padding + k * dilation = i``.
    """
    if stride > 1 and dilation > 1:
        # One phase on the gradient with stride - 1 zeros between its pixels.
        low = dilation * (kernel - 1) - padding[0]
        return Axis(out, low, stride, (Phase(0, 1, size, 0, 1, kernel, tap_advance=dilation),))
    phases = []
    for first in range(min(stride, size)):
        k0 = (first + padding[0]) % stride
        taps = max(0, -(-(kernel - k0) // stride))
        start = (first + padding[0] - k0) // stride - (taps - 1) * dilation
        count = -(-(size - first) // stride)
        tap = kernel - 1 - k0 - stride * (taps - 1)
        phases.append(Phase(first, stride, count, start, 1, taps, tap, stride, dilation))
    low = -min((p.at for p in phases if p.taps), default=0)
    moved = tuple(
        Phase(p.first, p.step, p.count, p.at + low if p.taps else 0, 1, p.taps, p.first_tap,
              p.tap_step, p.tap_advance)
        for p in phases
    )  # fmt: skip
    return Axis(out, low, 1, moved)


@dataclass(frozen=True)
class Convolution:
    """Output pixels from input pixels: the axes, channels and the weight of a convolution.

    ``inputs`` and ``outputs`` are channels of all groups. ``size`` is the height and width of the
    output. ``weight`` is the OIHW weight if it is not packed yet, ``flip`` its form. ``x_pitch``
    and ``y_pitch`` are elements from pixel to pixel in the input and in the output.
    """

    dtype: DType
    batch: Extent
    rows: Axis
    columns: Axis
    size: tuple[int, int]
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, int]
    panel: int
    flip: bool
    weight: TensorType | None
    flops: Extent
    x_pitch: int
    y_pitch: int

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.inputs == self.outputs

    @property
    def panels(self) -> int:
        """Panels per group."""
        return -(-(self.outputs // self.groups) // self.panel)

    @property
    def panels_of_all(self) -> int:
        """Panels of all channels, as depthwise weights are packed."""
        return -(-self.outputs // self.panel)

    @property
    def panel_elements(self) -> int:
        """Elements of one packed panel."""
        return self.kernel[0] * self.kernel[1] * (self.inputs // self.groups) * self.panel


@dataclass(frozen=True)
class WeightGradient:
    """A weight gradient: ``inputs`` and ``outputs`` are channels of all groups, ``kernel`` its
    height and width, ``out`` the height and width of the gradient's images."""

    dtype: DType
    batch: Extent
    rows: Axis
    columns: Axis
    out: tuple[int, int]
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, int]
    dilation: tuple[int, int]
    flops: Extent

    @property
    def group_inputs(self) -> int:
        return self.inputs // self.groups

    @property
    def group_outputs(self) -> int:
        return self.outputs // self.groups


@dataclass(frozen=True)
class PaddedCopy:
    """Copies rows of one image of (rows, columns, channels) into a block with zeros where the
    padded image has no pixel. The image's pixels are ``source_pitch`` elements apart, if it is not
    0; the block's follow each other.

    ``every`` > 1 copies every so many-th pixel only, of an image without padding. ``split`` makes
    the block (channels / split, rows, columns, split): what reads a few channels of all pixels then
    finds them close together. It divides the channels; 0 keeps them together.
    """

    dtype: DType
    rows: Axis
    columns: Axis
    channels: int
    height: int
    every: tuple[int, int] = (1, 1)
    split: int = 0
    source_pitch: int = 0

    @property
    def width(self) -> int:
        return -(-self.columns.extent(self.columns.count) // self.every[1])

    @property
    def pixel(self) -> int:
        """Elements from pixel to pixel of the block."""
        return self.split or self.channels

    @property
    def pitch(self) -> int:
        """Elements from row to row of the block."""
        return self.width * self.pixel

    @property
    def part(self) -> int:
        """Elements from channel ``c`` to ``c + split``."""
        return self.height * self.pitch

    @property
    def bytes(self) -> int:
        return self.height * self.width * self.channels * self.dtype.itemsize

    def clear(self, f: Function, block: str) -> None:
        """Zeros everywhere: ``fill`` only writes the columns between the first and last pixel."""
        _zero(f, block, self.bytes)

    def fill(self, f: Function, block: str, image: str, start: Size) -> None:
        """Makes ``block`` the padded rows [start, start + height) of ``image``, or every so
        many-th row from ``start`` on."""
        scalar = "float" if self.dtype.itemsize == 4 else "double"
        top, bottom = self.rows.inside(self.rows.extent(self.rows.count))
        left, right = self.columns.inside(self.columns.extent(self.columns.count))
        count = -(-(right - left) // self.every[1])
        if count <= 0:
            return
        with f.loop(self.height) as loop, f.loop(self.channels // self.pixel) as part:
            at = plus(f, times(f, part.index, self.part), times(f, loop.index, self.pitch))
            into = f.element(block, scalar, plus(f, at, left * self.pixel))
            row = plus(f, start, times(f, loop.index, self.every[0]))
            above = f.emit(f"icmp sge i64 {row}, {top}")
            below = f.emit(f"icmp slt i64 {row}, {bottom}")
            here = f.emit(f"and i1 {above}, {below}")
            distance = minus(f, row, self.rows.low)
            if self.rows.spread > 1:
                between = remainder(f, distance, self.rows.spread)
                pixel = f.emit(f"icmp eq i64 {between}, 0")
                here = f.emit(f"and i1 {here}, {pixel}")
            with f.when(here):
                line = quotient(f, distance, self.rows.spread)
                first = -(-(left - self.columns.low) // self.columns.spread)
                at = plus(f, times(f, line, self.columns.size), first)
                at = times(f, at, self.source_pitch or self.channels)
                at = plus(f, at, times(f, part.index, self.pixel))
                self._copy(f, into, f.element(image, scalar, at), left, count, first)
            with f.when(f.emit(f"xor i1 {here}, true")):
                _zero(f, into, count * self.pixel * self.dtype.itemsize)

    def _copy(self, f: Function, into: str, source: str, left: int, count: int, first: int) -> None:
        """Copies pixels to ``count`` places of a row."""
        size, spread = self.dtype.itemsize, self.columns.spread
        pixel = self.pixel * size
        step = self.every[1] * (self.source_pitch or self.channels) * size
        if spread == 1 and step == pixel:
            _move(f, into, source, count * pixel)
            return
        skip = self.columns.low + first * spread - left
        with f.loop(-(-(count - skip) // spread)) as loop:
            target = plus(f, times(f, loop.index, spread * pixel), skip * pixel)
            there = f.element(into, "i8", target)
            _move(f, there, f.element(source, "i8", times(f, loop.index, step)), pixel)


def _zero(f: Function, address: str, size: int) -> None:
    f.call(
        "void", "llvm.memset.p0.i64",
        ("ptr", address), ("i8", "0"), ("i64", str(size)), ("i1", "false"),
    )  # fmt: skip


def _move(f: Function, target: str, source: str, size: int) -> None:
    f.call(
        "void", "llvm.memcpy.p0.p0.i64",
        ("ptr", target), ("ptr", source), ("i64", str(size)), ("i1", "false"),
    )  # fmt: skip


def even_chunks(count: int, largest: int) -> list[int]:
    """``count`` in as few parts of at most ``largest`` as possible, sizes differing by one."""
    if count == 0:
        return []
    parts = -(-count // largest)
    small, extra = divmod(count, parts)
    return [small + 1] * extra + [small] * (parts - extra)


def runs(sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """(size, first position, how many) for each run of equal sizes."""
    result: list[tuple[int, int, int]] = []
    at = 0
    for size in sizes:
        if result and result[-1][0] == size:
            result[-1] = (size, result[-1][1], result[-1][2] + 1)
        else:
            result.append((size, at, 1))
        at += size
    return result
