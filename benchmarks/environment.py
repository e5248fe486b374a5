"""The facts that a result needs to be believed: machine, versions, commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite
import networkx
import numpy as np

import netwright as nw
from netwright.codegen.target import host
from netwright.runtime import probe

ROOT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    target = host()
    return {
        "cpu": probe.cpu_model(),
        "target": target.name,
        "vector_bytes": target.vector_bytes,
        "threads": nw.get_num_threads(),
        "fma_peak_gflops": {
            "one thread": probe.peak_gflops(1),
            "all threads": probe.peak_gflops(),
        },
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "netwright": nw.__version__,
        "numpy": np.__version__,
        "blas": blas(),
        "llvmlite": llvmlite.__version__,
        "networkx": networkx.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """The commit that is checked out, with ``-dirty`` if files differ from it; results, which the
    benchmarks write while they run, do not count."""
    name = _git("rev-parse", "--short", "HEAD")
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results"
    )
    return f"{name or 'unknown'}{'-dirty' if changed else ''}"


def _git(*arguments: str) -> str:
    found = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def blas() -> str:
    """Which BLAS numpy's matmul (the eager mode) uses."""
    config: Any = np.show_config(mode="dicts")
    library = config.get("Build Dependencies", {}).get("blas", {})
    return f"{library.get('name', '?')} {library.get('version', '?')}"
