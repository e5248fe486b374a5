"""What a kernel generator hands over: one native function and how to run it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..ir.types import Dim, Extent


@dataclass(frozen=True)
class TaskCount:
    """``ceil(extent / per)`` tasks, where ``extent`` may be a multiple of the batch."""

    extent: Extent
    per: int = 1

    def at(self, n: int) -> int:
        """The number of tasks for batch size ``n``."""
        total = self.extent.at(n) if isinstance(self.extent, Dim) else self.extent
        return -(-total // self.per)


@dataclass(frozen=True)
class Kernel:
    """One kernel: its symbol, the LLVM IR that defines it, and its parallel extent.

    The function is ``void @symbol(ptr out0.., ptr in0.., ptr scratch, ptr status, i64 N,
    i64 begin, i64 end)``. It does the tasks ``begin <= task < end``; every result is the same
    bits however the tasks are split. ``scratch`` is ``scratch_bytes`` of private memory, 64-byte
    aligned. ``status`` points to two i64: a kernel that meets an index out of range stores 1 and
    the index and goes on without touching memory outside its operands.
    """

    symbol: str
    text: str
    declarations: frozenset[str]
    tasks: TaskCount
    scratch_bytes: int = 0
    flops: Extent = 0
    bytes: Extent = 0


STATUS_INDEX_OUT_OF_RANGE = 1


def symbol_for(prefix: str, *key: object) -> str:
    """A name made from everything that a kernel depends on, so that equal kernels are shared."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    return f"{prefix}_{digest}"
