"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ... import nn
from ...nn import functional as F
from ...tensor import Tensor
from ..ops.conv_norm_activation import Conv2dNormActivation
from .channels import make_divisible
from .weights import initialise, need_none

# Table 2 of the paper: expansion, channels, blocks, stride of the first block.
SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 convolution to ``expand_ratio`` times the channels, 3x3 depthwise, 1x1 to ``oup``
    channels; with a shortcut where shapes allow it."""

    def __init__(
        self,
        inp: int,
        oup: int,
        stride: int,
        expand_ratio: int,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride should be 1 or 2 instead of {stride}")
        norm = norm_layer or nn.BatchNorm2d
        hidden = round(inp * expand_ratio)
        self.stride = stride
        self.use_res_connect = stride == 1 and inp == oup
        self.out_channels = oup
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers.append(_conv(inp, hidden, norm, kernel_size=1))
        layers += [
            _conv(hidden, hidden, norm, stride=stride, groups=hidden),
            nn.Conv2d(hidden, oup, 1, bias=False),
            norm(oup),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inp, h, w) -> (batch, oup, h / stride, w / stride)."""
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def _conv(
    inputs: int, outputs: int, norm: Callable[..., nn.Module], **options: Any
) -> Conv2dNormActivation:
    return Conv2dNormActivation(
        inputs, outputs, norm_layer=norm, activation_layer=nn.ReLU6, **options
    )


class MobileNetV2(nn.Module):
    """A convolution, 17 inverted residuals, a 1x1 convolution, a linear layer; images of any size,
    usually 224x224.

    width_mult: multiplies all channel counts. inverted_residual_setting: rows like those of
    ``SETTING``. round_nearest: every channel count is a multiple of it.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        inverted_residual_setting: Sequence[Sequence[int]] | None = None,
        round_nearest: int = 8,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        setting = SETTING if inverted_residual_setting is None else inverted_residual_setting
        if not setting or any(len(row) != 4 for row in setting):
            raise ValueError(
                "inverted_residual_setting should be rows of 4 numbers (expansion, channels, "
                f"blocks, stride), got {inverted_residual_setting}"
            )
        make = block or InvertedResidual
        norm = norm_layer or nn.BatchNorm2d
        channels = make_divisible(32 * width_mult, round_nearest)
        self.last_channel = make_divisible(1280 * max(1.0, width_mult), round_nearest)
        layers: list[nn.Module] = [_conv(3, channels, norm, stride=2)]
        for expansion, wanted, blocks, stride in setting:
            outputs = make_divisible(wanted * width_mult, round_nearest)
            for i in range(blocks):
                first = stride if i == 0 else 1
                layers.append(
                    make(channels, outputs, first, expand_ratio=expansion, norm_layer=norm)
                )
                channels = outputs
        layers.append(_conv(channels, self.last_channel, norm, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout), nn.Linear(self.last_channel, num_classes)
        )
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, 3, height, width)."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), (1, 1)).flatten(1))


def mobilenet_v2(*, weights: None = None, progress: bool = True, **kwargs: Any) -> MobileNetV2:
    """``MobileNetV2(**kwargs)`` with random weights; ``progress`` has no effect."""
    need_none("mobilenet_v2", weights)
    return MobileNetV2(**kwargs)
