"""Convolution, normalisation, activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import nn

IntOrPair = int | tuple[int, int]


class Conv2dNormActivation(nn.Sequential):
    """Conv2d (key ``0``), a norm layer (``1``) and an activation (``2``), the last two optional.

    padding: None keeps the image size at stride 1, for odd kernels.
    norm_layer: called with the number of channels; None leaves it out.
    activation_layer: called with ``inplace``, unless that is None; None leaves it out.
    bias: of the convolution; None adds one only if there is no norm layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair = 3,
        stride: IntOrPair = 1,
        padding: IntOrPair | str | None = None,
        groups: int = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        dilation: IntOrPair = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
    ) -> None:
        if padding is None:
            extents = zip(_pair(kernel_size), _pair(dilation), strict=True)
            height, width = ((k - 1) // 2 * d for k, d in extents)
            padding = (height, width)
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                groups,
                bias=norm_layer is None if bias is None else bias,
            )
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            options: dict[str, Any] = {} if inplace is None else {"inplace": inplace}
            layers.append(activation_layer(**options))
        super().__init__(*layers)
        self.out_channels = out_channels


def _pair(value: IntOrPair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
