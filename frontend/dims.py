"""Dimension arguments: normalisation with PyTorch's errors, and sizes that may be symbolic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import BatchSpecializationError, ShapeError
from ..ir.types import Dim, Extent, Shape, numel, shape_text


class Size(tuple[Any, ...]):
    """A shape: a tuple of ints, or of multiples of the symbolic batch while tracing."""

    def numel(self) -> Extent:
        """Number of elements."""
        return numel(self)

    def __repr__(self) -> str:
        return f"netwright.Size([{', '.join(str(d) for d in self)}])"

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return Size(found) if isinstance(key, slice) else found

    def __add__(self, other: Any) -> Any:
        return Size(super().__add__(tuple(other)))


def dim_index(dim: int, rank: int) -> int:
    """A dimension as a number in ``[0, rank)``; 0-d tensors have one dimension here."""
    bound = max(rank, 1)
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"a dimension must be an int, got {type(dim).__name__}")
    if not -bound <= dim < bound:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-bound}, {bound - 1}], "
            f"but got {dim})"
        )
    return int(dim) % bound


def dim_indices(dim: Any, rank: int) -> tuple[int, ...]:
    """Sorted distinct dimensions from an int, a sequence or None or () (all)."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(rank))
    dims = [dim_index(d, rank) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))]
    for d in dims:
        if dims.count(d) > 1:
            raise RuntimeError(f"dim {d} appears multiple times in the list of dims")
    return tuple(sorted(dims)) if rank else ()


def size_arguments(sizes: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes given as ``f(2, 3)`` or ``f((2, 3))``."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    return tuple(_extent(s) for s in sizes)


def _extent(size: Any) -> Extent:
    if isinstance(size, Dim):
        return size
    if isinstance(size, float) or not hasattr(size, "__index__"):
        raise TypeError(f"a size must be an int, got {type(size).__name__}")
    return int(size.__index__())


def infer_shape(shape: Sequence[Extent], size: Extent, old: Iterable[Extent]) -> Shape:
    """``shape`` with its -1 replaced so that it has ``size`` elements (``old``: for errors)."""
    free = [i for i, d in enumerate(shape) if d == -1]
    if len(free) > 1:
        raise ShapeError("only one dimension can be inferred")
    for d in shape:
        if isinstance(d, int) and d < -1:
            raise ShapeError(f"invalid shape dimension {d}")
    known = numel(d for d in shape if d != -1)
    text = ", ".join(str(d) for d in shape)
    if not free:
        if known != size:
            raise _mismatch(text, size, known, old)
        return tuple(shape)
    if known == 0:
        raise ShapeError(
            f"cannot reshape tensor of 0 elements into shape [{text}] because the unspecified "
            "dimension size -1 can be any value and is ambiguous"
        )
    if isinstance(size, int):
        if isinstance(known, Dim) or size % known:
            raise _mismatch(text, size, known, old)
        missing: Extent = size // known
    else:
        try:
            missing = size // known
        except ShapeError:
            raise _mismatch(text, size, known, old) from None
    return tuple(missing if d == -1 else d for d in shape)


def _mismatch(text: str, size: Extent, known: Extent, old: Iterable[Extent]) -> Exception:
    if isinstance(size, Dim) or isinstance(known, Dim):
        return BatchSpecializationError(
            f"shape '[{text}]' does not fit a tensor of shape {shape_text(old)} for every batch "
            "size N; write the batch as x.shape[0] or -1 instead of a number"
        )
    return ShapeError(f"shape '[{text}]' is invalid for input of size {size}")


def concrete(extent: Extent, what: str) -> int:
    """The extent as a number; BatchSpecializationError if it depends on the batch."""
    if isinstance(extent, Dim):
        raise BatchSpecializationError(
            f"{what} needs the size of a dimension as a number, but it is the symbolic batch "
            f"{extent}; index another dimension or compile with a fixed batch size"
        )
    return extent
