"""Which operands a kernel may write its result over."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops.contraction import IN_PLACE_ANCHORS
from ..ir.ops.record import get


def same_index_operands(graph: Graph, node: Node) -> set[int]:
    """The operands of which the kernel reads each element only to make the same element.

    That holds for elementwise operators and regions, for what is computed of the scattered gradient
    of a max pooling, and for those operands of some contraction regions that the contraction itself
    does not read; the operands must have the shape of all results (a broadcast element is read more
    than once). The key of ``uniform`` is read as a whole.
    """
    if get(node.op).kind == "elementwise":
        whole = {0} if node.op == "uniform" else set()
    elif node.op == "fused" and node.attrs["kind"] == "elementwise":
        whole = _read_by(node.attrs["body"], {"uniform"})
    elif node.op == "fused" and any(n.op in IN_PLACE_ANCHORS for n in node.attrs["body"].nodes):
        whole = _read_by(node.attrs["body"], {"uniform", *IN_PLACE_ANCHORS})
    elif node.op == "fused" and node.attrs["kind"] == "pooling":
        whole = set()
        if all(n.op != "max_pool2d_scatter" for n in node.attrs["body"].nodes):
            return set()
    else:
        return set()
    shapes = {t.shape for t in node.types}
    return {
        i for i, v in enumerate(node.operands) if i not in whole and shapes == {graph.type(v).shape}
    }


def _read_by(body: Graph, operators: set[str]) -> set[int]:
    """The operands of a region that some of the operators read themselves."""
    return {
        int(n.attrs["path"])
        for n in body.sources("input")
        if any(u.op in operators for u in body.users(n.value))
    }
