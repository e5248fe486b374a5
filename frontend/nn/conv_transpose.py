"""Transposed convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import UnsupportedError
from ..tensor import Tensor
from . import functional as F
from .conv import Ints, _check_groups
from .functional.checks import spread
from .linear import reset_weight_and_bias
from .module import Module
from .parameter import Parameter, empty_parameter


class _ConvTranspose(Module):
    """The gradient of a convolution over ``n`` dimensions; weight (in, out / groups, *kernel)."""

    n: int
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name, n = type(self).__name__, self.n
        _check_groups(in_channels, out_channels, groups)
        if padding_mode != "zeros":
            raise ValueError(f'Only "zeros" padding mode is supported for {name}')
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = spread(kernel_size, n, name, "kernel_size", minimum=1)
        self.stride = spread(stride, n, name, "stride", minimum=1)
        self.padding = spread(padding, n, name, "padding", minimum=0)
        self.output_padding = spread(output_padding, n, name, "output_padding", minimum=0)
        self.dilation = spread(dilation, n, name, "dilation", minimum=1)
        self.groups = groups
        self.padding_mode = padding_mode
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        self.weight = empty_parameter(shape, device, dtype)
        if bias:
            self.bias = empty_parameter((out_channels,), device, dtype)
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight and bias uniform in +-1 / sqrt(out_channels / groups * kernel area)."""
        reset_weight_and_bias(self.weight, self.bias)

    def _apply(self, function: Any, input: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if output_size is not None:
            raise UnsupportedError(
                f"{type(self).__name__}: output_size= is not supported; use output_padding="
            )
        found: Tensor = function(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )
        return found

    def extra_repr(self) -> str:
        text = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
        zeros, ones = (0,) * self.n, (1,) * self.n
        if self.padding != zeros:
            text += f", padding={self.padding}"
        if self.dilation != ones:
            text += f", dilation={self.dilation}"
        if self.output_padding != zeros:
            text += f", output_padding={self.output_padding}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text + (", bias=False" if self.bias is None else "")


class ConvTranspose1d(_ConvTranspose):
    """Transposed convolution over (N, C, L) or (C, L)."""

    n = 1

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._apply(F.conv_transpose1d, input, output_size)


class ConvTranspose2d(_ConvTranspose):
    """Transposed convolution over (N, C, H, W) or (C, H, W)."""

    n = 2

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return self._apply(F.conv_transpose2d, input, output_size)
