"""Which kernel generator serves which operator; each equal kernel is generated once."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from ..ir.structure import Widths, isolated, node_key
from .attention import emit_attention
from .attention_grad import emit_attention_grad
from .batch_norm_parts import SUMS, emit_batch_norm_sums
from .columns import check_columns
from .convolution import emit_convolution
from .cross_entropy import emit_cross_entropy, emit_cross_entropy_total
from .elementwise import emit_elementwise
from .indexing import emit_indexing
from .kernel import Kernel
from .matmul import emit_matmul
from .movement import emit_movement
from .normalization import emit_norm
from .packing import pack_conv, pack_matrix
from .pool_places import PLACES, emit_pool_places
from .pooling import emit_pool
from .reduction import emit_reduction
from .softmax import emit_softmax
from .target import Target
from .winograd import pack_winograd

Emit = Callable[[Node, Graph, Target], Kernel | None]


def _emit_pack_matrix(node: Node, graph: Graph, target: Target) -> Kernel | None:
    kind = graph.type(node.operands[0])
    return pack_matrix(kind, node.attrs["panel"], node.attrs["transpose"], target)


def _emit_pack_conv(node: Node, graph: Graph, target: Target) -> Kernel | None:
    kind = graph.type(node.operands[0])
    groups = node.attrs.get("groups", 1)
    return pack_conv(kind, node.attrs["panel"], node.attrs["flip"], groups, target)


def _emit_pack_winograd(node: Node, graph: Graph, target: Target) -> Kernel | None:
    kind = graph.type(node.operands[0])
    tile, panel, flip = node.attrs["tile"], node.attrs["panel"], node.attrs.get("flip", False)
    return pack_winograd(kind, tile, panel, flip, target)


_BY_OP: dict[str, Emit] = {
    "attention": emit_attention,
    "attention_weights": emit_attention,
    "attention_grad": emit_attention_grad,
    "cross_entropy": emit_cross_entropy,
    "cross_entropy_grad": emit_cross_entropy,
    "cross_entropy_rows": emit_cross_entropy,
    "cross_entropy_total": emit_cross_entropy_total,
    "pack_matrix": _emit_pack_matrix,
    "pack_conv": _emit_pack_conv,
    "pack_winograd": _emit_pack_winograd,
    "uniform": emit_elementwise,
    **dict.fromkeys(PLACES, emit_pool_places),
    **dict.fromkeys(
        (
            "conv2d",
            "conv2d_packed",
            "conv2d_grad_input",
            "conv2d_grad_input_packed",
            "conv2d_grad_weight",
            "conv2d_grad_weight_parts",
            "conv2d_grad_weight_winograd",
            "conv2d_winograd",
        ),
        emit_convolution,
    ),
}

_BY_KIND: dict[str, Emit] = {
    "elementwise": emit_elementwise,
    "reduction": emit_reduction,
    "shape": emit_movement,
    "contraction": emit_matmul,
    "spatial": emit_pool,
    "norm": emit_norm,
    "row": emit_softmax,
    "index": emit_indexing,
}


def select_kernel(node: Node, graph: Graph, target: Target, widths: Widths = ()) -> Kernel | None:
    """The kernel of a node, or None if only its numpy meaning exists.

    ``widths`` says which operands and results are columns of wider tensors (`Step.widths`); only
    those that `columns.accepts_columns` names may be.

    Networks repeat their layers, and a process compiles a model in several modes: kernels are
    remembered by all that they depend on. The generators see an isolated copy of the node, so they
    cannot read what is not in the key.
    """
    key = (target, node_key(node, graph, widths))
    if key in _made:
        return _made[key]
    if widths:
        check_columns(node, graph, widths)
    kernel = generate(*isolated(node, graph, widths), target)
    if len(_made) >= MAX_MADE:
        _made.clear()
    _made[key] = kernel
    return kernel


MAX_MADE = 1024
"""Kernels that a process remembers (10 to 50 kB each) before it starts over."""

_made: dict[Hashable, Kernel | None] = {}


def generate(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """What `select_kernel` gives, made anew."""
    if node.op == "fused":
        return _of_region(node)(node, graph, target)
    emit = _BY_OP.get(node.op) or _BY_KIND.get(get(node.op).kind)
    return emit(node, graph, target) if emit is not None else None


def _of_region(node: Node) -> Emit:
    kind = node.attrs["kind"]
    ops = {n.op for n in node.attrs["body"].nodes}
    if kind == "reduction" and not ops.isdisjoint(SUMS):
        return emit_batch_norm_sums
    if kind == "contraction":
        return emit_convolution if any(op.startswith("conv2d") for op in ops) else emit_matmul
    if kind == "pooling":
        return emit_pool_places
    return _BY_KIND[kind]
