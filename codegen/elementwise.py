"""Kernels of elementwise operators: any number of operands and results, numpy broadcasting.

The iteration space is the results' shape with neighbouring dimensions merged wherever every operand
allows it. Where that leaves one loop of fixed length, the kernel takes the length in the place of
the batch size: the optimizer's updates of all parameters of a group are one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import UnsupportedError
from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from ..ir.types import Dim
from .body import PASSED_THROUGH, lower_body
from .iteration import Axis, iteration_space
from .kernel import Kernel, TaskCount
from .strided_loop import CHUNK, StridedLoop
from .target import Target

__all__ = ["emit_elementwise", "lower_body"]


def emit_elementwise(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of an elementwise node, or of a ``fused`` node with an elementwise body.

    None if there is no native form: a body with other operators, an operator without a native
    lowering for its dtype, results of different shapes. The caller then runs the numpy form.
    """
    body = node.attrs["body"] if node.op == "fused" else _as_body(node, graph)
    if body is None or not all(_is_elementwise(n) for n in body.nodes):
        return None
    shape = node.types[0].shape
    if any(t.shape != shape for t in node.types):
        return None
    inputs = [graph.type(v) for v in node.operands]
    keys = _key_inputs(body)
    uniforms = [n for n in body.nodes if n.op == "uniform"]
    if keys is None or any(n.type.shape != shape for n in uniforms):
        return None
    try:
        space = iteration_space(node.types, inputs, keys)
        length = _length(space, body)
        if length is not None:
            space = [Axis(Dim(1), space[0].strides)]
        kernel = StridedLoop(body, space, inputs, list(node.types), keys, target).kernel()
    except UnsupportedError:
        return None
    if length is None:
        return kernel
    return replace(kernel, tasks=TaskCount(length, CHUNK), length=length)


def _length(space: Sequence[Axis], body: Graph) -> int | None:
    """The length of the only loop, if it is fixed and nothing in the body depends on the batch."""
    extent = space[0].extent
    if len(space) > 1 or isinstance(extent, Dim) or extent < 2:
        return None
    counts = (n.attrs["size"] for n in body.sources("extent"))
    return None if any(isinstance(size, Dim) for size in counts) else extent


def _is_elementwise(node: Node) -> bool:
    return node.op in PASSED_THROUGH or get(node.op).kind == "elementwise"


def _as_body(node: Node, graph: Graph) -> Graph | None:
    """A single node as the body of a fused node; one-element constants become part of it."""
    if get(node.op).kind != "elementwise":
        return None
    body = Graph("body")
    values = []
    for i, v in enumerate(node.operands):
        source = graph.node(v)
        if source.op == "constant" and source.attrs["value"].size == 1 and node.op != "uniform":
            scalar = source.attrs["value"].reshape(())
            values.append(body.add("constant", value=scalar))
        else:
            values.append(body.add("input", path=str(i), type=graph.type(v)))
    body.outputs["0"] = body.add(node.op, *values, **node.attrs)
    return body


def _key_inputs(body: Graph) -> frozenset[int] | None:
    """Operand numbers that are keys of ``uniform``; None if one is used as an ordinary operand."""
    found = set()
    for node in body.sources("input"):
        users = body.users(node.value)
        as_key = [u.op == "uniform" for u in users]
        if any(as_key):
            if not all(as_key):
                return None
            found.add(int(node.attrs["path"]))
    return frozenset(found)
