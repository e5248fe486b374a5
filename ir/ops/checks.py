"""Checks that shape rules share; every message names the operator, the operand and the fix."""

from __future__ import annotations

from ...errors import DTypeError, ShapeError
from ..types import Extent, Shape, TensorType, shape_text


def require_same_dtype(op: str, **operands: TensorType | None) -> None:
    """All operands that are there have one element type."""
    present = {name: t for name, t in operands.items() if t is not None}
    if len({t.dtype for t in present.values()}) > 1:
        have = ", ".join(f"{name} is {t.dtype.name}" for name, t in present.items())
        raise DTypeError(f"{op}: the operands must have one dtype, but {have}; cast them to one")


def require_float(op: str, **operands: TensorType | None) -> None:
    """All operands that are there have one floating point element type."""
    for name, t in operands.items():
        if t is not None and not t.dtype.is_float:
            raise DTypeError(
                f"{op}: {name} is {t.dtype.name}, expected float32 or float64; "
                "cast it with .float()"
            )
    require_same_dtype(op, **operands)


def require_index(op: str, name: str, t: TensorType) -> None:
    """An operand of integer element type."""
    if not t.dtype.is_int:
        raise DTypeError(
            f"{op}: {name} is {t.dtype.name}, expected int64; cast it with .long()"
        )


def require_shape(op: str, name: str, t: TensorType | None, expected: Shape, why: str = "") -> None:
    """An operand (if it is there) of exactly this shape; ``why`` says where that comes from."""
    if t is not None and t.shape != expected:
        reason = f" ({why})" if why else ""
        raise ShapeError(
            f"{op}: {name} has shape {shape_text(t.shape)}, "
            f"expected {shape_text(expected)}{reason}"
        )


def require_dim(op: str, t: TensorType, dim: int) -> None:
    """A non-negative dimension index within the rank."""
    if not 0 <= dim < t.rank:
        raise ShapeError(
            f"{op}: dimension {dim} is out of range for {t}, expected 0 to {t.rank - 1}"
        )


def require_number(op: str, name: str, extent: Extent) -> int:
    """An extent that is known, not a multiple of the symbolic batch."""
    if not isinstance(extent, int):
        raise ShapeError(
            f"{op}: {name} is {extent}, a multiple of the batch size, but must be a fixed number; "
            "keep the batch in the first dimension"
        )
    return extent
