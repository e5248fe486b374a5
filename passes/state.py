"""Which values depend on state alone, so that they can be computed before a call."""

from __future__ import annotations

from typing import Any

from ..ir.graph import Graph, Node
from ..ir.types import Dim, TensorType


def state_only(graph: Graph) -> set[str]:
    """Names of the nodes that are functions of constants, parameters and buffers alone.

    State that the graph itself updates does not count: its value changes with every call. Neither
    does what depends on the batch size, such as a parameter that is repeated for every sample.
    """
    found: set[str] = set()
    for node in graph.nodes:
        if node.op in ("parameter", "buffer"):
            constant = node.attrs["path"] not in graph.updates
        elif node.op == "constant":
            constant = True
        elif node.op == "input":
            constant = False
        else:
            constant = all(v.node in found for v in node.operands) and not depends_on_batch(node)
        if constant:
            found.add(node.name)
    return found


def depends_on_batch(node: Node) -> bool:
    """Whether a node's types or attributes mention the symbolic batch."""
    return any(map(_mentions_batch, node.types)) or any(map(_mentions_batch, node.attrs.values()))


def _mentions_batch(attr: Any) -> bool:
    if isinstance(attr, Dim):
        return True
    if isinstance(attr, TensorType):
        return any(isinstance(d, Dim) for d in attr.shape)
    if isinstance(attr, tuple):
        return any(map(_mentions_batch, attr))
    if isinstance(attr, Graph):
        return any(map(depends_on_batch, attr.nodes))
    return False
