"""How little memory a plan could do with: the largest set of bytes that is in use at one step.

Measured on a finished plan by the places that its steps write and read, so that values that share
memory (an operator that writes over its operand, results placed inside of another) count once, and
so that the planner cannot be wrong about itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..ir.graph import Graph
from ..ir.plan import Location, Plan, Step
from ..ir.types import TensorType, shape_at

ARENAS = ("batch", "fixed", "prepared")


@dataclass
class _Piece:
    """Bytes ``begin`` to ``end`` of a slot, written at step ``first``, last read at ``last``."""

    slot: str
    begin: int
    end: int
    first: int
    last: int


def largest_live_set(graph: Graph, plan: Plan, n: int = 1) -> int:
    """Bytes of the arenas that are in use at the worst step, at batch size ``n``.

    A value is in use from the step that writes it to the last one that reads it; a prepared value
    that a run reads is in use for ever. The same steps in the same order cannot do with less; what
    ``plan.arena_bytes(n)`` has beyond it is alignment, fragmentation, and arenas that cannot lend
    memory to each other.
    """
    steps = [*plan.prepare, *plan.steps]
    pieces: list[_Piece] = []
    closed: list[_Piece] = []
    for at, step in enumerate(steps):
        reads, writes = _accesses(graph, step)
        for slot, begin, end in _ranges(reads, n):
            for piece in pieces:
                if piece.slot == slot and piece.begin < end and begin < piece.end:
                    piece.last = at
        for slot, begin, end in _ranges(writes, n):
            kept: list[_Piece] = []
            for piece in pieces:
                if piece.slot != slot or piece.end <= begin or end <= piece.begin:
                    kept.append(piece)
                    continue
                closed.append(piece)  # its parts beside the new value stay open
                if piece.begin < begin:
                    kept.append(replace(piece, end=begin))
                if piece.end > end:
                    kept.append(replace(piece, begin=end))
            pieces = [*kept, _Piece(slot, begin, end, at, at)]
    for piece in pieces:
        if piece.slot == "prepared" and piece.last >= len(plan.prepare):
            piece.last = len(steps)
    closed += pieces
    return max((_covered(closed, at) for at in range(len(steps))), default=0)


_Access = tuple[Location, TensorType]


def _accesses(graph: Graph, step: Step) -> tuple[list[_Access], list[_Access]]:
    """The places that a step reads and writes, with their types."""
    if step.node is None:
        kinds = [graph.type(step.copied)] if step.copied is not None else []
        reads = list(zip(step.operands, kinds, strict=True))
        return reads, list(zip(step.results, kinds, strict=True))
    kinds = [graph.type(v) for v in step.node.operands]
    reads = list(zip(step.operands, kinds, strict=True))
    return reads, list(zip(step.results, step.node.types, strict=True))


def _ranges(accesses: list[_Access], n: int) -> Iterator[tuple[str, int, int]]:
    for location, kind in accesses:
        if location.slot in ARENAS:
            begin = location.offset * (n if location.slot == "batch" else 1)
            size = kind.bytes_at(n)
            if location.pitch and size:
                # Columns of a tensor, counted as if their rows were the others' neighbours.
                rows = math.prod(shape_at(kind.shape[:-1], n))
                begin += location.start * rows
            yield location.slot, begin, begin + size


def _covered(pieces: list[_Piece], at: int) -> int:
    """Bytes in use at a step; what two pieces share counts once."""
    live = [p for p in pieces if p.first <= at <= p.last]
    total, slot, reached = 0, "", 0
    for piece in sorted(live, key=lambda p: (p.slot, p.begin)):
        if piece.slot != slot:
            slot, reached = piece.slot, 0
        total += max(0, piece.end - max(piece.begin, reached))
        reached = max(reached, piece.end)
    return total
