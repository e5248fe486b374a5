"""The ``weights`` argument of the functions that build models, and how models start without."""

from __future__ import annotations

from typing import Any

from ....errors import UnsupportedError
from ... import nn
from ...nn import init


def need_none(function: str, weights: Any) -> None:
    """UnsupportedError unless ``weights`` is None: no trained weights come with the package."""
    if weights is not None:
        raise UnsupportedError(
            f"{function}(weights={weights!r}): netwright has no pretrained weights to download; "
            f"use weights=None and load a state dict, model = {function}(); "
            "model.load_state_dict(netwright.load('weights.npz')). docs/models.md shows how to "
            "save one from PyTorch"
        )


def initialise(model: nn.Module, linear_std: float | None = None) -> None:
    """Convolutions: normal by fan_out for ReLU (He et al. 2015), bias 0; norms: 1 and 0.

    linear_std: standard deviation of the weights of linear layers, whose biases become 0; None
    leaves these layers as their constructor made them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear) and linear_std is not None:
            init.normal_(module.weight, 0.0, linear_std)
            if module.bias is not None:
                init.zeros_(module.bias)
