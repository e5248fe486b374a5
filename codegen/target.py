"""The machine that kernels are generated for: vector width, registers, caches, LLVM names."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import llvmlite.binding as llvm

from ..errors import CompileError
from ..ir.types import DType
from .object_code import create_machine, initialize

CPU_VARIABLE = "NETWRIGHT_CPU"
LINE = 64
"""Bytes of a cache line, on all targets."""


@dataclass(frozen=True)
class Target:
    """What a kernel generator may ask about a machine.

    ``vector_bytes`` is the width of a register, ``registers`` how many there are, ``l1``, ``l2``
    and ``l3`` are bytes of data cache (``l1`` and ``l2`` per core).
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    l1: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 8 << 20

    def lanes(self, dtype: DType) -> int:
        """Elements of ``dtype`` in one register (a bool is a byte)."""
        return max(1, self.vector_bytes // dtype.itemsize)


AVX512 = Target("avx512", "x86_64-unknown-linux-gnu", "cascadelake", "", 64, 32, l2=1 << 20)
AVX2 = Target("avx2", "x86_64-unknown-linux-gnu", "haswell", "", 32, 16, l2=256 << 10)
NEON = Target("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", "", 16, 32, l2=1 << 20)

_DISTINCT_CPUS = {"haswell": AVX2, "cascadelake": AVX512, "neoverse-n1": NEON}


@cache
def host() -> Target:
    """This machine, or the CPU named by the environment variable NETWRIGHT_CPU (``haswell``)."""
    initialize()
    triple = get_triple()
    asked = os.environ.get(CPU_VARIABLE, "")
    if asked:
        return _with_caches(_named(asked, triple))
    cpu = llvm.get_host_cpu_name()
    features = llvm.get_host_cpu_features()
    if features.get("avx512f") and features.get("avx512vl"):
        width, registers = 64, 32
    elif features.get("avx2") and features.get("fma"):
        width, registers = 32, 16
    else:
        width, registers = 16, 32 if triple.startswith(("aarch64", "arm64")) else 16
    flat = features.flatten()
    return _with_caches(Target(f"host:{cpu}", triple, cpu, flat, width, registers))


def get_triple() -> str:
    """The LLVM triple of this process."""
    return llvm.get_process_triple()


def _named(cpu: str, triple: str) -> Target:
    """A target for a CPU that the user named, with LLVM's own idea of its features."""
    known = _DISTINCT_CPUS.get(cpu)
    if known is not None:
        width, registers = known.vector_bytes, known.registers
    elif triple.startswith(("aarch64", "arm64")):
        width, registers = 16, 32
    elif cpu.startswith(("skylake-avx512", "icelake", "sapphirerapids", "znver4", "znver5")):
        width, registers = 64, 32
    elif cpu.startswith(("znver", "broadwell", "skylake", "alderlake", "x86-64-v3")):
        width, registers = 32, 16
    else:
        raise CompileError(
            f"{CPU_VARIABLE}={cpu} is not a CPU that netwright knows; use one of haswell, skylake, "
            "skylake-avx512, cascadelake, icelake-server, znver3, znver4, x86-64-v3, "
            "or unset the variable to use this machine's own"
        )
    return Target(f"cpu:{cpu}", triple, cpu, "", width, registers)


def _with_caches(target: Target) -> Target:
    """``target`` with the data cache sizes that Linux reports for the first core, if any."""
    sizes: dict[str, int] = {}
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level = (entry / "level").read_text().strip()
            kind = (entry / "type").read_text().strip()
            size = (entry / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and level in "123" and size.endswith("K"):
            sizes[f"l{level}"] = int(size[:-1]) << 10
    return replace(
        target,
        l1=sizes.get("l1") or target.l1,
        l2=sizes.get("l2") or target.l2,
        l3=sizes.get("l3") or target.l3,
    )


@lru_cache(maxsize=16)
def target_machine(target: Target) -> llvm.TargetMachine:
    """The LLVM target machine of a target (see `create_machine`)."""
    return create_machine(target.triple, target.cpu, target.features)
