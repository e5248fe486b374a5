"""Removes nodes that no output and no update depends on.

Before::

    %a: f32[N,4] = relu(%x)
    %b: f32[N,4] = exp(%x)
    output "out" = %b

After::

    %b: f32[N,4] = exp(%x)
    output "out" = %b

Code: D101.

Skips: inputs, which are the graph's signature; what only an update of state needs.
"""

from __future__ import annotations

from ..ir.graph import Graph
from .rewriting import Ledger, erase_dead

NAME = "eliminate_dead_code"
_SILENT = ("constant", "extent", "parameter", "buffer")


def eliminate_dead_code(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph without unused nodes."""
    new = graph.copy()
    for node in erase_dead(new):
        if ledger is not None and node.op not in _SILENT:
            ledger.did(NAME, "D101", node, f"%{node.name} = {node.op} is not used")
    return new
