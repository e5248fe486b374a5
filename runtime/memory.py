"""Memory for arenas: aligned, in huge pages where the system has them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

import numpy as np

ALIGN = 64
_HUGE = 2 << 20


def address(array: np.ndarray) -> int:
    """Address of an array's first element."""
    if _DATA_OFFSET:
        return _POINTER(id(array) + _DATA_OFFSET).value or 0
    return _slow_address(array)


def _slow_address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _data_offset() -> int:
    """Where an array object keeps its pointer: the first field after the object's header in the
    C structure that numpy documents (PyArrayObject). 0 where it is not found there."""
    offset = object.__basicsize__
    if sys.implementation.name != "cpython" or offset < 16:
        return 0
    probes: list[np.ndarray] = [np.zeros(3), np.zeros(5)[2:], np.empty(0, np.int8)]
    for array in probes:
        if (_POINTER(id(array) + offset).value or 0) != _slow_address(array):
            return 0
    return offset


_POINTER = ctypes.c_void_p.from_address
_DATA_OFFSET = _data_offset()


def allocate(size: int) -> np.ndarray:
    """``size`` bytes, 64-byte aligned, not initialised (fresh pages are zero)."""
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, -(-size // _HUGE) * _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel built without them; small pages do, too
            pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8)[:size]
    raw = np.empty(size + ALIGN, np.uint8)
    start = -address(raw) % ALIGN
    return raw[start : start + size]


_KEPT = 4


class Blocks:
    """A free list of equal-purpose blocks: a block that comes back is given out again.

    Threads may share one. It has no lock, which a fork could leave held: each operation on the
    list is atomic, and a block belongs to whoever took it off the list.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """A block of at least ``size`` bytes."""
        too_small: list[np.ndarray] = []
        try:
            while True:
                block = self._free.pop()
                if block.size >= size:
                    return block
                too_small.append(block)
        except IndexError:  # none is left
            return allocate(size)
        finally:
            self._free.extend(reversed(too_small))

    def give(self, block: np.ndarray) -> None:
        """Returns a block. The four last ones are kept: they fit the batches of today."""
        self._free.append(block)
        del self._free[:-_KEPT]
