"""Takes the moments of batch normalisation in the convolution whose result they are of.

Before::

    %y: f32[N,32,32,64] = conv2d_packed(%x, %w) {...}
    %moments: f64[32,2,64] = batch_norm_moments(%y) {parts=32}
    %mean, %var, %rstd, %scale = batch_norm_statistics(%moments, %gamma) {rows=1024N, eps=1e-05}

After::

    %y: f32[N,32,32,64], f64[16N,2,64] = fused(%x, %w) {kind="contraction"}
        { conv2d_packed, batch_norm_moments {parts=16N} }
    %mean, %var, %rstd, %scale = batch_norm_statistics(%y#1, %gamma) {rows=1024N, eps=1e-05}

The kernel adds up what it has just written, while that is in the first level cache. The rows of a
part are neighbours in one image, so that one piece of the kernel's work has all of them, and
results do not depend on threads. ``choose_rows`` knows the kernels and says of how many rows each
takes the moments. Code F801; F802 declines.

Skips: moments of anything but the first result of a convolution; convolutions for which
``choose_rows`` gives 0; moments that something else reads, too; a batch of a fixed size. Eval mode
has no moments.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node, Value
from ..ir.types import Dim, numel
from .region import Group, build_regions
from .rewriting import Ledger, add_like, rebuild

NAME = "fuse_moments"
ChooseRows = Callable[[Node, Graph], int]
"""``(node, graph)``: of how many rows of its result each the kernel of a convolution takes the
moments, a divisor of the rows of a sample; 0 if it does not."""


def fuse_moments(graph: Graph, choose_rows: ChooseRows, ledger: Ledger | None = None) -> Graph:
    """The graph with moments taken in the kernels of convolutions."""
    parts: dict[str, Dim] = {}  # of each node of moments that is taken in, the number of parts
    images: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "batch_norm_moments":
            continue
        producer = graph.node(node.operands[0])
        obstacle, rows = _obstacle(graph, node, producer), 0
        if not obstacle:
            rows = choose_rows(producer, graph)
        if not obstacle and not rows:
            obstacle = f"the kernel of %{producer.name} takes none, or is not faster so"
        if not obstacle:
            samples = numel(graph.type(node.operands[0]).shape[:-1])
            assert isinstance(samples, Dim)
            parts[node.name], images[node.name] = Dim(samples.coef // rows), producer.name
        if ledger is not None and obstacle:
            ledger.declined(NAME, "F802", node, obstacle)
        elif ledger is not None:
            ledger.did(NAME, "F801", node, f"%{producer.name} takes the moments of its result")
    if not parts:
        return graph

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.name not in parts:
            return None
        return add_like(new, node, node.op, operands, parts=parts[node.name])

    split = rebuild(graph, emit)
    groups = [Group((image, name), "contraction", image) for name, image in images.items()]
    return build_regions(split, groups)


def _obstacle(graph: Graph, node: Node, producer: Node) -> str:
    """Why the moments should not be taken where their operand is computed."""
    value = node.operands[0]
    ops = {n.op for n in producer.attrs["body"].nodes} if producer.op == "fused" else {producer.op}
    if not any(op.startswith("conv2d") for op in ops):
        return f"%{producer.name} is no convolution"
    if value.index:
        return f"they are of another result of %{producer.name}"
    readers = graph.users(node.value)
    other = next((n for n in readers if n.op != "batch_norm_statistics"), None)
    if other is not None:
        return f"%{other.name} reads them, too"
    if graph.use_count(node.value) > len(readers):
        return "they are a result of the graph"
    if not isinstance(numel(graph.type(value).shape[:-1]), Dim):
        return "the batch has a fixed size"
    return ""
