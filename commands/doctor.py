"""``netwright doctor``: what netwright found out about this machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

from ..ir.columns import aligned, size_text


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="describe this machine: CPU, threads, caches, measured peaks",
        description="Describes the machine as netwright sees it and measures its arithmetic peak "
        "and memory bandwidth with generated code (about a second).",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures and prints."""
    result = examine()
    print(json.dumps(result, indent=1) if options.json else report(result))
    return 0


def examine() -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    from ..codegen.target import host
    from ..runtime import cache, probe, settings
    from .machine import isa_name, notable_features, thread_facts, versions

    target = host()
    threads = thread_facts()
    measured = probe.measure(threads["used"])
    return {
        "versions": versions(target),
        "system": platform.platform(),
        "cpu": {
            "model": probe.cpu_model(),
            "target": target.cpu,
            "isa": isa_name(target),
            "vector_bits": target.vector_bytes * 8,
            "features": notable_features(target),
            "caches": [
                {"level": c.level, "bytes": c.bytes, "shared_by": c.shared_by}
                for c in probe.caches()
            ],
        },
        "threads": threads,
        "measured": {
            "peak_gflops_one_thread": measured.peak_one,
            "peak_gflops": measured.peak_all,
            "bandwidth_gbs": measured.bandwidth,
        },
        "object_cache": cache.default().info(),
        "environment": {v: os.environ[v] for v in settings.VARIABLES if os.environ.get(v)},
    }


def report(result: dict[str, Any]) -> str:
    """The result for people."""
    cpu, threads, measured = result["cpu"], result["threads"], result["measured"]
    store = result["object_cache"]
    limits = [f"{threads['cpus']} CPUs"]
    if threads["affinity"] is not None:
        limits.append(f"affinity {threads['affinity']}")
    limits.append(f"cgroup {threads['cgroup'] or 'unlimited'}")
    caches = [
        f"L{c['level']} {size_text(c['bytes'])}"
        + (f" shared by {c['shared_by']}" if c["shared_by"] > 1 else "")
        for c in cpu["caches"]
    ]
    used = threads["used"]
    rows = [
        ("versions", ", ".join(f"{k} {v}" for k, v in result["versions"].items())),
        ("system", result["system"]),
        ("CPU", f"{cpu['model']} ({cpu['target']})"),
        ("instructions", f"{cpu['isa']}; has {', '.join(cpu['features']) or 'none of note'}"),
        ("data caches", ", ".join(caches) or "unknown"),
        ("threads", f"{used} used ({', '.join(limits)})"),
        (
            "FMA peak",
            f"{measured['peak_gflops_one_thread']:.1f} GFLOP/s on one thread, "
            f"{measured['peak_gflops']:.1f} on {used} (float32, measured)",
        ),
        ("memory", f"{measured['bandwidth_gbs']:.1f} GB/s on {used} threads (triad, measured)"),
        ("object cache", _cache_text(store)),
    ]
    rows += [("environment", f"{k}={v}") for k, v in result["environment"].items()]
    return aligned(rows)


def _cache_text(store: dict[str, Any]) -> str:
    where = store["directory"] or "none"
    problem = f"; {store['problem']}" if store["problem"] else ""
    return f"{where}: {store['entries']} entries, {size_text(store['bytes'])}{problem}"
