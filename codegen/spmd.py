"""Synchronisation of threads in LLVM IR: waiting for a word to change, and a barrier.

A program runs as SPMD (single program, multiple data): every thread calls the same entry
``void @entry(ptr args, i64 N, i64 tid, i64 nthreads, ptr barrier)``, does its share of each
kernel's tasks, and calls ``@nw_barrier(ptr barrier, i64 nthreads)`` where one kernel reads what
another thread wrote.

Waiting never burns a core for longer than a bounded time: a thread spins, then sleeps in the
kernel (futex(2)). What prevents a lost wake-up: a sleeper first counts itself in ``sleepers`` and
then looks at the word again, a waker first changes the word and then looks at ``sleepers``; all
four are sequentially consistent, so at least one of them sees the other.
"""

from __future__ import annotations

import platform
import sys

BARRIER_BYTES = 256
"""Size of a barrier: zeroed memory, 64-byte aligned. Each word has a cache line of its own:
i32 arrived at 0, i32 generation at 64, i32 sleepers at 128, i64 ticks to spin at 192 (0: none)."""

BARRIER_SPIN_OFFSET = 192

# (number of the futex system call, instruction for a spinning thread); Linux only
_SYSTEMS = {
    "x86_64": (202, "call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"),
    "aarch64": (98, "call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"),
}


def host_triple() -> str:
    """Enough of this process's triple to choose the code below (without importing LLVM)."""
    bits = 64 if sys.maxsize > 2**32 else 32
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"{machine if bits == 64 else 'other'}-unknown-{sys.platform}"


def threads_supported(triple: str) -> bool:
    """Whether `wait_ir` exists for a target: 64-bit Linux on x86 or ARM."""
    return "linux" in triple and triple.split("-")[0] in _SYSTEMS


def declarations(triple: str) -> frozenset[str]:
    """The ``declare`` lines that `wait_ir` and `barrier_ir` need."""
    if not threads_supported(triple):
        return frozenset()
    pause = _SYSTEMS[triple.split("-")[0]][2]
    clock = "declare i64 @llvm.readcyclecounter()"
    return frozenset({"declare i64 @syscall(i64, ...)", clock, pause})


def wait_ir(triple: str) -> str:
    """Definitions of ``@nw_wait`` and ``@nw_wake``, the two halves of waiting for a word.

    ``i32 @nw_wait(ptr word, i32 seen, ptr sleepers, i64 spin)`` returns the word once it differs
    from ``seen``; it sleeps after ``spin`` ticks of the cycle counter (x86 TSC, ARM CNTVCT_EL0).
    ``void @nw_wake(ptr word, ptr sleepers)`` wakes all that sleep; call it after the change.
    """
    number, pause, _ = _SYSTEMS[triple.split("-")[0]]
    return f"""\
define internal i32 @nw_wait(ptr %word, i32 %seen, ptr %sleepers, i64 %spin) nounwind {{
entry:
  %start = call i64 @llvm.readcyclecounter()
  br label %look
look:
  %quick = load atomic i32, ptr %word acquire, align 4
  %ready = icmp ne i32 %quick, %seen
  br i1 %ready, label %done, label %pause
pause:
  {pause}
  %now = call i64 @llvm.readcyclecounter()
  %elapsed = sub i64 %now, %start
  %patient = icmp ult i64 %elapsed, %spin
  br i1 %patient, label %look, label %sleep
sleep:
  %others = atomicrmw add ptr %sleepers, i32 1 seq_cst
  %again = load atomic i32, ptr %word seq_cst, align 4
  %unchanged = icmp eq i32 %again, %seen
  br i1 %unchanged, label %block, label %awake
block:
  %expected = zext i32 %seen to i64
  ; FUTEX_WAIT | FUTEX_PRIVATE_FLAG, no timeout
  %slept = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i64 128, i64 %expected, ptr null)
  br label %awake
awake:
  %left = atomicrmw sub ptr %sleepers, i32 1 seq_cst
  %late = load atomic i32, ptr %word acquire, align 4
  %changed = icmp ne i32 %late, %seen
  br i1 %changed, label %done, label %sleep
done:
  %value = phi i32 [%quick, %look], [%late, %awake]
  ret i32 %value
}}

define internal void @nw_wake(ptr %word, ptr %sleepers) nounwind {{
entry:
  %count = load atomic i32, ptr %sleepers seq_cst, align 4
  %none = icmp eq i32 %count, 0
  br i1 %none, label %done, label %wake
wake:
  ; FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX threads
  %woken = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i64 129, i64 2147483647)
  br label %done
done:
  ret void
}}
"""


def barrier_ir(triple: str) -> str:
    """Definition of ``void @nw_barrier(ptr barrier, i64 nthreads)`` and of what it calls.

    All of ``nthreads`` threads return from it after all of them have entered, and see each other's
    writes. With one thread it does nothing and ``barrier`` may be null. Where threads are not
    supported it is always that. The last to arrive starts the next generation.
    """
    if not threads_supported(triple):
        return """\
define internal void @nw_barrier(ptr %barrier, i64 %nthreads) nounwind {
  ret void
}
"""
    return (
        wait_ir(triple)
        + """
define internal void @nw_barrier(ptr %barrier, i64 %nthreads) nounwind {
entry:
  %single = icmp sle i64 %nthreads, 1
  br i1 %single, label %done, label %arrive
arrive:
  %generation = getelementptr i8, ptr %barrier, i64 64
  %sleepers = getelementptr i8, ptr %barrier, i64 128
  %seen = load atomic i32, ptr %generation acquire, align 4
  %before = atomicrmw add ptr %barrier, i32 1 acq_rel
  %count = add i32 %before, 1
  %all = trunc i64 %nthreads to i32
  %last = icmp eq i32 %count, %all
  br i1 %last, label %release, label %wait
release:
  store atomic i32 0, ptr %barrier monotonic, align 4
  %next = add i32 %seen, 1
  store atomic i32 %next, ptr %generation seq_cst, align 4
  call void @nw_wake(ptr %generation, ptr %sleepers)
  br label %done
wait:
  %spin.at = getelementptr i8, ptr %barrier, i64 192
  %spin = load i64, ptr %spin.at, align 8
  %new = call i32 @nw_wait(ptr %generation, i32 %seen, ptr %sleepers, i64 %spin)
  br label %done
done:
  ret void
}
"""
    )


BARRIER_IR = barrier_ir(host_triple())
"""`barrier_ir` for this machine; its `declare` lines are in BARRIER_DECLARATIONS, because LLVM does
not accept two of the same in a module."""

BARRIER_DECLARATIONS = declarations(host_triple())
