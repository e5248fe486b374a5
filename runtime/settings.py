"""Every environment variable that netwright reads, and the number of threads it uses.

====================== =========================================================================
NETWRIGHT_NUM_THREADS  threads per call; default: as many as this process may use, see
                       `num_threads`
NETWRIGHT_CACHE_DIR    where object code is kept; ``off`` switches the cache off; default:
                       ``$XDG_CACHE_HOME/netwright`` or ``~/.cache/netwright``
NETWRIGHT_CPU          generate code for this CPU instead of the host (``haswell``); read by
                       `codegen.target`, since code generation does not depend on the runtime
NETWRIGHT_DEBUG        0 (silent) to 5: 1 passes and times, 2 graphs, 3 kernels, 4 LLVM IR,
                       5 assembly
NETWRIGHT_DUMP         directory that every compilation writes its stages to
NETWRIGHT_DISABLE      1: run every model with the numpy interpreter, compile nothing
====================== =========================================================================

An empty variable counts as unset. Each is read when it is needed, so that a program may set it
after importing netwright.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath

NUM_THREADS = "NETWRIGHT_NUM_THREADS"
CACHE_DIR = "NETWRIGHT_CACHE_DIR"
CPU = "NETWRIGHT_CPU"
DEBUG = "NETWRIGHT_DEBUG"
DUMP = "NETWRIGHT_DUMP"
DISABLE = "NETWRIGHT_DISABLE"
VARIABLES = (NUM_THREADS, CACHE_DIR, CPU, DEBUG, DUMP, DISABLE)

MAX_THREADS = 1024
MAX_DEBUG = 5

_num_threads: int | None = None
generation = 0
"""Counts the calls of `set_num_threads`: who remembers it sees that the number may have changed."""
_debug: int | None = None


def num_threads() -> int:
    """How many threads a call uses.

    In this order: what `set_num_threads` set; NETWRIGHT_NUM_THREADS; else the smallest of the
    CPUs that the process may run on (`available_cpus`) and OMP_NUM_THREADS.
    Raises ValueError if NETWRIGHT_NUM_THREADS is not a number from 1 to 1024.
    """
    if _num_threads is not None:
        return _num_threads
    text = os.environ.get(NUM_THREADS, "").strip()
    if text:
        return _whole_number(NUM_THREADS, text, 1, MAX_THREADS)
    return min(available_cpus(), _omp_num_threads() or MAX_THREADS, MAX_THREADS)


def set_num_threads(n: int | None) -> None:
    """Sets the number of threads for this process; ``None`` goes back to the default.

    Raises TypeError if ``n`` is not an int, ValueError if it is not from 1 to 1024.
    """
    global _num_threads, generation
    generation += 1
    if n is None:
        _num_threads = None
        return
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"set_num_threads expects an int, got {n!r} ({type(n).__name__})")
    number = n.__index__()
    if not 1 <= number <= MAX_THREADS:
        raise ValueError(f"set_num_threads expects a number from 1 to {MAX_THREADS}, got {number}")
    _num_threads = number


def num_threads_is_chosen() -> bool:
    """Whether the user has said how many threads to use, in whichever way."""
    variables = (os.environ.get(NUM_THREADS, "").strip(), _omp_num_threads())
    return _num_threads is not None or any(variables)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Sets the number of threads for a while; errors as in `set_num_threads`."""
    global _num_threads
    before = _num_threads
    set_num_threads(n)
    try:
        yield
    finally:
        _num_threads = before


def available_cpus() -> int:
    """CPUs that this process may use: the affinity mask and the cgroup's quota, rounded up."""
    cpus = len(cpu_set())
    return max(1, min(cpus, cgroup_cpus() or cpus))


