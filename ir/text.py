"""The text form of a graph: printing. ``docs/ir.md`` has the grammar, ``parser.py`` reads it.

    graph tiny {
      %x: f32[N,4] = input {path="x"}
      %w: f32[2,4] = parameter {path="0.weight"}
      %y: f32[N,2] = linear(%x, %w) @ "0" "model.py":12
      output "out" = %y
    }

``parse(format_graph(graph)) == graph`` for every valid graph. Graphs that break an invariant are
printed, too, as far as possible: the text is how they are debugged.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from .graph import NOWHERE, Graph, Node, Source, Value
from .parser import parse as parse
from .types import DTYPES, Dim, TensorType, dtype_of
from .verify import NAMED_SOURCES, WORD

MAX_DENSE = 64
"""Arrays of up to this many elements are written as lists, larger ones as base64."""

_SPELLED = frozenset(d.np for d in DTYPES)
_BITS = {4: np.uint32, 8: np.uint64}


def format_graph(graph: Graph) -> str:
    """The text of a graph, without a newline at its end."""
    return "\n".join(_graph_lines(graph))


def format_node(node: Node) -> str:
    """The line (for regions: the lines) of one node, as inside a graph but not indented."""
    return "\n".join(_node_lines(node))


def format_attr(value: Any) -> str:
    """An attribute's text; ``<...>``, which does not parse, for what is no IR value."""
    if isinstance(value, Graph):
        return format_graph(value)
    if isinstance(value, np.ndarray) and value.dtype in _SPELLED and value.dtype.isnative:
        return f"{_array_type(value)} {_array_data(value)}"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, tuple):
        items = ",".join(format_attr(v) for v in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if value is None or type(value) in (bool, int, float, Dim, TensorType):
        return repr(value)
    return "<" + " ".join(repr(value).split()) + ">"


def quote(text: str) -> str:
    """A string literal: JSON's escapes, on one line, other characters as they are."""
    lone_surrogates = any("\ud800" <= c <= "\udfff" for c in text)
    return json.dumps(text, ensure_ascii=lone_surrogates)


def _word(name: str) -> str:
    return name if WORD.fullmatch(name) else quote(name)


def _value(value: Value) -> str:
    return f"%{_word(value.node)}" + (f"#{value.index}" if value.index else "")


def _graph_lines(graph: Graph) -> Iterator[str]:
    yield f"graph {_word(graph.name)} {{"
    for node in graph.nodes:
        for line in _node_lines(node):
            yield "  " + line
    for what, results in (("output", graph.outputs), ("update", graph.updates)):
        for name, value in results.items():
            yield f"  {what} {quote(name)} = {_value(value)}"
    yield "}"


def _node_lines(node: Node) -> Iterator[str]:
    kinds = ", ".join(str(t) for t in node.types)
    kinds = kinds if len(node.types) == 1 else f"({kinds})"
    operands = ", ".join(_value(v) for v in node.operands)
    call = f"{_word(node.op)}({operands})" if operands else _word(node.op)
    text = f"%{_word(node.name)}: {kinds} = {call}{_attrs(node)}{_source(node.source)}"
    yield from text.split("\n")


def _attrs(node: Node) -> str:
    # Graphs last: the other attributes are then on the first line.
    keys = sorted(node.attrs, key=lambda k: (isinstance(node.attrs[k], Graph), k))
    items = []
    for key in keys:
        value = node.attrs[key]
        if key == "type" and node.op in NAMED_SOURCES and (value,) == node.types:
            continue
        if _is_value_of_constant(node, key):
            items.append(f"{key}={_array_data(value)}")
        else:
            items.append(f"{key}={format_attr(value)}")
    return " {" + ", ".join(items) + "}" if items else ""


def _is_value_of_constant(node: Node, key: str) -> bool:
    """Whether the array's type is that of the result, so that it need not be repeated."""
    value = node.attrs[key]
    return (
        key == "value"
        and node.op == "constant"
        and isinstance(value, np.ndarray)
        and value.dtype in _SPELLED
        and value.dtype.isnative
        and (_array_type(value),) == node.types
    )


def _source(source: Source) -> str:
    if source == NOWHERE:
        return ""
    place = f" {quote(source.file)}:{source.line}" if source.file or source.line else ""
    return f" @ {quote(source.module)}{place}"


def _array_type(array: np.ndarray) -> TensorType:
    return TensorType(dtype_of(array.dtype), tuple(array.shape))


def _array_data(array: np.ndarray) -> str:
    if array.size > MAX_DENSE:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return f'base64 "{base64.b64encode(little.tobytes()).decode()}"'
    return _dense(array) if array.size else "[]"


def _dense(array: np.ndarray) -> str:
    if array.ndim:
        return "[" + ", ".join(_dense(np.asarray(part)) for part in array) + "]"
    return _number(array) if array.dtype.kind == "f" else repr(array.item())


def _number(array: np.ndarray) -> str:
    """The shortest text that reads back to the same bits; a NaN with a payload as its bits."""
    value = array[()]
    # The short text may read back one bit off: it is rounded to float64 first.
    for text in (str(value), repr(float(value))):
        if array.dtype.type(float(text)).tobytes() == array.tobytes():
            return text
    bits = array.view(_BITS[array.dtype.itemsize])
    return f"{int(bits):#0{2 + 2 * array.dtype.itemsize}x}"
