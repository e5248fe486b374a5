"""The threads of a pool: their native code, their memory, how they start and end.

`nw_pool_run` writes the job into a record, bumps the record's sequence number, which the workers
watch, and runs thread 0 itself (`codegen.spmd` explains how the threads share a job's work). It
returns when the work is done, whatever the workers are doing then. Workers hold no Python state and
never take the GIL.

**The record is written while workers may read it.** Its sequence number is odd during that time
and grows with every job. A worker copies the record and takes the copy only if the number was even
before and the same after (a seqlock; H.-J. Boehm, "Can seqlocks get along with programming language
memory models?", MSPC 2012, for the fences). The copy says with which number the job's rounds begin,
so a worker that is late in a job that is over claims nothing.

**Leaving.** A worker may be inside of an entry after its job is over. Before it looks at the record
it says so in its own line; `Team.vacant` makes the record's number odd and then looks at all lines.
Both are sequentially consistent: either the worker finds no job, or `vacant` finds the worker.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
import warnings
from typing import TYPE_CHECKING, Any

from ..codegen import spmd, waiting
from ..errors import CompileError
from . import settings
from .placement import Placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from .jit import Library

DISPATCH_SPIN_SECONDS = 100e-6
"""How long an idle worker spins before it sleeps: about twice the cost of being woken up."""

ROUND_SPIN_SECONDS = 50e-6
"""How long a thread spins for the end of a round."""

PATIENCE_SECONDS = 100e-6
"""How much longer than it worked the caller may wait before this is held against somebody."""

TURN_SECONDS = 1.5e-3
"""For how long a worker works before it offers its CPU to others. Linux gives a thread 2 to 4 ms at
a time if others want the CPU as well."""

# The record, on one cache line: what a worker waits for and what it then reads come together.
_ENTRY, _ARGS, _N, _NTHREADS, _FIRST = 16, 24, 32, 40, 48
_SPIN = 64
_TEAM = 128
_WORKERS = _TEAM + spmd.team_bytes(settings.MAX_THREADS)
_WORKER_BYTES = 64  # a line for each: ptr state, i64 tid, i64 sequence seen last, i64 inside
_INSIDE = 24

_SYNCHRONOUS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT"}


def team_ir(triple: str) -> str:
    """The native half.

    ``i64 @nw_pool_run(ptr state, ptr entry, ptr args, i64 N, i64 nthreads)`` returns with how many
    threads it ran: 1 if all others are suspended. ``@nw_pool_stop(ptr state)`` ends the workers (a
    job with a null entry), ``i64 @nw_pool_vacate(ptr state, i64
    workers)`` withdraws the last job and counts the workers that are inside of an entry, and ``i64
    @nw_pool_ticks()`` reads the clock that spinning is measured with. Workers run ``ptr
    @nw_pool_worker(ptr line)``.
    """
    return "\n".join([waiting.wait_ir(triple), _TEAM_IR, *sorted(spmd.declarations(triple)), ""])


_TICKET = f"[{spmd.TICKET_WORDS} x i64]"

_TEAM_IR = f"""\
{spmd.ticket_ir()}
define internal void @nw_publish(
    ptr %state, ptr %entry, ptr %args, i64 %N, i64 %nthreads, i64 %first) nounwind {{
  %entry.at = getelementptr i8, ptr %state, i64 {_ENTRY}
  %args.at = getelementptr i8, ptr %state, i64 {_ARGS}
  %n.at = getelementptr i8, ptr %state, i64 {_N}
  %nthreads.at = getelementptr i8, ptr %state, i64 {_NTHREADS}
  %first.at = getelementptr i8, ptr %state, i64 {_FIRST}
  %old = load atomic i64, ptr %state monotonic, align 8
  %writing = or i64 %old, 1
  store atomic i64 %writing, ptr %state monotonic, align 8
  fence release
  store atomic ptr %entry, ptr %entry.at monotonic, align 8
  store atomic ptr %args, ptr %args.at monotonic, align 8
  store atomic i64 %N, ptr %n.at monotonic, align 8
  store atomic i64 %nthreads, ptr %nthreads.at monotonic, align 8
  store atomic i64 %first, ptr %first.at monotonic, align 8
  %sequence = add i64 %writing, 1
  store atomic i64 %sequence, ptr %state seq_cst, align 8
  call void @nw_wake(ptr %state, i64 %sequence)
  ret void
}}

