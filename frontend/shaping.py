"""Operations that move elements without computing: reshape, permute, cat, split and the like.

Sizes may contain the symbolic batch (``Dim``) while a model is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BatchSpecializationError, ShapeError
from ..ir.types import Dim, Extent, numel
from . import dispatch
from .dims import concrete, dim_index, infer_shape, size_arguments
from .dispatch import apply, as_operand, is_tensor

if TYPE_CHECKING:
    from .tensor import Tensor


def _reshape(input: Tensor, shape: tuple[Extent, ...]) -> Tensor:
    found: Tensor = apply("reshape", input, shape=shape)
    return found


def reshape(input: Any, *shape: Any) -> Tensor:
    """The same elements in another shape; one size may be -1. A view where possible."""
    x = as_operand(input)
    return _reshape(x, infer_shape(size_arguments(shape), numel(x.shape), x.shape))


def view(input: Any, *shape: Any) -> Tensor:
    """Like ``reshape``, but a RuntimeError where the elements would have to be copied."""
    found = reshape(input, *shape)
    if not found._traced and not found._is_view and input.numel() > 0:
        raise ShapeError(
            "view size is not compatible with input tensor's size and stride (at least one "
            "dimension spans across two contiguous subspaces). Use .reshape(...) instead."
        )
    return found


def view_as(input: Any, other: Any) -> Tensor:
    """``view(other.shape)``."""
    return view(input, other.shape)


def reshape_as(input: Any, other: Any) -> Tensor:
    """``reshape(other.shape)``."""
    return reshape(input, other.shape)


def flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Merges the dimensions from ``start_dim`` to ``end_dim`` (inclusive) into one."""
    start, end = dim_index(start_dim, input.dim()), dim_index(end_dim, input.dim())
    if start > end:
        raise ShapeError("flatten() has invalid args: start_dim cannot come after end_dim")
    shape = tuple(input.shape)
    if not shape:
        return _reshape(input, (1,))
    if start == end:
        return input
    return _reshape(input, (*shape[:start], numel(shape[start : end + 1]), *shape[end + 1 :]))


def ravel(input: Any) -> Tensor:
    """``flatten()``."""
    return flatten(input)


def unflatten(input: Any, dim: int, sizes: Sequence[Any]) -> Tensor:
    """Splits one dimension into ``sizes``, of which one may be -1."""
    d = dim_index(dim, input.dim())
    shape = tuple(input.shape)
    parts = infer_shape(size_arguments((tuple(sizes),)), shape[d], (shape[d],))
    return _reshape(input, (*shape[:d], *parts, *shape[d + 1 :]))


def squeeze(input: Any, dim: Any = None) -> Tensor:
    """Drops the dimensions of size 1: all, or those in ``dim`` that have size 1."""
    rank = input.dim()
    if dim is None:
        dims = set(range(rank))
    else:
        dims = {dim_index(d, rank) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))}
    for i in dims:
        size = input.shape[i] if rank else 0
        if isinstance(size, Dim) and dispatch.current.tracer is not None:
            dispatch.current.tracer.assume_not_one(size, "squeeze()")
    return _reshape(
        input, tuple(s for i, s in enumerate(input.shape) if not (i in dims and s == 1))
    )


def unsqueeze(input: Any, dim: int) -> Tensor:
    """Inserts a dimension of size 1 at ``dim``."""
    d = dim_index(dim, input.dim() + 1)
    shape = tuple(input.shape)
    return _reshape(input, (*shape[:d], 1, *shape[d:]))


def permute(input: Any, *dims: Any) -> Tensor:
    """Reorders the dimensions: result dimension i is ``dims[i]``."""
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    rank = input.dim()
    if len(order) != rank:
        raise ShapeError(
            f"permute(sparse_coo): number of dimensions in the tensor input does not match the "
            f"length of the desired ordering of dimensions i.e. input.dim() = {rank} is not "
            f"equal to len(dims) = {len(order)}"
        )
    found = tuple(dim_index(d, rank) for d in order)
    if len(set(found)) != rank:
        raise ShapeError("permute(): duplicate dims are not allowed.")
    result: Tensor = apply("permute", input, dims=found)
    return result


def transpose(input: Any, dim0: int, dim1: int) -> Tensor:
    """Swaps two dimensions."""
    rank = input.dim()
    a, b = dim_index(dim0, rank), dim_index(dim1, rank)
    order = list(range(rank))
    if rank:
        order[a], order[b] = order[b], order[a]
    return permute(input, tuple(order))


def t(input: Any) -> Tensor:
    """Transposes a matrix; vectors and 0-d tensors stay."""
    rank = input.dim()
    if rank > 2:
        raise ShapeError(f"t() expects a tensor with <= 2 dimensions, but self is {rank}D")
    return permute(input, tuple(reversed(range(rank))))


