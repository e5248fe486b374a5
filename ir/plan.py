"""The memory plan: what the planner hands to code generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .graph import Node, Value
from .types import TensorType


@dataclass(frozen=True)
class Location:
    """A place: a slot of the argument table and an offset in bytes (per sample in ``batch``).

    A value that is some columns of a wider tensor there begins ``start`` bytes after that tensor,
    and its rows are ``pitch`` bytes apart; 0: its rows follow each other.
    """

    slot: str
    offset: int = 0
    start: int = 0
    pitch: int = 0

    def strides(self, shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
        """Bytes from one index to the next, for each dimension of an array that lies here."""
        found, step = [], itemsize
        for extent in reversed(shape):
            found.append(step)
            step = self.pitch if self.pitch and len(found) == 1 else step * extent
        return tuple(reversed(found))


@dataclass(frozen=True)
class Columns:
    """Which operands and which results of a node may be columns of wider tensors."""

    operands: frozenset[int] = frozenset()
    results: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Step:
    """One kernel launch: the node, or a copy of ``operands[0]`` to ``results[0]``."""

    node: Node | None
    operands: tuple[Location, ...]
    results: tuple[Location, ...]
    copied: Value | None = None
    commits: bool = False

    def widths(self, operands: Sequence[TensorType]) -> tuple[int, ...]:
        """For each operand (of these types) and each result, the columns of the tensor that it is
        part of, 0 if it is none; () if none of them is. As in ``structure.node_key``."""
        if self.node is None or not any(x.pitch for x in (*self.operands, *self.results)):
            return ()
        pairs = zip((*self.operands, *self.results), (*operands, *self.node.types), strict=True)
        return tuple(x.pitch // t.dtype.itemsize for x, t in pairs)


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
