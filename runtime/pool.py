"""A persistent pool of native threads that run one SPMD program at a time.

The caller is thread 0 and the others help (`codegen.spmd`): a call returns when its work is done,
and waits for no thread that is not working on a part of it. `runtime.team` has the threads.

- A second Python thread that calls while the pool is busy runs its program alone, with one thread:
  it can neither deadlock nor oversubscribe, and results do not depend on the number of threads.
- A worker may still be on its way out of a program when the call is long over. What it may look at
  then, the code and the table of arguments, is not freed but handed to `retire` (`jit.Library` and
  `Executable` do that by themselves).
- After ``fork`` the child has no workers; it starts its own when it first needs some.
- Workers block signals, so that Ctrl-C reaches Python.
- Where there is no implementation (not 64-bit Linux on x86 or ARM), everything runs on one thread.
- Denormals are computed as numpy computes them: no thread's floating-point mode is changed.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from . import settings
from .team import Team, available, clock, native_run

__all__ = ["Pool", "available", "clock", "quiesce", "retire", "run", "shared"]

_T = TypeVar("_T")

_ENTRY = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


class Pool:
    """Native threads for SPMD programs. `shared` is the one that a process normally has.

    A pool lives until `close` or the end of the process; dropping it does not stop its threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._team: Team | None = None

    def run(self, entry: int, args: int | None, n: int, nthreads: int) -> int:
        """Calls ``void entry(ptr args, i64 n, i64 tid, i64 nthreads, ptr ticket)`` on all threads.

        ``entry`` and ``args`` are addresses, ``n`` is the batch size. Returns when the work is
        done; a worker that did none may come to the entry later, or still be in it. The result is
        the number of threads that the work was offered to. It is less than ``nthreads`` if the pool
        is busy or cannot grow, and 1 if the others cannot keep up on a loaded machine. Raises
        ValueError if ``nthreads`` is not from 1 to 1024.
        """
        return self.lend(nthreads, _run, (entry, args, n))

    def lend(self, nthreads: int, call: Callable[..., _T], args: Sequence[object]) -> _T:
        """``call(team, threads, *args)`` with a team for itself alone: the address of its state.

        Address 0 and 1 thread if one is enough, the pool is busy or cannot grow. ValueError as in
        `run`.
        """
        if nthreads != 1:
            lock = self._lock
            if lock.acquire(False):
                looked = False
                try:
                    team = self._team
                    if team is None or team.prepared != nthreads:
                        team = self._grown(nthreads)
                    if team is not None and team.threads > 1:
                        if nthreads > team.threads:
                            nthreads = team.threads
                        looked = team.placement.check()
                        return call(team.state, nthreads, *args)
                finally:
                    lock.release()
                    if looked and _retired:
                        _sweep()
            else:
                _check(nthreads)
        return call(0, 1, *args)

    @property
    def threads(self) -> int:
        """Threads that exist now, the calling one included."""
        return 1 if self._team is None else self._team.threads

    def quiesce(self, timeout: float = -1) -> bool:
        """Waits until no worker is inside of a program. False if one still was after ``timeout``
        seconds (-1: no limit), or the pool was busy."""
        end = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            return False
        try:
            while self._team is not None and not self._team.vacant():
                if timeout >= 0 and time.monotonic() >= end:
                    return False
                time.sleep(50e-6)
        finally:
            self._lock.release()
        return True

    def close(self, timeout: float = -1) -> bool:
        """Ends the workers; a later `run` starts new ones. False if the pool stayed busy."""
        if not self._lock.acquire(timeout=timeout):
            return False
        try:
            if self._team is not None:
                self._team.stop()
                self._team = None
                _started.discard(self)
        finally:
            self._lock.release()
        return True

    def _grown(self, nthreads: int) -> Team | None:
        _check(nthreads)
        if self._team is None:
            if _exiting or not available():
                return None
            self._team = Team()
            _started.add(self)
        self._team.prepare(nthreads)
        return self._team

    def _is_vacant(self) -> bool:
        """`quiesce` without waiting for anything, not even for a lock that this thread holds."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self._team is None or self._team.vacant()
        finally:
            self._lock.release()

    def _abandon(self) -> None:
        """In the child of a fork: the workers do not exist here, and the lock may be held by a
        thread that does not either."""
        self._lock = threading.Lock()
        self._team = None

    def _at_exit(self) -> None:
        if not self.close(timeout=1.0) and self._team is not None:
            # A daemon thread is inside: its workers must find their memory until the very end.
            self._team.leak()
            for kept in _retired.values():
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def run(entry: int, args: int | None, n: int, nthreads: int | None = None) -> int:
    """`Pool.run` on the process's pool; ``nthreads`` defaults to `settings.num_threads`."""
    return shared.run(entry, args, n, settings.num_threads() if nthreads is None else nthreads)


def _check(nthreads: int) -> None:
    if not 1 <= nthreads <= settings.MAX_THREADS:
        raise ValueError(
            f"the number of threads is from 1 to {settings.MAX_THREADS}, got {nthreads}"
        )


def _run(team: int, threads: int, entry: int, args: int | None, n: int) -> int:
    if team:
        return int(native_run()(team, entry, args, n, threads))
    _direct(entry)(args, n, 0, 1, None)
    return 1


def quiesce(timeout: float = -1) -> bool:
    """`Pool.quiesce` on all pools; frees what was retired. Not for finalisers, since it waits."""
    quiet = all([pool.quiesce(timeout) for pool in list(_started)])
    _sweep()
    return quiet


def retire(*objects: object) -> None:
    """Drops objects, later if a worker may still look at them.

    They are code or arguments of programs that nobody will run again. Never waits: finalisers may
    call this at any place.
    """
    _retired[next(_numbers)] = objects
    _sweep()


def _sweep() -> None:
    """Drops retired objects unless a pool is busy."""
    numbers = list(_retired)  # what others add from here on is not covered by the look at the pools
    if all([pool._is_vacant() for pool in list(_started)]):
        for number in numbers:
            _retired.pop(number, None)


@functools.lru_cache(maxsize=256)
def _direct(entry: int) -> Any:
    return _ENTRY(entry)


_started: set[Pool] = set()  # strong: a team's memory must outlive its threads
_retired: dict[int, tuple[object, ...]] = {}
_numbers = itertools.count()
_exiting = False


def _after_fork() -> None:
    for pool in _started:
        pool._abandon()
    _started.clear()
    _retired.clear()


@atexit.register
def _at_exit() -> None:
    global _exiting
    _exiting = True  # a daemon thread that comes now runs alone
    for pool in list(_started):
        pool._at_exit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

shared = Pool()
"""The pool of this process."""
