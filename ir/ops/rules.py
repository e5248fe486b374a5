"""What the operator records share: dtype and shape checks, the numpy wrapper, sample points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from ...errors import DTypeError, ShapeError
from ..types import Shape, TensorType, bool_, broadcast_shapes

ArrayFunction = Callable[..., np.ndarray]


def require_float(op: str, *types: TensorType) -> None:
    """DTypeError unless every operand is a float tensor."""
    for i, t in enumerate(types):
        if not t.dtype.is_float:
            raise DTypeError(
                f"{op}: operand {i} is {t}, expected a float tensor; cast it to float32 first"
            )


def require_number(op: str, *types: TensorType) -> None:
    """DTypeError if an operand is a bool tensor."""
    for i, t in enumerate(types):
        if t.dtype is bool_:
            raise DTypeError(f"{op}: operand {i} is {t}, expected numbers; cast it to int64 first")


def require_bool(op: str, *types: TensorType) -> None:
    """DTypeError unless every operand is a bool tensor."""
    for i, t in enumerate(types):
        if t.dtype is not bool_:
            raise DTypeError(f"{op}: operand {i} is {t}, expected bool; compare it with 0 first")


def require_same_dtype(op: str, *types: TensorType) -> None:
    """DTypeError unless all operands have one dtype."""
    if any(t.dtype is not types[0].dtype for t in types):
        listed = ", ".join(str(t) for t in types)
        raise DTypeError(f"{op}: operands {listed} have different dtypes; cast them to one dtype")


def broadcast(op: str, *types: TensorType) -> Shape:
    """The broadcast shape of the operands; a ShapeError names the operator."""
    try:
        return broadcast_shapes(*(t.shape for t in types))
    except ShapeError as error:
        raise ShapeError(f"{op}: {error}") from None


def check_dim(op: str, x: TensorType, *dims: int) -> None:
    """ShapeError unless the dims are distinct and within ``[0, rank)``."""
    for d in dims:
        if not 0 <= d < x.rank:
            raise ShapeError(
                f"{op}: dimension {d} is not one of {x}; expected 0 <= dim < {x.rank} "
                "(negative dimensions are counted from the end by the frontend)"
            )
    if len(set(dims)) != len(dims):
        raise ShapeError(f"{op}: dims {dims} name a dimension twice")


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
