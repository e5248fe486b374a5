"""The memory plan: what the planner hands to code generation."""

from __future__ import annotations

from dataclasses import dataclass, field

from .graph import Node, Value


@dataclass(frozen=True)
class Location:
    """A place: a slot of the argument table and an offset in bytes (per sample in ``batch``)."""

    slot: str
    offset: int = 0


@dataclass(frozen=True)
class Step:
    """One kernel launch: the node, or a copy of ``operands[0]`` to ``results[0]``."""

    node: Node | None
    operands: tuple[Location, ...]
    results: tuple[Location, ...]
    copied: Value | None = None
    commits: bool = False


@dataclass
class Plan:
    """The memory plan of a graph.

    batch_bytes: size of the batch arena per sample; fixed_bytes, prepared_bytes: sizes of the
    others. prepare: steps that only depend on state; steps: the rest.
    """

    batch_bytes: int = 0
    fixed_bytes: int = 0
    prepared_bytes: int = 0
    locations: dict[Value, Location] = field(default_factory=dict)
    prepare: list[Step] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def arena_bytes(self, n: int) -> int:
        """Working memory for batch size ``n``, in bytes, without state, inputs and outputs."""
        return self.batch_bytes * n + self.fixed_bytes + self.prepared_bytes
