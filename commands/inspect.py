"""``netwright inspect``: the graph of a model after any stage, in several forms."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from . import model_file, model_inputs
from .failure import Misuse, require_compiler, user_code

if TYPE_CHECKING:
    from ..bridge.module import CompiledModule
    from ..ir.graph import Graph, Node

FORMATS = ("text", "table", "dot", "svg", "json")


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="print the graph of a model after a stage of the compiler",
        description="Compiles a model for inputs of the given shapes and prints its graph.",
    )
    model_file.add_argument(parser)
    model_inputs.add_argument(parser)
    parser.add_argument(
        "--stage",
        default="optimized",
        metavar="STAGE",
        help="which stage to print, or 'list' for their names (default: optimized)",
    )
    parser.add_argument(
        "--train", action="store_true", help="the training program: forward in train(), backward"
    )
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="instead of a graph, what the passes did and declined, and why",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the graph."""
    require_compiler()
    compiled = compile_once(options)
    if options.explain:
        print(compiled.explain())
        return 0
    stages = compiled.stages
    if options.stage == "list":
        print(json.dumps(stages) if options.format == "json" else "\n".join(stages))
        return 0
    if options.stage not in stages:
        raise Misuse(
            f"--stage {options.stage}: there is no such stage; expected one of {', '.join(stages)}"
        )
    graph = compiled.graph(options.stage)
    print(render(graph, options.format, model_inputs.batch_of(options.inputs)))
    return 0


def compile_once(options: argparse.Namespace) -> CompiledModule:
    """The model of the command line, compiled by one call."""
    from ..bridge.compile import compile as compile_model
    from ..errors import ShapeError
    from ..frontend.grad_mode import set_grad_enabled

    model, file = model_file.load_model(options.model)
    compiled = compile_model(model.train(options.train))
    inputs = model_inputs.make_inputs(options.inputs)
    with user_code(options.model, file), set_grad_enabled(options.train):
        try:
            compiled(*inputs)
        except ShapeError:
            # BatchNorm cannot train on a batch of one; the graph, whose batch is symbolic, exists.
            if not compiled.compilations:
                raise
    return compiled


def render(graph: Graph, form: str, batch: int = 1) -> str:
    """A graph in one of FORMATS; ``batch`` is that of the summary."""
    from .. import ir

    if form == "table":
        return f"{ir.table(graph)}\n\n{ir.summary(graph, batch)}"
    if form == "dot":
        return ir.to_dot(graph).rstrip("\n")
    if form == "svg":
        return ir.to_svg(graph).rstrip("\n")
    if form == "json":
        return json.dumps(as_json(graph), indent=1)
    return str(graph)


def as_json(graph: Graph) -> dict[str, Any]:
    """Nodes, outputs and updates with plain values; other attributes in the IR's text form."""
    return {
        "name": graph.name,
        "nodes": [_node_json(node) for node in graph.nodes],
        "outputs": {name: str(value) for name, value in graph.outputs.items()},
        "updates": {path: str(value) for path, value in graph.updates.items()},
    }


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "operands": [str(v) for v in node.operands],
        "types": [str(t) for t in node.types],
        "attributes": {key: _attribute_json(value) for key, value in node.attrs.items()},
        "source": {
            "module": node.source.module,
            "file": node.source.file,
            "line": node.source.line,
        },
    }


def _attribute_json(value: Any) -> Any:
    from ..ir.graph import Graph
    from ..ir.text import format_attr

    if isinstance(value, Graph):
        return as_json(value)
    if isinstance(value, tuple):
        return [_attribute_json(v) for v in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    return format_attr(value)
