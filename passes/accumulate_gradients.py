"""Gradients that outlast a call: one graph leaves them in buffers, another one reads them there.

Before::

    output "grad:weight" = %dw

After ``accumulate_gradients(graph, add=False)``, for the first backward pass since an update::

    update "grad:weight" = %dw

After ``accumulate_gradients(graph, add=True)``, for those that follow::

    %grad_weight: f32[2,4] = buffer {path="grad:weight"}
    %sum: f32[2,4] = add(%grad_weight, %dw)
    update "grad:weight" = %sum

``gradients_from_buffers`` makes the graph that begins there, for the optimizer::

    %weight: f32[2,4] = parameter {path="weight"}
    %grad_weight: f32[2,4] = buffer {path="grad:weight"}
    output "grad:weight" = %grad_weight

Skips: parameters without a gradient; they have no buffer and are not updated.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.builder import GraphBuilder
from ..ir.graph import Graph, Node, Source, Value
from ..ir.types import TensorType
from .differentiate import GRAD


def accumulate_gradients(graph: Graph, add: bool) -> Graph:
    """The graph with updates of gradient buffers in place of its ``grad:`` outputs."""
    new = graph.copy()
    b = GraphBuilder(new)
    parameters = {n.attrs["path"]: n for n in new.sources("parameter")}
    for name, grad in list(new.outputs.items()):
        if not name.startswith(GRAD):
            continue
        node = parameters[name.removeprefix(GRAD)]
        b.source = node.source
        new.updates[name] = b.add(_buffer(new, node), grad) if add else grad
        del new.outputs[name]
    return new


def gradients_from_buffers(parameters: Mapping[str, TensorType], name: str) -> Graph:
    """A graph of parameters, by path, whose gradients are buffers."""
    new = Graph(name)
    for path, kind in parameters.items():
        source = Source(path.rpartition(".")[0])
        value = new.add(
            "parameter", name=path.replace(".", "_"), path=path, type=kind, source=source
        )
        new.outputs[GRAD + path] = _buffer(new, new.node(value))
    return new


def _buffer(graph: Graph, parameter: Node) -> Value:
    value: Value = graph.add(
        "buffer",
        name=f"grad_{parameter.name}",
        source=parameter.source,
        path=GRAD + parameter.attrs["path"],
        type=parameter.type,
    )
    return value
