"""Interleaved timing and the facts that a result needs to be believed."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import networkx
import numpy as np

import netwright as nw
from netwright.codegen.target import host
from netwright.runtime import probe

PAUSE_SECONDS = 0.1

ROOT = Path(__file__).resolve().parent.parent


def interleave(
    calls: dict[str, Callable[[], Any]], seconds: float = 3.0, rounds: int = 15
) -> dict[str, dict[str, float]]:
    """Times several calls in turn: medians and quartiles in milliseconds by name.

    Every round runs each call for about ``seconds / rounds`` divided among them and counts its
    mean, so a slow phase of the machine hits all of them.
    """
    counts = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        share = seconds / rounds / len(calls)
        counts[name] = max(1, int(share / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            # numpy's BLAS threads keep spinning for some 30 ms after a product; without a pause the
            # next measurement would share its cores with them.
            time.sleep(PAUSE_SECONDS)
            for _ in range(3):
                call()
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            samples[name].append((time.perf_counter() - start) / counts[name] * 1e3)
    found = {}
    for name, times in samples.items():
        low, median, high = statistics.quantiles(times, n=4)
        found[name] = {"median_ms": median, "q1_ms": low, "q3_ms": high, "calls": counts[name]}
    return found


def ratio(a: dict[str, float], b: dict[str, float]) -> float:
    """How many times faster ``b`` is than ``a``, of medians."""
    return a["median_ms"] / b["median_ms"]


def environment() -> dict[str, Any]:
    """Machine, versions and commit."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
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
        "commit": found.stdout.strip() or "unknown",
    }


def blas() -> str:
    """Which BLAS numpy's matmul (the eager mode) uses."""
    config: Any = np.show_config(mode="dicts")
    library = config.get("Build Dependencies", {}).get("blas", {})
    return f"{library.get('name', '?')} {library.get('version', '?')}"
