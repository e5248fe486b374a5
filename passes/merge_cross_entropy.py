"""Takes the exponentials of the logits once for the loss and its gradient.

Before::

    %loss: f32[] = cross_entropy(%logits, %target) {reduction="mean", ...}
    ...
    %dx: f32[N,10] = cross_entropy_grad(%one, %logits, %target) {reduction="mean", ...}

After::

    %losses, %dx = cross_entropy_rows(%one, %logits, %target) {reduction="mean", ...}
    %loss: f32[] = cross_entropy_total(%losses, %target) {classes=10, ignore_index=-100, ...}

The losses of the rows and the gradient come out of one sweep, shared between threads; what is left
of the loss is a sum of one number per row. The bits are those of the two operators.

Skips: a gradient of the loss that depends on a cross entropy itself (a loss that is squared, or
multiplied by another one): it is not known before the sweep; a gradient of other logits, targets or
weights than those of the loss, such as logits that are computed again; a symbolic number of
classes.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from .rewriting import Ledger

NAME = "merge_cross_entropy"


def merge_cross_entropy(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with each loss and its gradient in one operator where that is possible."""
    pairs = _pairs(graph, ledger if ledger is not None else Ledger())
    if not pairs:
        return graph
    return _Merge(graph, pairs).run()


def _pairs(graph: Graph, ledger: Ledger) -> dict[str, Node]:
    """The gradient's node for the name of each loss that can be merged with it."""
    pairs: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "cross_entropy":
            continue
        found = [
            user
            for user in graph.users(node.operands[0])
            if user.op == "cross_entropy_grad"
            and user.operands[1:] == node.operands
            and user.attrs == node.attrs
        ]
        if len(found) != 1 or not isinstance(graph.type(node.operands[0]).shape[1], int):
            continue
        before = graph.ancestors([found[0].operands[0]])
        if any(graph.node(name).op == "cross_entropy" for name in before):
            ledger.declined(NAME, "E111", node, "the gradient depends on the value of a loss")
            continue
        pairs[node.name] = found[0]
        ledger.did(NAME, "E101", node, "loss and gradient in one sweep")
    return pairs


class _Merge:
    def __init__(self, graph: Graph, pairs: dict[str, Node]) -> None:
        self.graph, self.pairs = graph, pairs
        self.gradients = {node.name for node in pairs.values()}
        self.new = Graph(graph.name)
        self.env: dict[Value, Value] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self._place(node)
        self.new.outputs = {k: self.env[v] for k, v in self.graph.outputs.items()}
        self.new.updates = {k: self.env[v] for k, v in self.graph.updates.items()}
        return self.new

    def _place(self, node: Node) -> None:
        if node.values[0] in self.env or node.name in self.gradients:
            return
        if node.name in self.pairs:
            self._merge(node, self.pairs[node.name])
            return
        operands = [self.env[v] for v in node.operands]
        results = self.new.add_copy(node, operands, self.graph)
        self.env.update(zip(node.values, results, strict=True))

    def _merge(self, loss: Node, gradient: Node) -> None:
        incoming = gradient.operands[0]
        needed = self.graph.ancestors([incoming])
        for node in self.graph.nodes:  # what the gradient of the loss is made of comes first
            if node.name in needed:
                self._place(node)
        target = [self.env[v] for v in loss.operands[1:]]
        operands = (self.env[incoming], self.env[loss.operands[0]], *target)
        losses, dx = self.new.add(
            "cross_entropy_rows",
            *operands,
            name=f"{loss.name}_rows",
            source=loss.source,
            **loss.attrs,
        )
        self.env[gradient.value] = dx
        if loss.attrs["reduction"] == "none":
            self.env[loss.value] = losses
            return
        total = self.new.add(
            "cross_entropy_total",
            losses,
            *target,
            name=loss.name,
            source=loss.source,
            reduction=loss.attrs["reduction"],
            ignore_index=loss.attrs["ignore_index"],
            classes=self.graph.type(loss.operands[0]).shape[1],
        )
        self.env[loss.value] = total
