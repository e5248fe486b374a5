"""Kernels of normalisation layers."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from .batch_norm import BATCH_NORM, emit_batch_norm
from .kernel import Kernel
from .layer_norm import LAYER_NORM, emit_layer_norm
from .target import Target

NORMS = (*BATCH_NORM, *LAYER_NORM)


def emit_norm(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for batch or layer normalisation or the gradient of one."""
    return (emit_batch_norm if node.op in BATCH_NORM else emit_layer_norm)(node, graph, target)
