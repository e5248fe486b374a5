"""Computes at compile time what depends on constants alone.

Before::

    %two: f32[] = constant {value=2.0}
    %half: f32[] = reciprocal(%two)

After::

    %half: f32[] = constant {value=0.5}

Skips: results of more than 1 Mi elements, or larger than their operands by more than 4 Ki elements
(a broadcast constant would be read from memory instead of being made in registers); anything that
depends on the batch.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.interpreter import run_node
from ..ir.types import numel
from .rewriting import Ledger, rebuild

NAME = "fold_constants"
MAX_ELEMENTS = 1 << 20
MAX_GROWTH = 4096


def fold_constants(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with constant expressions evaluated by their numpy meaning."""

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        producers = [new.node(v) for v in operands]
        if not operands or any(p.op != "constant" for p in producers):
            return None
        if not _fits(node, sum(p.attrs["value"].size for p in producers)):
            return None
        with np.errstate(all="ignore"):
            results = run_node(node, [p.attrs["value"] for p in producers], 1)
        if ledger is not None:
            ledger.did(NAME, "D301", node, f"%{node.name} = {node.op} is a constant")
        return tuple(
            new.add("constant", name=node.name, source=node.source, value=np.array(r, t.dtype.np))
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
