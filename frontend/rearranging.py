"""Elements in other places: flip, roll, tile, chosen rows, grids, diagonals, scattered sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError, UnsupportedError
from ..ir.types import Dim, int64
from .dims import concrete, dim_index, size_arguments
from .dispatch import apply, as_operand, cast
from .elementwise import where
from .shaping import broadcast_to, cat, narrow, repeat, reshape, unsqueeze

if TYPE_CHECKING:
    from .tensor import Tensor


def index_select(input: Any, dim: int, index: Any) -> Tensor:
    """The rows ``index`` (1-d, integers) of dimension ``dim``."""
    places = as_operand(index)
    if places.dim() > 1:
        raise IndexError("index_select(): Index is supposed to be a vector")
    d = dim_index(dim, input.dim())
    found: Tensor = input[(slice(None),) * d + (reshape(places, -1),)]
    return found


def flip(input: Any, *dims: Any) -> Tensor:
    """The elements in reverse order along the dimensions."""
    result: Any = input
    for dim in size_arguments(dims):
        d = dim_index(dim, input.dim())
        size = concrete(input.shape[d], "flip()")
        result = index_select(result, d, np.arange(size - 1, -1, -1)) if size > 1 else result
    return _new(result, input)


def roll(input: Any, shifts: Any, dims: Any = None) -> Tensor:
    """Elements that leave at one end of a dimension enter at the other; without ``dims``, of the
    flattened tensor."""
    if dims is None:
        return roll(input.reshape(-1), shifts, 0).reshape(*input.shape)
    moves = list(shifts) if isinstance(shifts, Sequence) else [shifts]
    axes = list(dims) if isinstance(dims, Sequence) else [dims]
    if len(moves) != len(axes):
        raise RuntimeError(
            f"shifts and dimensions must align. shifts: {len(moves)}, dims:{len(axes)}"
        )
    result: Any = input
    for shift, axis in zip(moves, axes, strict=True):
        d = dim_index(axis, input.dim())
        size = concrete(input.shape[d], "roll()")
        tail = shift % size if size else 0
        if tail:
            parts = (narrow(result, d, size - tail, tail), narrow(result, d, 0, size - tail))
            result = cat(parts, d)
    return _new(result, input)


def _new(result: Any, input: Any) -> Tensor:
    """The result, or a copy where nothing had to move."""
    found: Tensor = input.clone() if result is input else result
    return found


def tile(input: Any, *dims: Any) -> Tensor:
    """`repeat` with ones in front of too few numbers."""
    times = size_arguments(dims)
    return repeat(input, *(1,) * (input.dim() - len(times)), *times)


def repeat_interleave(input: Any, repeats: int, dim: int | None = None) -> Tensor:
    """Each element ``repeats`` times in a row along ``dim``, or of the flattened tensor."""
    if not isinstance(repeats, int):
        raise UnsupportedError(
            "repeat_interleave(): repeats must be an int; a tensor of them makes a result whose "
            "size depends on data"
        )
    if dim is None:
        return repeat_interleave(input.reshape(-1), repeats, 0)
    d = dim_index(dim, input.dim())
    shape = tuple(input.shape)
    wide = broadcast_to(unsqueeze(input, d + 1), (*shape[: d + 1], repeats, *shape[d + 1 :]))
    found = reshape(wide, (*shape[:d], shape[d] * repeats, *shape[d + 1 :]))
    return found.clone() if found._is_view else found


def hstack(tensors: Sequence[Any]) -> Tensor:
    """Joins along dimension 1, vectors along dimension 0."""
    parts = [t.reshape(1) if not t.dim() else t for t in tensors]
    return cat(parts, 0 if parts and parts[0].dim() == 1 else 1)


def vstack(tensors: Sequence[Any]) -> Tensor:
    """Joins along dimension 0; vectors are rows."""
    return cat([t.reshape(1, -1) if t.dim() < 2 else t for t in tensors], 0)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinates of a grid from vectors; 'xy' exchanges the first two dimensions."""
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], Sequence) else tensors
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f"meshgrid: indexing must be one of 'xy' or 'ij', but got {indexing!r}")
    vectors = [t.reshape(-1) for t in given]
    swap = indexing == "xy" and len(vectors) > 1
    order = [1, 0, *range(2, len(vectors))] if swap else list(range(len(vectors)))
    shape = tuple(vectors[i].shape[0] for i in order)
    grids = []
    for i, vector in enumerate(vectors):
        ones = [1] * len(vectors)
        ones[order.index(i)] = -1
        grids.append(broadcast_to(vector.reshape(*ones), shape))
    return tuple(grids)


def diagonal(input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The diagonal of the matrices in two dimensions, as the last dimension."""
    a, b = dim_index(dim1, input.dim()), dim_index(dim2, input.dim())
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    rows, columns = concrete(input.shape[a], "diagonal()"), concrete(input.shape[b], "diagonal()")
    count = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
    order = [d for d in range(input.dim()) if d not in (a, b)]
    moved = input.permute(*order, a, b)
    flat = moved.reshape(*moved.shape[:-2], rows * columns)
    start = max(offset, 0) - min(offset, 0) * columns
    places = start + np.arange(count) * (columns + 1)
    return index_select(flat, -1, places)


def scatter_add(input: Any, dim: int, index: Any, src: Any) -> Tensor:
    """``out[index[i][j]][j] += src[i][j]`` for dim 0, and so on, in a copy of ``input``."""
    places, d = _places("scatter_add", input, dim, index)
    part = src
    for axis, (have, want) in enumerate(zip(src.shape, places.shape, strict=True)):
        if have != want:
            part = narrow(part, axis, 0, concrete(want, "scatter_add()"))
    return input + _spread(part, places, d, input)


def scatter(input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None) -> Tensor:
    """``out[index[i][j]][j] = value`` for dim 0, and so on, in a copy of ``input``; a number only:
    with several values for one place the result would depend on the order."""
    number = src if value is None else value
    if getattr(number, "ndim", 0):
        raise UnsupportedError(
            "scatter(): src must be a number; use scatter_add(), or where() with a mask"
        )
    places, d = _places("scatter", input, dim, index)
    ones = broadcast_to(as_operand(np.ones((), np.float32)), tuple(places.shape))
    hits = _spread(ones, places, d, input)
    return where(hits > 0, cast(as_operand(number, input.dtype), input.dtype), input)


def _places(name: str, input: Any, dim: int, index: Any) -> tuple[Tensor, int]:
    places = as_operand(index)
    if places.dim() != input.dim():
        raise ShapeError(
            f"{name}(): Index tensor must have the same number of dimensions as self tensor, but "
            f"got {list(places.shape)} and {list(input.shape)}"
        )
    return cast(places, int64), dim_index(dim, input.dim())


def _spread(part: Any, places: Tensor, d: int, input: Any) -> Tensor:
    """The scattered sums, with zeros for what the index does not reach."""
    size = input.shape[d]
    if isinstance(size, Dim):
        size = concrete(size, "scatter() along the batch")
    found: Tensor = apply("scatter_add_grad", part, places, dim=d, size=size)
    missing = [
        0 if axis == d or have == want else want - have
        for axis, (want, have) in enumerate(zip(input.shape, places.shape, strict=True))
    ]
    if any(missing):
        found = apply("pad", found, low=(0,) * len(missing), high=tuple(missing), value=0.0)
    return found
