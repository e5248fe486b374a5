"""The verifier: what must hold in every graph, after every pass.

Invariants, by the name that an error gives:

- ``name``: a node's name is a word and the key under which the graph keeps it.
- ``defined``: every operand is a result of an earlier node; there are no cycles.
- ``users``: the index of users agrees with the operands.
- ``operator``: the operator has a record.
- ``attributes``: attributes are plain IR values: None, bool, int, float, str, Dim, TensorType,
  Graph, native numpy arrays of the IR's dtypes, and tuples of these.
- ``signature``: the operator takes that number of operands and those attributes.
- ``types``: result types are what the operator's shape rule gives.
- ``sources``: inputs, parameters and buffers have a path and a type, constants have an array.
- ``paths``: no two inputs share a path; no two parameters or buffers do.
- ``results``: outputs and updates are values of the graph.
- ``updates``: an update has the type of the parameter or buffer that it replaces.
- ``regions``: the body of a ``fused`` node is a valid graph with one input ``0``, ``1``, .. per
  operand, of its type, with outputs ``0``, ``1``, .., and without state or updates of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NetwrightError, ShapeError, VerifyError
from .ops.record import get, has, infer_types
from .types import DTYPES, Dim, TensorType

if TYPE_CHECKING:
    # Not at run time: netwright.ir imports this module at once, and networkx only when needed.
    from .graph import Graph, Node, Value

WORD = re.compile(r"[^\W\d]\w*")
_DTYPES = frozenset(d.np for d in DTYPES)
NAMED_SOURCES = ("input", "parameter", "buffer")


def verify(graph: Graph) -> None:
    """Raises VerifyError, which names the invariant and the node, unless the graph is valid."""
    known: set[Value] = set()
    for node in graph.nodes:
        _check_node(graph, node, known)
        known.update(node.values)
    _check_paths(graph)
    _check_results(graph, known)


def checked_types(
    op: str, types: Sequence[TensorType], attrs: Mapping[str, Any]
) -> tuple[TensorType, ...]:
    """Result types by the operator's rule, for operands and attributes that may be nonsense.

    Raises a NetwrightError (UnsupportedError, ShapeError, DTypeError) that says what is wrong.
    """
    misfit = _signature_misfit(op, types, attrs)
    if misfit:
        raise ShapeError(f"{op}: {misfit}")
    return _types_by_rule(op, types, attrs)


def _types_by_rule(
    op: str, types: Sequence[TensorType], attrs: Mapping[str, Any]
) -> tuple[TensorType, ...]:
    try:
        return infer_types(op, types, dict(attrs))
    except NetwrightError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Shape rules rely on the kinds of their attributes; text written by hand may break them.
        raise ShapeError(f"{op}: the attributes do not fit the operator: {error}") from None


def _signature_misfit(op: str, types: Sequence[TensorType], attrs: Mapping[str, Any]) -> str:
    """What is wrong with the number of operands or the attributes' names; else empty."""
    return _misfit(get(op).infer, len(types), tuple(attrs))


@lru_cache(maxsize=4096)
def _misfit(rule: Callable[..., Any], operands: int, attributes: tuple[str, ...]) -> str:
    try:
        _signature(rule).bind(*range(operands), **dict.fromkeys(attributes))
    except TypeError as error:
        text = str(error).replace("positional arguments", f"operands ({operands})")
        return text.replace("keyword argument", "attribute")
    return ""


