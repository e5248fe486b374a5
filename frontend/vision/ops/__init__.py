"""Building blocks that several vision models share, with the names of ``torchvision.ops``."""

from .conv_norm_activation import Conv2dNormActivation
from .squeeze_excitation import SqueezeExcitation
from .stochastic_depth import StochasticDepth, stochastic_depth

__all__ = [
    "Conv2dNormActivation",
    "SqueezeExcitation",
    "StochasticDepth",
    "stochastic_depth",
]
