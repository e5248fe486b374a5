"""``x[...]`` and ``x[...] = value``: ints, slices, None, Ellipsis, integer tensors and masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BatchSpecializationError, UnsupportedError
from ..ir.types import Dim, Extent, bool_, int64, uint8
from . import dispatch
from .dims import concrete
from .dispatch import apply, as_operand, cast
from .grad_mode import is_grad_enabled
from .shaping import expand, slice_dim

if TYPE_CHECKING:
    from .tensor import Tensor


def get(input: Tensor, index: Any) -> Tensor:
    """``input[index]``: a view for ints, slices, None and Ellipsis; a copy otherwise."""
    items = _items(input, index)
    if not any(_is_advanced(i) for i in items):
        return _basic(input, items)
    advanced = [i for i in items if _is_advanced(i)]
    if input._traced or any(dispatch.is_tensor(i) and i._traced for i in advanced):
        return _rows(input, items)
    needs_grad = input.requires_grad and is_grad_enabled()
    key = tuple(_numpy_index(i) for i in items)
    _check_advanced(input, items)
    if not needs_grad:
        return input._like(np.array(input._array[key]))
    if len(items) == 1 and not _is_mask(items[0]):
        return _rows(input, items)
    positions = np.arange(input.numel()).reshape(input.shape)[key]
    found: Tensor = apply("gather", input.reshape(-1), as_operand(positions.reshape(-1)), dim=0)
    return found.reshape(positions.shape)


def set(input: Tensor, index: Any, value: Any) -> None:
    """``input[index] = value`` in place; ``value`` is broadcast and converted."""
    items = _items(input, index)
    if input._traced:
        raise UnsupportedError(
            "x[index] = value on a tensor of a traced model is not supported; build the result "
            "with nw.where, nw.cat or nw.stack"
        )
    input._no_data("assignment to an element")
    _check_advanced(input, items)
    key = tuple(_numpy_index(i) for i in items)
    source = cast(as_operand(value, input.dtype), input.dtype)
    recorded = is_grad_enabled() and (input.requires_grad or source.requires_grad)
    if recorded:
        _recorded_set(input, key, source)
        return
    if not input._array.flags.writeable:
        raise RuntimeError("the written-to tensor is read-only; clone() it first")
    input._array[key] = _fitting(source, input._array[key].shape)._array
    input._storage.wrote()


def _recorded_set(input: Tensor, key: tuple[Any, ...], source: Tensor) -> None:
    shape = tuple(input.shape)
    mask = np.zeros(shape, np.bool_)
    mask[key] = True
    target = mask[key].shape
    # Where an element comes from, in the flattened value.
    origin = np.zeros(shape, np.int64)
    origin[key] = np.arange(math.prod(target)).reshape(target)
    flat = _fitting(source, target).reshape(-1)
    if not flat.numel():
        return
    scattered: Tensor = apply("gather", flat, as_operand(origin.reshape(-1)), dim=0)
    input._assign(apply("where", as_operand(mask), scattered.reshape(shape), input))


def _fitting(source: Tensor, shape: tuple[int, ...]) -> Tensor:
    # numpy and PyTorch accept extra leading dimensions of size 1 in the value.
    while source.dim() > len(shape) and source.shape[0] == 1:
        source = source.reshape(source.shape[1:])
    return expand(source, shape)


# -- what an index consists of ---------------------------------------------------------------


def _items(input: Tensor, index: Any) -> list[Any]:
    """The index as a list that names every dimension; lists become arrays."""
    if not isinstance(index, tuple):
        index = (index,)
    items = [_item(i) for i in index]
    used = sum(_consumed(i) for i in items)
    if used > input.dim():
        raise IndexError(f"too many indices for tensor of dimension {input.dim()}")
    dots = [k for k, i in enumerate(items) if i is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = [slice(None)] * (input.dim() - used)
    if dots:
        return items[: dots[0]] + missing + items[dots[0] + 1 :]
    return _without_tail(items, missing)


def _without_tail(items: list[Any], missing: list[Any]) -> list[Any]:
    # The last dimensions need no item in an advanced index; a basic one treats them alike.
    return items if any(_is_advanced(i) for i in items) else items + missing


def _item(item: Any) -> Any:
    if item is None or item is Ellipsis or isinstance(item, (slice, Dim)):
        return item
    if isinstance(item, (bool, np.bool_)):
        return np.asarray(item)
    if isinstance(item, (int, np.integer)):
        return int(item)
    if dispatch.is_tensor(item):
        return _tensor_item(item)
    if isinstance(item, (list, tuple, range, np.ndarray)):
        array = np.asarray(item)
        if array.size == 0:
            array = array.astype(np.int64)
        return _array_item(array)
    raise IndexError(
        "only integers, slices (`:`), ellipsis (`...`), None and long or bool tensors are valid "
        f"indices (got {type(item).__name__})"
    )


def _tensor_item(item: Tensor) -> Any:
    if item.dtype.is_float or item.dtype is uint8:
        raise IndexError(
            f"tensors used as indices must be long, int or bool tensors, got {item.dtype.name}"
        )
    if item._traced:
        return item if item.dtype is bool_ else cast(item, int64)
    return _array_item(item._array)


def _array_item(array: np.ndarray) -> Any:
    if array.dtype.kind not in "iub":
        raise IndexError(
            f"tensors used as indices must be long, int or bool tensors, got {array.dtype}"
        )
    if array.ndim == 0 and array.dtype.kind != "b":
        return int(array)
    return array


def _is_advanced(item: Any) -> bool:
    return isinstance(item, np.ndarray) or dispatch.is_tensor(item)


def _is_mask(item: Any) -> bool:
    if isinstance(item, np.ndarray):
        return item.dtype.kind == "b"
    return dispatch.is_tensor(item) and item.dtype is bool_


def _consumed(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return len(item.shape) if _is_mask(item) else 1


def _numpy_index(item: Any) -> Any:
    if isinstance(item, slice):
        return slice(*(None if v is None else int(v) for v in (item.start, item.stop, item.step)))
    return item


def _check_advanced(input: Tensor, items: list[Any]) -> None:
    """IndexError with PyTorch's text for indices out of range, ValueError for a bad step."""
    axis = 0
    for item in items:
        if isinstance(item, slice):
            _check_step(item)
        elif _is_mask(item):
            size = tuple(input.shape[axis : axis + item.ndim])
            if item.shape != size:
                raise IndexError(
                    f"The shape of the mask {list(item.shape)} at index {axis} does not match the "
                    f"shape of the indexed tensor {list(input.shape)}"
                )
        elif item is not None:
            _check_range(item, input.shape[axis], axis)
        axis += _consumed(item)


