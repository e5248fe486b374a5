"""Reverse-mode differentiation of a graph: gradients are ordinary nodes.

Before::

    %x: f32[N,4] = input {path="x"}
    %w: f32[2,4] = parameter {path="weight"}
    %y: f32[N,2] = linear(%x, %w)
    %loss: f32[] = mean(%y) {dims=(0,1), keepdim=False}
    output "loss" = %loss

After ``differentiate(graph, {"weight"}, loss="loss")``, in addition::

    %seed: f32[] = constant {value=1.0}
    ...
    %dw: f32[2,4] = linear_grad_weight(%dy, %x)
    output "grad:weight" = %dw

A ``detach`` has done its work afterwards and is gone.

Skips: nodes that no requested gradient passes through; operators whose results have no derivative
(comparisons, argmax, casts to integers); values that are not floating point. A gradient that
reaches an operator without a gradient rule is an UnsupportedError, never a silent zero.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..errors import UnsupportedError
from ..ir.autodiff import input_gradients
from ..ir.builder import GraphBuilder
from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import GradContext, get
from .number_inputs import Numbers

GRAD = "grad:"


def differentiate(
    graph: Graph, wrt: Collection[str], loss: str | None = None, scale: str | None = None
) -> Graph:
    """The graph with gradients of ``loss`` (or of all float outputs) as outputs ``grad:<path>``.

    ``wrt`` holds paths of parameters and inputs. With ``loss``, the name of a 0-d output, the
    seed is one, or the number (`Numbers`) of path ``scale``; without it, each float output gets a
    seed input named ``grad:<output>``.
    A path that no output depends on gets no ``grad:`` output.
    """
    new = graph.copy()
    builder = GraphBuilder(new)
    roots = [n for n in new.nodes if n.op in ("parameter", "input") and n.attrs["path"] in wrt]
    active = _active(new, roots)
    adjoints = _seeds(new, loss, scale, active, builder)
    for node in reversed(graph.nodes):
        grads = [adjoints.get(v) for v in node.values]
        if node.name not in active or not node.operands or all(g is None for g in grads):
            continue
        builder.source = node.source
        found = _gradients(builder, node, grads, active)
        for operand, grad in zip(node.operands, found, strict=True):
            if grad is not None:
                known = adjoints.get(operand)
                adjoints[operand] = grad if known is None else builder.add(known, grad)
    for root in roots:
        if root.value in adjoints:
            new.outputs[GRAD + root.attrs["path"]] = adjoints[root.value]
    _drop_detach(new)
    return new


def _active(graph: Graph, roots: list[Node]) -> set[str]:
    """Names of the floating-point nodes through which a gradient can reach one of the roots."""
    active = {r.name for r in roots}
    for node in graph.nodes:
        if any(v.node in active for v in node.operands) and any(
            t.dtype.is_float for t in node.types
        ):
            active.add(node.name)
    return active


def _seeds(
    graph: Graph,
    loss: str | None,
    scale: str | None,
    active: set[str],
    builder: GraphBuilder,
) -> dict[Value, Value]:
    if loss is not None:
        value = _loss_value(graph, loss)
        if value.node not in active:
            return {}
        kind = graph.type(value)
        if scale is not None:
            return {value: Numbers(graph).get(scale, "scale", kind.dtype)}
        return {value: graph.add("constant", name="seed", value=np.ones((), kind.dtype.np))}
    seeds: dict[Value, Value] = {}
    for name, value in list(graph.outputs.items()):
        kind = graph.type(value)
        if not kind.dtype.is_float or value.node not in active:
            continue
        seed = graph.add("input", name="grad_" + name, path=GRAD + name, type=kind)
        seeds[value] = builder.add(seeds[value], seed) if value in seeds else seed
    return seeds


def _loss_value(graph: Graph, loss: str) -> Value:
    if loss not in graph.outputs:
        raise UnsupportedError(
            f"differentiate: the graph has no output {loss!r}; its outputs are "
            f"{', '.join(map(repr, graph.outputs))}"
        )
    kind = graph.type(graph.outputs[loss])
    if kind.shape or not kind.dtype.is_float:
        raise UnsupportedError(f"the loss must be a floating-point scalar, it is {kind}")
    return graph.outputs[loss]


def _gradients(
    builder: GraphBuilder, node: Node, grads: list[Value | None], active: set[str]
) -> list[Value | None]:
    if get(node.op).grad is None:
        where = f" [{node.source}]" if str(node.source) else ""
        raise UnsupportedError(
            f"differentiate: %{node.name} = {node.op} has no gradient rule{where}; a gradient "
            "through it was requested. Detach its operand, or differentiate before this stage"
        )
    types = [builder.type(v) for v in node.operands]
    needs = tuple(
        v.node in active and t.dtype.is_float for v, t in zip(node.operands, types, strict=True)
    )
    ctx = GradContext(node.operands, node.values, dict(node.attrs), needs)
    return input_gradients(builder, get(node.op), ctx, grads)


def _drop_detach(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op == "detach":
            graph.replace_uses(node.value, graph.node(node.name).operands[0])
            graph.erase(node.name)
