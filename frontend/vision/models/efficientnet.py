"""EfficientNet (Tan, Le 2019, arXiv:1905.11946)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

from ... import nn
from ...nn import init
from ...tensor import Tensor
from ..ops.conv_norm_activation import Conv2dNormActivation
from ..ops.squeeze_excitation import SqueezeExcitation
from ..ops.stochastic_depth import StochasticDepth
from .channels import make_divisible
from .weights import initialise, need_none

# Table 1 of the paper: expansion, kernel, stride, input channels, output channels, blocks.
B0 = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


class MBConvConfig:
    """What the blocks of one stage look like; the first has the stride and the input channels.

    width_mult and depth_mult multiply the channel counts and the number of blocks; ``block``
    makes a block from (config, probability of leaving it out, norm layer), by default MBConv.
    """

    def __init__(
        self,
        expand_ratio: float,
        kernel: int,
        stride: int,
        input_channels: int,
        out_channels: int,
        num_layers: int,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        block: Callable[..., nn.Module] | None = None,
    ) -> None:
        self.expand_ratio = expand_ratio
        self.kernel = kernel
        self.stride = stride
        self.input_channels = self.adjust_channels(input_channels, width_mult)
        self.out_channels = self.adjust_channels(out_channels, width_mult)
        self.num_layers = self.adjust_depth(num_layers, depth_mult)
        self.block: Callable[..., nn.Module] = block or MBConv

    def after_first(self) -> MBConvConfig:
        """The config of the blocks behind the first one of the stage."""
        made = copy(self)
        made.input_channels, made.stride = self.out_channels, 1
        return made

    @staticmethod
    def adjust_channels(channels: int, width_mult: float, min_value: int | None = None) -> int:
        """``channels * width_mult`` as a multiple of 8."""
        return make_divisible(channels * width_mult, 8, min_value)

    @staticmethod
    def adjust_depth(num_layers: int, depth_mult: float) -> int:
        """``num_layers * depth_mult``, rounded up."""
        return math.ceil(num_layers * depth_mult)


class MBConv(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, squeeze-and-excitation, 1x1 to the
    output channels; with a shortcut where shapes allow it, next to which the rest may be left out
    in training."""

    def __init__(
        self,
        cnf: MBConvConfig,
        stochastic_depth_prob: float,
        norm_layer: Callable[..., nn.Module],
        se_layer: Callable[..., nn.Module] = SqueezeExcitation,
    ) -> None:
        super().__init__()
        if cnf.stride not in (1, 2):
            raise ValueError(f"illegal stride value {cnf.stride}, expected 1 or 2")
        self.use_res_connect = cnf.stride == 1 and cnf.input_channels == cnf.out_channels
        self.out_channels = cnf.out_channels
        conv = partial(Conv2dNormActivation, norm_layer=norm_layer, activation_layer=nn.SiLU)
        hidden = cnf.adjust_channels(cnf.input_channels, cnf.expand_ratio)
        layers: list[nn.Module] = []
        if hidden != cnf.input_channels:
            layers.append(conv(cnf.input_channels, hidden, kernel_size=1))
        squeezed = max(1, cnf.input_channels // 4)
        layers += [
            conv(hidden, hidden, kernel_size=cnf.kernel, stride=cnf.stride, groups=hidden),
            se_layer(hidden, squeezed, activation=partial(nn.SiLU, inplace=True)),
            conv(hidden, cnf.out_channels, kernel_size=1, activation_layer=None),
        ]
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(stochastic_depth_prob, "row")

    def forward(self, input: Tensor) -> Tensor:
        """(batch, input channels, h, w) -> (batch, output channels, h / stride, w / stride)."""
        result = self.block(input)
        return self.stochastic_depth(result) + input if self.use_res_connect else result


class EfficientNet(nn.Module):
    """A convolution, a stage of blocks per config, a 1x1 convolution, a linear layer; images of
    any size, usually 224x224 (B0).

    stochastic_depth_prob: probability of leaving out the last block; it grows linearly from 0.
    last_channel: outputs of the last convolution, by default 4 times its inputs.
    """

    def __init__(
        self,
        inverted_residual_setting: Sequence[MBConvConfig],
        dropout: float,
        stochastic_depth_prob: float = 0.2,
        num_classes: int = 1000,
        norm_layer: Callable[..., nn.Module] | None = None,
        last_channel: int | None = None,
    ) -> None:
        super().__init__()
        setting = inverted_residual_setting
        if not setting:
            raise ValueError("The inverted_residual_setting should not be empty")
        if not all(isinstance(cnf, MBConvConfig) for cnf in setting):
            raise TypeError(
                f"The inverted_residual_setting should be list[MBConvConfig], got {setting!r}"
            )
        norm = norm_layer or nn.BatchNorm2d
        conv = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.SiLU)
        layers: list[nn.Module] = [conv(3, setting[0].input_channels, kernel_size=3, stride=2)]
        total, done = sum(cnf.num_layers for cnf in setting), 0
        for cnf in setting:
            later = cnf.after_first()
            stage = []
            for i in range(cnf.num_layers):
                probability = stochastic_depth_prob * done / total
                stage.append(cnf.block(later if i else cnf, probability, norm))
                done += 1
            layers.append(nn.Sequential(*stage))
        inputs = setting[-1].out_channels
        outputs = 4 * inputs if last_channel is None else last_channel
        layers.append(conv(inputs, outputs, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout, inplace=True), nn.Linear(outputs, num_classes)
        )
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.out_features)
                init.uniform_(module.weight, -bound, bound)
                if module.bias is not None:
                    init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, 3, height, width)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def efficientnet_b0(*, weights: None = None, progress: bool = True, **kwargs: Any) -> EfficientNet:
    """``EfficientNet`` B0, ``kwargs`` as for its constructor (dropout by default 0.2);
    ``progress`` has no effect."""
    need_none("efficientnet_b0", weights)
    return EfficientNet([MBConvConfig(*row) for row in B0], kwargs.pop("dropout", 0.2), **kwargs)
