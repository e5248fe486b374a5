"""Looking into a compiled program: graphs of every stage, what was fused and why, dumps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..codegen.llvm import assembly
from ..codegen.target import host
from ..compilation import Compilation
from ..errors import NetwrightError
from ..ir.draw import to_svg
from ..ir.graph import Graph
from ..runtime import settings
from .compile_report import CompileReport
from .memory_use import MemoryUse

MODES = ("eval", "train", "step", "gradients", "update", "forward")


class Inspection:
    """Mixin of compiled modules and steps; needs ``_variants``."""

    _variants: dict[Any, Any]

    def _compilation(self, mode: str | None) -> Compilation:
        found = [v for v in self._variants.values() if mode is None or v.mode == mode]
        if found:
            return found[-1].made
        if mode is not None and mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; the modes are {', '.join(MODES)}")
        made = sorted({v.mode for v in self._variants.values()})
        raise NetwrightError(
            f"nothing is compiled yet{f' for mode {mode!r}' if mode else ''}"
            f"{' (compiled: ' + ', '.join(made) + ')' if made else ''}: call it once with an "
            "input; shapes are known only then"
        )

    @property
    def compilations(self) -> int:
        """How many programs were compiled: one per mode, dtypes and shapes (without the batch)."""
        return len(self._variants)

    @property
    def stages(self) -> list[str]:
        """Names of the stages of the last compiled program, in order."""
        return list(self._compilation(None).stages)

    @property
    def fallbacks(self) -> int:
        """Number of operators that run through numpy, over all compiled programs."""
        return sum(len(v.made.fallbacks) for v in self._variants.values())

    def graph(self, stage: str = "optimized", mode: str | None = None) -> Graph:
        """The graph after a stage (see ``stages``) of the last program compiled for ``mode``."""
        made = self._compilation(mode)
        if stage not in made.stages:
            raise ValueError(f"no stage {stage!r}; the stages are {', '.join(made.stages)}")
        return made.stages[stage]

    def explain(self, mode: str | None = None) -> str:
        """What the passes did and declined (with codes and the model's lines), the kernels, what
        falls back to numpy, memory, and where the compile time went."""
        made = self._compilation(mode)
        lines = [f"{made.traced.graph.name}: {len(made.ledger.entries)} ledger entries"]
        lines += [f"  {entry}" for entry in made.ledger.entries]
        for stage, executable in made.executables.items():
            program = executable.program
            lines.append(f"{stage}: arena {extent_text(program)}")
            lines += [f"  fallback %{n.name} = {n.op} [{n.source}]" for n in program.fallbacks]
        lines.append(str(CompileReport.of(made)))
        return "\n".join(lines)

    def compile_report(self, mode: str | None = None) -> CompileReport:
        """Where the time of the last compilation for ``mode`` went, by phase and pass, and what it
        made: kernels, object code, and whether that came from the cache on disk."""
        return CompileReport.of(self._compilation(mode))

    def memory(self, n: int = 1, mode: str | None = None) -> MemoryUse:
        """What the last program compiled for ``mode`` needs in memory at batch size ``n``, beside
        the least that its arenas could do with. Raises ValueError if ``n`` is negative."""
        if n < 0:
            raise ValueError(f"memory(): the batch size must not be negative, got {n}")
        return MemoryUse.of(self._compilation(mode), n)

    def dump(self, directory: str | Path, mode: str | None = None) -> list[Path]:
        """Writes every stage as text and SVG, and LLVM IR and assembly; returns the files."""
        made = self._compilation(mode)
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        files: list[Path] = []

        def write(name: str, text: str) -> None:
            files.append(folder / name)
            files[-1].write_text(text)

        for i, (stage, graph) in enumerate(made.stages.items()):
            write(f"{i:02}_{stage}.txt", str(graph))
            write(f"{i:02}_{stage}.svg", to_svg(graph))
        for stage, executable in made.executables.items():
            write(f"{stage}.ll", executable.program.text)
            write(f"{stage}.s", assembly(executable.program.text, host()))
        write("explain.txt", self.explain(mode) + "\n")
        return files

    def _tell(self, variant: Any) -> None:
        """What NETWRIGHT_DEBUG and NETWRIGHT_DUMP ask for after a compilation."""
        level, folder, made = settings.debug(), settings.dump(), variant.made
        parts = []
        if level >= 1:
            parts.append(self.explain(variant.mode))
        if level >= 2:
            parts += [f"-- {stage}\n{graph}" for stage, graph in made.stages.items()]
        for executable in made.executables.values():
            if level >= 3:
                parts += [f"{x.symbol}: %{x.node.name}" for x in executable.program.launches]
            if level >= 4:
                parts.append(executable.program.text)
            if level >= 5:
                parts.append(assembly(executable.program.text, host()))
        if parts:
            print("\n".join(parts), file=sys.stderr)
        if folder is not None:
            number = len(self._variants)
            self.dump(folder / f"{made.traced.graph.name}_{variant.mode}_{number}", variant.mode)


def extent_text(program: Any) -> str:
    """``12.5 KiB + 3.0 KiB per sample``."""
    fixed = program.fixed_bytes + program.prepared_bytes
    return f"{fixed / 1024:.1f} KiB + {program.batch_bytes / 1024:.1f} KiB per sample"
