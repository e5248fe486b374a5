"""Squeeze-and-Excitation (Hu et al. 2017, arXiv:1709.01507)."""

from __future__ import annotations

from collections.abc import Callable

from ... import nn
from ...tensor import Tensor


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor that is computed from the means of all channels.

    Two 1x1 convolutions: to ``squeeze_channels``, ``activation``, back, ``scale_activation``.
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: Callable[..., nn.Module] = nn.ReLU,
        scale_activation: Callable[..., nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        squeezed = self.activation(self.fc1(self.avgpool(input)))
        return self.scale_activation(self.fc2(squeezed)) * input
