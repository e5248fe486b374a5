"""Pooling at the end of a convolution's epilogue: the pixels of a window become one.

A tile that holds whole windows needs no memory for the unpooled image: it combines the rows of each
window in registers and stores the result. Windows lie side by side and nothing is padded
(``ir.ops.pooling.side_by_side``), so each pixel belongs to one window, or to none at the lower and
right edge, where it is not computed at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.graph import Node
from ..ir.ops.pooling import side_by_side
from ..ir.ops.spatial import Pair
from .emitter import Lane, VectorEmitter
from .loops import largest


@dataclass(frozen=True)
class WindowPool:
    """Maximum or mean (``op``) of windows of ``kernel`` = (height, width) pixels."""

    op: str
    kernel: Pair

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def covered(self, size: Pair) -> Pair:
        """How much of an image of ``size`` lies in windows."""
        return size[0] - size[0] % self.kernel[0], size[1] - size[1] % self.kernel[1]

    def pooled(self, size: Pair) -> Pair:
        """Windows of an image of ``size``."""
        return size[0] // self.kernel[0], size[1] // self.kernel[1]

    def combine(self, e: VectorEmitter, values: Sequence[Lane]) -> Lane:
        """The result of one window, its values row by row: the bits of ``pooling.py``'s kernels."""
        if self.op == "max_pool2d":
            return largest(e, list(values))
        total = e.constant(0.0, values[0].dtype)
        for value in values:
            total = e.add(total, value)
        return e.mul(total, e.const(1 / self.taps, total))


def window_pool(node: Node) -> WindowPool | None:
    """The pooling that a node does, or None if an epilogue cannot do it."""
    if not side_by_side(node.op, node.attrs) or node.attrs["layout"] != "NHWC":
        return None
    return WindowPool(node.op, node.attrs["kernel_size"])
