"""The tensors from outside of a model that a trace took as constants."""

from __future__ import annotations

import weakref

import numpy as np

from .tensor import Tensor


class Captured:
    """Globals, values of closures and tensors in lists: constants of the program as long as nobody
    writes to them.

    What ``forward()`` itself makes is a constant, too, but exists only during the trace: tensors
    are held weakly.
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[weakref.ref[Tensor], int, np.ndarray, str]] = []

    def add(self, tensor: Tensor, value: np.ndarray, place: str) -> None:
        """Follows a tensor. value: its content as the program has it, place: where it is used."""
        self._tensors.append((weakref.ref(tensor), tensor._storage.version, value, place))

    def changed(self) -> str | None:
        """Where a tensor is used that has another content now; None if there is none."""
        for ref, version, value, place in self._tensors:
            tensor = ref()
            if tensor is None:
                continue
            storage = tensor._storage
            if (storage.version != version or storage.exported) and not _equal(tensor, value):
                return place
        return None

    def alive(self) -> bool:
        """Whether any of them exists outside of the trace."""
        return any(ref() is not None for ref, *_ in self._tensors)


def _equal(tensor: Tensor, value: np.ndarray) -> bool:
    array = tensor._array
    return array.dtype == value.dtype and np.array_equal(array, value, equal_nan=True)
