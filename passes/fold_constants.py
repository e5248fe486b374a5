"""Computes at compile time what depends on constants alone.

Before::

    %two: f32[] = constant {value=2.0}
    %half: f32[] = reciprocal(%two)

After::

    %half: f32[] = constant {value=0.5}

Code: D301.

Skips: results of more than 1 Mi elements, or larger than their operands by more than 4 Ki elements;
a broadcast_to (a constant that is repeated would be read from memory instead of being made in
registers); anything that depends on the batch; an index that is out of range (the program's error
belongs to its run).
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.interpreter import run_node
from ..ir.types import numel
from .rewriting import Ledger, rebuild
from .state import depends_on_batch

NAME = "fold_constants"
MAX_ELEMENTS = 1 << 20
MAX_GROWTH = 4096
_SOURCES = ("input", "parameter", "buffer", "constant")
_KEPT = (*_SOURCES, "broadcast_to", "fused")


def fold_constants(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with constant expressions evaluated by their numpy meaning."""

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        producers = [new.node(v) for v in operands]
        if node.op in _KEPT or any(p.op != "constant" for p in producers):
            return None
        arrays = [p.attrs["value"] for p in producers]
        if depends_on_batch(node) or not _fits(node, sum(a.size for a in arrays)):
            return None
        try:
            with np.errstate(all="ignore"):
                results = run_node(node, arrays, 1)
        except IndexError:
            return None
        if ledger is not None:
            ledger.did(NAME, "D301", node, f"%{node.name} = {node.op} is a constant")
        return tuple(
            new.add(
                "constant",
                name=node.name,
                source=node.source,
                value=np.array(r, t.dtype.np, order="C"),
            )
            for r, t in zip(results, node.types, strict=True)
        )

    return rebuild(graph, emit)


def _fits(node: Node, operand_elements: int) -> bool:
    total = 0
    for kind in node.types:
        size = numel(kind.shape)
        if not isinstance(size, int):
            return False
        total += size
    return total <= MAX_ELEMENTS and total <= operand_elements + MAX_GROWTH
