"""Waiting for a word of memory without burning a core, in LLVM IR, and the systems that have it.

Waiting never burns a core for longer than a bounded time: a thread spins, then sleeps in the kernel
(futex(2)). Beside a word that is waited for stands ``awaited``, the largest value that anybody
sleeps for. A sleeper first raises ``awaited`` and then looks at the word again; a waker first
changes the word and then looks at ``awaited``; these four are *sequentially consistent*, so at
least one of them sees the other. A woken thread that gets no CPU costs no second system call: once
the word has passed ``awaited``, nobody looks for it any more.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """Numbers of system calls, the instruction for a spinning thread and its declaration."""

    futex: int
    sched_yield: int
    pause: str
    declaration: str


# Linux only
_SYSTEMS = {
    "x86_64": System(
        202, 24, "call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"
    ),
    "aarch64": System(
        98, 124, "call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"
    ),
}


def host_triple() -> str:
    """Enough of this process's triple to choose the code below (without importing LLVM)."""
    bits = 64 if sys.maxsize > 2**32 else 32
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    return f"{machine if bits == 64 else 'other'}-unknown-{sys.platform}"


def threads_supported(triple: str) -> bool:
    """Whether `wait_ir` exists for a target: 64-bit Linux on x86 or ARM."""
    return "linux" in triple and triple.split("-")[0] in _SYSTEMS


def system_of(triple: str) -> System:
    """Of a target for which `threads_supported` is true."""
    return _SYSTEMS[triple.split("-")[0]]


def wait_ir(triple: str) -> str:
    """Definitions of ``@nw_wait`` and ``@nw_wake``, the two halves of waiting for a word.

    ``i64 @nw_wait(ptr word, i64 value, i64 spin)`` returns once the i64 ``word`` is at least
    ``value``, and sees what was written before that; it sleeps after ``spin`` ticks of the cycle
    counter (x86 TSC, ARM CNTVCT_EL0). The result is for how many ticks it slept. ``awaited`` is the
    i64 behind the word. ``void @nw_wake(ptr word, i64 value)``, called after the word became
    ``value``, wakes all who sleep.
    """
    system = system_of(triple)
    # The kernel compares the low half of the word, which is the first on these machines. Between
    # a look at it and the system call it does not advance by 2**32.
    return f"""\
define internal i64 @nw_wait(ptr %word, i64 %value, i64 %spin) nounwind {{
entry:
  %awaited = getelementptr i8, ptr %word, i64 8
  %quick = load atomic i64, ptr %word acquire, align 8
  %ready = icmp uge i64 %quick, %value
  br i1 %ready, label %soon, label %begin
begin:
  %start = call i64 @llvm.readcyclecounter()
  br label %pause
pause:
  {system.pause}
  %look = load atomic i64, ptr %word acquire, align 8
  %come = icmp uge i64 %look, %value
  br i1 %come, label %soon, label %patience
patience:
  %now = call i64 @llvm.readcyclecounter()
  %elapsed = sub i64 %now, %start
  %patient = icmp ult i64 %elapsed, %spin
  br i1 %patient, label %pause, label %sleep
sleep:
  %before = atomicrmw umax ptr %awaited, i64 %value seq_cst
  %again = load atomic i64, ptr %word seq_cst, align 8
  %late = icmp uge i64 %again, %value
  br i1 %late, label %awake, label %block
block:
  %low = and i64 %again, 4294967295
  ; FUTEX_WAIT | FUTEX_PRIVATE_FLAG, no timeout
  %slept = call i64 (i64, ...) @syscall(i64 {system.futex}, ptr %word, i64 128, i64 %low, ptr null)
  br label %sleep
awake:
  %finally = call i64 @llvm.readcyclecounter()
  %duration = sub i64 %finally, %now
  ret i64 %duration
soon:
  ret i64 0
}}

define internal void @nw_wake(ptr %word, i64 %value) nounwind {{
entry:
  %awaited = getelementptr i8, ptr %word, i64 8
  %wanted = load atomic i64, ptr %awaited seq_cst, align 8
  %asleep = icmp uge i64 %wanted, %value
  br i1 %asleep, label %wake, label %done
wake:
  ; FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX threads
  %woken = call i64 (i64, ...) @syscall(i64 {system.futex}, ptr %word, i64 129, i64 2147483647)
  br label %done
done:
  ret void
}}
"""
