"""Splits a differentiated graph into a forward and a backward graph for autograd.

The backward graph holds every node that depends on a seed (an input ``grad:<output>``) and those
that only such nodes use; values that cross become outputs ``saved:<k>`` of the forward graph and
inputs of the same name of the backward graph. Parameters and inputs are not saved: the backward
graph reads them again.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from .differentiate import GRAD

SAVED = "saved:"


def split_backward(graph: Graph) -> tuple[Graph, Graph]:
    """``(forward, backward)`` of a graph made by ``differentiate`` without a loss."""
    needed = _needed_forward(graph)
    forward, backward = Graph(graph.name), Graph(graph.name + "_backward")
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.name in needed or (node.op == "input" and not _is_seed(node)):
            _copy(forward, node, env)
    forward.outputs = {
        k: env[v] for k, v in graph.outputs.items() if not k.startswith(GRAD)
    }
    forward.updates = {k: env[v] for k, v in graph.updates.items()}
    _copy_backward(graph, needed, forward, backward, env)
    return forward, backward


def _is_seed(node: Node) -> bool:
    return node.op == "input" and node.attrs["path"].startswith(GRAD)


def _needed_forward(graph: Graph) -> set[str]:
    """Nodes on which the forward results depend."""
    results = [v for k, v in graph.outputs.items() if not k.startswith(GRAD)]
    pending = [v.node for v in (*results, *graph.updates.values())]
    needed: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += [v.node for v in graph.node(name).operands]
    return needed


def _copy(new: Graph, node: Node, env: dict[Value, Value]) -> None:
    result = new.add(
        node.op,
        *(env[v] for v in node.operands),
        name=node.name,
        source=node.source,
        **node.attrs,
    )
    results = (result,) if isinstance(result, Value) else result
    env.update(zip(node.values, results, strict=True))


def _copy_backward(
    graph: Graph, needed: set[str], forward: Graph, backward: Graph, saved_env: dict[Value, Value]
) -> None:
    wanted = _ancestors_of_gradients(graph)
    own = [n for n in graph.nodes if n.name in wanted and n.name not in needed and n.operands]
    used = {v.node for n in own for v in n.operands}
    used |= {v.node for k, v in graph.outputs.items() if k.startswith(GRAD)}
    names = {n.name for n in own}
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.name not in names and not (node.name in used and not node.operands):
            continue
        for operand in node.operands:
            if operand in env:
                continue
            path = f"{SAVED}{len([k for k in forward.outputs if k.startswith(SAVED)])}"
            forward.outputs[path] = saved_env[operand]
            env[operand] = backward.add(
                "input",
                name=operand.node,
                source=graph.node(operand).source,
                path=path,
                type=graph.type(operand),
            )
        _copy(backward, node, env)
    backward.outputs = {k: env[v] for k, v in graph.outputs.items() if k.startswith(GRAD)}


def _ancestors_of_gradients(graph: Graph) -> set[str]:
    pending = [v.node for k, v in graph.outputs.items() if k.startswith(GRAD)]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += [v.node for v in graph.node(name).operands]
    return seen
