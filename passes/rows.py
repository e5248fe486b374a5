"""Following the vectors along one dimension of a value up through operators that only move them."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Graph, Node, Source, Value
from ..ir.types import Shape, numel


def trace_rows(graph: Graph, value: Value, dim: int) -> tuple[Value, int, list[Node]]:
    """Where the vectors along ``dim`` of ``value`` come from, seen through reshapes and permutes
    that keep each of them whole and in order.

    Returns the value that holds them, the dimension there, and the operators passed, last first.
    """
    passed: list[Node] = []
    while True:
        node = graph.node(value)
        above: int | None = None
        if node.op == "permute":
            above = node.attrs["dims"][dim]
        elif node.op == "reshape":
            above = _dim_before(graph.type(node.operands[0]).shape, node.type.shape, dim)
        if above is None:
            return value, dim, passed
        passed.append(node)
        value, dim = node.operands[0], above


def repeat(graph: Graph, passed: Sequence[Node], value: Value, source: Source) -> Value:
    """Applies the operators that ``trace_rows`` passed to another value of the same type."""
    for node in reversed(passed):
        value = graph.add(node.op, value, source=source, **node.attrs)
    return value


def _dim_before(before: Shape, after: Shape, dim: int) -> int | None:
    """The dimension that a reshape carries over as ``dim``: same extent, same stride."""
    for d, extent in enumerate(before):
        if extent == after[dim] and numel(before[d + 1 :]) == numel(after[dim + 1 :]):
            return d
    return None
