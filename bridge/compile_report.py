"""Where the time of a compilation went, and what came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..compilation import Compilation
from ..ir.columns import size_text
from ..runtime.executable import Executable

_SHOWN_PASSES = 5


@dataclass(frozen=True)
class ProgramReport:
    """One program: its kernels, how many of them are distinct, the operators that run through
    numpy, the sizes of its LLVM IR and object code, and where that came from: ``compiled`` now,
    ``disk cache``, or the same ``process``, which had the same program before.

    processes: how many worked on it if it was compiled; problem: what kept more from helping."""

    stage: str
    kernels: int
    distinct_kernels: int
    fallbacks: int
    ir_bytes: int
    object_bytes: int
    origin: str
    processes: int = 0
    problem: str = ""

    @classmethod
    def of(cls, stage: str, executable: Executable) -> ProgramReport:
        """What is known about an executable."""
        program, spent = executable.program, executable.seconds
        origin = "compiled" if "llvm" in spent else "disk cache" if "link" in spent else "process"
        made = executable.library.made if origin == "compiled" else None
        return cls(
            stage,
            len(program.launches),
            len({launch.symbol for launch in program.launches}),
            len(program.fallbacks),
            len(program.text),
            executable.library.object_bytes,
            origin,
            made.processes if made else 0,
            made.problem if made else "",
        )

    def __str__(self) -> str:
        return (
            f"{self.stage}: {self.kernels} kernels, {self.distinct_kernels} distinct, "
            f"{self.fallbacks} numpy fallbacks; {size_text(self.object_bytes)} of object code "
            f"from {size_text(self.ir_bytes)} of LLVM IR, {_ORIGIN[self.origin]}"
            + (f" by {self.processes} processes" if self.processes > 1 else "")
            + (f" ({self.problem})" if self.problem else "")
        )


_ORIGIN = {
    "compiled": "compiled now",
    "disk cache": "from the cache on disk",
    "process": "linked before in this process",
}


@dataclass(frozen=True)
class CompileReport:
    """The seconds of a compilation by phase (`compilation.PHASES`), of which ``passes`` is split by
    stage in ``passes``; and its programs."""

    phases: Mapping[str, float]
    passes: Mapping[str, float]
    programs: tuple[ProgramReport, ...]

    @classmethod
    def of(cls, made: Compilation) -> CompileReport:
        """The report of a compilation."""
        programs = [ProgramReport.of(*item) for item in made.executables.items()]
        return cls(dict(made.seconds), dict(made.pass_seconds), tuple(programs))

    @property
    def seconds(self) -> float:
        """All phases together."""
        return sum(self.phases.values())

    @property
    def from_cache(self) -> bool:
        """Whether LLVM had nothing to do."""
        return all(p.origin != "compiled" for p in self.programs)

    def as_json(self) -> dict[str, Any]:
        """The keys that ``netwright profile --json`` documents; times in milliseconds."""
        return {
            "ms": self.seconds * 1e3,
            "phases_ms": {name: spent * 1e3 for name, spent in self.phases.items()},
            "passes_ms": {name: spent * 1e3 for name, spent in self.passes.items()},
            "from_cache": self.from_cache,
            "programs": [asdict(program) for program in self.programs],
        }

    def __str__(self) -> str:
        slowest = sorted(self.passes.items(), key=lambda item: -item[1])
        shown, others = slowest[:_SHOWN_PASSES], slowest[_SHOWN_PASSES:]
        if others:
            shown.append((f"{len(others)} others", sum(spent for _, spent in others)))
        lines = [
            f"compile time {_ms(self.seconds)}: {_listed(self.phases.items())}",
            f"  passes: {_listed(shown)}",
        ]
        return "\n".join([*lines, *(f"  {program}" for program in self.programs)])


def _listed(times: Any) -> str:
    return ", ".join(f"{name} {_ms(spent)}" for name, spent in times)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
