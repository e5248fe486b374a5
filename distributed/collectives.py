"""What all processes do together: exchanging objects and arrays."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..frontend.tensor import Tensor
from .process_group import Group, current

_MESSAGE_BYTES = 2**30
"""The largest message: before MPI 4, counts are C's int."""


def barrier() -> None:
    """Waits until every process is here."""
    group = current()
    group.wait([group.comm.Ibarrier()], "barrier()")


def all_gather_object(value: Any) -> list[Any]:
    """Every process's picklable value, by rank."""
    return gather_objects(current(), value, "all_gather_object()")


def broadcast_object(value: Any, src: int = 0) -> Any:
    """The picklable value of rank ``src``."""
    group = current()
    return gather_objects(group, value if group.rank == src else None, "broadcast_object()")[src]


def gather_numbers(group: Group, values: Sequence[float], doing: str) -> np.ndarray:
    """Every process's float64 numbers, (ranks, numbers)."""
    found = np.empty((group.size, len(values)))
    group.wait([group.comm.Iallgather(np.array(values, np.float64), found)], doing)
    return found


def gather_objects(group: Group, value: Any, doing: str) -> list[Any]:
    """`all_gather_object` for a purpose that errors name."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.empty(group.size, np.int64)
    size = np.array([data.size], np.int64)
    group.wait([group.comm.Iallgather(size, sizes)], doing)
    everything = np.empty(int(sizes.sum()), np.uint8)
    ends = np.cumsum(sizes)
    starts = (ends - sizes).tolist()
    received = [everything, sizes.tolist(), starts, group.mpi.BYTE]
    group.wait([group.comm.Iallgatherv([data, group.mpi.BYTE], received)], doing)
    return [pickle.loads(everything[a:b].tobytes()) for a, b in zip(starts, ends, strict=True)]


def broadcast_tensors(group: Group, tensors: Iterable[Tensor], doing: str) -> None:
    """Gives rank 0's values to tensors that are of the same types on every rank."""
    chosen = [t for t in tensors if t._array.size]
    if not chosen:
        return
    everything = np.concatenate([_bytes(t) for t in chosen])
    for start in range(0, everything.size, _MESSAGE_BYTES):
        part = everything[start : start + _MESSAGE_BYTES]
        group.wait([group.comm.Ibcast([part, group.mpi.BYTE])], doing)
    if group.rank == 0:
        return
    start = 0
    for tensor in chosen:
        array = tensor._array
        received = everything[start : start + array.nbytes].view(array.dtype)
        np.copyto(array, received.reshape(array.shape))
        tensor._storage.wrote()
        start += array.nbytes


def _bytes(tensor: Tensor) -> np.ndarray:
    return np.frombuffer(tensor._array.tobytes(), np.uint8)
