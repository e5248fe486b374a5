"""Pools the result of a convolution before it is written to memory.

Before::

    %c: f32[N,28,28,16] = fused(%x, %w, %b) {kind="contraction"} { conv2d, relu }
    %p: f32[N,14,14,16] = max_pool2d(%c) {kernel_size=(2,2), stride=(2,2), ...}

After::

    %c: f32[N,14,14,16] = fused(%x, %w, %b) {kind="contraction"} { conv2d, relu, max_pool2d }

The register tiles of the convolution (or the tiles of Winograd's algorithm) hold whole windows and
store one element of each; pixels at the edge that are in no window are not computed. Code F601;
F602 declines. Results have the same bits.

Skips: an image that is used elsewhere, too, as in training, or is a result of the graph; windows
that overlap, leave gaps, meet padding or are more than two pixels high or wide, which do not fit
the tiles; convolutions with groups; 1x1 convolutions, which are products of matrices that know no
rows of pixels; an operand that is read for each pixel, such as a shortcut; operators that take many
instructions (``CHEAP`` has those that do not), because the tile stays in registers meanwhile.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops.pooling import side_by_side
from ..ir.ops.record import get
from ..ir.types import is_fixed
from .region import Group, anchor_of, build_regions
from .rewriting import Ledger

NAME = "fuse_pooling"
POOLS = ("max_pool2d", "avg_pool2d")
CHEAP = (
    "add", "sub", "mul", "neg", "abs", "maximum", "minimum", "relu", "relu6", "clamp",
    "leaky_relu", "hardsigmoid", "hardswish",
)  # fmt: skip
"""Elementwise operators of few instructions."""
LARGEST = 2
"""Height and width of the largest windows: all register tiles hold one of them."""


def fuse_pooling(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with poolings joined to the convolutions in front of them."""
    groups = []
    for pool in graph.nodes:
        if pool.op not in POOLS:
            continue
        producer = graph.node(pool.operands[0])
        anchor = anchor_of(producer, ("conv2d",))
        if anchor is None:
            continue
        obstacle = _obstacle(graph, pool, producer, anchor)
        if obstacle:
            if ledger is not None:
                ledger.declined(NAME, "F602", pool, obstacle)
            continue
        groups.append(Group((producer.name, pool.name), "contraction", producer.name))
        if ledger is not None:
            text = f"%{producer.name} stores the result of {pool.op} only"
            ledger.did(NAME, "F601", pool, text)
    return build_regions(graph, groups)


def _obstacle(graph: Graph, pool: Node, producer: Node, anchor: Node) -> str:
    """Why the kernel of the convolution cannot pool."""
    if graph.use_count(producer.value) > 1 or len(producer.types) > 1:
        return f"%{producer.name} is also used elsewhere"
    if not side_by_side(pool.op, pool.attrs) or max(pool.attrs["kernel_size"]) > LARGEST:
        return f"windows overlap, leave gaps, meet padding or are larger than {LARGEST} x {LARGEST}"
    if "NCHW" in (anchor.attrs["layout"], pool.attrs["layout"]):
        return f"%{producer.name} is not channels-last"
    if not is_fixed(anchor.type.shape[1:]):
        return f"%{producer.name} has images of unknown size"
    within = graph if producer is anchor else producer.attrs["body"]
    if anchor.attrs["groups"] > 1 or within.type(anchor.operands[1]).shape[2:] == (1, 1):
        return f"%{producer.name} has groups or a kernel of 1 x 1"
    if producer is anchor:
        return ""
    return _epilogue_obstacle(producer.attrs["body"], anchor)


def _epilogue_obstacle(body: Graph, anchor: Node) -> str:
    """Why what a region does after its convolution cannot be done for all pixels of a window."""
    for node in body.nodes:
        if node is anchor or get(node.op).kind == "source":
            continue
        if node.op not in CHEAP:
            return f"{node.op} takes too many instructions"
        for value in node.operands:
            given = body.node(value).op == "input"
            if given and any(d != 1 for d in body.type(value).shape[:-1]):
                return f"{node.op} reads an operand for each pixel"
    return ""
