"""Which kernels can read or write columns of a wider tensor, whose rows are further apart.

The memory planner asks (``passes/parts.py``); generators then see such operands and results as
``SlicedType`` and take the distance of rows from ``TensorType.pitch``.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from ..ir.plan import Columns
from ..ir.structure import Widths

_NONE = Columns()
_ONE_TO_ONE = Columns(frozenset({0}), frozenset({0}))
_CONVOLUTIONS = (
    "conv2d", "conv2d_packed", "conv2d_winograd", "conv2d_grad_input", "conv2d_grad_input_packed",
)  # fmt: skip
_PRODUCTS = ("linear", "linear_packed", "linear_transposed", "matmul_packed")
_POOLS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")


def accepts_columns(node: Node, graph: Graph) -> Columns:
    """The operands and results of a node whose rows may be any distance apart."""
    if node.op == "fused":
        return _of_region(node, graph)
    if node.op in _CONVOLUTIONS or node.op in _POOLS:
        return _ONE_TO_ONE if node.attrs.get("layout", "NHWC") == "NHWC" else _NONE
    if node.op in _PRODUCTS:
        return _ONE_TO_ONE
    if node.op == "cat":
        last = node.attrs["dim"] == len(node.type.shape) - 1
        return Columns(frozenset(range(len(node.operands))), frozenset({0})) if last else _NONE
    if node.op == "slice":
        return Columns(frozenset({0}))
    if get(node.op).kind == "elementwise" and node.op != "uniform":
        return _elementwise(node)
    return _NONE


def _elementwise(node: Node) -> Columns:
    """All operands; results unless the loop over their single column is left out."""
    results = range(len(node.types)) if node.type.shape and node.type.shape[-1] != 1 else ()
    return Columns(frozenset(range(len(node.operands))), frozenset(results))


def _of_region(node: Node, graph: Graph) -> Columns:
    body: Graph = node.attrs["body"]
    if any(n.op == "uniform" for n in body.nodes):
        return _NONE  # draws are numbered by the place of an element
    if node.attrs["kind"] == "elementwise":
        return _elementwise(node)
    if node.attrs["kind"] != "contraction":
        return _NONE
    anchor = next((n for n in body.nodes if n.op in (*_CONVOLUTIONS, *_PRODUCTS)), None)
    if anchor is None or anchor.attrs.get("layout", "NHWC") != "NHWC":
        return _NONE
    image = int(body.node(anchor.operands[0]).attrs.get("path", -1))
    if node.operands.count(node.operands[image]) > 1:
        return _NONE  # it is an operand of the epilogue, too
    # An operand as large as the result is read at the same places as the result is written.
    full = any(graph.type(v).shape == node.type.shape for v in node.operands[1:])
    alone = len(node.types) == 1 and not full
    return Columns(frozenset({image}), frozenset({0}) if alone else frozenset())


def check_columns(node: Node, graph: Graph, widths: Widths) -> None:
    """Raises ValueError if a plan wants columns where the kernel of a node takes none."""
    accepted, count = accepts_columns(node, graph), len(node.operands)
    for i, width in enumerate(widths):
        wanted, known = (i, accepted.operands) if i < count else (i - count, accepted.results)
        if width and wanted not in known:
            what = "operand" if i < count else "result"
            raise ValueError(
                f"%{node.name} ({node.op}): {what} {wanted} is planned as columns of a tensor of "
                f"{width} columns, which its kernel does not support; see codegen/columns.py"
            )
