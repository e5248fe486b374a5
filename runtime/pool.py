"""A persistent pool of native threads that run one SPMD program at a time.

``Pool.run`` is one foreign call: it stores the job, bumps a word that the workers watch, runs
thread 0 itself and waits for the others (`codegen.spmd` explains how waiting works). Workers hold
no Python state and never take the GIL.

- A second Python thread that calls while the pool is busy runs its program alone, with one thread:
  it can neither deadlock nor oversubscribe, and results do not depend on the number of threads.
- After ``fork`` the child has no workers; it starts its own when it first needs some.
- Workers block signals, so that Ctrl-C reaches Python.
- Where there is no implementation (not 64-bit Linux on x86 or ARM), everything runs on one thread.
- Denormals are computed as numpy computes them: no thread's floating-point mode is changed.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..codegen import spmd
from ..errors import CompileError
from . import settings

if TYPE_CHECKING:
    from .jit import Library

DISPATCH_SPIN_SECONDS = 100e-6
"""How long an idle worker spins before it sleeps: about twice the cost of being woken up."""

BARRIER_SPIN_SECONDS = 50e-6

# The state of a team: one word per cache line, then the barrier, then one record per worker.
_SLEEPERS, _PENDING, _JOINERS, _JOB, _SPIN, _BARRIER = 64, 128, 192, 256, 320, 384
_RECORDS = _BARRIER + spmd.BARRIER_BYTES
_RECORD_BYTES = 32
_THREAD_BITS = 12
_EVERYONE = (1 << _THREAD_BITS) - 1

_SYNCHRONOUS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT"}


def pool_ir(triple: str) -> str:
    """The native half of the pool.

    The word at offset 0 is the job's number (20 bits, counting up, wrapping) above its number of
    threads (12 bits): a worker that takes no part sees that in the word itself, and never reads
    the job, which the caller may already be overwriting. A job with a null entry ends the worker.

    ``@nw_pool_worker(ptr record)`` with record = {ptr state, i64 tid, i32 word seen last};
    ``@nw_pool_run(ptr state, ptr entry, ptr args, i64 N, i64 nthreads)``, ``@nw_pool_stop(ptr
    state)``, and ``i64 @nw_pool_ticks()`` reads the clock that spinning is measured with.
    """
    return "\n".join([spmd.wait_ir(triple), _POOL_IR, *sorted(spmd.declarations(triple)), ""])


_POOL_IR = f"""\
define internal void @nw_publish(ptr %state, i32 %nthreads) nounwind {{
entry:
  %sleepers = getelementptr i8, ptr %state, i64 {_SLEEPERS}
  %old = load atomic i32, ptr %state monotonic, align 4
  %job = lshr i32 %old, {_THREAD_BITS}
  %next = add i32 %job, 1
  %high = shl i32 %next, {_THREAD_BITS}
  %word = or i32 %high, %nthreads
  store atomic i32 %word, ptr %state seq_cst, align 4
  call void @nw_wake(ptr %state, ptr %sleepers)
  ret void
}}

define void @nw_pool_run(ptr %state, ptr %entry, ptr %args, i64 %N, i64 %nthreads) nounwind {{
start:
  %job = getelementptr i8, ptr %state, i64 {_JOB}
  %job.args = getelementptr i8, ptr %job, i64 8
  %job.n = getelementptr i8, ptr %job, i64 16
  %job.threads = getelementptr i8, ptr %job, i64 24
  store ptr %entry, ptr %job, align 8
  store ptr %args, ptr %job.args, align 8
  store i64 %N, ptr %job.n, align 8
  store i64 %nthreads, ptr %job.threads, align 8
  %threads = trunc i64 %nthreads to i32
  %others = sub i32 %threads, 1
  %pending = getelementptr i8, ptr %state, i64 {_PENDING}
  store atomic i32 %others, ptr %pending monotonic, align 4
  call void @nw_publish(ptr %state, i32 %threads)
  %barrier = getelementptr i8, ptr %state, i64 {_BARRIER}
  call void %entry(ptr %args, i64 %N, i64 0, i64 %nthreads, ptr %barrier)
  %joiners = getelementptr i8, ptr %state, i64 {_JOINERS}
  %spin.at = getelementptr i8, ptr %state, i64 {_SPIN}
  %spin = load i64, ptr %spin.at, align 8
  %first = load atomic i32, ptr %pending acquire, align 4
  br label %join
join:
  %left = phi i32 [%first, %start], [%less, %wait]
  %finished = icmp eq i32 %left, 0
  br i1 %finished, label %done, label %wait
wait:
  %less = call i32 @nw_wait(ptr %pending, i32 %left, ptr %joiners, i64 %spin)
  br label %join
done:
  ret void
}}

