"""A traced program as an ONNX model."""

from __future__ import annotations

import onnx
from onnx import helper

from ...errors import UnsupportedError
from ...frontend.trace import Traced
from ...ir.graph import Node, Value
from ...ir.types import TensorType
from ...passes.eliminate_dead_code import eliminate_dead_code
from . import attention, elementwise, rows, shape, spatial
from .builder import OnnxBuilder, element_type
from .rules import RULES

OPSET = 20
"""The version of ONNX's operator set that models are written in."""

# Importing a file of rules fills the table.
_RULE_FILES = (attention, elementwise, rows, shape, spatial)


def build(traced: Traced) -> onnx.ModelProto:
    """The model of a traced program, with the state's present values as initialisers.

    Raises UnsupportedError for an operator without a rule and for a program that changes state.
    """
    graph = eliminate_dead_code(traced.graph)
    if graph.updates:
        changed = ", ".join(sorted(graph.updates))
        raise UnsupportedError(
            f"onnx export: {graph.name} changes its state when it runs ({changed}); an ONNX model "
            "has none. Export it in eval mode, and without modules that count in forward()"
        )
    b = OnnxBuilder(graph)
    for node in graph.sources("input"):
        b.names[node.value] = b.fresh(node.attrs["path"])
    results = {name: b.fresh(name) for name in graph.outputs}
    for node in graph.nodes:
        if node.op != "input":
            b.current = node
            b.names.update(zip(node.values, _convert(b, node, traced), strict=False))
    b.current = None
    _name_results(b, results)
    return _model(b, results)


def _convert(b: OnnxBuilder, node: Node, traced: Traced) -> list[str]:
    """The ONNX names of a node's results, at least of the first."""
    if node.op in ("parameter", "buffer"):
        path = node.attrs["path"]
        return [b.state(path, traced.state[path]._array)]
    if node.op == "constant":
        return [b.array(node.attrs["value"], node.name)]
    where = f"{node.op} at {node.source}" if str(node.source) else f"{node.op} (%{node.name})"
    if node.op not in RULES:
        raise UnsupportedError(f"onnx export: {where} has no ONNX form")
    try:
        found = RULES[node.op](b, node, *(_name_of(b, v) for v in node.operands))
    except UnsupportedError as error:
        raise UnsupportedError(f"onnx export: {where}: {error}") from None
    return [found] if isinstance(found, str) else found


def _name_of(b: OnnxBuilder, value: Value) -> str:
    """The ONNX name of a value; UnsupportedError for one of the results that a rule left out."""
    if value not in b.names:
        op = b.graph.node(value).op
        raise UnsupportedError(f"{value}, result {value.index} of {op}, has no ONNX form")
    return b.names[value]


def _name_results(b: OnnxBuilder, results: dict[str, str]) -> None:
    """Gives the values that are results the names of the outputs."""
    made = {name for node in b.nodes for name in node.output}
    renamed: dict[str, str] = {}
    for output, value in b.graph.outputs.items():
        name = _name_of(b, value)
        if name in made and name not in renamed:
            renamed[name] = results[output]
        else:  # a constant, a parameter or an input, or a value that is returned twice
            copied = helper.make_node("Identity", [name], [results[output]], name=results[output])
            b.nodes.append(copied)
    for node in b.nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renamed.get(name, name)


def _model(b: OnnxBuilder, results: dict[str, str]) -> onnx.ModelProto:
    graph = b.graph
    inputs = [_declared(b.names[n.value], n.type) for n in graph.sources("input")]
    outputs = [_declared(results[k], graph.type(v)) for k, v in graph.outputs.items()]
    body = helper.make_graph(b.nodes, graph.name, inputs, outputs, b.initializers)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        body,
        opset_imports=opset,
        ir_version=helper.find_min_ir_version_for(opset),
        producer_name="netwright",
    )


def _declared(name: str, kind: TensorType) -> onnx.ValueInfoProto:
    """A typed input or output; multiples of the batch are symbols such as ``N``."""
    shape = [d if isinstance(d, int) else str(d) for d in kind.shape]
    return helper.make_tensor_value_info(name, element_type(kind.dtype), shape)
