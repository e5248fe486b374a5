"""Computes equal expressions once.

Before::

    %a: f32[N,4] = exp(%x)
    %b: f32[N,4] = exp(%x)
    %c: f32[N,4] = mul(%a, %b)

After::

    %a: f32[N,4] = exp(%x)
    %c: f32[N,4] = mul(%a, %a)

Random numbers are functions of a key, a stream and an index, so equal draws are equal values too:
the backward pass shares the dropout mask of the forward pass.

Code: D201.

Skips: nodes that differ in any attribute (0.0 and -0.0 differ); inputs and state; regions.
"""

from __future__ import annotations

from typing import Any

from ..ir.graph import Graph, Node, Value
from ..ir.structure import attrs_key
from .rewriting import Ledger, rebuild

NAME = "eliminate_common_subexpressions"
_KEPT = ("input", "parameter", "buffer", "fused")


def eliminate_common_subexpressions(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph in which no two nodes compute the same."""
    known: dict[Any, tuple[Value, ...]] = {}

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.op in _KEPT:
            return None
        key = (node.op, tuple(operands), attrs_key(node.attrs))
        if key in known:
            if ledger is not None and node.operands:
                ledger.did(NAME, "D201", node, f"%{node.name} equals {known[key][0]}")
            return known[key]
        known[key] = new.add_copy(node, operands, graph)
        return known[key]

    return rebuild(graph, emit)