@cache
def _signature(rule: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(rule)


def is_plain(value: Any) -> bool:
    """Whether an attribute is a plain IR value, which the text form can write."""
    if isinstance(value, tuple):
        return type(value) is tuple and all(is_plain(v) for v in value)
    if isinstance(value, np.ndarray):
        return type(value) is np.ndarray and value.dtype in _DTYPES and value.dtype.isnative
    if isinstance(value, TensorType):
        return all(
            (type(d) is Dim and d.coef >= 0) or (type(d) is int and d >= 0) for d in value.shape
        )
    if value is None or type(value) in (bool, int, float, str, Dim):
        return True
    from .graph import Graph

    return type(value) is Graph


def _fail(graph: Graph, invariant: str, message: str, node: Node | None = None) -> VerifyError:
    place = f"%{node.name} = {node.op}: " if node is not None else ""
    source = f" [{node.source}]" if node is not None and str(node.source) else ""
    return VerifyError(f"graph {graph.name!r} breaks '{invariant}': {place}{message}{source}")


def _check_node(graph: Graph, node: Node, known: set[Value]) -> None:
    if not WORD.fullmatch(node.name):
        raise _fail(graph, "name", f"{node.name!r} is not a word of letters, digits and _", node)
    if node.name not in graph or graph.node(node.name) is not node:
        raise _fail(graph, "name", "the graph keeps another node under this name", node)
    for value in node.operands:
        if value not in known:
            raise _fail(
                graph, "defined", f"operand {value} is not the result of an earlier node", node
            )
        if not any(user is node for user in graph.users(value)):
            raise _fail(graph, "users", f"it uses {value} but is not among its users", node)
    if not has(node.op):
        raise _fail(graph, "operator", "there is no operator of this name", node)
    for key, attr in node.attrs.items():
        if not is_plain(attr):
            raise _fail(
                graph,
                "attributes",
                f"{key}={attr!r} ({type(attr).__name__}) is not a plain IR value; use None, bool, "
                "int, float, str, Dim, TensorType, Graph, a native array or a tuple of these",
                node,
            )
    if node.op in (*NAMED_SOURCES, "constant"):
        _check_source(graph, node)
    if node.op == "fused":
        _check_region(graph, node)
    _check_types(graph, node)


def _check_types(graph: Graph, node: Node) -> None:
    operands = [graph.type(v) for v in node.operands]
    misfit = _signature_misfit(node.op, operands, node.attrs)
    if misfit:
        raise _fail(graph, "signature", misfit, node)
    try:
        types = _types_by_rule(node.op, operands, node.attrs)
    except NetwrightError as error:
        raise _fail(graph, "types", str(error), node) from None
    if types != node.types:
        raise _fail(
            graph, "types", f"has {_listed(node.types)}, the rule gives {_listed(types)}", node
        )


def _check_source(graph: Graph, node: Node) -> None:
    wanted: dict[str, type] = {"path": str, "type": TensorType}
    if node.op == "constant":
        wanted = {"value": np.ndarray}
    for key, kind in wanted.items():
        if not isinstance(node.attrs.get(key), kind):
            raise _fail(
                graph,
                "sources",
                f"{key} is {node.attrs.get(key)!r}, expected {kind.__name__}",
                node,
            )


def _check_region(graph: Graph, node: Node) -> None:
    body = node.attrs.get("body")
    if not isinstance(body, type(graph)):
        raise _fail(graph, "regions", "it has no body", node)
    try:
        verify(body)
    except VerifyError as error:
        raise _fail(graph, "regions", f"its body is invalid: {error}", node) from None
    operands = {str(i): graph.type(v) for i, v in enumerate(node.operands)}
    inputs = {n.attrs["path"]: n.type for n in body.sources("input")}
    if inputs != operands:
        raise _fail(
            graph,
            "regions",
            f"its body takes {_named(inputs)}, its operands are {_named(operands)}",
            node,
        )
    if list(body.outputs) != [str(i) for i in range(len(body.outputs))]:
        raise _fail(
            graph,
            "regions",
            f"its body's outputs are named {list(body.outputs)}, expected '0', '1', .. in order",
            node,
        )
    state = [n.name for kind in ("parameter", "buffer") for n in body.sources(kind)]
    if state or body.updates:
        found = ", ".join([f"%{n}" for n in state] + [f"update {p!r}" for p in body.updates])
        raise _fail(graph, "regions", f"its body has state of its own: {found}", node)


def _check_paths(graph: Graph) -> None:
    for kinds in (("input",), ("parameter", "buffer")):
        seen: dict[str, Node] = {}
        for kind in kinds:
            for node in graph.sources(kind):
                path = node.attrs["path"]
                if path in seen:
                    raise _fail(
                        graph,
                        "paths",
                        f"its path {path!r} is also that of %{seen[path].name} = {seen[path].op}",
                        node,
                    )
                seen[path] = node


def _check_results(graph: Graph, known: set[Value]) -> None:
    for what, results in (("output", graph.outputs), ("update", graph.updates)):
        for name, value in results.items():
            if value not in known:
                raise _fail(graph, "results", f"{what} {name!r} is {value}, which does not exist")
    for kind in ("parameter", "buffer"):
        for node in graph.sources(kind):
            new = graph.updates.get(node.attrs["path"])
            if new is not None and graph.type(new) != node.type:
                raise _fail(
                    graph, "updates", f"is {node.type}, its update {new} is {graph.type(new)}", node
                )


def _listed(types: Sequence[TensorType]) -> str:
    return "(" + ", ".join(str(t) for t in types) + ")"


def _named(types: Mapping[str, TensorType]) -> str:
    return "(" + ", ".join(f"{name}: {kind}" for name, kind in types.items()) + ")"
