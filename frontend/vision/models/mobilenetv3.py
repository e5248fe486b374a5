"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ... import nn
from ...tensor import Tensor
from ..ops.conv_norm_activation import Conv2dNormActivation
from ..ops.squeeze_excitation import SqueezeExcitation
from .channels import make_divisible
from .weights import initialise, need_none

# Tables 1 and 2 of the paper: input channels, kernel, expanded channels, output channels,
# squeeze-and-excitation, activation (RE: ReLU, HS: Hardswish), stride. The last TAIL blocks may be
# dilated or, with those channels that only they have, halved.
Row = tuple[int, int, int, int, bool, str, int]
TAIL = 3
LARGE: tuple[Row, ...] = (
    (16, 3, 16, 16, False, "RE", 1),
    (16, 3, 64, 24, False, "RE", 2),
    (24, 3, 72, 24, False, "RE", 1),
    (24, 5, 72, 40, True, "RE", 2),
    (40, 5, 120, 40, True, "RE", 1),
    (40, 5, 120, 40, True, "RE", 1),
    (40, 3, 240, 80, False, "HS", 2),
    (80, 3, 200, 80, False, "HS", 1),
    (80, 3, 184, 80, False, "HS", 1),
    (80, 3, 184, 80, False, "HS", 1),
    (80, 3, 480, 112, True, "HS", 1),
    (112, 3, 672, 112, True, "HS", 1),
    (112, 5, 672, 160, True, "HS", 2),
    (160, 5, 960, 160, True, "HS", 1),
    (160, 5, 960, 160, True, "HS", 1),
)
SMALL: tuple[Row, ...] = (
    (16, 3, 16, 16, True, "RE", 2),
    (16, 3, 72, 24, False, "RE", 2),
    (24, 3, 88, 24, False, "RE", 1),
    (24, 5, 96, 40, True, "HS", 2),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 120, 48, True, "HS", 1),
    (48, 5, 144, 48, True, "HS", 1),
    (48, 5, 288, 96, True, "HS", 2),
    (96, 5, 576, 96, True, "HS", 1),
    (96, 5, 576, 96, True, "HS", 1),
)
SQUEEZE_EXCITATION = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)


class InvertedResidualConfig:
    """What one block looks like; ``width_mult`` multiplies the channel counts.

    activation: 'HS' for Hardswish, else ReLU. dilation: above 1 it replaces the stride.
    """

    def __init__(
        self,
        input_channels: int,
        kernel: int,
        expanded_channels: int,
        out_channels: int,
        use_se: bool,
        activation: str,
        stride: int,
        dilation: int,
        width_mult: float,
    ) -> None:
        self.input_channels = self.adjust_channels(input_channels, width_mult)
        self.kernel = kernel
        self.expanded_channels = self.adjust_channels(expanded_channels, width_mult)
        self.out_channels = self.adjust_channels(out_channels, width_mult)
        self.use_se = use_se
        self.use_hs = activation == "HS"
        self.stride = stride
        self.dilation = dilation

    @staticmethod
    def adjust_channels(channels: int, width_mult: float) -> int:
        """``channels * width_mult`` as a multiple of 8."""
        return make_divisible(channels * width_mult, 8)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, squeeze-and-excitation, 1x1 to the
    output channels; with a shortcut where shapes allow it."""

    def __init__(
        self,
        cnf: InvertedResidualConfig,
        norm_layer: Callable[..., nn.Module],
        se_layer: Callable[..., nn.Module] = SQUEEZE_EXCITATION,
    ) -> None:
        super().__init__()
        if cnf.stride not in (1, 2):
            raise ValueError(f"illegal stride value {cnf.stride}, expected 1 or 2")
        self.use_res_connect = cnf.stride == 1 and cnf.input_channels == cnf.out_channels
        self.out_channels = cnf.out_channels
        activation = nn.Hardswish if cnf.use_hs else nn.ReLU
        conv = partial(Conv2dNormActivation, norm_layer=norm_layer, activation_layer=activation)
        hidden = cnf.expanded_channels
        layers: list[nn.Module] = []
        if hidden != cnf.input_channels:
            layers.append(conv(cnf.input_channels, hidden, kernel_size=1))
        layers.append(
            conv(
                hidden,
                hidden,
                kernel_size=cnf.kernel,
                stride=1 if cnf.dilation > 1 else cnf.stride,
                dilation=cnf.dilation,
                groups=hidden,
            )
        )
        if cnf.use_se:
            layers.append(se_layer(hidden, make_divisible(hidden // 4, 8)))
        layers.append(conv(hidden, cnf.out_channels, kernel_size=1, activation_layer=None))
        self.block = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, input channels, h, w) -> (batch, output channels, h / stride, w / stride)."""
        return self.block(input) + input if self.use_res_connect else self.block(input)


