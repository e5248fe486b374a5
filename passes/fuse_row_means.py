"""Averages the rows of an image in the depthwise convolution that makes it.

Before (a squeeze-excitation block)::

    %y: f32[N,56,56,96] = fused(%x, %w, %b) {kind="contraction"} { conv2d, silu }
    %m: f32[N,1,1,96] = adaptive_avg_pool2d(%y) {output_size=(1,1), layout="NHWC"}

After::

    %y: f32[N,56,56,96], f32[N,56,1,96] = fused(%x, %w, %b) {kind="contraction"}
        { conv2d, silu, adaptive_avg_pool2d {output_size=(56,1)} }
    %m: f32[N,1,1,96] = adaptive_avg_pool2d(%y#1) {output_size=(1,1), layout="NHWC"}

The average of a whole image is the average of the averages of its rows. The convolution adds its
tiles to those of their row while they are in registers; what is left to read is smaller by the
width of the image. Code F701; F702 declines.

On two threads this saves more than the reading: an average has few tasks, and each read pixels that
the other core had written. Small images gain as large ones do.

Skips: images that are not of a depthwise convolution; images that nobody else reads, as the kernel
would write them for nothing; images one pixel wide; a second average of the same image.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.types import is_fixed
from .region import Group, anchor_of, build_regions
from .rewriting import Ledger, add_like, rebuild

NAME = "fuse_row_means"


def fuse_row_means(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with global averages taken over averages of rows."""
    images: dict[str, str] = {}  # of each image that is averaged, the node that averages it
    for node in graph.nodes:
        if _is_global_average(node) and _is_depthwise(graph, graph.node(node.operands[0])):
            image = graph.node(node.operands[0])
            obstacle = _obstacle(graph, image) or (
                f"%{images[image.name]} averages %{image.name}, too" if image.name in images else ""
            )
            if not obstacle:
                images[image.name] = node.name
            if ledger is not None and obstacle:
                ledger.declined(NAME, "F702", node, obstacle)
            elif ledger is not None:
                ledger.did(NAME, "F701", node, f"%{image.name} averages the rows of its result")
    if not images:
        return graph
    rows: dict[str, str] = {}

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.name not in images.values():
            return None
        (image,) = operands
        attrs = {**node.attrs, "output_size": (new.type(image).shape[1], 1)}
        name = f"{node.name}_rows"
        means = new.add(node.op, image, name=name, source=node.source, **attrs)
        rows[image.node] = means.node
        return add_like(new, node, node.op, [means], **node.attrs)

    split = rebuild(graph, emit)
    groups = [Group((image, means), "contraction", image) for image, means in rows.items()]
    return build_regions(split, groups)


def _is_global_average(node: Node) -> bool:
    if node.op != "adaptive_avg_pool2d" or node.attrs["layout"] != "NHWC":
        return False
    return tuple(node.attrs["output_size"]) == (1, 1)


def _obstacle(graph: Graph, image: Node) -> str:
    """Why the kernel of a depthwise convolution should not average the rows of its result."""
    if len(image.types) > 1:
        return f"%{image.name} has other results, too"
    if graph.use_count(image.value) == 1:
        return f"nothing else reads %{image.name}"
    return f"%{image.name} is one pixel wide" if image.type.shape[2] == 1 else ""


def _is_depthwise(graph: Graph, node: Node) -> bool:
    """Whether a node or region is a convolution of single channels, of images of known size."""
    anchor = anchor_of(node, ("conv2d",))
    if anchor is None or anchor.attrs["layout"] != "NHWC":
        return False
    within = graph if anchor is node else node.attrs["body"]
    groups, weight = anchor.attrs["groups"], within.type(anchor.operands[1]).shape
    known = is_fixed(anchor.type.shape[1:])
    return known and groups > 1 and (weight[0], weight[1]) == (groups, 1)
