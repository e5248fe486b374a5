"""What commands say about the machine: instruction set, threads, versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from ..codegen.target import Target
from ..runtime import jit, settings

_NOTABLE = (
    "sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512dq", "avx512bw",
    "avx512vnni", "avx512bf16", "amx-tile", "neon", "sve", "dotprod",
)  # fmt: skip


def isa_name(target: Target) -> str:
    """The instruction set that kernels use, with the width of its registers."""
    arm = target.triple.startswith(("aarch64", "arm64"))
    names = {16: "NEON" if arm else "SSE2", 32: "AVX2 + FMA", 64: "AVX-512"}
    return f"{names[target.vector_bytes]}, {target.vector_bytes * 8}-bit vectors"


def notable_features(target: Target) -> list[str]:
    """Those CPU features that matter for kernels and that the code may use."""
    have = {f[1:] for f in target.features.split(",") if f.startswith("+")}
    return [name for name in _NOTABLE if name in have]


def versions(target: Target) -> dict[str, str]:
    """Versions of netwright and of what it stands on."""
    from .. import __version__

    environment = jit.environment(target)
    return {
        "netwright": __version__,
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "llvmlite": environment["llvmlite"],
        "llvm": environment["llvm"],
        "networkx": metadata.version("networkx"),
    }


def thread_facts() -> dict[str, Any]:
    """How many threads a call uses, and the limits from which that follows."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "used": settings.num_threads(),
        "cpus": os.cpu_count(),
        "affinity": affinity,
        "cgroup": settings.cgroup_cpus(),
    }