class MobileNetV3(nn.Module):
    """A convolution, the blocks of a setting, a 1x1 convolution and two linear layers, the first
    with ``last_channel`` outputs; images of any size, usually 224x224. Other keyword arguments
    have no effect."""

    def __init__(
        self,
        inverted_residual_setting: Sequence[InvertedResidualConfig],
        last_channel: int,
        num_classes: int = 1000,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        setting = inverted_residual_setting
        if not setting:
            raise ValueError("The inverted_residual_setting should not be empty")
        if not all(isinstance(cnf, InvertedResidualConfig) for cnf in setting):
            raise TypeError(
                "The inverted_residual_setting should be list[InvertedResidualConfig], got "
                f"{setting!r}"
            )
        make = block or InvertedResidual
        norm = norm_layer or partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        conv = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.Hardswish)
        last_inputs = setting[-1].out_channels
        self.features = nn.Sequential(
            conv(3, setting[0].input_channels, kernel_size=3, stride=2),
            *(make(cnf, norm) for cnf in setting),
            conv(last_inputs, 6 * last_inputs, kernel_size=1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * last_inputs, last_channel),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=dropout, inplace=True),
            nn.Linear(last_channel, num_classes),
        )
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, 3, height, width)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _build(
    rows: Sequence[Row],
    last_channel: int,
    width_mult: float = 1.0,
    reduced_tail: bool = False,
    dilated: bool = False,
    **kwargs: Any,
) -> MobileNetV3:
    """reduced_tail: half the channels at the end. dilated: the last stride becomes a dilation."""
    wide = rows[-1][3]
    setting = []
    for i, (inputs, kernel, hidden, outputs, squeeze, activation, stride) in enumerate(rows):
        in_tail = i >= len(rows) - TAIL
        if reduced_tail and in_tail:
            outputs //= 2
            if inputs == wide:
                inputs, hidden = inputs // 2, hidden // 2
        dilation = 2 if dilated and in_tail else 1
        setting.append(
            InvertedResidualConfig(
                inputs, kernel, hidden, outputs, squeeze, activation, stride, dilation, width_mult
            )
        )
    last = InvertedResidualConfig.adjust_channels(
        last_channel // 2 if reduced_tail else last_channel, width_mult
    )
    return MobileNetV3(setting, last, **kwargs)


def mobilenet_v3_large(
    *, weights: None = None, progress: bool = True, **kwargs: Any
) -> MobileNetV3:
    """``MobileNetV3`` of 15 blocks; ``progress`` has no effect. ``kwargs``: those of the
    constructor, and ``width_mult``, ``reduced_tail``, ``dilated``."""
    need_none("mobilenet_v3_large", weights)
    return _build(LARGE, 1280, **kwargs)


def mobilenet_v3_small(
    *, weights: None = None, progress: bool = True, **kwargs: Any
) -> MobileNetV3:
    """``MobileNetV3`` of 11 blocks; ``progress`` has no effect. ``kwargs``: those of the
    constructor, and ``width_mult``, ``reduced_tail``, ``dilated``."""
    need_none("mobilenet_v3_small", weights)
    return _build(SMALL, 1024, **kwargs)