define i64 @nw_pool_run(ptr %state, ptr %entry, ptr %args, i64 %N, i64 %nthreads) nounwind {{
start:
  %ticket = alloca {_TICKET}, align 64
  %team = getelementptr i8, ptr %state, i64 {_TEAM}
  %lines = getelementptr i8, ptr %team, i64 {spmd.TEAM_LINES + spmd.SUSPENDED}
  br label %head
head:
  ; who is suspended would have to be woken up to do nothing
  %k = phi i64 [1, %start], [%k.next, %suspended]
  %all = icmp uge i64 %k, %nthreads
  br i1 %all, label %alone, label %helper
helper:
  %at = shl i64 %k, 6
  %line = getelementptr i8, ptr %lines, i64 %at
  %until = load atomic i64, ptr %line monotonic, align 8
  %free = icmp eq i64 %until, 0
  br i1 %free, label %share, label %time
time:
  %now = call i64 @llvm.readcyclecounter()
  %remaining = sub i64 %until, %now
  %still = icmp sgt i64 %remaining, 0
  br i1 %still, label %suspended, label %share
suspended:
  %k.next = add i64 %k, 1
  br label %head
share:
  ; everything is done, so nobody changes the counter
  %first = load atomic i64, ptr %team monotonic, align 8
  call void @nw_ticket(ptr %ticket, ptr %team, i64 0, i64 %nthreads, i64 %first)
  call void @nw_publish(ptr %state, ptr %entry, ptr %args, i64 %N, i64 %nthreads, i64 %first)
  call void %entry(ptr %args, i64 %N, i64 0, i64 %nthreads, ptr %ticket)
  ret i64 %nthreads
alone:
  call void %entry(ptr %args, i64 %N, i64 0, i64 1, ptr null)
  ret i64 1
}}

define void @nw_pool_stop(ptr %state) nounwind {{
  call void @nw_publish(
    ptr %state, ptr null, ptr null, i64 0, i64 {settings.MAX_THREADS}, i64 0)
  ret void
}}

define i64 @nw_pool_vacate(ptr %state, i64 %workers) nounwind {{
entry:
  %was = atomicrmw or ptr %state, i64 1 seq_cst
  %lines = getelementptr i8, ptr %state, i64 {_WORKERS + _WORKER_BYTES + _INSIDE}
  br label %head
head:
  %k = phi i64 [0, %entry], [%k.next, %body]
  %count = phi i64 [0, %entry], [%more, %body]
  %left = icmp ult i64 %k, %workers
  br i1 %left, label %body, label %done
body:
  %at = mul i64 %k, {_WORKER_BYTES}
  %line = getelementptr i8, ptr %lines, i64 %at
  %inside = load atomic i64, ptr %line seq_cst, align 8
  %more = add i64 %count, %inside
  %k.next = add i64 %k, 1
  br label %head
done:
  ret i64 %count
}}

define i64 @nw_pool_ticks() nounwind {{
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
}}

