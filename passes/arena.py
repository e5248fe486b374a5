"""Packing buffers of known lifetimes into one block of memory."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

ALIGN = 64
"""Offsets are multiples of a cache line, which is also the widest vector."""


@dataclass
class Buffer:
    """Memory shared by one or more values, live from step ``start`` to ``end`` (inclusive).

    ``slot`` is the arena, ``size`` and ``offset`` are in bytes (per sample in ``batch``).
    """

    slot: str
    size: int
    start: int
    end: int
    offset: int = -1

    def meets(self, other: Buffer) -> bool:
        """Whether both are live at some step."""
        return self.start <= other.end and other.start <= self.end


def aligned(size: int) -> int:
    """``size`` rounded up to a whole, non-zero number of cache lines."""
    return -(-size // ALIGN) * ALIGN or ALIGN


def pack(buffers: Sequence[Buffer]) -> int:
    """Assigns offsets: largest first, each at the lowest place free during its lifetime.

    Greedy by size: Y. Pisarchyk and J. Lee, "Efficient memory management for deep neural net
    inference", arXiv:2001.03288. Returns the bytes needed.
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.start)):
        offset = 0
        for other in placed:
            if not buffer.meets(other):
                continue
            if offset + buffer.size > other.offset:
                offset = max(offset, other.offset + other.size)
        buffer.offset = offset
        insort(placed, buffer, key=lambda b: b.offset)
    return max((b.offset + b.size for b in buffers), default=0)