def movedim(input: Any, source: Any, destination: Any) -> Tensor:
    """Moves dimensions from ``source`` to ``destination``; the others keep their order."""
    rank = input.dim()
    src = [dim_index(d, rank) for d in (source if isinstance(source, (tuple, list)) else [source])]
    dst = [
        dim_index(d, rank)
        for d in (destination if isinstance(destination, (tuple, list)) else [destination])
    ]
    if len(src) != len(dst):
        raise ShapeError(
            "movedim: Invalid source or destination dims: source "
            f"({src} dims) should contain the same number of dims as destination ({dst} dims)"
        )
    if len(set(src)) != len(src) or len(set(dst)) != len(dst):
        raise ShapeError(f"movedim: repeated dim in `source` {src} or `destination` {dst}")
    order = [d for d in range(rank) if d not in src]
    for to, origin in sorted(zip(dst, src, strict=True)):
        order.insert(to, origin)
    return permute(input, tuple(order))


def broadcast_to(input: Any, *shape: Any) -> Tensor:
    """Repeats dimensions of size 1, without copying; -1 keeps a size."""
    return expand(input, *shape)


def expand(input: Any, *sizes: Any) -> Tensor:
    """Repeats dimensions of size 1, without copying; -1 keeps a size."""
    wanted = size_arguments(sizes)
    old = tuple(input.shape)
    lead = len(wanted) - len(old)
    if lead < 0:
        raise ShapeError(
            f"expand({list(old)}, size={list(wanted)}): the number of sizes provided "
            f"({len(wanted)}) must be greater or equal to the number of dimensions in the "
            f"tensor ({len(old)})"
        )
    target = []
    for i, want in enumerate(wanted):
        have = old[i - lead] if i >= lead else None
        if want == -1 and have is None:
            raise ShapeError(
                f"The expanded size of the tensor ({want}) isn't allowed in a leading, "
                f"non-existing dimension {i}"
            )
        if have is not None and want != -1 and have != 1 and have != want:
            raise ShapeError(
                f"The expanded size of the tensor ({want}) must match the existing size ({have}) "
                f"at non-singleton dimension {i}.  Target sizes: {list(wanted)}.  "
                f"Tensor sizes: {list(old)}"
            )
        target.append(have if want == -1 else want)
    found: Tensor = apply("broadcast_to", input, shape=tuple(target))
    return found


def expand_as(input: Any, other: Any) -> Tensor:
    """``expand(other.shape)``."""
    return expand(input, other.shape)


def repeat(input: Any, *sizes: Any) -> Tensor:
    """Tiles the tensor ``sizes[i]`` times along dimension i; leading dimensions are added."""
    times = size_arguments(sizes)
    old = tuple(input.shape)
    lead = len(times) - len(old)
    if lead < 0:
        raise ShapeError(
            "Number of dimensions of repeat dims can not be smaller than number of dimensions "
            "of tensor"
        )
    old = (1,) * lead + old
    pairs = tuple(d for size in old for d in (1, size))
    wide = tuple(d for n, size in zip(times, old, strict=True) for d in (n, size))
    found: Tensor = apply("broadcast_to", _reshape(input, pairs), shape=wide)
    result = _reshape(found, tuple(numel(p) for p in zip(times, old, strict=True)))
    return result.clone() if result._is_view else result


# -- joining and splitting -------------------------------------------------------------------


