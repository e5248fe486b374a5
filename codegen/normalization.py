"""Kernels of normalisation layers."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from .batch_norm import BATCH_NORM, emit_batch_norm
from .batch_norm_parts import PARTS, SUMS, emit_batch_norm_statistics, emit_batch_norm_sums
from .kernel import Kernel
from .layer_norm import LAYER_NORM, emit_layer_norm
from .target import Target

NORMS = (*BATCH_NORM, *PARTS, *LAYER_NORM)


def emit_norm(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for batch or layer normalisation, the gradient of one or a step of them."""
    if node.op in BATCH_NORM:
        return emit_batch_norm(node, graph, target)
    if node.op in SUMS:
        return emit_batch_norm_sums(node, graph, target)
    if node.op in PARTS:
        return emit_batch_norm_statistics(node, graph, target)
    return emit_layer_norm(node, graph, target)