define ptr @nw_pool_worker(ptr %line) nounwind {{
start:
  %ticket = alloca {_TICKET}, align 64
  %state = load ptr, ptr %line, align 8
  %tid.at = getelementptr i8, ptr %line, i64 8
  %tid = load i64, ptr %tid.at, align 8
  %last.at = getelementptr i8, ptr %line, i64 16
  %last = load i64, ptr %last.at, align 8
  %inside = getelementptr i8, ptr %line, i64 {_INSIDE}
  %entry.at = getelementptr i8, ptr %state, i64 {_ENTRY}
  %args.at = getelementptr i8, ptr %state, i64 {_ARGS}
  %n.at = getelementptr i8, ptr %state, i64 {_N}
  %nthreads.at = getelementptr i8, ptr %state, i64 {_NTHREADS}
  %first.at = getelementptr i8, ptr %state, i64 {_FIRST}
  %spin.at = getelementptr i8, ptr %state, i64 {_SPIN}
  %team = getelementptr i8, ptr %state, i64 {_TEAM}
  %left.at = getelementptr i8, ptr %ticket, i64 {spmd.TICKET_LEFT}
  %turn.at = getelementptr i8, ptr %ticket, i64 {spmd.TICKET_TURN}
  store i64 0, ptr %turn.at, align 8
  br label %idle
idle:
  ; who takes no part in a job, or is suspended, does not spin after it
  %seen = phi i64 [%last, %start], [%sequence, %outside]
  %patient = phi i1 [true, %start], [%stays, %outside]
  %setting = load atomic i64, ptr %spin.at monotonic, align 8
  %spin = select i1 %patient, i64 %setting, i64 0
  %odd = or i64 %seen, 1
  %next = add i64 %odd, 1
  %slept = call i64 @nw_wait(ptr %state, i64 %next, i64 %spin)
  %awake = icmp eq i64 %slept, 0
  br i1 %awake, label %enter, label %rested
rested:
  %fresh = call i64 @llvm.readcyclecounter()
  store i64 %fresh, ptr %turn.at, align 8
  br label %enter
enter:
  %before = atomicrmw xchg ptr %inside, i64 1 seq_cst
  %sequence = load atomic i64, ptr %state seq_cst, align 8
  %bit = and i64 %sequence, 1
  %writing = icmp ne i64 %bit, 0
  br i1 %writing, label %outside, label %copy
copy:
  %entry = load atomic ptr, ptr %entry.at monotonic, align 8
  %args = load atomic ptr, ptr %args.at monotonic, align 8
  %n = load atomic i64, ptr %n.at monotonic, align 8
  %nthreads = load atomic i64, ptr %nthreads.at monotonic, align 8
  %first = load atomic i64, ptr %first.at monotonic, align 8
  fence acquire
  %again = load atomic i64, ptr %state monotonic, align 8
  %same = icmp eq i64 %again, %sequence
  br i1 %same, label %look, label %outside
look:
  %mine = icmp ult i64 %tid, %nthreads
  br i1 %mine, label %work, label %outside
work:
  %end = icmp eq ptr %entry, null
  br i1 %end, label %exit, label %call
call:
  call void @nw_ticket(ptr %ticket, ptr %team, i64 %tid, i64 %nthreads, i64 %first)
  call void %entry(ptr %args, i64 %n, i64 %tid, i64 %nthreads, ptr %ticket)
  %left = load i64, ptr %left.at, align 8
  %stayed = icmp eq i64 %left, 0
  br label %outside
outside:
  %stays = phi i1 [true, %enter], [true, %copy], [false, %look], [%stayed, %call]
  store atomic i64 0, ptr %inside release, align 8
  br label %idle
exit:
  ret ptr null
}}
"""


class Team:
    """The workers of one pool: their memory, native code and thread handles.

    Everything but `vacant` while a job runs is for one thread at a time.
    """

    def __init__(self) -> None:
        library = native()
        size = _WORKERS + _WORKER_BYTES * settings.MAX_THREADS
        self._memory = ctypes.create_string_buffer(size + 64)
        self.state = -(-ctypes.addressof(self._memory) // 64) * 64
        self.threads = 1
        self._wanted = 1
        self.prepared = 1
        self._handles: list[Any] = []
        self.placement = Placement(self._handles)
        self._library = library
        word, address = ctypes.c_int64, ctypes.c_void_p
        self._stop = library.function("nw_pool_stop", None, address)
        self._vacate = library.function("nw_pool_vacate", word, address, word)

    def prepare(self, threads: int) -> None:
        """Gets ready to run ``threads`` threads."""
        if threads == self.prepared:
            return
        self.prepared = threads
        # Spinning is for threads that have a core each; otherwise it keeps the others from theirs.
        rate = ticks_per_second()
        spin = rate if threads <= settings.available_cpus() else 0.0
        self._put(_SPIN, ctypes.c_int64, int(spin * DISPATCH_SPIN_SECONDS))
        self._put(_TEAM + spmd.TEAM_SPIN, ctypes.c_int64, int(spin * ROUND_SPIN_SECONDS))
        self._put(_TEAM + spmd.TEAM_PATIENCE, ctypes.c_int64, int(rate * PATIENCE_SECONDS))
        self._put(_TEAM + spmd.TEAM_TURN, ctypes.c_int64, int(rate * TURN_SECONDS))
        if threads > self._wanted:
            self._wanted = threads  # what could not be started once is not tried again
            self._start(threads)

    def _start(self, threads: int) -> None:
        seen = ctypes.c_int64.from_address(self.state).value
        blocked = {s for s in signal.valid_signals() if _name(s) not in _SYNCHRONOUS}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # inherited by the new threads
        try:
            for tid in range(self.threads, threads):
                line = _WORKERS + _WORKER_BYTES * tid
                self._put(line, ctypes.c_void_p, self.state)
                self._put(line + 8, ctypes.c_int64, tid)
                self._put(line + 16, ctypes.c_int64, seen)
                handle = ctypes.c_void_p()
                worker = self._library.address("nw_pool_worker")
                code = libc().pthread_create(ctypes.byref(handle), None, worker, self.state + line)
                if code != 0:
                    warnings.warn(
                        f"cannot start thread {tid + 1} of {threads}: {os.strerror(code)}; "
                        f"netwright runs with {tid} (see `ulimit -u`)",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    break
                self._handles.append(handle)
                self.threads = tid + 1
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.placement.forget()

    def vacant(self) -> bool:
        """Withdraws the last job; whether no worker is inside of an entry any more."""
        return self._vacate(self.state, self.threads - 1) == 0

    def stop(self) -> None:
        """Ends the workers and waits for them."""
        self._stop(self.state)
        for handle in self._handles:
            libc().pthread_join(handle, None)
        self._handles.clear()
        self.placement.forget()
        self.threads = self._wanted = self.prepared = 1

    def leak(self) -> None:
        """Keeps the memory and the code for ever."""
        for kept in (self._memory, self._library):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))

    def _put(self, offset: int, kind: Any, value: int) -> None:
        kind.from_address(self.state + offset).value = value


def available() -> bool:
    """Whether this platform has a pool; if not, every program runs on the calling thread."""
    return waiting.threads_supported(waiting.host_triple())


@functools.lru_cache(maxsize=1)
def native() -> Library:
    """The code of `team_ir` for this machine."""
    from . import jit

    return jit.load(team_ir(waiting.host_triple()), key_parts={"kind": "thread pool"})


@functools.lru_cache(maxsize=1)
def native_run() -> Callable[..., int]:
    """``nw_pool_run`` as a foreign function, see `team_ir`."""
    word, address = ctypes.c_int64, ctypes.c_void_p
    return native().function("nw_pool_run", word, address, address, address, word, word)


@functools.lru_cache(maxsize=1)
def libc() -> ctypes.CDLL:
    """The functions of the C library that start, place and end threads."""
    library = ctypes.CDLL(None)
    address = ctypes.c_void_p
    library.pthread_create.argtypes = [address, address, address, address]
    library.pthread_join.argtypes = [address, address]
    return library


@functools.lru_cache(maxsize=1)
def clock() -> Callable[[], int]:
    """A function that reads the counter that spinning and kernels are timed with.

    Its rate is constant and the same on all CPUs, although LLVM says cycles: x86 TSC, ARM
    CNTVCT_EL0.
    """
    return native().function("nw_pool_ticks", ctypes.c_int64)


@functools.lru_cache(maxsize=1)
def ticks_per_second() -> float:
    """The rate of `clock`."""
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