def _check_range(item: Any, size: int, axis: int) -> None:
    values = np.asarray(item)
    wrong = values[(values < -size) | (values >= size)]
    if wrong.size:
        raise IndexError(
            f"index {int(wrong.flat[0])} is out of bounds for dimension {axis} with size {size}"
        )


def _check_step(item: slice) -> None:
    if item.step is not None and int(item.step) <= 0:
        raise ValueError("step must be greater than zero")


# -- basic indexing --------------------------------------------------------------------------


def _basic(input: Tensor, items: list[Any]) -> Tensor:
    """Slices one dimension after the other, then drops and inserts dimensions in one reshape."""
    shape: list[Extent] = []
    axis = 0
    result = input
    for item in items:
        if item is None:
            shape.append(1)
            continue
        size = input.shape[axis]
        if isinstance(item, slice):
            result = _slice(result, axis, size, item)
            shape.append(result.shape[axis])
        else:
            start = _position(item, size, axis)
            result = slice_dim(result, axis, start, start + 1)
        axis += 1
    if tuple(shape) == tuple(result.shape):
        return result if result is not input else _alias(input)
    found: Tensor = apply("reshape", result, shape=tuple(shape))
    return found


def _alias(input: Tensor) -> Tensor:
    found: Tensor = apply("reshape", input, shape=tuple(input.shape))
    return found


def _position(item: Any, size: Extent, axis: int) -> int:
    if isinstance(size, Dim) or isinstance(item, Dim):
        raise BatchSpecializationError(
            f"index {item} into dimension {axis}, whose size is the symbolic batch {size}: one "
            "example cannot be picked for every batch size; index another dimension"
        )
    if not -size <= item < size:
        raise IndexError(f"index {item} is out of bounds for dimension {axis} with size {size}")
    return int(item) % size


def _slice(input: Tensor, axis: int, size: Extent, item: slice) -> Tensor:
    _check_step(item)
    step = 1 if item.step is None else int(item.step)
    if isinstance(size, Dim) or isinstance(item.start, Dim) or isinstance(item.stop, Dim):
        start = 0 if item.start is None else item.start
        stop = size if item.stop is None else item.stop
        if (start != 0 and not isinstance(start, Dim)) or not isinstance(stop, Dim):
            concrete(size, f"a slice {start}:{stop}")
        return slice_dim(input, axis, start, stop, step)
    start, stop, _ = item.indices(size)
    return slice_dim(input, axis, start, max(start, stop), step)


# -- an integer tensor along one dimension, as an operator -----------------------------------


def _rows(input: Tensor, items: list[Any]) -> Tensor:
    """``input[..., index, ...]`` with one integer index, as an embedding of its rows."""
    places = [k for k, i in enumerate(items) if not (isinstance(i, slice) and i == slice(None))]
    if len(places) != 1 or _is_mask(items[places[0]]):
        raise UnsupportedError(
            "this index cannot be traced: inside a compiled model use ints, slices, one integer "
            "tensor along one dimension, nw.gather, or nw.where with the mask"
        )
    axis = places[0]
    size = input.shape[axis]
    if isinstance(size, Dim):
        raise UnsupportedError(
            f"an integer tensor indexes dimension {axis}, whose size is the symbolic batch {size}; "
            "index another dimension, or use nw.gather"
        )
    index = as_operand(items[axis])
    _check_rows(index, size, axis)
    index = cast(index, int64)
    index = apply("where", index < 0, index + size, index)
    table = input if axis == 0 else input.movedim(axis, 0)
    rest = tuple(table.shape[1:])
    flat = table.reshape(size, -1) if math.prod(d for d in rest if isinstance(d, int)) else None
    if flat is None:
        return input._like(np.array(input._array[(slice(None),) * axis + (index._array,)]))
    rows: Tensor = apply("embedding", index, flat, padding_idx=None)
    found = rows.reshape((*index.shape, *rest))
    if axis == 0:
        return found
    width = index.dim()
    order = (
        *range(width, width + axis),
        *range(width),
        *range(width + axis, found.dim()),
    )
    return found.permute(order)


def _check_rows(index: Tensor, size: int, axis: int) -> None:
    if not index._traced:
        _check_range(index._array, size, axis)
