"""``repr`` of tensors, in PyTorch's layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..ir.types import DType, bool_, int64
from .promotion import get_default_dtype

if TYPE_CHECKING:
    from .tensor import Tensor

_PRECISION = 4
_LINE_WIDTH = 80
_THRESHOLD = 1000


def text(tensor: Tensor) -> str:
    """``tensor([[1., 2.]], requires_grad=True)``."""
    prefix = type(tensor).__name__ + " containing:\n" if _is_subclass(tensor) else ""
    if tensor._traced:
        return f"tensor(shape={tensor.shape!r}, dtype={tensor.dtype!r}, traced)"
    array = tensor._array
    suffixes = []
    if array.size == 0 and array.shape != (0,):
        suffixes.append(f"size={tuple(array.shape)}")
    if not _is_default(tensor.dtype, array.size):
        suffixes.append(f"dtype={tensor.dtype!r}")
    if tensor.grad_fn is not None:
        suffixes.append(f"grad_fn={tensor.grad_fn!r}")
    elif tensor.requires_grad:
        suffixes.append("requires_grad=True")
    return prefix + "tensor(" + ", ".join([_elements(array), *suffixes]) + ")"


def _is_subclass(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "Parameter"


def _is_default(dtype: DType, size: int) -> bool:
    if size == 0:
        return dtype is get_default_dtype()
    return dtype in (bool_, int64) or dtype is get_default_dtype()


def _elements(array: np.ndarray) -> str:
    if array.size == 0:
        return "[]"
    if array.dtype.kind != "f":
        width = max(len(_plain(v)) for v in _shown(array))
        return _nested(array, lambda v: _plain(v).rjust(width if array.ndim else 0))
    return _nested(array, _float_formatter(array))


def _plain(value: object) -> str:
    return str(value)


def _shown(array: np.ndarray) -> list[float]:
    """The elements that are printed: all, or the edges of a large array."""
    if array.size > _THRESHOLD:
        for axis, size in enumerate(array.shape):
            if size > 6:
                array = np.take(array, [0, 1, 2, -3, -2, -1], axis=axis)
    found: list[float] = array.reshape(-1).tolist()
    return found


def _float_formatter(array: np.ndarray) -> Callable[[float], str]:
    # The rules of torch._tensor_str: whole numbers as "3.", scientific notation where the range
    # of magnitudes is too wide for four digits after the point.
    finite = np.array([v for v in _shown(array) if math.isfinite(v) and v != 0], np.float64)
    sizes = np.abs(finite)
    if sizes.size == 0:
        whole, scientific = True, False
    else:
        low, high = float(sizes.min()), float(sizes.max())
        whole = bool(np.all(finite == np.ceil(finite)))
        scientific = high / low > 1000.0 or high > 1e8 or (not whole and low < 1e-4)
        if whole:
            scientific = high / low > 1000.0 or high > 1e8

    def one(value: float) -> str:
        if not math.isfinite(value):
            return str(value)
        if scientific:
            return f"{value:.{_PRECISION}e}"
        return f"{value:.0f}." if whole else f"{value:.{_PRECISION}f}"

    width = max((len(one(float(v))) for v in finite), default=0)
    return lambda v: one(float(v)).rjust(width if array.ndim else 0)


def _nested(array: np.ndarray, formatter: Callable[[float], str]) -> str:
    if array.ndim == 0:
        return formatter(array.item())
    found = np.array2string(
        array,
        separator=", ",
        prefix="tensor(",
        max_line_width=_LINE_WIDTH,
        threshold=_THRESHOLD,
        edgeitems=3,
        formatter={"all": formatter},  # type: ignore[arg-type]
    )
    return found.replace(", ...,", ",  ...,")
