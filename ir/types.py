"""Types of the IR: element types, the symbolic batch, tensor types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from ..errors import DTypeError, ShapeError


@dataclass(frozen=True)
class DType:
    """An element type. ``short`` is its spelling in the IR, ``np`` its numpy dtype."""

    name: str
    short: str
    np: np.dtype[Any]

    @property
    def is_float(self) -> bool:
        return self.np.kind == "f"

    @property
    def is_int(self) -> bool:
        return self.np.kind in "iu"

    @property
    def is_floating_point(self) -> bool:
        return self.is_float

    @property
    def itemsize(self) -> int:
        return self.np.itemsize

    def __repr__(self) -> str:
        return f"netwright.{self.name}"


bool_ = DType("bool", "bool", np.dtype(np.bool_))
uint8 = DType("uint8", "u8", np.dtype(np.uint8))
int8 = DType("int8", "i8", np.dtype(np.int8))
int16 = DType("int16", "i16", np.dtype(np.int16))
int32 = DType("int32", "i32", np.dtype(np.int32))
int64 = DType("int64", "i64", np.dtype(np.int64))
float32 = DType("float32", "f32", np.dtype(np.float32))
float64 = DType("float64", "f64", np.dtype(np.float64))

DTYPES = (bool_, uint8, int8, int16, int32, int64, float32, float64)
_BY_KEY: dict[Any, DType] = {
    **{d.short: d for d in DTYPES},
    **{d.name: d for d in DTYPES},
    **{d.np: d for d in DTYPES},
    **{d.np.type: d for d in DTYPES},
    bool: bool_,
    int: int64,
    float: float32,
}


def dtype_of(spec: Any) -> DType:
    """The DType for a DType, a numpy dtype, an IR spelling (``f32``) or a Python type."""
    if isinstance(spec, DType):
        return spec
    found = _BY_KEY.get(spec) if isinstance(spec, (str, type, np.dtype)) else None
    if found is None:
        try:
            found = _BY_KEY.get(np.dtype(spec).newbyteorder("="))
        except TypeError:
            found = None
    if found is None:
        known = ", ".join(d.name for d in DTYPES)
        raise DTypeError(f"dtype {spec} is not supported; netwright has {known}")
    return found


@dataclass(frozen=True)
class Dim:
    """``coef * N``: an extent that is a multiple of the symbolic batch ``N``."""

    coef: int

    def __mul__(self, other: Dim | int) -> Dim:
        if isinstance(other, Dim):
            raise ShapeError(f"a dimension of {self} x {other} is not a multiple of the batch N")
        return type(self)(self.coef * other) if other != 1 else self

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim | int) -> Dim | int:
        by = other.coef if isinstance(other, Dim) else other
        if by == 0 or self.coef % by:
            raise ShapeError(f"{self} is not divisible by {other}")
        return self.coef // by if isinstance(other, Dim) else type(self)(self.coef // by)

    def at(self, n: int) -> int:
        """The extent for batch size ``n``."""
        return self.coef * n

    def __str__(self) -> str:
        return "N" if self.coef == 1 else f"{self.coef}N"

    __repr__ = __str__


Extent = int | Dim
Shape = tuple[Extent, ...]


def numel(shape: Iterable[Extent]) -> Extent:
    """Number of elements: an int or a multiple of N; raises ShapeError for N * N."""
    count: Extent = 1
    dims = list(shape)
    if any(isinstance(d, int) and d == 0 for d in dims):
        return 0
    for d in dims:
        count = d * count if isinstance(d, Dim) else count * d
    return count


def is_fixed(shape: Sequence[Extent]) -> TypeGuard[tuple[int, ...]]:
    """Whether no extent of the shape depends on the batch size."""
    return all(isinstance(d, int) for d in shape)


def fixed(extent: Extent) -> int:
    """An extent that somebody has found not to depend on the batch size, as a number.

    Raises ShapeError if it does, which is an error of the caller, not of the user's.
    """
    if isinstance(extent, Dim):
        raise ShapeError(f"an extent of {extent} where only fixed numbers were expected")
    return extent


def extent_at(extent: Extent, n: int) -> int:
    """The number that an extent stands for at batch size ``n``."""
    return extent.at(n) if isinstance(extent, Dim) else extent


def shape_at(shape: Iterable[Extent], n: int) -> tuple[int, ...]:
    """The concrete shape at batch size ``n``."""
    return tuple(extent_at(d, n) for d in shape)


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The numpy broadcast of the shapes; a symbolic extent only matches itself or 1."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Extent] = [1] * rank
    for shape in shapes:
        for i, d in enumerate(shape, start=rank - len(shape)):
            if d == 1 or d == out[i]:
                continue
            if out[i] != 1:
                text = ", ".join(shape_text(s) for s in shapes)
                raise ShapeError(
                    f"shapes {text} cannot be broadcast together: {out[i]} meets {d} at "
                    f"dimension {i - rank}; make these sizes equal or one of them 1"
                )
            out[i] = d
    return tuple(out)


def shape_text(shape: Iterable[Extent]) -> str:
    """``[N,16,28]``."""
    return "[" + ",".join(str(d) for d in shape) + "]"


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a value; ``str`` gives ``f32[N,16,28,28]``."""

    dtype: DType
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Extent:
        """Number of elements."""
        return numel(self.shape)

    @property
    def pitch(self) -> Extent:
        """Elements from one row of the last dimension to the next."""
        return self.shape[-1] if self.shape else 1

    def at(self, n: int) -> TensorType:
        """The concrete type at batch size ``n``."""
        return TensorType(self.dtype, shape_at(self.shape, n))

    def bytes_at(self, n: int) -> int:
        """Memory of a value at batch size ``n``."""
        return math.prod(shape_at(self.shape, n)) * self.dtype.itemsize

    def __str__(self) -> str:
        return self.dtype.short + shape_text(self.shape)

    __repr__ = __str__


@dataclass(frozen=True)
class SlicedType(TensorType):
    """A tensor that is some columns of one with ``width`` columns: its rows are so far apart.

    The types of a graph's values say nothing about memory. The memory planner may put a value
    inside of another one, and the kernels that touch it are then made for this type of it.
    """

    width: int

    @property
    def pitch(self) -> Extent:
        return self.width

    def at(self, n: int) -> TensorType:
        return SlicedType(self.dtype, shape_at(self.shape, n), self.width)

    def __str__(self) -> str:
        return f"{super().__str__()} of {self.width} columns"

    __repr__ = __str__


def sliced(kind: TensorType, width: int) -> TensorType:
    """``kind`` as columns of a tensor with ``width`` columns; 0 stands for a tensor of its own."""
    return SlicedType(kind.dtype, kind.shape, width) if width else kind
