"""Filling parameters with initial values, in place and outside autograd."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np

from ...errors import UnsupportedError
from ..grad_mode import no_grad
from ..tensor import Tensor

_GAIN_ONE = ("linear", "conv1d", "conv2d", "conv3d", "sigmoid")


def _fill(tensor: Tensor, values: Any) -> Tensor:
    with no_grad():
        tensor.copy_(Tensor(np.asarray(values, tensor.dtype.np)))
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Tensor:
    """Numbers from the uniform distribution on [a, b)."""
    if a > b:
        raise RuntimeError(
            f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}"
        )
    return _fill(tensor, _rng(generator).uniform(a, b, tuple(tensor.shape)))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Tensor:
    """Numbers from the normal distribution N(mean, std^2)."""
    if std < 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}")
    return _fill(tensor, _rng(generator).normal(mean, std, tuple(tensor.shape)))


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Any = None,
) -> Tensor:
    """Numbers from N(mean, std^2) on the condition that they lie in [a, b]."""
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=2,
        )
    if a > b or std < 0:
        raise RuntimeError(f"trunc_normal_ expects a <= b and std >= 0, got {a=}, {b=}, {std=}")
    rng = _rng(generator)
    if std == 0:
        return _fill(tensor, np.full(tuple(tensor.shape), min(max(mean, a), b)))
    low, high = (a - mean) / std, (b - mean) / std
    count = math.prod(tensor.shape)
    values = np.array([_truncated(rng, low, high) for _ in range(0)])
    values = _truncated_normal(rng, low, high, count)
    return _fill(tensor, np.clip(values * std + mean, a, b).reshape(tuple(tensor.shape)))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """``val`` everywhere."""
    return _fill(tensor, np.full(tuple(tensor.shape), val))


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere."""
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere."""
    return constant_(tensor, 0.0)


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix."""
    if tensor.ndim != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    return _fill(tensor, np.eye(*tensor.shape))
