"""Layers that pad images, change their size, or move pixels between space and channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tensor import Tensor
from . import functional as F
from .functional.checks import spread
from .module import Module

Ints = int | Sequence[int]


class _Pad(Module):
    """Pads ``n`` dimensions; ``padding`` is one number or (low, high) from the last one on."""

    n: int
    mode: str

    def __init__(self, padding: Ints) -> None:
        super().__init__()
        self.padding = spread(padding, 2 * self.n, type(self).__name__, "padding")

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, mode=self.mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _ConstantPad(_Pad):
    mode = "constant"

    def __init__(self, padding: Ints, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    """``value`` around the last dimension."""

    n = 1


class ConstantPad2d(_ConstantPad):
    """``value`` around the last two dimensions."""

    n = 2


class _ZeroPad(_Pad):
    mode = "constant"


class ZeroPad1d(_ZeroPad):
    """Zeros around the last dimension."""

    n = 1


class ZeroPad2d(_ZeroPad):
    """Zeros around the last two dimensions."""

    n = 2


class ReflectionPad1d(_Pad):
    """The last dimension goes on as in a mirror, without the edge."""

    n, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """The last two dimensions go on as in a mirror, without the edge."""

    n, mode = 2, "reflect"


class ReplicationPad1d(_Pad):
    """The last dimension goes on with its edge."""

    n, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """The last two dimensions go on with their edge."""

    n, mode = 2, "replicate"


class CircularPad1d(_Pad):
    """The last dimension goes on from its other end."""

    n, mode = 1, "circular"


class CircularPad2d(_Pad):
    """The last two dimensions go on from their other ends."""

    n, mode = 2, "circular"


class Upsample(Module):
    """`functional.interpolate` as a layer."""

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        several = isinstance(scale_factor, (tuple, list))
        self.scale_factor = (
            tuple(float(f) for f in scale_factor)
            if several
            else float(scale_factor)
            if scale_factor
            else None
        )
        self.mode = mode
        self.align_corners = align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            self.recompute_scale_factor,
        )

    def extra_repr(self) -> str:
        if self.scale_factor is not None:
            return f"scale_factor={self.scale_factor!r}, mode={self.mode!r}"
        return f"size={self.size!r}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """Upsample(mode='nearest')."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, mode="nearest")


class UpsamplingBilinear2d(Upsample):
    """Upsample(mode='bilinear', align_corners=True)."""

    def __init__(self, size: Any = None, scale_factor: Any = None) -> None:
        super().__init__(size, scale_factor, mode="bilinear", align_corners=True)


class PixelShuffle(Module):
    """(*, C * r^2, H, W) to (*, C, H * r, W * r). Shi et al. 2016."""

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(input, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


class PixelUnshuffle(Module):
    """(*, C, H * r, W * r) to (*, C * r^2, H, W)."""

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        self.downscale_factor = downscale_factor

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_unshuffle(input, self.downscale_factor)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}"