def cpu_set() -> frozenset[int]:
    """The numbers of the CPUs that this process may run on: the affinity mask, or all."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


@lru_cache(maxsize=8)
def cgroup_cpus(root: str = "/") -> int | None:
    """The CPU quota of this process's control group in whole CPUs, rounded up; None if unlimited.

    The quota is a limit of the group and of every group above it (Linux
    Documentation/admin-guide/cgroup-v2.rst "cpu.max", scheduler/sched-bwc.rst for version 1). It
    is read once per process: a container's quota seldom changes. ``root`` is for tests.
    """
    mount = Path(root, "sys/fs/cgroup")
    quotas: list[float] = []
    for line in _lines(Path(root, "proc/self/cgroup")):
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers == "":
            bases = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [mount / controllers, mount / "cpu", mount / "cpu,cpuacct"]
        else:
            continue
        quotas += [q for base in bases for group in _groups(path) if (q := _quota(base / group))]
    return max(1, math.ceil(min(quotas))) if quotas else None


def _groups(path: str) -> list[str]:
    """The group and those above it, relative to the mount.

    A container may list the host's path, which it cannot see; its own group is then the mount
    itself, the last entry.
    """
    names = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return ["/".join(names[:k]) for k in range(len(names), -1, -1)]


def _quota(group: Path) -> float | None:
    """CPUs that one control group grants, whichever version its files are of."""
    fields = " ".join(_lines(group / "cpu.max")).split()
    if not fields:
        fields = _lines(group / "cpu.cfs_quota_us") + _lines(group / "cpu.cfs_period_us")
    try:
        quota, period = (int(field) for field in fields)
    except ValueError:  # "max", or no such files
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split("\n")[:-1]
    except (OSError, UnicodeDecodeError):
        return []


def _omp_num_threads() -> int | None:
    """OMP_NUM_THREADS (OpenMP 5.2, 21.1.2: a list, one entry per nesting level).

    The variable is not ours: a value that makes no sense is left to its owner to report.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def cache_dir() -> Path | None:
    """The directory for object code, which need not exist; None if caching is off.

    None also if there is no home directory. Never a directory that other users share by default.
    """
    text = os.environ.get(CACHE_DIR, "").strip()
    if text.lower() == "off":
        return None
    try:
        if text:
            return Path(text).expanduser().absolute()
        return _user_cache() / "netwright"
    except RuntimeError:  # Path.home() knows no home directory
        return None


def _user_cache() -> Path:
    """The platform's directory for caches of one user (XDG Base Directory Specification 0.8)."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the specification: a relative path is invalid and to be ignored
        return Path(xdg)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path.home() / ".cache"


def cpu() -> str | None:
    """The CPU to generate code for, as LLVM names it; None means this machine's own."""
    return os.environ.get(CPU, "").strip() or None


def debug() -> int:
    """How much a compilation prints, 0 to 5. Raises ValueError if NETWRIGHT_DEBUG is not that."""
    if _debug is not None:
        return _debug
    text = os.environ.get(DEBUG, "").strip()
    return _whole_number(DEBUG, text, 0, MAX_DEBUG) if text else 0


@contextmanager
def debugging(level: int) -> Iterator[None]:
    """Sets the debug level inside a ``with`` block, whatever NETWRIGHT_DEBUG says."""
    global _debug
    if not 0 <= level <= MAX_DEBUG:
        raise ValueError(f"the debug level is a number from 0 to {MAX_DEBUG}, got {level}")
    before, _debug = _debug, level
    try:
        yield
    finally:
        _debug = before


def dump() -> Path | None:
    """The directory that every compilation writes its stages to, if any."""
    text = os.environ.get(DUMP, "").strip()
    return Path(text).expanduser().absolute() if text else None


def disabled() -> bool:
    """Whether models run in the numpy interpreter. Raises ValueError on other words than these."""
    text = os.environ.get(DISABLE, "").strip().lower()
    if text in ("", "0", "false", "no", "off"):
        return False
    if text in ("1", "true", "yes", "on"):
        return True
    raise ValueError(f"{DISABLE}={text!r} is not understood; set it to 1 or 0, or unset it")


def _whole_number(variable: str, text: str, low: int, high: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise ValueError(
            f"{variable}={text!r} is not a number from {low} to {high}; correct or unset it"
        )
    return number
