"""The memory that the steps of a plan read and write: who has to wait for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.graph import Graph
from ..ir.plan import Location, Step
from ..ir.types import Dim, Extent, TensorType, fixed, numel


def ranges_of(step: Step, graph: Graph) -> tuple[list[Range], list[Range]]:
    """What a step reads, and what it writes."""
    if step.node is None:
        kinds = [graph.type(step.copied)] if step.copied else []
        return _touched(step.operands, kinds), _touched(step.results, kinds)
    kinds = [graph.type(v) for v in step.node.operands]
    return _touched(step.operands, kinds), _touched(step.results, step.node.types)


def bytes_of(kind: TensorType) -> Extent:
    """Size of a tensor whose rows follow each other."""
    return numel(kind.shape) * kind.dtype.itemsize


@dataclass(frozen=True)
class Range:
    """``size`` bytes at a place, or of each row there the bytes from ``location.start`` on."""

    location: Location
    size: int
    columns: int = 0

    def overlaps(self, other: Range) -> bool:
        if self.location.slot != other.location.slot:
            return False
        a, b = self.location, other.location
        if a.pitch and (a.offset, a.pitch) == (b.offset, b.pitch):
            return a.start < b.start + other.columns and b.start < a.start + self.columns
        return a.offset < b.offset + max(other.size, 1) and b.offset < a.offset + max(self.size, 1)


def _span(kind: TensorType) -> int:
    """Bytes, per sample if the size depends on the batch."""
    size = bytes_of(kind)
    return size.coef if isinstance(size, Dim) else size


def _touched(locations: Sequence[Location], kinds: Sequence[TensorType]) -> list[Range]:
    found = []
    for location, kind in zip(locations, kinds, strict=True):
        size, columns = _span(kind), 0
        if location.pitch:
            columns = fixed(kind.shape[-1]) * kind.dtype.itemsize
            size = size // columns * location.pitch
        found.append(Range(location, size, columns))
    return found


class Touched:
    """Memory that was read or written since the last wait."""

    def __init__(self) -> None:
        self.reads: list[Range] = []
        self.writes: list[Range] = []

    def __bool__(self) -> bool:
        return bool(self.reads or self.writes)

    def add(self, reads: list[Range], writes: list[Range]) -> None:
        self.reads += reads
        self.writes += writes

    def conflicts(self, reads: list[Range], writes: list[Range]) -> bool:
        after_write = any(r.overlaps(w) for r in (*reads, *writes) for w in self.writes)
        return after_write or any(w.overlaps(r) for w in writes for r in self.reads)

    def clear(self) -> None:
        self.reads.clear()
        self.writes.clear()
