"""The memory that a compiled program needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..compilation import Compilation
from ..ir.columns import size_text
from ..passes.live_set import largest_live_set
from ..passes.split_backward import SAVED


@dataclass(frozen=True)
class MemoryUse:
    """Bytes at batch size ``n``; with a backward program, of both programs together.

    batch, fixed: arenas of values that grow with the batch and that do not; prepared: what depends
    on parameters alone (packed weights); live: the largest set of bytes of the three that is in use
    at one step, below which no plan can go; weights: parameters, buffers and optimizer state;
    saved: what a forward run keeps for backward; scratch: private memory of the threads so far.
    """

    n: int
    batch: int
    fixed: int
    prepared: int
    live: int
    weights: int
    saved: int
    scratch: int

    @classmethod
    def of(cls, made: Compilation, n: int) -> MemoryUse:
        """The memory of a compilation's programs."""
        plans, graphs = made.plans, {stage: made.stages[stage] for stage in made.plans}
        state = {
            node.attrs["path"]: node.type.bytes_at(n)
            for graph in graphs.values()
            for node in graph.nodes
            if node.op in ("parameter", "buffer")
        }
        outputs = graphs["optimized"].outputs.items()
        saved = [v for name, v in outputs if name.startswith(SAVED)]
        return cls(
            n,
            batch=sum(plan.batch_bytes for plan in plans.values()) * n,
            fixed=sum(plan.fixed_bytes for plan in plans.values()),
            prepared=sum(plan.prepared_bytes for plan in plans.values()),
            live=sum(largest_live_set(graphs[stage], plans[stage], n) for stage in plans),
            weights=sum(state.values()),
            saved=sum(graphs["optimized"].type(v).bytes_at(n) for v in saved),
            scratch=sum(executable.scratch_bytes for executable in made.executables.values()),
        )

    @property
    def arena(self) -> int:
        """The three arenas."""
        return self.batch + self.fixed + self.prepared

    def as_json(self) -> dict[str, Any]:
        """All numbers by name."""
        return {**asdict(self), "arena": self.arena}

    def __str__(self) -> str:
        arenas = (("batch", self.batch), ("fixed", self.fixed), ("prepared", self.prepared))
        parts = [
            f"arena {size_text(self.arena)} "
            f"({', '.join(f'{name} {size_text(size)}' for name, size in arenas)}), "
            f"{self.arena / max(self.live, 1):.2f}x of the largest live set",
            f"weights {size_text(self.weights)}",
        ]
        if self.saved:
            parts.append(f"saved for backward {size_text(self.saved)}")
        if self.scratch:
            parts.append(f"scratch {size_text(self.scratch)}")
        return f"memory at batch {self.n}: {'; '.join(parts)}"
