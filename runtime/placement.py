"""Which CPUs the workers of a pool may run on."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterable
from time import monotonic
from typing import Any

from . import settings

LOOK_CALLS = 64
LOOK_SECONDS = 5e-3
"""The caller's CPU is looked up in every so many calls, and after so long a time."""

_AFFINITY_BYTES = 128  # sizeof(cpu_set_t)


class Placement:
    """Keeps the workers off the caller's CPU.

    A woken thread tends to start on the CPU of the one that wakes it. That one is at work by then,
    and with all threads of a small machine on one core the kernel may leave them there for seconds
    (measured: a call of 0.49 ms took 1.3 ms). With more threads than CPUs the kernel is left to
    share them out, over all CPUs of the caller.
    """

    def __init__(self, handles: list[Any]) -> None:
        """``handles`` are the workers' threads; who changes the list calls `forget`."""
        self._handles = handles
        self._chosen: list[set[int]] = []
        self._cpu = -1
        self._calls = 0
        self._next_look = 0.0

    def forget(self) -> None:
        """Looks again in the next call."""
        self._cpu = -1
        self._calls = 0
        if not self._handles:
            self._chosen = []

    def check(self) -> bool:
        """Before each call: moves the workers if the caller has moved. True in the few calls in
        which it looked."""
        self._calls = calls = self._calls - 1
        now = monotonic()
        if calls > 0 and now < self._next_look:
            return False
        self._calls, self._next_look = LOOK_CALLS, now + LOOK_SECONDS
        cpu = current_cpu()
        if cpu != self._cpu:
            self._cpu = cpu
            self._move(cpu)
        return True

    def _move(self, cpu: int) -> None:
        chosen = choose(cpu, os.sched_getaffinity(0), len(self._handles), settings.available_cpus())
        if chosen != self._chosen:
            self._chosen = chosen
            for handle, cpus in zip(self._handles, chosen, strict=True):
                _set_affinity(handle, cpus)


def choose(caller: int, allowed: set[int], workers: int, available: int) -> list[set[int]]:
    """The CPUs of each worker, for a caller on CPU ``caller`` that may use those in ``allowed``.

    ``available`` is less than their number if the control group has a quota.
    """
    others = allowed - {caller}
    if workers >= available or workers > len(others):
        return [set(allowed)] * workers
    return [others] * workers


def current_cpu() -> int:
    """The CPU that the calling thread is on; -1 where threads cannot be placed."""
    libc = _libc()
    return int(libc.sched_getcpu()) if libc is not None else -1


def _set_affinity(handle: Any, cpus: Iterable[int]) -> None:
    """Lets a thread run on these CPUs only. Failure leaves it where the kernel puts it."""
    libc = _libc()
    if libc is None:
        return
    mask = bytearray(_AFFINITY_BYTES)
    for cpu in cpus:
        if cpu < 8 * _AFFINITY_BYTES:
            mask[cpu // 8] |= 1 << cpu % 8
    libc.pthread_setaffinity_np(handle, _AFFINITY_BYTES, bytes(mask))


@functools.lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "pthread_setaffinity_np"):  # Android has none
        return None
    library.pthread_setaffinity_np.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    return library