define void @nw_pool_stop(ptr %state) nounwind {{
  %job = getelementptr i8, ptr %state, i64 {_JOB}
  store ptr null, ptr %job, align 8
  call void @nw_publish(ptr %state, i32 {_EVERYONE})
  ret void
}}

define i64 @nw_pool_ticks() nounwind {{
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
}}

define ptr @nw_pool_worker(ptr %record) nounwind {{
start:
  %state = load ptr, ptr %record, align 8
  %tid.at = getelementptr i8, ptr %record, i64 8
  %tid = load i64, ptr %tid.at, align 8
  %tid.small = trunc i64 %tid to i32
  %last.at = getelementptr i8, ptr %record, i64 16
  %last = load i32, ptr %last.at, align 4
  %sleepers = getelementptr i8, ptr %state, i64 {_SLEEPERS}
  %pending = getelementptr i8, ptr %state, i64 {_PENDING}
  %joiners = getelementptr i8, ptr %state, i64 {_JOINERS}
  %job = getelementptr i8, ptr %state, i64 {_JOB}
  %spin.at = getelementptr i8, ptr %state, i64 {_SPIN}
  %barrier = getelementptr i8, ptr %state, i64 {_BARRIER}
  br label %ready
ready:
  %last.ready = phi i32 [%last, %start], [%word, %worked], [%word, %report]
  %spin = load atomic i64, ptr %spin.at monotonic, align 8
  br label %idle
idle:
  ; who takes no part in a job does not spin after it
  %seen = phi i32 [%last.ready, %ready], [%word, %look]
  %budget = phi i64 [%spin, %ready], [0, %look]
  %word = call i32 @nw_wait(ptr %state, i32 %seen, ptr %sleepers, i64 %budget)
  br label %look
look:
  %threads = and i32 %word, {_EVERYONE}
  %mine = icmp ult i32 %tid.small, %threads
  br i1 %mine, label %work, label %idle
work:
  %entry = load ptr, ptr %job, align 8
  %end = icmp eq ptr %entry, null
  br i1 %end, label %exit, label %call
call:
  %args.at = getelementptr i8, ptr %job, i64 8
  %args = load ptr, ptr %args.at, align 8
  %n.at = getelementptr i8, ptr %job, i64 16
  %n = load i64, ptr %n.at, align 8
  %threads.at = getelementptr i8, ptr %job, i64 24
  %nthreads = load i64, ptr %threads.at, align 8
  call void %entry(ptr %args, i64 %n, i64 %tid, i64 %nthreads, ptr %barrier)
  br label %worked
worked:
  %before = atomicrmw sub ptr %pending, i32 1 seq_cst
  %final = icmp eq i32 %before, 1
  br i1 %final, label %report, label %ready
report:
  call void @nw_wake(ptr %pending, ptr %joiners)
  br label %ready
exit:
  ret ptr null
}}
"""

_ENTRY = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


class Pool:
    """Native threads for SPMD programs. `shared` is the one that a process normally has.

    A pool lives until `close` or the end of the process; dropping it does not stop its threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._team: _Team | None = None

    def run(self, entry: int, args: int | None, n: int, nthreads: int) -> int:
        """Calls ``void entry(ptr args, i64 n, i64 tid, i64 nthreads, ptr barrier)`` on all threads.

        ``entry`` and ``args`` are addresses, ``n`` is the batch size. Returns when all threads
        have; the result is the number of threads that ran, which is less than ``nthreads`` if the
        pool is busy or cannot grow. Raises ValueError if ``nthreads`` is not from 1 to 1024.
        """
        if nthreads != 1:
            if not 1 <= nthreads <= settings.MAX_THREADS:
                raise ValueError(
                    f"the number of threads is from 1 to {settings.MAX_THREADS}, got {nthreads}"
                )
            lock = self._lock
            if lock.acquire(blocking=False):
                try:
                    team = self._grown(nthreads)
                    nthreads = min(nthreads, team.threads) if team is not None else 1
                    if team is not None and nthreads > 1:
                        team.keep_apart()
                        team.run(team.state, entry, args, n, nthreads)
                        return nthreads
                finally:
                    lock.release()
        _direct(entry)(args, n, 0, 1, None)
        return 1

    def caller(
        self, entry: int, args: int | None, n: int, nthreads: int
    ) -> Callable[[], object]:
        """``run`` with these arguments, for many calls."""
        if nthreads == 1:
            return functools.partial(_direct(entry), args, n, 0, 1, None)
        return functools.partial(self.run, entry, args, n, nthreads)

    @property
    def threads(self) -> int:
        """Threads that exist now, the calling one included."""
        return 1 if self._team is None else self._team.threads

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

    def _grown(self, nthreads: int) -> _Team | None:
        if self._team is None:
            if _exiting or not available():
                return None
            self._team = _Team()
            _started.add(self)
        self._team.prepare(nthreads)
        return self._team

    def _abandon(self) -> None:
        """In the child of a fork: the workers do not exist here, and the lock may be held by a
        thread that does not either."""
        self._lock = threading.Lock()
        self._team = None

    def _at_exit(self) -> None:
        if not self.close(timeout=1.0) and self._team is not None:
            # A daemon thread is inside: its workers must find their memory until the very end.
            self._team.leak()


