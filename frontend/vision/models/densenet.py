"""DenseNet (Huang et al. 2016, arXiv:1608.06993): a layer reads the results of all before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....errors import UnsupportedError
from ... import nn
from ...functions import cat
from ...nn import functional as F
from ...nn import init
from ...tensor import Tensor
from .weights import need_none


class DenseLayer(nn.Module):
    """Norm, ReLU and a 1x1 convolution to ``bn_size * growth_rate`` channels; the same with a 3x3
    convolution to ``growth_rate``."""

    def __init__(
        self, num_input_features: int, growth_rate: int, bn_size: int, drop_rate: float
    ) -> None:
        super().__init__()
        hidden = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(num_input_features, hidden, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(hidden, growth_rate, kernel_size=3, padding=1, bias=False)
        self.drop_rate = float(drop_rate)

    def forward(self, input: Tensor | list[Tensor]) -> Tensor:
        """The new channels, from the block's input and the results of the layers before."""
        x = cat(input, 1) if isinstance(input, list) else input
        x = self.conv1(self.relu1(self.norm1(x)))
        x = self.conv2(self.relu2(self.norm2(x)))
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate > 0 else x


class DenseBlock(nn.ModuleDict):
    """``num_layers`` dense layers; the result is the input and what every layer adds to it."""

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int,
        growth_rate: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        for i in range(num_layers):
            inputs = num_input_features + i * growth_rate
            layer = DenseLayer(inputs, growth_rate, bn_size, drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, init_features: Tensor) -> Tensor:
        """(batch, c, h, w) -> (batch, c + num_layers * growth_rate, h, w)."""
        features = [init_features]
        for layer in self.values():
            features.append(layer(features))
        return cat(features, 1)


class Transition(nn.Sequential):
    """Between blocks: fewer channels and half the height and width."""

    def __init__(self, num_input_features: int, num_output_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_input_features)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(num_input_features, num_output_features, kernel_size=1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)


class DenseNet(nn.Module):
    """DenseNet-BC: ``block_config`` dense layers per block, each of which adds ``growth_rate``
    channels; transitions halve their number. Images of at least 29x29, usually 224x224.

    bn_size: channels of a layer's 1x1 convolution in growth rates. drop_rate: dropout after every
    dense layer. memory_efficient: must be False, as activations are not computed twice here.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0,
        num_classes: int = 1000,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        if memory_efficient:
            raise UnsupportedError(
                "DenseNet(memory_efficient=True) asks for gradient checkpointing, which is not "
                "supported; leave it out, the results are the same"
            )
        features = nn.Sequential()
        features.add_module(
            "conv0", nn.Conv2d(3, num_init_features, 7, stride=2, padding=3, bias=False)
        )
        features.add_module("norm0", nn.BatchNorm2d(num_init_features))
        features.add_module("relu0", nn.ReLU(inplace=True))
        features.add_module("pool0", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        channels = num_init_features
        for i, layers in enumerate(block_config, start=1):
            if i > 1:
                features.add_module(f"transition{i - 1}", Transition(channels, channels // 2))
                channels //= 2
            block = DenseBlock(layers, channels, bn_size, growth_rate, drop_rate)
            features.add_module(f"denseblock{i}", block)
            channels += layers * growth_rate
        features.add_module("norm5", nn.BatchNorm2d(channels))
        self.features = features
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, 3, height, width)."""
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


def densenet121(*, weights: None = None, progress: bool = True, **kwargs: Any) -> DenseNet:
    """``DenseNet`` of blocks of 6, 12, 24 and 16 layers, ``kwargs`` as for its constructor;
    ``progress`` has no effect."""
    need_none("densenet121", weights)
    return DenseNet(32, (6, 12, 24, 16), 64, **kwargs)
