"""Reports about a graph as text: a table of its nodes, and a summary of its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .columns import aligned
from .graph import Attrs, Graph, Node
from .text import format_attr
from .types import Dim, shape_at, shape_text

_WIDTH = 48


def table(graph: Graph) -> str:
    """One aligned line per node: name, operator, types, operands, attributes, source.

    Bodies of regions are indented below their node. Long cells are cut.
    """
    rows: list[tuple[str, ...]] = [("name", "op", "type", "operands", "attributes", "source")]
    rows += list(_table_rows(graph, ""))
    for what, results in (("output", graph.outputs), ("update", graph.updates)):
        for name, value in results.items():
            rows.append((name, what, str(graph.type(value)), str(value), "", ""))
    return aligned(rows)


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
    shape: of its result at the given batch size; parameters: number of elements that its own
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
    once, for the module of its path. A module's shape is that of its last operator in the forward
    computation from the inputs; preparing weights, gradients and updates come after it.
    """
    found: dict[str, Layer] = {}
    forward: set[str] = set()
    # A stable sort: what lies on the way from the inputs to the outputs decides order and shape.
    for operation in sorted(_operations(graph), key=lambda o: not o.forward):
        node, path = operation.node, operation.node.source.module
        layer = found.setdefault(path, Layer(path))
        if node.op not in layer.ops:
            layer.ops.append(node.op)
        if operation.forward or path not in forward:
            layer.shape = shape_at(node.type.shape, n)
        if operation.forward:
            forward.add(path)
        layer.flops += _flops_of(operation, n)
    for node in graph.sources("parameter"):
        path = node.attrs["path"].rpartition(".")[0]
        layer = found.setdefault(path, Layer(path))
        layer.parameters += math.prod(shape_at(node.type.shape, n))
    return list(found.values())


def flops(graph: Graph, n: int = 1) -> int:
    """Floating-point operations of the contractions at batch size ``n``.

    A multiply-add is 2 operations. Convolutions (also their padding), linear layers, matrix
    products and the gradients of these count, packed and inside fused kernels, too; biases and all
    other operators do not, as is the custom.
    """
    return sum(_flops_of(operation, n) for operation in _operations(graph))


def summary(graph: Graph, n: int = 1) -> str:
    """A table of the modules: operators, output shape, parameters, FLOPs (``flops``); totals."""
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
    lines = aligned(rows, right=(3, 4)).split("\n")
    rule = "-" * max(len(line) for line in lines)
    size = sum(
        math.prod(shape_at(p.type.shape, n)) * p.type.dtype.itemsize
        for p in graph.sources("parameter")
    )
    total = sum(layer.parameters for layer in found)
    work = sum(layer.flops for layer in found)
    return "\n".join(
        [
            graph.name + (f", batch size {n}" if _is_symbolic(graph) else ""),
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


def _is_symbolic(graph: Graph) -> bool:
    return any(isinstance(d, Dim) for n in graph.sources("input") for d in n.type.shape)


class _Operation(NamedTuple):
    """A node that computes, its graph, and whether it is part of the forward computation."""

    graph: Graph
    node: Node
    forward: bool


def _operations(graph: Graph, inside_forward: bool = True) -> Iterator[_Operation]:
    """The nodes that compute; those in bodies instead of the regions."""
    on_the_way = _forward_nodes(graph) if inside_forward else set()
    for node in graph.nodes:
        forward = node.name in on_the_way
        bodies = _bodies(node)
        if node.operands and node.types and not bodies:
            yield _Operation(graph, node, forward)
        for body in bodies:
            yield from _operations(body, forward)


def _forward_nodes(graph: Graph) -> set[str]:
    """Nodes that depend on an input and on which an output depends, gradients excluded."""
    fed: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or any(v.node in fed for v in node.operands):
            fed.add(node.name)
    needed = {v.node for name, v in graph.outputs.items() if not name.startswith("grad:")}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(v.node for v in node.operands)
    return fed & needed


def _bodies(node: Node) -> list[Graph]:
    return [a for a in node.attrs.values() if isinstance(a, Graph)]


# -- floating-point operations --------------------------------------------------------------------

_Sizes = tuple[int, ...]


def _flops_of(operation: _Operation, n: int) -> int:
    graph, node, _ = operation
    rule = _MULTIPLY_ADDS.get(node.op)
    if rule is None:
        return 0
    operands = [shape_at(graph.type(v).shape, n) for v in node.operands]
    return 2 * rule(node.attrs, shape_at(node.type.shape, n), operands)


def _per_feature(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    """linear(x, ..) and matmul(a, ..): each element of the result sums over the last dimension."""
    return math.prod(out) * operands[0][-1]


def _linear_grad_weight(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    return math.prod(operands[0]) * operands[1][-1]


def _conv2d(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    return math.prod(out) * math.prod(operands[1][1:])


def _conv2d_packed(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    channels = operands[0][3 if attrs["layout"] == "NHWC" else 1]
    return math.prod(out) * (channels // attrs["groups"]) * math.prod(attrs["kernel_size"])


def _conv2d_winograd(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    """As many as the direct sum has: what was asked for, not what is done."""
    return math.prod(out) * operands[0][3] * 9


def _conv2d_grad_input(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    return math.prod(operands[0]) * math.prod(operands[1][1:])


def _conv2d_grad_input_packed(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    channels = attrs["in_channels"] // attrs["groups"]
    return math.prod(operands[0]) * channels * math.prod(attrs["kernel_size"])


def _conv2d_grad_weight(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    return math.prod(operands[0]) * math.prod(out[1:])


def _conv2d_grad_weight_parts(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    return _conv2d_grad_weight(attrs, out[1:], operands)


def _attention(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    """Scores, then weights times values; a causal mask saves nothing in this count."""
    batch, queries, keys = operands[0][0], operands[0][-2], operands[1][-2]
    dims = attrs["head_dim"] + attrs.get("value_dim", 0)
    return batch * attrs["heads"] * queries * keys * int(dims)


def _attention_grad(attrs: Attrs, out: _Sizes, operands: Sequence[_Sizes]) -> int:
    """The scores again, and two products for the gradients of each of the two."""
    batch, queries, keys = operands[1][0], operands[1][-2], operands[2][-2]
    dims = 3 * attrs["head_dim"] + 2 * attrs["value_dim"]
    return batch * attrs["heads"] * queries * keys * int(dims)


_MULTIPLY_ADDS: dict[str, Callable[[Attrs, _Sizes, Sequence[_Sizes]], int]] = {
    "linear": _per_feature,
    "linear_packed": _per_feature,
    "linear_transposed": _per_feature,
    "matmul": _per_feature,
    "matmul_packed": _per_feature,
    "attention": _attention,
    "attention_weights": _attention,
    "attention_grad": _attention_grad,
    "linear_grad_weight": _linear_grad_weight,
    "conv2d": _conv2d,
    "conv2d_packed": _conv2d_packed,
    "conv2d_winograd": _conv2d_winograd,
    "conv2d_grad_input": _conv2d_grad_input,
    "conv2d_grad_input_packed": _conv2d_grad_input_packed,
    "conv2d_grad_weight": _conv2d_grad_weight,
    "conv2d_grad_weight_parts": _conv2d_grad_weight_parts,
    "conv2d_grad_weight_winograd": _conv2d_grad_weight,
}

# -- text -----------------------------------------------------------------------------------------


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