def cat(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Joins tensors along an existing dimension; empty 1-d tensors are skipped."""
    parts = _sequence("cat", tensors)
    used = [p for p in parts if tuple(p.shape) != (0,)] or parts[:1]
    rank = used[0].dim()
    if any(not p.dim() for p in parts):
        raise ShapeError("zero-dimensional tensor (at position 0) cannot be concatenated")
    d = dim_index(dim, rank)
    for i, p in enumerate(used):
        if p.dim() != rank:
            raise ShapeError(
                f"Tensors must have same number of dimensions: got {rank} and {p.dim()}"
            )
        for axis, (want, have) in enumerate(zip(used[0].shape, p.shape, strict=True)):
            if axis != d and want != have:
                raise ShapeError(
                    f"Sizes of tensors must match except in dimension {d}. Expected size {want} "
                    f"but got size {have} for tensor number {i} in the list."
                )
    found: Tensor = apply("cat", *used, dim=d)
    return found


def stack(tensors: Sequence[Any], dim: int = 0) -> Tensor:
    """Joins tensors of one shape along a new dimension."""
    parts = _sequence("stack", tensors)
    d = dim_index(dim, parts[0].dim() + 1)
    for i, p in enumerate(parts):
        if p.shape != parts[0].shape:
            raise ShapeError(
                f"stack expects each tensor to be equal size, but got {list(parts[0].shape)} at "
                f"entry 0 and {list(p.shape)} at entry {i}"
            )
    found: Tensor = apply("cat", *(unsqueeze(p, d) for p in parts), dim=d)
    return found


def _sequence(name: str, tensors: Sequence[Any]) -> list[Any]:
    if is_tensor(tensors) or not isinstance(tensors, (tuple, list)):
        raise TypeError(f"{name}(): expected a tuple or list of tensors")
    if not tensors:
        raise RuntimeError(f"{name} expects a non-empty TensorList")
    for i, p in enumerate(tensors):
        if not is_tensor(p):
            raise TypeError(f"{name}(): element {i} is {type(p).__name__}, expected a tensor")
    return list(tensors)


def slice_dim(input: Tensor, dim: int, start: Extent, stop: Extent, step: int = 1) -> Tensor:
    """Elements ``start:stop:step`` of one dimension; the bounds are in range already."""
    if start == 0 and stop == input.shape[dim] and step == 1:
        return input
    found: Tensor = apply("slice", input, dim=dim, start=start, stop=stop, step=step)
    return found


def narrow(input: Any, dim: int, start: int, length: int) -> Tensor:
    """``length`` elements from ``start`` along ``dim``."""
    d = dim_index(dim, input.dim())
    size = input.shape[d]
    if length < 0:
        raise RuntimeError("narrow(): length must be non-negative.")
    if isinstance(size, int):
        if not -size <= start <= size:
            raise IndexError(
                f"start out of range (expected to be in range of [{-size}, {size}], but got "
                f"{start})"
            )
        start = start + size if start < 0 else start
        if start + length > size:
            raise RuntimeError(
                f"start ({start}) + length ({length}) exceeds dimension size ({size})."
            )
    elif not isinstance(start, Dim) and not isinstance(length, Dim) and length:
        concrete(size, "narrow()")
    return slice_dim(input, d, start, _sum([start, length]))


def select(input: Any, dim: int, index: int) -> Tensor:
    """Element ``index`` of a dimension, which disappears."""
    if not input.dim():
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    d = dim_index(dim, input.dim())
    size = input.shape[d]
    if isinstance(size, int) and not -size <= index < size:
        raise IndexError(
            f"select(): index {index} out of range for tensor of size {list(input.shape)} at "
            f"dimension {d}"
        )
    at = index % concrete(size, "select()")
    shape = tuple(input.shape)
    return _reshape(slice_dim(input, d, at, at + 1), (*shape[:d], *shape[d + 1 :]))


def split(tensor: Any, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces of one size (the last may be smaller), or of the listed sizes."""
    d = dim_index(dim, tensor.dim())
    size = tensor.shape[d]
    if isinstance(split_size_or_sections, (tuple, list)):
        lengths = list(split_size_or_sections)
        if _sum(lengths) != size:
            raise ShapeError(
                f"split_with_sizes expects split_sizes to sum exactly to {size} (input tensor's "
                f"size at dimension {d}), but got split_sizes={lengths}"
            )
    else:
        lengths = _equal_lengths(size, split_size_or_sections)
    pieces = []
    start: Extent = 0
    for length in lengths:
        stop = _sum([start, length])
        pieces.append(slice_dim(tensor, d, start, stop))
        start = stop
    return tuple(pieces)


def _equal_lengths(size: Extent, length: Extent) -> list[Extent]:
    if isinstance(size, Dim) and isinstance(length, Dim):
        count = size // length
        return [length] * count if isinstance(count, int) else []
    if isinstance(size, Dim) or isinstance(length, Dim):
        raise BatchSpecializationError(
            f"split of a dimension of size {size} into pieces of {length}: the number of pieces "
            "depends on the batch; split another dimension, or use chunk()"
        )
    if length < 0 or (length == 0 and size):
        raise RuntimeError(f"split expects split_size be non-negative, but got {length}")
    if size == 0:
        return [0]
    return [min(length, size - at) for at in range(0, size, length)]


def _sum(lengths: Sequence[Extent]) -> Extent:
    symbolic = [x.coef for x in lengths if isinstance(x, Dim)]
    plain = sum(x for x in lengths if not isinstance(x, Dim))
    if not symbolic:
        return plain
    if plain:
        raise ShapeError(f"sizes {list(lengths)} mix numbers and multiples of the batch")
    return Dim(sum(symbolic))


def chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` pieces of one size, except for the last."""
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    size = input.shape[dim_index(dim, input.dim())]
    if isinstance(size, Dim):
        return split(input, size // chunks, dim)
    length = -(-size // chunks)
    if length == 0:
        return tuple(split(input, [0] * chunks, dim))
    return split(input, length, dim)


def unbind(input: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """The elements of a dimension as a tuple."""
    d = dim_index(dim, input.dim())
    size = input.shape[d]
    if isinstance(size, Dim):
        raise BatchSpecializationError(
            f"unbind or iteration over dimension {d}: its size is the symbolic batch {size}, so "
            "the number of results is unknown; operate on the whole tensor"
        )
    return tuple(select(input, d, i) for i in range(size))


concatenate, concat, swapaxes, swapdims, moveaxis = cat, cat, transpose, transpose, movedim
