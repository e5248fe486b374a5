"""Convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tensor import Tensor
from . import functional as F
from .functional.checks import spread
from .linear import reset_weight_and_bias
from .module import Module
from .parameter import Parameter, empty_parameter

Ints = int | Sequence[int]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Conv(Module):
    """A convolution over ``n`` spatial dimensions; weight (out, in / groups, *kernel_size)."""

    n: int
    weight: Parameter
    bias: Parameter | None
    padding: str | tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: str | Ints = 0,
        dilation: Ints = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name, n = type(self).__name__, self.n
        _check_groups(in_channels, out_channels, groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = spread(kernel_size, n, name, "kernel_size", minimum=1)
        self.stride = spread(stride, n, name, "stride", minimum=1)
        self.dilation = spread(dilation, n, name, "dilation", minimum=1)
        if isinstance(padding, str):
            _check_padding(padding, self.stride)
            self.padding = padding
        else:
            self.padding = spread(padding, n, name, "padding", minimum=0)
        _check_padding_mode(padding_mode)
        self.output_padding = (0,) * n
        self.groups = groups
        self.padding_mode = padding_mode
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = empty_parameter(shape, device, dtype)
        if bias:
            self.bias = empty_parameter((out_channels,), device, dtype)
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias uniform in +-1 / sqrt(in_channels / groups * kernel area)."""
        reset_weight_and_bias(self.weight, self.bias)

    def _padded(self, input: Tensor) -> tuple[Tensor, str | tuple[int, ...]]:
        """The input, continued as ``padding_mode`` says, and the zeros that are still to add."""
        if self.padding_mode == "zeros":
            return input, self.padding
        if isinstance(self.padding, str):
            same = self.padding == "same"
            extents = zip(self.dilation, self.kernel_size, strict=True)
            totals = [d * (k - 1) if same else 0 for d, k in extents]
            sides = [(t // 2, t - t // 2) for t in totals]
        else:
            sides = [(p, p) for p in self.padding]
        pads = [p for pair in reversed(sides) for p in pair]
        return F.pad(input, pads, mode=self.padding_mode), (0,) * self.n

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        if self.padding != (0,) * self.n:
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self.n:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        text += ", bias=False" if self.bias is None else ""
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return text


def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    if groups <= 0:
        raise ValueError("groups must be a positive integer")
    if in_channels % groups:
        raise ValueError(f"in_channels must be divisible by groups, got {in_channels} and {groups}")
    if out_channels % groups:
        raise ValueError(
            f"out_channels must be divisible by groups, got {out_channels} and {groups}"
        )


def _check_padding(padding: str, stride: tuple[int, ...]) -> None:
    if padding not in ("same", "valid"):
        raise ValueError(
            f"Invalid padding string {padding!r}, should be one of {{'valid', 'same'}}"
        )
    if padding == "same" and any(s != 1 for s in stride):
        raise ValueError(
            "padding='same' is not supported for strided convolutions; give the padding in numbers"
        )


def _check_padding_mode(mode: str) -> None:
    if mode not in PADDING_MODES:
        raise ValueError(
            f"padding_mode must be one of {set(PADDING_MODES)}, but got padding_mode={mode!r}"
        )


class Conv1d(_Conv):
    """Convolution over (N, C, L) or (C, L)."""

    n = 1

    def forward(self, input: Tensor) -> Tensor:
        x, padding = self._padded(input)
        return F.conv1d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(_Conv):
    """Convolution over (N, C, H, W) or (C, H, W)."""

    n = 2

    def forward(self, input: Tensor) -> Tensor:
        x, padding = self._padded(input)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
