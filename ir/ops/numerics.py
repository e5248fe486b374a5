"""What numpy forms share: the IEEE and dtype conventions of a result, and sample points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np

ArrayFunction = Callable[..., np.ndarray]


def quiet(function: Callable[..., Any]) -> ArrayFunction:
    """IEEE results (infinity, NaN) without numpy's warnings, and always an ndarray."""

    @wraps(function)
    def run(*arrays: np.ndarray, **attrs: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays, **attrs))

    return run


def numeric(function: Callable[..., Any]) -> ArrayFunction:
    """``quiet``, and the result has the dtype of the last operand."""

    @wraps(function)
    def run(*arrays: np.ndarray, **attrs: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            # numpy 1 promotes a 0-d float32 array times a Python float to float64.
            return np.asarray(function(*arrays, **attrs), dtype=arrays[-1].dtype)

    return run


def points(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    low: float = -3.0,
    high: float = 3.0,
    kinks: Sequence[float] = (),
) -> np.ndarray:
    """float64 values in ``[low, high)``, at least 0.05 away from every kink."""
    x = rng.uniform(low, high, shape)
    for kink in kinks:
        x = np.where(np.abs(x - kink) < 0.05, kink + np.where(x < kink, -0.1, 0.1), x)
    return x
