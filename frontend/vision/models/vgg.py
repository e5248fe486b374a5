"""VGG (Simonyan, Zisserman 2014, arXiv:1409.1556): stacks of 3x3 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import nn
from ...tensor import Tensor
from .weights import initialise, need_none

# Convolutions of each stage, all of the stage's width; a maximum pool ends every stage.
WIDTHS = (64, 128, 256, 512, 512)
VGG11 = (1, 1, 2, 2, 2)
VGG16 = (2, 2, 3, 3, 3)


class VGG(nn.Module):
    """Convolutional ``features`` with 512 channels, and three linear layers; images of at least
    32x32, usually 224x224."""

    def __init__(
        self,
        features: nn.Module,
        num_classes: int = 1000,
        init_weights: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            nn.Linear(4096, num_classes),
        )
        if init_weights:
            initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of images (batch, 3, height, width)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def make_features(depths: Sequence[int], batch_norm: bool) -> nn.Sequential:
    """The convolutional part: ``depths`` 3x3 convolutions per stage of ``WIDTHS``."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, depth in zip(WIDTHS, depths, strict=True):
        for _ in range(depth):
            layers.append(nn.Conv2d(inputs, width, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            inputs = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def vgg11(*, weights: None = None, progress: bool = True, **kwargs: Any) -> VGG:
    """``VGG`` of 8 convolutions, ``kwargs`` as for its constructor; ``progress`` has no effect."""
    need_none("vgg11", weights)
    return VGG(make_features(VGG11, batch_norm=False), **kwargs)


def vgg11_bn(*, weights: None = None, progress: bool = True, **kwargs: Any) -> VGG:
    """``vgg11`` with batch normalisation after every convolution."""
    need_none("vgg11_bn", weights)
    return VGG(make_features(VGG11, batch_norm=True), **kwargs)


def vgg16(*, weights: None = None, progress: bool = True, **kwargs: Any) -> VGG:
    """``VGG`` of 13 convolutions, ``kwargs`` as for its constructor; ``progress`` has no effect."""
    need_none("vgg16", weights)
    return VGG(make_features(VGG16, batch_norm=False), **kwargs)


def vgg16_bn(*, weights: None = None, progress: bool = True, **kwargs: Any) -> VGG:
    """``vgg16`` with batch normalisation after every convolution."""
    need_none("vgg16_bn", weights)
    return VGG(make_features(VGG16, batch_norm=True), **kwargs)
