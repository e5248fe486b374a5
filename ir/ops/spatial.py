"""Geometry that convolution and pooling share: layouts, extents, and kernel taps.

A *tap* is one element (kh, kw) of the kernel: the set of outputs whose window reaches an existing
input element at this place, and these input elements. Working tap by tap needs no padded copy.
Everything computes on a (N, C, H, W) view; only the memory order differs between the layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType
from typing import NamedTuple

import numpy as np

from ...errors import ShapeError
from ..types import Extent, Shape, TensorType
from .checks import fixed_extent

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]  # ((top, bottom), (left, right))
LAYOUTS = ("NCHW", "NHWC")


def to_nchw(x: np.ndarray, layout: str) -> np.ndarray:
    """A view in the order (N, C, H, W)."""
    return x.transpose(0, 3, 1, 2) if layout == "NHWC" else x


def from_nchw(x: np.ndarray, layout: str) -> np.ndarray:
    """The contiguous array in ``layout`` of an array in the order (N, C, H, W)."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if layout == "NHWC" else x)


class Image(NamedTuple):
    """The extents of a batch of images; only the batch may be symbolic."""

    n: Extent
    c: int
    h: int
    w: int

    @property
    def size(self) -> Pair:
        return self.h, self.w

    def shape(self, layout: str) -> Shape:
        """The shape in memory order."""
        n, c, h, w = self
        return (n, h, w, c) if layout == "NHWC" else (n, c, h, w)


def image(op: str, t: TensorType, layout: str) -> Image:
    """Extents of a rank 4 operand; ShapeError for another rank or a symbolic C, H or W."""
    if layout not in LAYOUTS:
        raise ShapeError(f"{op}: unknown layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if t.rank != 4:
        raise ShapeError(
            f"{op}: expected a 4-dimensional {layout} batch of images, got {t}; "
            "add a batch dimension with unsqueeze(0) to a single image"
        )
    n, a, b, c = t.shape
    channels, height, width = (c, a, b) if layout == "NHWC" else (a, b, c)
    return Image(
        n,
        fixed_extent(op, "the number of channels", channels),
        fixed_extent(op, "the height", height),
        fixed_extent(op, "the width", width),
    )


def check_window(
    op: str,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair = (1, 1),
) -> None:
    """Kernel, stride and dilation are positive and padding is not negative."""
    for name, values in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        if min(values) < 1:
            raise ShapeError(f"{op}: {name} should be greater than zero, but got {values}")
    if min(p for pair in padding for p in pair) < 0:
        raise ShapeError(f"{op}: negative padding is not supported, but got {padding}")


def conv_extent(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> int:
    """Number of whole windows along one dimension (< 1: the kernel is larger than the input)."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def pool_extent(
    size: int, kernel: int, stride: int, padding: Pair, dilation: int, ceil_mode: bool
) -> int:
    """Number of pooling windows along one dimension, as PyTorch counts them.

    With ``ceil_mode`` a last partial window counts if it starts inside the input or its left
    padding.
    """
    if not ceil_mode:
        return conv_extent(size, kernel, stride, padding, dilation)
    count = -(-(size + sum(padding) - dilation * (kernel - 1) - 1) // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding[0] else count


class Tap(NamedTuple):
    """One kernel element: ``y[tap.out]`` are the outputs that it reaches from ``x[tap.inp]``."""

    kh: int
    kw: int
    out: tuple[EllipsisType, slice, slice]
    inp: tuple[EllipsisType, slice, slice]


def taps(
    size: Pair, out: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Iterator[Tap]:
    """The taps in row-major order of the kernel, without those that only meet padding."""
    rows, columns = (
        list(_axis_taps(size[i], out[i], kernel[i], stride[i], padding[i][0], dilation[i]))
        for i in range(2)
    )
    for kh, out_h, in_h in rows:
        for kw, out_w, in_w in columns:
            yield Tap(kh, kw, (..., out_h, out_w), (..., in_h, in_w))


def _axis_taps(
    size: int, out: int, kernel: int, stride: int, low: int, dilation: int
) -> Iterator[tuple[int, slice, slice]]:
    for k in range(kernel):
        offset = k * dilation - low  # the input element of output o is o * stride + offset
        first = max(0, -(offset // stride))
        last = min(out - 1, (size - 1 - offset) // stride)
        if first <= last:
            inputs = slice(first * stride + offset, last * stride + offset + 1, stride)
            yield k, slice(first, last + 1), inputs