class _Team:
    """The workers of one pool: their memory, native code and thread handles."""

    def __init__(self) -> None:
        library = _native()
        size = _RECORDS + _RECORD_BYTES * settings.MAX_THREADS
        self._memory = ctypes.create_string_buffer(size + 64)
        self.state = -(-ctypes.addressof(self._memory) // 64) * 64
        self.threads = 1
        self._wanted = 1
        self._prepared = 1
        self._handles: list[Any] = []
        self._caller_cpu = -1
        self._placement: list[set[int]] = []
        self._library = library
        word, address = ctypes.c_int64, ctypes.c_void_p
        self.run = library.function("nw_pool_run", None, address, address, address, word, word)
        self._stop = library.function("nw_pool_stop", None, address)

    def prepare(self, threads: int) -> None:
        """Gets ready to run ``threads`` threads; only while none is busy."""
        if threads == self._prepared:
            return
        self._prepared = threads
        # Spinning is for threads that have a core each; otherwise it keeps the others from theirs.
        ticks = _ticks_per_second() if threads <= settings.available_cpus() else 0.0
        self._put(_SPIN, ctypes.c_int64, int(ticks * DISPATCH_SPIN_SECONDS))
        barrier_spin = _BARRIER + spmd.BARRIER_SPIN_OFFSET
        self._put(barrier_spin, ctypes.c_int64, int(ticks * BARRIER_SPIN_SECONDS))
        if threads > self._wanted:
            self._wanted = threads  # what could not be started once is not tried again
            self._start(threads)

    def _start(self, threads: int) -> None:
        seen = ctypes.c_int32.from_address(self.state).value
        create = _libc().pthread_create
        blocked = {s for s in signal.valid_signals() if _name(s) not in _SYNCHRONOUS}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # inherited by the new threads
        try:
            for tid in range(self.threads, threads):
                record = _RECORDS + _RECORD_BYTES * tid
                self._put(record, ctypes.c_void_p, self.state)
                self._put(record + 8, ctypes.c_int64, tid)
                self._put(record + 16, ctypes.c_int32, seen)
                handle = ctypes.c_void_p()
                worker = self._library.address("nw_pool_worker")
                code = create(ctypes.byref(handle), None, worker, self.state + record)
                if code != 0:
                    warnings.warn(
                        f"cannot start thread {tid + 1} of {threads}: {os.strerror(code)}; "
                        f"netwright runs with {tid} (see `ulimit -u`)",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    break
                self._handles.append(handle)
                self._caller_cpu = -1
                self.threads = tid + 1
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def keep_apart(self) -> None:
        """Keeps the workers off the caller's CPU.

        A woken thread tends to start on the CPU of the one that wakes it. That one is spinning
        for it by then, and with all threads of a small machine on one core the kernel may leave
        them there for seconds (measured: a call of 0.49 ms took 1.3 ms). With more threads than
        CPUs the kernel is left to share them out, over all CPUs of the caller.
        """
        cpu = _current_cpu()
        if cpu == self._caller_cpu:
            return
        self._caller_cpu = cpu
        placement = _placement(
            cpu, os.sched_getaffinity(0), len(self._handles), settings.available_cpus()
        )
        if placement != self._placement:
            self._placement = placement
            for handle, cpus in zip(self._handles, placement, strict=True):
                _set_affinity(handle, cpus)

    def stop(self) -> None:
        self._stop(self.state)
        for handle in self._handles:
            _libc().pthread_join(handle, None)
        self._handles.clear()
        self._placement.clear()
        self._caller_cpu = -1
        self.threads = self._wanted = self._prepared = 1

    def leak(self) -> None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._memory))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._library))

    def _put(self, offset: int, kind: Any, value: int) -> None:
        kind.from_address(self.state + offset).value = value


