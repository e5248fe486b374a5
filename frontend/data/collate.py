"""Samples to batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import ShapeError
from .. import dispatch
from ..promotion import get_default_dtype
from ..shaping import stack
from ..tensor import Tensor


def default_collate(batch: Sequence[Any]) -> Any:
    """One batch of a list of samples, as PyTorch's.

    Tensors and arrays are stacked; ints become int64, floats float64, bools bool tensors; strings
    stay a list; mappings, named tuples, tuples and lists are collated element by element.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        return _stacked(batch)
    if isinstance(first, (np.ndarray, np.generic)) and first.dtype.kind in "biuf":
        return _stacked([dispatch.as_operand(np.asarray(a)) for a in batch])
    if isinstance(first, (bool, int, float)):
        return _numbers(batch)
    if isinstance(first, (str, bytes)):
        return batch
    if isinstance(first, Mapping):
        return _mapping(first, lambda key: default_collate([sample[key] for sample in batch]))
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError("each element in list of batch should be of equal size")
        columns = [default_collate(column) for column in zip(*batch, strict=True)]
        return _sequence(first, columns, list)
    raise TypeError(
        "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {type(first)}; give the DataLoader a collate_fn"
    )


def default_convert(data: Any) -> Any:
    """One sample with its arrays as tensors; for loaders without batches."""
    if isinstance(data, (np.ndarray, np.generic)) and data.dtype.kind in "biuf":
        return dispatch.as_operand(np.asarray(data))
    if isinstance(data, (Tensor, str, bytes)):
        return data
    if isinstance(data, Mapping):
        return _mapping(data, lambda key: default_convert(data[key]))
    if isinstance(data, Sequence):
        return _sequence(data, [default_convert(d) for d in data], list)
    return data


def _stacked(tensors: Sequence[Any]) -> Tensor:
    first = tensors[0]
    if any(t.requires_grad for t in tensors):
        return stack(list(tensors))
    for i, t in enumerate(tensors):
        if t.shape != first.shape:
            raise ShapeError(
                f"stack expects each tensor to be equal size, but got {list(first.shape)} at "
                f"entry 0 and {list(t.shape)} at entry {i}; give the DataLoader a collate_fn "
                "that pads the samples"
            )
    return dispatch.wrap(np.stack([t._array for t in tensors]))


def _numbers(values: Sequence[Any]) -> Tensor:
    if isinstance(values[0], float):
        return dispatch.wrap(np.array(values, np.float64))
    array = np.array(values)
    if array.dtype.kind == "u":
        raise RuntimeError("Overflow when unpacking long long")
    if array.dtype.kind == "f":  # ints and floats mixed
        return dispatch.wrap(array.astype(get_default_dtype().np))
    return dispatch.wrap(array if array.dtype.kind == "b" else array.astype(np.int64))


def _mapping(like: Mapping[Any, Any], value: Callable[[Any], Any]) -> Any:
    made = {key: value(key) for key in like}
    try:
        return type(like)(made)  # type: ignore[call-arg]
    except TypeError:  # a mapping with a constructor of its own, such as defaultdict
        return made


def _sequence(like: Sequence[Any], parts: list[Any], default: type) -> Any:
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*parts)
    return default(parts)
