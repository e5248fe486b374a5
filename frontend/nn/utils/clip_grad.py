"""Limits on gradients between ``backward()`` and ``step()``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ....errors import UnsupportedError
from ... import dispatch
from ...tensor import Tensor


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scales gradients in place so that their norm, taken over all of them as one vector, is at
    most ``max_norm``; returns the norm before, a 0-d tensor.

    They are multiplied by ``min(max_norm / (norm + 1e-6), 1)``, so a NaN in one makes all of them
    NaN; with ``error_if_nonfinite`` that is a RuntimeError and nothing is changed. Parameters
    without a gradient do not count. ``norm_type`` may be ``inf``.
    """
    found = _listed(parameters)
    total = get_total_norm(
        [p._grad for p in found if p._grad is not None], norm_type, error_if_nonfinite, foreach
    )
    clip_grads_with_norm_(found, max_norm, total, foreach)
    return total


def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all tensors as one vector, a 0-d tensor; 0 for no tensors.

    RuntimeError, with ``error_if_nonfinite``, if it is NaN or infinite.
    """
    _refuse_foreach(foreach)
    power = float(norm_type)
    arrays = [t._array for t in _listed(tensors)]
    if not arrays:
        return dispatch.wrap(np.zeros((), np.float32))
    dtype = np.result_type(*arrays)
    with np.errstate(all="ignore"):
        norms = np.array([_norm(a, power) for a in arrays], dtype)
        total = np.asarray(_norm(norms, power), dtype)
    if error_if_nonfinite and not np.isfinite(total):
        raise RuntimeError(
            f"The total norm of order {power} for gradients from `parameters` is non-finite, so "
            "it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )
    return dispatch.wrap(total)


def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Multiplies gradients in place by ``min(max_norm / (total_norm + 1e-6), 1)``."""
    _refuse_foreach(foreach)
    with np.errstate(all="ignore"):
        total = total_norm._array
        factor = np.minimum(total.dtype.type(max_norm) / (total + total.dtype.type(1e-6)), 1)
        for grad in (p._grad for p in _listed(parameters)):
            if grad is not None:
                np.multiply(grad._array, factor.astype(grad._array.dtype), out=grad._array)
                grad._storage.wrote()


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Limits each element of the gradients to ``[-clip_value, clip_value]``, in place; NaN stay."""
    _refuse_foreach(foreach)
    limit = float(clip_value)
    for grad in (p._grad for p in _listed(parameters)):
        if grad is not None:
            np.clip(grad._array, -limit, limit, out=grad._array)
            grad._storage.wrote()


def _norm(array: np.ndarray, power: float) -> Any:
    """The vector norm of order ``power`` of all elements."""
    values = np.abs(array.reshape(-1))
    if math.isinf(power):
        empty = values.size == 0
        return 0.0 if empty else values.max() if power > 0 else values.min()
    if power == 2:
        return np.sqrt(np.square(values).sum())
    if power == 0:
        return np.count_nonzero(values)
    return (values**power).sum() ** (1 / power)


def _listed(tensors: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _refuse_foreach(foreach: bool | None) -> None:
    if foreach:
        raise UnsupportedError(
            "foreach=True is not supported: it selects one of PyTorch's implementations; leave it "
            "out"
        )