def available() -> bool:
    """Whether this platform has a pool; if not, every program runs on the calling thread."""
    return spmd.threads_supported(spmd.host_triple())


def run(entry: int, args: int | None, n: int, nthreads: int | None = None) -> int:
    """`Pool.run` on the process's pool; ``nthreads`` defaults to `settings.num_threads`."""
    return shared.run(entry, args, n, settings.num_threads() if nthreads is None else nthreads)


def caller(entry: int, args: int | None, n: int, nthreads: int) -> Callable[[], object]:
    """`Pool.caller` on the process's pool."""
    return shared.caller(entry, args, n, nthreads)


@functools.lru_cache(maxsize=256)
def _direct(entry: int) -> Any:
    return _ENTRY(entry)


@functools.lru_cache(maxsize=1)
def _native() -> Library:
    from . import jit

    return jit.load(pool_ir(spmd.host_triple()), key_parts={"kind": "thread pool"})


@functools.lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    address = ctypes.c_void_p
    libc.pthread_create.argtypes = [address, address, address, address]
    libc.pthread_join.argtypes = [address, address]
    if hasattr(libc, "pthread_setaffinity_np"):  # Android has none
        libc.pthread_setaffinity_np.argtypes = [address, ctypes.c_size_t, ctypes.c_char_p]
    return libc


def _current_cpu() -> int:
    """The CPU that the calling thread is on; -1 where threads cannot be placed."""
    libc = _libc()
    return int(libc.sched_getcpu()) if hasattr(libc, "pthread_setaffinity_np") else -1


def _placement(caller: int, allowed: set[int], workers: int, available: int) -> list[set[int]]:
    """The CPUs of each worker, for a caller on CPU ``caller`` that may use those in ``allowed``.

    ``available`` is less than their number if the control group has a quota.
    """
    others = sorted(allowed - {caller})
    if workers >= available or workers > len(others):
        return [set(allowed)] * workers
    if workers == len(others):
        return [{cpu} for cpu in others]
    return [set(others)] * workers


def _set_affinity(handle: Any, cpus: Iterable[int]) -> None:
    """Lets a thread run on these CPUs only. Failure leaves it where the kernel puts it."""
    mask = bytearray(_AFFINITY_BYTES)
    for cpu in cpus:
        if cpu < 8 * _AFFINITY_BYTES:
            mask[cpu // 8] |= 1 << cpu % 8
    _libc().pthread_setaffinity_np(handle, _AFFINITY_BYTES, bytes(mask))


@functools.lru_cache(maxsize=1)
def clock() -> Callable[[], int]:
    """A function that reads the counter that spinning and kernels are timed with.

    Its rate is constant and the same on all CPUs, although LLVM says cycles: x86 TSC, ARM
    CNTVCT_EL0.
    """
    return _native().function("nw_pool_ticks", ctypes.c_int64)


@functools.lru_cache(maxsize=1)
def _ticks_per_second() -> float:
    ticks = clock()
    begin, first = time.perf_counter(), ticks()
    while (elapsed := time.perf_counter() - begin) < 300e-6:
        pass
    rate = (ticks() - first) / elapsed
    if rate <= 0:
        raise CompileError("the CPU's cycle counter does not advance; set NETWRIGHT_NUM_THREADS=1")
    return rate


def _name(number: int) -> str:
    return number.name if isinstance(number, signal.Signals) else ""


_AFFINITY_BYTES = 128  # sizeof(cpu_set_t)
_started: set[Pool] = set()  # strong: a team's memory must outlive its threads
_exiting = False


def _after_fork() -> None:
    for pool in _started:
        pool._abandon()
    _started.clear()


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
