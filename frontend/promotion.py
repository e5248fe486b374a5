"""PyTorch's type promotion.

Operands fall into three classes: tensors with dimensions, 0-d tensors, Python scalars. A later
class changes the result's dtype only if its kind (bool < integer < floating) is higher; that is
the rule of ``torch.result_type`` (PyTorch documentation, "Tensor Attributes: torch.dtype").
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.types import Dim, DType, bool_, dtype_of, float32, float64, int64

_default_dtype = float32


def get_default_dtype() -> DType:
    """Dtype of tensors made from Python floats (float32 unless set)."""
    return _default_dtype


def set_default_dtype(dtype: Any) -> None:
    """Sets the dtype of tensors made from Python floats: float32 or float64."""
    global _default_dtype
    found = dtype_of(dtype)
    if found not in (float32, float64):
        raise TypeError(f"only floating-point types are supported as the default type, not {found}")
    _default_dtype = found


def scalar_dtype(value: Any) -> DType:
    """Dtype that a Python scalar stands for."""
    if isinstance(value, (bool, np.bool_)):
        return bool_
    if isinstance(value, (int, np.integer, Dim)):
        return int64
    if isinstance(value, (float, np.floating)):
        return _default_dtype
    raise TypeError(f"expected a tensor or a number, got {type(value).__name__}")


def promote_types(a: DType, b: DType) -> DType:
    """The smallest dtype that both fit in; integers with a floating dtype give that dtype."""
    if a is b:
        return a
    if a.is_float != b.is_float:
        return a if a.is_float else b
    return dtype_of(np.promote_types(a.np, b.np))


def _combine(higher: DType | None, lower: DType | None) -> DType | None:
    if higher is None or lower is None:
        return higher or lower
    if higher.is_float:
        return higher
    if higher is bool_ or lower.is_float:
        return promote_types(higher, lower)
    return higher


def common_dtype(tensors: list[DType], zero_dim: list[DType], scalars: list[DType]) -> DType:
    """Result dtype for operands given by class."""
    merged: list[DType | None] = []
    for group in (tensors, zero_dim, scalars):
        dtype: DType | None = None
        for d in group:
            dtype = d if dtype is None else promote_types(dtype, d)
        merged.append(dtype)
    result = _combine(_combine(merged[0], merged[1]), merged[2])
    if result is None:
        raise TypeError("type promotion needs at least one operand")
    return result


def can_cast(source: DType, target: DType) -> bool:
    """Whether an in-place result may be stored: the kind must not fall."""
    return _kind(source) <= _kind(target)


def _kind(dtype: DType) -> int:
    return 2 if dtype.is_float else 0 if dtype is bool_ else 1
