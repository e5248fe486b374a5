"""Which operands a kernel may write its result over."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops.record import get


def same_index_operands(graph: Graph, node: Node) -> set[int]:
    """The operands of which the kernel reads each element only to make the same element.

    That holds for elementwise operators and regions, and for what is computed of the scattered
    gradient of a max pooling, for operands that have the shape of all results (a broadcast element
    is read more than once). The key of ``uniform`` is read as a whole.
    """
    if get(node.op).kind == "elementwise":
        keys = {0} if node.op == "uniform" else set()
    elif node.op == "fused" and node.attrs["kind"] == "elementwise":
        keys = _keys(node.attrs["body"])
    elif node.op == "fused" and node.attrs["kind"] == "pooling":
        keys = set()
        if all(n.op != "max_pool2d_scatter" for n in node.attrs["body"].nodes):
            return set()
    else:
        return set()
    shapes = {t.shape for t in node.types}
    return {
        i
        for i, v in enumerate(node.operands)
        if i not in keys and shapes == {graph.type(v).shape}
    }


def _keys(body: Graph) -> set[int]:
    return {
        int(n.attrs["path"])
        for n in body.sources("input")
        if any(u.op == "uniform" for u in body.users(n.value))
    }
