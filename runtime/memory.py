"""Memory for arenas: aligned, in huge pages where the system has them."""

from __future__ import annotations

import mmap

import numpy as np

ALIGN = 64
_HUGE = 2 << 20


def address(array: np.ndarray) -> int:
    """Address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def allocate(size: int) -> np.ndarray:
    """``size`` bytes, 64-byte aligned, not initialised (fresh pages are zero)."""
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, -(-size // _HUGE) * _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, np.uint8)[:size]
    raw = np.empty(size + ALIGN, np.uint8)
    start = -address(raw) % ALIGN
    return raw[start : start + size]


class Blocks:
    """A free list of equal-purpose blocks: a block that comes back is given out again."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """A block of at least ``size`` bytes."""
        for i, block in enumerate(self._free):
            if block.size >= size:
                return self._free.pop(i)
        return allocate(size)

    def give(self, block: np.ndarray) -> None:
        """Returns a block; at most four are kept."""
        if len(self._free) < 4:
            self._free.append(block)
