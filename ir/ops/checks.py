"""Checks that shape rules share; every message names the operator, the operand and the fix.

Operands are passed by position, or by name where a bare number would not tell the user which one
is meant; a named operand that is None is one that the call left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import DTypeError, ShapeError
from ..types import Extent, Shape, TensorType, bool_, broadcast_shapes, shape_text


def _labelled(
    types: tuple[TensorType, ...], named: dict[str, TensorType | None]
) -> Iterator[tuple[str, TensorType]]:
    for i, t in enumerate(types):
        yield f"operand {i}", t
    for name, operand in named.items():
        if operand is not None:
            yield name, operand


def require_same_dtype(op: str, *types: TensorType, **named: TensorType | None) -> None:
    """DTypeError unless all operands have one element type."""
    found = list(_labelled(types, named))
    if any(t.dtype is not found[0][1].dtype for _, t in found):
        listed = ", ".join(f"{label} is {t.dtype.name}" for label, t in found)
        raise DTypeError(f"{op}: {listed}: different dtypes; cast them to one dtype")


def require_float(op: str, *types: TensorType, **named: TensorType | None) -> None:
    """DTypeError unless all operands have one floating point element type."""
    for label, t in _labelled(types, named):
        if not t.dtype.is_float:
            raise DTypeError(
                f"{op}: {label} is {t.dtype.name}, expected float32 or float64; "
                "cast it with .float()"
            )
    require_same_dtype(op, *types, **named)


def require_number(op: str, *types: TensorType) -> None:
    """DTypeError if an operand is a bool tensor."""
    for label, t in _labelled(types, {}):
        if t.dtype is bool_:
            raise DTypeError(
                f"{op}: {label} is {t.dtype.name}, expected numbers; cast it to int64 first"
            )


def require_bool(op: str, *types: TensorType) -> None:
    """DTypeError unless every operand is a bool tensor."""
    for label, t in _labelled(types, {}):
        if t.dtype is not bool_:
            raise DTypeError(
                f"{op}: {label} is {t.dtype.name}, expected bool; compare it with 0 first"
            )


def require_index(op: str, name: str, t: TensorType) -> None:
    """DTypeError unless an operand has an integer element type."""
    if not t.dtype.is_int:
        raise DTypeError(f"{op}: {name} is {t.dtype.name}, expected int64; cast it with .long()")


def require_shape(op: str, name: str, t: TensorType | None, expected: Shape, why: str = "") -> None:
    """An operand (if it is there) of exactly this shape; ``why`` says where that comes from."""
    if t is not None and t.shape != expected:
        reason = f" ({why})" if why else ""
        raise ShapeError(
            f"{op}: {name} has shape {shape_text(t.shape)}, expected {shape_text(expected)}{reason}"
        )


def require_dims(op: str, x: TensorType, *dims: int) -> None:
    """ShapeError unless the dims are distinct and within ``[0, rank)``."""
    for d in dims:
        if not 0 <= d < x.rank:
            raise ShapeError(
                f"{op}: dimension {d} is out of range for {x}, expected 0 <= dim < {x.rank} "
                "(negative dimensions are counted from the end by the frontend)"
            )
    if len(set(dims)) != len(dims):
        raise ShapeError(f"{op}: dims {dims} name a dimension twice")


def fixed_extent(op: str, name: str, extent: Extent) -> int:
    """An extent that is known, not a multiple of the symbolic batch; else a ShapeError."""
    if not isinstance(extent, int):
        raise ShapeError(
            f"{op}: {name} is {extent}, a multiple of the batch size, but must be a fixed number; "
            "keep the batch in the first dimension"
        )
    return extent


def broadcast(op: str, *types: TensorType) -> Shape:
    """The broadcast shape of the operands; a ShapeError names the operator."""
    try:
        return broadcast_shapes(*(t.shape for t in types))
    except ShapeError as error:
        raise ShapeError(f"{op}: {error}") from None
