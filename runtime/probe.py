"""What this machine can do, measured: peak arithmetic and memory bandwidth; and what it is.

`netwright doctor` and the profiler compare kernels with these numbers. They come from generated
code, run on the same threads as programs: multiply-adds that touch registers only, and loops over
buffers that are larger than the last-level cache. A shared machine gives less than it could, so
each number is the best of several short runs.
"""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import jit, pool, settings

if TYPE_CHECKING:
    from ..codegen.target import Target

_SLICE_SECONDS = 0.01
_UNROLL = 4
_MIN_BUFFER, _MAX_BUFFER = 16 << 20, 64 << 20

BANDWIDTH_KINDS = {"copy": 2, "triad": 3}
"""Loops and the words they move per element, counted as in STREAM (McCalpin 1995): ``a = b`` and
``a = b + s * c``; that a store first reads its cache line is not counted."""


def peak_gflops(threads: int | None = None, seconds: float = 0.15) -> float:
    """Float32 multiply-add peak in GFLOP/s (a multiply-add is 2) of ``threads`` threads together.

    ``threads`` defaults to `settings.num_threads`; takes about ``seconds``.
    """
    from ..codegen.target import host

    target = host()
    threads = settings.num_threads() if threads is None else threads
    library = jit.load(_fma_ir(target), target, {"kind": "peak probe"})
    entry = library.address("nw_probe_fma")
    # x and y: acc = acc * x + y stays near 1, so no value becomes denormal or infinite.
    memory, address = _aligned(64 + 64 * threads)
    memory[:2] = 0.5
    flops = 2 * (target.vector_bytes // 4) * _accumulators(target) * _UNROLL

    def once(n: int) -> float:
        return float(n * flops * pool.run(entry, address, n, threads))

    return _best_rate(once, 1 << 12, seconds) / 1e9


def bandwidth_gbs(threads: int | None = None, kind: str = "triad", seconds: float = 0.15) -> float:
    """Memory bandwidth in GB/s of ``threads`` threads together; ``kind`` as in BANDWIDTH_KINDS.

    The buffers take at most 192 MiB and are filled first, which is not part of ``seconds``.
    Raises ValueError for another kind.
    """
    from ..codegen.target import host

    if kind not in BANDWIDTH_KINDS:
        raise ValueError(f"bandwidth kind {kind!r} is not one of {', '.join(BANDWIDTH_KINDS)}")
    target = host()
    threads = settings.num_threads() if threads is None else threads
    library = jit.load(_stream_ir(target), target, {"kind": "bandwidth probe"})
    largest = max((c.bytes for c in caches() if c.level >= 2), default=8 << 20)
    count = min(max(2 * largest, _MIN_BUFFER), _MAX_BUFFER) // 4
    buffers = [_aligned(4 * count) for _ in range(3)]
    for value, (memory, _) in enumerate(buffers):
        memory.fill(value + 1)  # memory never written to is one page of zeros, always in cache
    args = (ctypes.c_int64 * 4)(*[address for _, address in buffers], count)
    entry = library.address(f"nw_probe_{kind}")
    moved = 4 * count * BANDWIDTH_KINDS[kind]

    def once(n: int) -> float:
        pool.run(entry, ctypes.addressof(args), n, threads)
        return float(n * moved)

    return _best_rate(once, 1, seconds) / 1e9


def _best_rate(once: Callable[[int], float], n: int, seconds: float) -> float:
    """Most work per second that ``once(n)``, which returns its work, reaches within ``seconds``."""
    best = 0.0
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work = once(n)
        elapsed = max(time.perf_counter() - start, 1e-9)
        best = max(best, work / elapsed)
        if start + elapsed >= end:
            return best
        if elapsed < _SLICE_SECONDS / 2:
            n = max(n + 1, int(n * min(_SLICE_SECONDS / elapsed, 8)))


def _aligned(size: int) -> tuple[Any, int]:
    """A float32 array of ``size`` bytes that starts on a cache line, and its address."""
    memory = np.empty(size // 4 + 16, np.float32)
    skip = -memory.ctypes.data % 64
    view = memory[skip // 4 : skip // 4 + size // 4]
    return view, view.ctypes.data


def _accumulators(target: Target) -> int:
    """Independent sums: enough to hide 4 cycles of latency on 2 to 4 units, none in memory."""
    return min(16, target.registers - 4)


def _fma_ir(target: Target) -> str:
    """An entry in which there are N rounds of multiply-adds on registers for each thread."""
    from ..codegen.llvm import module_text
    from ..codegen.sharing import close_entry, entry_function, shared
    from ..codegen.spmd import declarations, sharing_ir

    f = entry_function("nw_probe_fma")
    vector = f"<{target.vector_bytes // 4} x float>"
    # fmuladd: on a CPU without the instruction it is a multiply and an add, not a library call.
    multiply_add = f"llvm.fmuladd.v{target.vector_bytes // 4}f32"
    with shared(f, "%nthreads") as (begin, end), f.loop(end, start=begin) as part:
        x = f.splat(vector, f.load("float", "%args", 4))
        y = f.splat(vector, f.load("float", f.element("%args", "float", 1), 4))
        # Sums that start equal would stay equal, and LLVM would compute one of them.
        starts = [
            (vector, f.emit(f"fmul {vector} {x}, {f.splat(vector, str(float(k)))}"))
            for k in range(_accumulators(target))
        ]
        with f.loop("%N", carry=starts) as loop:
            sums = list(loop.carried)
            for _ in range(_UNROLL):
                sums = [
                    f.call(vector, multiply_add, (vector, s), (vector, x), (vector, y))
                    for s in sums
                ]
            loop.next = sums
        total = loop.results[0]
        for other in loop.results[1:]:
            total = f.emit(f"fadd {vector} {total}, {other}")
        # The result must be used; each part has a line of its own.
        line = f.emit(f"add i64 {part.index}, 1")
        first = f.emit(f"extractelement {vector} {total}, i64 0")
        f.store("float", first, f.element("%args", "[16 x float]", line), 4)
    text = close_entry(f)
    needed = f.declarations | declarations(target.triple)
    return module_text([sharing_ir(target.triple), text], needed)


def _stream_ir(target: Target) -> str:
    """Entries that run ``a = b`` and ``a = b + s * c`` N times; args = {a, b, c, count}."""
    from ..codegen.llvm import module_text
    from ..codegen.sharing import close_entry, entry_function, shared
    from ..codegen.spmd import declarations, sharing_ir

    lanes = target.vector_bytes // 4
    vector = f"<{lanes} x float>"
    functions = []
    for kind in BANDWIDTH_KINDS:
        f = entry_function(f"nw_probe_{kind}")
        with shared(f, "%nthreads") as (part, after):
            a, b, c = (f.load("ptr", f.element("%args", "ptr", k), 8) for k in range(3))
            count = f.load("i64", f.element("%args", "i64", 3), 8)
            vectors = f.emit(f"udiv i64 {count}, {lanes}")
            begin = f.emit(f"udiv i64 {f.emit(f'mul i64 {vectors}, {part}')}, %nthreads")
            end = f.emit(f"udiv i64 {f.emit(f'mul i64 {vectors}, {after}')}, %nthreads")
            with f.loop("%N"), f.loop(end, start=begin) as loop:
                value = f.load(vector, f.element(b, vector, loop.index), 4)
                if kind == "triad":
                    other = f.load(vector, f.element(c, vector, loop.index), 4)
                    scaled = f.emit(f"fadd {vector} {other}, {other}")
                    value = f.emit(f"fadd {vector} {value}, {scaled}")
                f.store(vector, value, f.element(a, vector, loop.index), 4)
        functions.append(close_entry(f))
    return module_text([sharing_ir(target.triple), *functions], declarations(target.triple))


@dataclass(frozen=True)
class Machine:
    """Measured rates: GFLOP/s of one thread and of all, GB/s of all, and how many all are."""

    threads: int
    peak_one: float
    peak_all: float
    bandwidth: float


@lru_cache(maxsize=4)
def measure(threads: int) -> Machine:
    """The rates of this machine with ``threads`` threads; measured once per process, < 1 s."""
    one = peak_gflops(1)
    everyone = one if threads == 1 else peak_gflops(threads)
    return Machine(threads, one, everyone, bandwidth_gbs(threads))


@dataclass(frozen=True)
class CacheLevel:
    """A data or unified cache of the first CPU: its level, size, and how many CPUs share it."""

    level: int
    bytes: int
    shared_by: int


def caches(root: str = "/sys/devices/system/cpu") -> list[CacheLevel]:
    """Data caches, smallest level first; empty where the kernel does not tell (only Linux does)."""
    found = []
    for entry in Path(root, "cpu0/cache").glob("index*"):
        try:
            kind, level, size, cpus = (
                (entry / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            if kind != "Instruction":
                found.append(CacheLevel(int(level), _size(size), _count(cpus)))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda c: c.level)


def _size(text: str) -> int:
    """Bytes of ``512K`` or ``1M``."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def _count(cpus: str) -> int:
    """CPUs in a list such as ``0-3,8``."""
    ranges = [[int(n) for n in part.split("-")] for part in cpus.split(",")]
    return sum(r[-1] - r[0] + 1 for r in ranges)


def cpu_model(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The CPU's name for people, as far as the system tells."""
    try:
        text = Path(cpuinfo).read_text()
    except (OSError, UnicodeDecodeError):
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        # ARM kernels name the board at most
        if name.strip() in ("model name", "Model", "cpu model") and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown"
