"""Reports about a graph as text: a table of its nodes, and a summary of its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .graph import Graph, Node, Value
from .text import format_attr
from .types import TensorType, extent_at, numel, shape_text

_WIDTH = 48


def table(graph: Graph) -> str:
    """One aligned line per node: name, operator, types, operands, attributes, source.

    Bodies of regions are indented below their node. Long cells are cut.
    """
    rows = [("name", "op", "type", "operands", "attributes", "source")]
    rows += list(_table_rows(graph, ""))
    for what, results in (("output", graph.outputs), ("update", graph.updates)):
        for name, value in results.items():
            rows.append((name, what, str(graph.type(value)), str(value), "", ""))
    return _aligned(rows)


def _table_rows(graph: Graph, indent: str) -> Iterator[tuple[str, ...]]:
    for node in graph.nodes:
        shown = {k: v for k, v in node.attrs.items() if k != "type" and not isinstance(v, Graph)}
        attrs = ", ".join(f"{k}={_short(format_attr(v))}" for k, v in sorted(shown.items()))
        yield (
            f"{indent}%{node.name}",
            node.op,
            ", ".join(str(t) for t in node.types),
            ", ".join(str(v) for v in node.operands),
            _short(attrs),
            str(node.source),
        )
        for body in _bodies(node):
            yield from _table_rows(body, indent + "  ")


@dataclass
class Layer:
    """What a module contributes to a graph.

    path: the module's path ('' for the model itself); ops: names of its operators in order;
    shape: of its last result at the given batch size; parameters: number of elements that its own
    parameters hold; flops: see ``flops``.
    """

    path: str
    ops: list[str] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    parameters: int = 0
    flops: int = 0


def layers(graph: Graph, n: int = 1) -> list[Layer]:
    """The modules of a graph in the order in which they are used, for batch size ``n``.

    A fused kernel counts for the modules of the operators in its body. A shared parameter counts
    once, for the module of its path.
    """
    found: dict[str, Layer] = {}

    def layer(path: str) -> Layer:
        return found.setdefault(path, Layer(path))

    for owner, node in _operations(graph):
        at = layer(node.source.module)
        if node.op not in at.ops:
            at.ops.append(node.op)
        at.shape = node.type.at(n).shape if node.types else at.shape
        at.flops += _flops_of(owner, node, n)
    for node in graph.sources("parameter"):
        path = node.attrs["path"].rpartition(".")[0]
        layer(path).parameters += extent_at(node.type.size, n)
    return list(found.values())


def flops(graph: Graph, n: int = 1) -> int:
    """Floating-point operations of the contractions at batch size ``n``.

    A multiply-add is 2 operations. Convolutions (also their padding), linear layers, matrix products
    and the gradients of these count, packed and inside fused kernels, too; biases and all other
    operators do not, as is the custom.
    """
    return sum(_flops_of(owner, node, n) for owner, node in _operations(graph))


def summary(graph: Graph, n: int = 1) -> str:
    """A table of the modules: operators, output shape, parameters, FLOPs (see ``flops``); totals."""
    found = layers(graph, n)
    rows = [("layer", "operators", "output shape", "parameters", "FLOPs")]
    for layer in found:
        rows.append(
            (
                layer.path or "(model)",
                _short(", ".join(layer.ops)) or "-",
                shape_text(layer.shape) if layer.shape is not None else "-",
                f"{layer.parameters:,}" if layer.parameters else "-",
                f"{layer.flops:,}" if layer.flops else "-",
            )
        )
    lines = _aligned(rows, right=(3, 4)).split("\n")
    rule = "-" * max(len(line) for line in lines)
    state = graph.sources("parameter")
    size = sum(extent_at(p.type.size, n) * p.type.dtype.itemsize for p in state)
    total = sum(layer.parameters for layer in found)
    work = sum(layer.flops for layer in found)
    return "\n".join(
        [
            f"{graph.name}, batch size {n}",
            lines[0],
            rule,
            *lines[1:],
            rule,
            f"parameters: {total:,} ({size / 2**20:.2f} MiB)",
            f"FLOPs: {work:,} ({_scaled(work)})",
        ]
    )


def _scaled(work: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if work >= size:
            return f"{work / size:.2f} {unit}FLOP"
    return f"{work} FLOP"


def _operations(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    """The nodes that compute, those in bodies instead of the regions, with their graph."""
    for node in graph.nodes:
        bodies = _bodies(node)
        if node.operands and not bodies:
            yield graph, node
        for body in bodies:
            yield from _operations(body)


def _bodies(node: Node) -> list[Graph]:
    return [a for a in node.attrs.values() if isinstance(a, Graph)]


# -- floating-point operations --------------------------------------------------------------------


def _flops_of(graph: Graph, node: Node, n: int) -> int:
    rule = _MULTIPLY_ADDS.get(node.op)
    return 2 * rule(node, [graph.type(v).at(n) for v in node.operands], n) if rule else 0


def _count(kind: TensorType) -> int:
    return extent_at(numel(kind.shape), 1)


def _number(extent: object) -> int:
    return extent if isinstance(extent, int) else 1


def _per_feature(node: Node, operands: Sequence[TensorType], n: int) -> int:
    """linear(x, ..) and matmul(a, ..): each element of the result sums over the last dimension."""
    return _count(node.type.at(n)) * _number(operands[0].shape[-1])


def _linear_grad_weight(node: Node, operands: Sequence[TensorType], n: int) -> int:
    return _count(operands[0]) * _number(operands[1].shape[-1])


def _conv2d(node: Node, operands: Sequence[TensorType], n: int) -> int:
    return _count(node.type.at(n)) * _count(operands[1]) // max(_number(operands[1].shape[0]), 1)


def _conv2d_packed(node: Node, operands: Sequence[TensorType], n: int) -> int:
    attrs = node.attrs
    channels = _number(operands[0].shape[3 if attrs["layout"] == "NHWC" else 1])
    taps = math.prod(attrs["kernel_size"])
    return _count(node.type.at(n)) * (channels // attrs["groups"]) * taps


def _conv2d_grad_input(node: Node, operands: Sequence[TensorType], n: int) -> int:
    return _count(operands[0]) * _count(operands[1]) // max(_number(operands[1].shape[0]), 1)


def _conv2d_grad_input_packed(node: Node, operands: Sequence[TensorType], n: int) -> int:
    attrs = node.attrs
    taps = math.prod(attrs["kernel_size"])
    return _count(operands[0]) * (attrs["in_channels"] // attrs["groups"]) * taps


def _conv2d_grad_weight(node: Node, operands: Sequence[TensorType], n: int) -> int:
    return _count(operands[0]) * math.prod(_number(d) for d in node.type.shape[1:])


_MULTIPLY_ADDS: dict[str, Callable[[Node, Sequence[TensorType], int], int]] = {
    "linear": _per_feature,
    "linear_packed": _per_feature,
    "matmul": _per_feature,
    "matmul_packed": _per_feature,
    "linear_grad_weight": _linear_grad_weight,
    "conv2d": _conv2d,
    "conv2d_packed": _conv2d_packed,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_input_packed": _conv2d_grad_input_packed,
    "conv2d_grad_weight": _conv2d_grad_weight,
}

# -- text -----------------------------------------------------------------------------------------


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _aligned(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
