"""Splits a differentiated graph into a forward and a backward graph for autograd.

Before::

    %x: f32[N,4] = input {path="x"}
    %w: f32[2,4] = parameter {path="weight"}
    %h: f32[N,2] = linear(%x, %w)
    %y: f32[N,2] = tanh(%h)
    %g: f32[N,2] = input {path="grad:out"}
    %s: f32[N,2] = square(%y)
    ...
    %dw: f32[2,4] = linear_grad_weight(%dh, %x)
    output "out" = %y
    output "grad:weight" = %dw

After, the forward graph::

    ...
    output "out" = %y
    output "saved:0" = %y

and the backward graph::

    %x: f32[N,4] = input {path="x"}
    %y: f32[N,2] = input {path="saved:0"}
    %g: f32[N,2] = input {path="grad:out"}
    %s: f32[N,2] = square(%y)
    ...
    output "grad:weight" = %dw

The forward graph holds what its results need, the backward graph the rest. Values that cross become
outputs ``saved:<k>`` of the one and inputs of the same path of the other.

Not saved: inputs, parameters and buffers, which the backward graph reads again; reshapes and
broadcasts, which cost nothing, and functions of state alone, which the runtime prepares: these are
made again. State that the forward graph updates **is** saved where the backward needs its old
value.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.graph import Graph, Node, Value
from .differentiate import GRAD
from .state import state_only

SAVED = "saved:"
_STATE = ("parameter", "buffer")
_FREE = ("reshape", "broadcast_to")


def split_backward(graph: Graph) -> tuple[Graph, Graph]:
    """``(forward, backward)`` of a graph made by ``differentiate`` without a loss."""
    results = {k: v for k, v in graph.outputs.items() if not k.startswith(GRAD)}
    needed = graph.ancestors([*results.values(), *graph.updates.values()])
    forward = Graph(graph.name)
    env: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.name in needed or (node.op == "input" and not _is_seed(node)):
            _copy(forward, node, env, graph)
    forward.outputs = {k: env[v] for k, v in results.items()}
    forward.updates = {k: env[v] for k, v in graph.updates.items()}
    return forward, _Backward(graph, needed, forward, env).run()


def _is_seed(node: Node) -> bool:
    return node.op == "input" and node.attrs["path"].startswith(GRAD)


def _copy(new: Graph, node: Node, env: dict[Value, Value], origin: Graph) -> None:
    results = new.add_copy(node, [env[v] for v in node.operands], origin)
    env.update(zip(node.values, results, strict=True))


class _Backward:
    """Builds the backward graph; ``made`` maps forward values to those of the forward graph."""

    def __init__(
        self, graph: Graph, needed: set[str], forward: Graph, made: dict[Value, Value]
    ) -> None:
        self.graph, self.forward, self.made = graph, forward, made
        self.new = Graph(graph.name + "_backward")
        self.again = self._made_again(needed)
        self.saved = needed - self.again

    def run(self) -> Graph:
        grads = {k: v for k, v in self.graph.outputs.items() if k.startswith(GRAD)}
        wanted = self._wanted(grads.values())
        env: dict[Value, Value] = {}
        for node in self.graph.nodes:
            if node.name not in wanted:
                continue
            if node.name not in self.saved:
                _copy(self.new, node, env, self.graph)
                continue
            for value in node.values:
                if value in wanted[node.name]:
                    env[value] = self._save(value)
        self.new.outputs = {k: env[v] for k, v in grads.items()}
        return self.new

    def _made_again(self, needed: set[str]) -> set[str]:
        """Forward nodes that the backward graph repeats instead of reading a saved value."""
        prepared = state_only(self.graph)
        again = set()
        for node in self.graph.nodes:
            if node.name not in needed:
                continue
            if node.op in _STATE:
                free = node.attrs["path"] not in self.graph.updates
            else:
                free = not node.operands or node.op in _FREE or node.name in prepared
            if free:
                again.add(node.name)
        return again

    def _wanted(self, results: Iterable[Value]) -> dict[str, set[Value]]:
        """The nodes of the backward graph and which of their results it uses; nothing above a
        saved value."""
        wanted: dict[str, set[Value]] = {}
        pending = list(results)
        while pending:
            value = pending.pop()
            if value.node not in wanted and value.node not in self.saved:
                pending += self.graph.node(value).operands
            wanted.setdefault(value.node, set()).add(value)
        return wanted

    def _save(self, value: Value) -> Value:
        path = f"{SAVED}{sum(k.startswith(SAVED) for k in self.forward.outputs)}"
        self.forward.outputs[path] = self.made[value]
        node = self.graph.node(value)
        result: Value = self.new.add(
            "input", name=node.name, source=node.source, path=path, type=self.graph.type(value)
        )
        return result
