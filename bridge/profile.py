"""The profile of a compiled program: a row per kernel, and what they run on. It prints as a table.

`profiler` measures it; docs/profiling.md explains how to read it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

from ..ir.columns import aligned
from .compile_report import CompileReport
from .memory_use import MemoryUse

_WIDTH = 40
# Memory bandwidth is measured as well as kernels: a little more than all of it is noise.
_POSSIBLE = 1.1
_HEADER = (
    "kernel", "operators", "module", "ms", "share", "GFLOP/s", "GB/s", "of the limit", "tasks",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What the machine can do with the threads of a program, measured before and after it: FMA peak
    in GFLOP/s and memory bandwidth in GB/s (`runtime.probe`). The larger of the two counts."""

    threads: int
    gflops: tuple[float, float]
    gbs: tuple[float, float]

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        return (
            f"{self.threads} thread{plural}: FMA peak {_before_after(self.gflops)} GFLOP/s, "
            f"memory {_before_after(self.gbs)} GB/s (before, after)"
        )

    def judge(self, flops: int, moved: int, ms: float) -> tuple[str, float]:
        """What limits a kernel, and how much of the limit it reaches (see `Row`)."""
        spent = max(ms, 1e-9) / 1e3
        arithmetic = flops / (max(self.gflops) * 1e9) / spent
        memory = moved / (max(self.gbs) * 1e9) / spent
        if memory > _POSSIBLE:
            return "cache", arithmetic
        return ("fma", arithmetic) if arithmetic > memory else ("memory", memory)


@dataclass(frozen=True)
class Row:
    """One kernel, group of small kernels, copy or numpy call of a run.

    order: its place in the run; phase: ``eval``, ``forward``, ``backward`` or ``step``; kernel: its
    symbol, ``copy``, ``numpy``, or how many kernels share the work at once; node: the IR node, or
    the nodes of these; operators: that it consists of; modules: their paths in the model, without
    those that contain others; ms: median; share: of all rows; flops and bytes: the work, where
    operands and results count as moved once; bound: ``fma`` or ``memory``, whichever needs more
    time at the machine's limits, or ``cache`` if more was moved than memory can: the data was in
    caches; of_limit: part of the FMA peak, or of the memory bandwidth if that is the bound; tasks:
    pieces that threads share.
    """

    order: int
    phase: str
    kernel: str
    node: str
    operators: tuple[str, ...]
    modules: tuple[str, ...]
    ms: float
    share: float
    flops: int
    bytes: int
    bound: str
    of_limit: float
    tasks: int

    @property
    def gflops(self) -> float:
        """GFLOP/s."""
        return self.flops / max(self.ms, 1e-9) / 1e6

    @property
    def gbs(self) -> float:
        """GB/s."""
        return self.bytes / max(self.ms, 1e-9) / 1e6

    def as_json(self) -> dict[str, Any]:
        """All fields by name, and the two rates."""
        return {**asdict(self), "gflops": self.gflops, "gbs": self.gbs}


COLUMNS = ("order", "ms", "gflops", "gbs", "of_limit", "flops", "bytes", "kernel", "node", "phase")
_ASCENDING = ("order", "kernel", "node", "phase")


@dataclass(frozen=True)
class Profile:
    """Times of the kernels of a compiled program.

    mode: ``eval``, ``forward`` (of a model in train mode, without gradients), ``train`` (forward
    and backward) or ``step``; rows: in the order of the run; limits: by phase; runs: how many timed
    runs; call_ms: a whole call without timing, from arguments to results; timed_call_ms: one with
    it; outside_ms: the part of the latter that is not in kernels; all medians.
    """

    model: str
    mode: str
    batch: int
    rows: tuple[Row, ...]
    limits: dict[str, Limits]
    runs: int
    call_ms: float
    timed_call_ms: float
    outside_ms: float
    memory: MemoryUse
    compile: CompileReport

    @property
    def kernels_ms(self) -> float:
        """All rows together."""
        return sum(row.ms for row in self.rows)

    @property
    def fallbacks(self) -> int:
        """Operators that ran through numpy."""
        return sum(row.kernel == "numpy" for row in self.rows)

    def sorted(self, by: str = "ms") -> Profile:
        """The same with other rows first: names in their order, numbers largest first. Raises
        ValueError if ``by`` is not one of COLUMNS."""
        if by not in COLUMNS:
            raise ValueError(f"cannot sort by {by!r}; the columns are {', '.join(COLUMNS)}")
        rows = sorted(self.rows, key=attrgetter(by), reverse=by not in _ASCENDING)
        return replace(self, rows=tuple(rows))

    def as_json(self) -> dict[str, Any]:
        """Plain values; docs/cli.md lists the keys."""
        return {
            "model": self.model,
            "mode": self.mode,
            "batch": self.batch,
            "runs": self.runs,
            "kernels_ms": self.kernels_ms,
            "call_ms": self.call_ms,
            "timed_call_ms": self.timed_call_ms,
            "outside_ms": self.outside_ms,
            "fallbacks": self.fallbacks,
            "limits": {phase: asdict(limits) for phase, limits in self.limits.items()},
            "memory": self.memory.as_json(),
            "compile": self.compile.as_json(),
            "rows": [row.as_json() for row in self.rows],
        }

    def __str__(self) -> str:
        several = len(self.limits) > 1
        rows: list[tuple[str, ...]] = [("phase", *_HEADER) if several else _HEADER]
        for row in self.rows:
            cells = _cells(row)
            rows.append((row.phase, *cells) if several else cells)
        count = len(rows[0])
        table = aligned(rows, right=range(count - 6, count))
        rule = "-" * max(map(len, table.split("\n")))
        head = f"{self.model}, {self.mode}, batch {self.batch}"
        return "\n".join([head, rule, table, rule, *self._footer()])

    def _footer(self) -> list[str]:
        lines = [
            f"kernels {self.kernels_ms:.3f} ms; outside of them {self.outside_ms:.3f} ms of a "
            f"timed call of {self.timed_call_ms:.3f} ms",
            f"a call without timing {self.call_ms:.3f} ms; medians of {self.runs} runs",
        ]
        lines += dict.fromkeys(map(str, self.limits.values()))
        if self.fallbacks:
            lines.append(f"{self.fallbacks} operators run through numpy (no native kernel yet)")
        return [*lines, str(self.memory), str(self.compile)]


def _before_after(rates: tuple[float, float]) -> str:
    return ", ".join(f"{rate:.1f}" for rate in rates)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        _short_symbol(row.kernel),
        _cut(" ".join(row.operators)),
        _cut(" ".join(row.modules)) or "-",
        f"{row.ms:.4f}",
        f"{row.share:.1%}",
        f"{row.gflops:.1f}" if row.flops else "-",
        f"{row.gbs:.1f}" if row.bytes else "-",
        _of_limit(row),
        str(row.tasks) if row.tasks else "-",
    )


def _of_limit(row: Row) -> str:
    if row.bound == "cache":
        return f"{row.of_limit:.0%} fma, cached" if row.flops else "cached"
    return f"{row.of_limit:.0%} {row.bound}"


def _short_symbol(symbol: str) -> str:
    """``conv2d_packed_77ec`` for ``conv2d_packed_77ec7e6fa978``."""
    name, _, digest = symbol.rpartition("_")
    return f"{name}_{digest[:4]}" if name and len(digest) == 12 else symbol


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
