"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ... import nn
from ...functions import cat
from ...nn import init
from ...tensor import Tensor
from .inception_blocks import (
    BasicConv2d,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)
from .weights import need_none

Block = Callable[..., nn.Module]
BLOCKS: tuple[Block, ...] = (
    BasicConv2d, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE, InceptionAux,
)  # fmt: skip
# Mean and standard deviation of the channels as the other networks here are given them, and as
# the original weights of this one want them.
MEANS, STDS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN_MEAN, OWN_STD = 0.5, 0.5


class InceptionOutputs(NamedTuple):
    """What the network returns in training mode with ``aux_logits``."""

    logits: Tensor
    aux_logits: Tensor | None


class Inception3(nn.Module):
    """Inception v3; images of at least 75x75, usually 299x299.

    aux_logits: whether there is a second classifier, which helps training and needs images of
    about 299x299; its logits are returned in training mode alone, in an ``InceptionOutputs``.
    transform_input: whether images come normalised as for the other networks.
    inception_blocks: makers of the 7 kinds of blocks, in the order of ``BLOCKS``.
    init_weights: None is True: truncated normal weights instead of the layers' own.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        inception_blocks: Sequence[Block] | None = None,
        init_weights: bool | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        blocks = BLOCKS if inception_blocks is None else tuple(inception_blocks)
        if len(blocks) != 7:
            raise ValueError(f"length of inception_blocks should be 7 instead of {len(blocks)}")
        conv, block_a, block_b, block_c, block_d, block_e, aux = blocks
        self.aux_logits = aux_logits
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.maxpool1 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.maxpool2 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Mixed_5b = block_a(192, pool_features=32)
        self.Mixed_5c = block_a(256, pool_features=64)
        self.Mixed_5d = block_a(288, pool_features=64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, channels_7x7=128)
        self.Mixed_6c = block_c(768, channels_7x7=160)
        self.Mixed_6d = block_c(768, channels_7x7=160)
        self.Mixed_6e = block_c(768, channels_7x7=192)
        self.AuxLogits = aux(768, num_classes) if aux_logits else None
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280)
        self.Mixed_7c = block_e(2048)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(p=dropout)
        self.fc = nn.Linear(2048, num_classes)
        if init_weights is None or init_weights:
            for module in self.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    init.trunc_normal_(module.weight, std=getattr(module, "stddev", 0.1))

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        """Logits (batch, num_classes) of images (batch, 3, height, width)."""
        if self.transform_input:
            x = _renormalised(x)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        second = self.AuxLogits if self.training else None
        aux = None if second is None else second(x)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        logits = self.fc(self.dropout(self.avgpool(x)).flatten(1))
        return logits if second is None else InceptionOutputs(logits, aux)


def _renormalised(x: Tensor) -> Tensor:
    """From (pixel - MEANS) / STDS to (pixel - OWN_MEAN) / OWN_STD."""
    channels = [
        x[:, i : i + 1] * (std / OWN_STD) + (mean - OWN_MEAN) / OWN_STD
        for i, (mean, std) in enumerate(zip(MEANS, STDS, strict=True))
    ]
    return cat(channels, 1)


def inception_v3(*, weights: None = None, progress: bool = True, **kwargs: Any) -> Inception3:
    """``Inception3(**kwargs)`` with random weights; ``progress`` has no effect."""
    need_none("inception_v3", weights)
    return Inception3(**kwargs)
