"""Reads the text form of a graph; ``docs/ir.md`` has the grammar, ``text.py`` prints it.

The types that the text gives are checked against the operators' shape rules, so a text that parses
is a graph whose types are right.
"""

from __future__ import annotations

import base64
import math
import re
from typing import Any

import numpy as np

from ..errors import NetwrightError
from .graph import NOWHERE, Graph, Node, Source, Value
from .graph import Attrs as NodeAttrs
from .tokens import Token, Tokens
from .types import DTYPES, Dim, DType, Extent, TensorType, dtype_of
from .verify import NAMED_SOURCES, checked_types

MAX_DEPTH = 64
"""How deep tuples and graphs may nest."""

_DTYPE_NAMES = frozenset(d.short for d in DTYPES)
_LITERALS: dict[str, Any] = {
    "None": None,
    "True": True,
    "False": False,
    "nan": math.nan,
    "inf": math.inf,
    "N": Dim(1),
}


def parse(text: str) -> Graph:
    """The graph that a text describes.

    Raises ParseError with the line, the column, the line's text and what was expected there.
    """
    parser = _Parser(text)
    graph = parser.graph(0)
    if parser.next.kind != "end":
        raise parser.expected("the end of the text")
    return graph


class _Parser(Tokens):
    # -- graphs -----------------------------------------------------------------------------

    def graph(self, depth: int) -> Graph:
        self._limit(depth)
        self.expect("graph")
        graph = Graph(self.name("the graph's name"))
        self.expect("{")
        while not self.accept("}"):
            if self.next.kind == "value":
                self.node(graph, depth)
            elif self.accept("output"):
                self.result(graph, graph.outputs, "output")
            elif self.accept("update"):
                self.result(graph, graph.updates, "update")
            else:
                raise self.expected("a node (%name), 'output', 'update' or '}'")
        return graph

    def result(self, graph: Graph, results: dict[str, Value], what: str) -> None:
        start = self.next.start
        name = self.string(f"the {what}'s name, a string")
        if name in results:
            raise self.error(f"{what} {name!r} is given twice", start)
        self.expect("=")
        results[name] = self.operand(graph)

    def value(self, what: str) -> tuple[Value, int]:
        token = self.take("value", what)
        text, _, index = token.text.rpartition("#")
        if not text or index.endswith('"'):  # no index: the mark is absent or inside the name
            text, index = token.text, "0"
        quoted = text.startswith('%"')
        name = self.unquote(token._replace(text=text), 1) if quoted else text[1:]
        return Value(name, self.to_int(token, index)), token.start

    def operand(self, graph: Graph) -> Value:
        value, start = self.value("a value (%name)")
        if value.node not in graph:
            raise self.error(f"%{value.node} is not defined before this line", start)
        results = len(graph.node(value.node).types)
        if value.index >= results:
            count = f"{results} result{'' if results == 1 else 's'}"
            raise self.error(f"%{value.node} has {count}, there is no {value}", start)
        return value

    def node(self, graph: Graph, depth: int) -> None:
        value, start = self.value("a node (%name)")
        if value.index:
            raise self.error(f"a node is defined by its name: %{value.node}", start)
        if value.node in graph:
            raise self.error(f"%{value.node} is defined twice", start)
        self.expect(":")
        types_start = self.next.start
        types = self.types()
        self.expect("=")
        op_start = self.next.start
        op = self.name("an operator")
        operands: list[Value] = []
        if self.accept("("):
            while not self.accept(")"):
                operands.append(self.operand(graph))
                if not self.accept(","):
                    self.expect(")", "',' or ')'")
                    break
        attrs = self.attrs(op, types, depth)
        source = self.source()
        try:
            inferred = checked_types(op, [graph.type(v) for v in operands], attrs)
        except NetwrightError as error:
            raise self.error(str(error), op_start) from None
        if inferred != types:
            raise self.error(
                f"%{value.node} is written as {_listed(types)}, but {op} gives {_listed(inferred)}",
                types_start,
            )
        graph.insert(Node(value.node, op, tuple(operands), NodeAttrs(attrs), types, source))

    def source(self) -> Source:
        if not self.accept("@"):
            return NOWHERE
        module = self.string("the module's path, a string")
        if self.next.kind != "string":
            return Source(module)
        file = self.string("a file")
        self.expect(":")
        return Source(module, file, self.integer("a line number"))

    # -- types ------------------------------------------------------------------------------

    def types(self) -> tuple[TensorType, ...]:
        if not self.accept("("):
            return (self.type(),)
        found: list[TensorType] = []
        while not self.accept(")"):
            found.append(self.type())
            if not self.accept(","):
                self.expect(")", "',' or ')'")
                break
        return tuple(found)

    def type(self) -> TensorType:
        if self.next.kind != "word" or self.next.text not in _DTYPE_NAMES:
            raise self.expected(f"a type such as f32[N,16] ({', '.join(sorted(_DTYPE_NAMES))})")
        dtype = dtype_of(self.take("word", "a dtype").text)
        self.expect("[")
        shape: list[Extent] = []
        while not self.accept("]"):
            shape.append(self.extent())
            if not self.accept(","):
                self.expect("]", "',' or ']'")
                break
        return TensorType(dtype, tuple(shape))

    def extent(self) -> Extent:
        what = "an extent (16, N or 3N)"
        if self.accept("N"):
            return Dim(1)
        if self.next.text.startswith("-"):
            raise self.expected(what)
        if self.next.kind == "dim":
            token = self.take("dim", what)
            return Dim(self.to_int(token, token.text[:-1]))
        return self.integer(what)

    # -- attributes -------------------------------------------------------------------------

    def attrs(self, op: str, types: tuple[TensorType, ...], depth: int) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                start = self.next.start
                key = self.take("word", "an attribute's name or '}'").text
                if key in attrs:
                    raise self.error(f"attribute {key} is given twice", start)
                self.expect("=")
                bare = self.next.text not in _DTYPE_NAMES
                if op == "constant" and key == "value" and len(types) == 1 and bare:
                    attrs[key] = self.array(types[0])
                else:
                    attrs[key] = self.attr(depth)
                if not self.accept(","):
                    self.expect("}", "',' or '}'")
                    break
        if op in NAMED_SOURCES and "type" not in attrs and len(types) == 1:
            attrs["type"] = types[0]
        return attrs

    def attr(self, depth: int) -> Any:
        self._limit(depth)
        token = self.next
        if token.kind == "string":
            return self.string("a string")
        if token.kind == "dim":
            self.at += 1
            return Dim(self.to_int(token, token.text[:-1]))
        if token.kind == "number":
            self.at += 1
            if re.fullmatch(r"-?[0-9]+", token.text):
                return self.to_int(token, token.text)
            if "x" in token.text:
                raise self.error("bits (0x..) stand in arrays only", token.start)
            return float(token.text)
        if token.kind == "word" and token.text in _DTYPE_NAMES:
            kind = self.type()
            is_array = self.next.kind == "number" or self.next.text in (
                "[",
                "True",
                "False",
                "nan",
                "inf",
                "base64",
            )
            return self.array(kind) if is_array else kind
        if token.kind == "word" and token.text in _LITERALS:
            self.at += 1
            return _LITERALS[token.text]
        if token.text == "graph":
            return self.graph(depth + 1)
        if self.accept("("):
            return self.tuple(depth + 1)
        raise self.expected(
            "an attribute's value (a number, string, True, False, None, N, 3N, a tuple, a type, "
            "an array or a graph)"
        )

    def tuple(self, depth: int) -> tuple[Any, ...]:
        items: list[Any] = []
        while not self.accept(")"):
            items.append(self.attr(depth))
            if not self.accept(","):
                self.expect(")", "',' or ')'")
                break
        return tuple(items)

    def _limit(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} levels of nesting", self.next.start)

    # -- arrays -----------------------------------------------------------------------------

    def array(self, kind: TensorType) -> np.ndarray:
        start = self.next.start
        shape = [d for d in kind.shape if isinstance(d, int)]
        if len(shape) != kind.rank:
            raise self.error(f"an array cannot be {kind}: its shape must be numbers", start)
        size = math.prod(shape)
        if self.accept("base64"):
            flat = self._from_base64(kind.dtype, size)
        else:
            elements: list[bytes] = []
            if size == 0:
                self.expect("[")
                self.expect("]", f"']': {kind} has no elements")
            else:
                self._dense(kind.dtype, shape, elements)
            flat = np.frombuffer(b"".join(elements), kind.dtype.np).copy()
        try:
            return flat.reshape(shape)
        except (ValueError, OverflowError) as error:
            raise self.error(f"numpy has no array of type {kind}: {error}", start) from None

    def _from_base64(self, dtype: DType, size: int) -> np.ndarray:
        start = self.next.start
        try:
            data = base64.b64decode(self.string("the array's bytes as a string"), validate=True)
        except ValueError as error:
            raise self.error(f"bad base64: {error}", start) from None
        if len(data) != size * dtype.itemsize:
            raise self.error(
                f"the array has {len(data)} bytes, its type {size * dtype.itemsize}", start
            )
        return np.frombuffer(data, dtype.np.newbyteorder("<")).astype(dtype.np)

    def _dense(self, dtype: DType, shape: list[int], elements: list[bytes]) -> None:
        if not shape:
            elements.append(self._element(dtype))
            return
        self.expect("[", f"'[' and a list of {shape[0]}")
        for i in range(shape[0]):
            if i:
                self.expect(",", f"',' and element {i + 1} of {shape[0]}")
            self._dense(dtype, shape[1:], elements)
        self.expect("]", f"']' after {shape[0]} elements")

    def _element(self, dtype: DType) -> bytes:
        token = self.next
        if dtype.np.kind == "b":
            if token.text not in ("True", "False"):
                raise self.expected("True or False")
        elif token.kind != "number" and not (dtype.is_float and token.text in ("nan", "inf")):
            raise self.expected(f"a number ({dtype.name})")
        self.at += 1
        text = token.text
        if dtype.np.kind == "b":
            return np.array(text == "True").tobytes()
        if dtype.is_float:
            return self._float_bytes(dtype, token)
        if not re.fullmatch(r"-?[0-9]+", text):
            raise self.error(f"expected an integer ({dtype.name}), found {text}", token.start)
        number, limits = self.to_int(token, text), np.iinfo(dtype.np)
        if not limits.min <= number <= limits.max:
            raise self.error(f"{number} does not fit {dtype.name}", token.start)
        return np.array(number, dtype.np).tobytes()

    def _float_bytes(self, dtype: DType, token: Token) -> bytes:
        if token.text.startswith("0x"):
            if len(token.text) != 2 + 2 * dtype.itemsize:
                raise self.error(
                    f"the bits of a {dtype.name} are {2 * dtype.itemsize} hex digits", token.start
                )
            bits = int(token.text, 16)
            return np.array(bits, np.dtype(f"u{dtype.itemsize}")).tobytes()
        if "x" in token.text:
            raise self.error("bits (0x..) have no sign", token.start)
        number = float(token.text)
        with np.errstate(over="ignore"):
            element = np.array(number).astype(dtype.np)
        if math.isfinite(number) and not np.isfinite(element):
            raise self.error(f"{token.text} does not fit {dtype.name}", token.start)
        return element.tobytes()


def _listed(types: tuple[TensorType, ...]) -> str:
    text = ", ".join(str(t) for t in types)
    return text if len(types) == 1 else f"({text})"
