"""Programs up to names: keys that are equal for equal computations, and forms without names.

Compilers compute a lot twice because it has two names. ``node_key`` holds everything that the
meaning of a node depends on; ``isolated`` is a graph made of just that, so that whoever reads
nothing else can use the key to remember what it made.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from .graph import Attrs, Graph, Node, Value
from .types import sliced

Widths = tuple[int, ...]
"""`Step.widths`: of the tensors that operands and results of a node are columns of."""


def node_key(node: Node, graph: Graph, widths: Widths = ()) -> Hashable:
    """Equal for nodes that do the same to operands of the same types, placed in the same way.

    An operand that is a constant of one element counts with its value, and it counts which operands
    are the same value. Names, sources, and where the operands come from do not.
    """
    numbers: dict[Value, int] = {}
    operands = tuple(numbers.setdefault(v, len(numbers)) for v in node.operands)
    origins = tuple(_origin_key(v, graph) for v in numbers)
    return (node.op, operands, origins, attrs_key(node.attrs), node.types, widths)


def attrs_key(attrs: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """Equal for attributes that are equal (-0.0 is not 0.0, 1 is not True, NaN is NaN)."""
    return tuple((name, _value_key(attrs[name])) for name in sorted(attrs))


def graph_key(graph: Graph) -> Hashable:
    """Equal for graphs with the same nodes in the same order and the same results.

    The names of nodes and their sources do not count, the graph's own name does.
    """
    numbers: dict[str, int] = {}
    nodes = []
    for node in graph.nodes:
        operands = tuple((numbers[v.node], v.index) for v in node.operands)
        nodes.append((node.op, operands, attrs_key(node.attrs), node.types))
        numbers[node.name] = len(numbers)
    results = tuple(
        tuple((name, numbers[v.node], v.index) for name, v in values.items())
        for values in (graph.outputs, graph.updates)
    )
    return (graph.name, tuple(nodes), results)


def isolated(node: Node, graph: Graph, widths: Widths = ()) -> tuple[Node, Graph]:
    """The node in a graph of its own that holds what ``node_key`` holds and nothing else.

    Its operands are inputs, but for constants of one element; names are numbers. Values with a
    width have the type ``SlicedType``.
    """
    alone = Graph("isolated")
    env: dict[Value, Value] = {}
    widths = widths or (0,) * (len(node.operands) + len(node.types))
    for value, width in zip(node.operands, widths, strict=False):
        if value not in env:
            constant = _scalar_constant(value, graph)
            env[value] = (
                alone.add("input", path=str(len(env)), type=sliced(graph.type(value), width))
                if constant is None
                else alone.add("constant", value=constant)
            )
    operands = tuple(env[v] for v in node.operands)
    types = tuple(map(sliced, node.types, widths[len(operands) :]))
    alone.insert(Node("node", node.op, operands, _anonymous_attrs(node.attrs), types))
    return alone.node("node"), alone


def _anonymous(graph: Graph) -> Graph:
    """The graph with its nodes named by their numbers and without sources."""
    new = Graph(graph.name)
    env: dict[str, str] = {}
    for number, node in enumerate(graph.nodes):
        env[node.name] = name = f"v{number}"
        operands = tuple(Value(env[v.node], v.index) for v in node.operands)
        new.insert(Node(name, node.op, operands, _anonymous_attrs(node.attrs), node.types))
    new.outputs = {k: Value(env[v.node], v.index) for k, v in graph.outputs.items()}
    new.updates = {k: Value(env[v.node], v.index) for k, v in graph.updates.items()}
    return new


def _anonymous_attrs(attrs: Attrs) -> Attrs:
    if not any(isinstance(v, Graph) for v in attrs.values()):
        return attrs
    return Attrs({k: _anonymous(v) if isinstance(v, Graph) else v for k, v in attrs.items()})


def _origin_key(value: Value, graph: Graph) -> Hashable:
    constant = _scalar_constant(value, graph)
    return graph.type(value) if constant is None else _value_key(constant)


def _scalar_constant(value: Value, graph: Graph) -> Any:
    """The array of a constant of one element, else None."""
    node = graph.node(value)
    found = node.attrs["value"] if node.op == "constant" else None
    return found if found is not None and found.size == 1 else None


def _value_key(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, Graph):
        return ("graph", graph_key(value))
    if isinstance(value, tuple):
        return ("tuple", *map(_value_key, value))
    if isinstance(value, float):
        return ("float", repr(value))
    return (type(value).__name__, value)
