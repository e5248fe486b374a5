"""Computes the values inside of chosen modules again in the backward pass instead of keeping them.

Before, with the block ``b`` chosen, whose nodes are ``%h`` and ``%r``::

    %h: f32[N,512] = linear(%x, %w0)            # b.0
    %r: f32[N,512] = relu(%h)                   # b.1
    %y: f32[N,64] = linear(%r, %w1)             # b.2
    %z: f32[N,64] = tanh(%y)
    ...
    %dw1: f32[64,512] = linear_grad_weight(%dy, %r)

After::

    %h: f32[N,512] = linear(%x, %w0)
    %r: f32[N,512] = relu(%h)
    %y: f32[N,64] = linear(%r, %w1)
    %z: f32[N,64] = tanh(%y)
    ...
    %h_1: f32[N,512] = linear(%x, %w0)
    %r_1: f32[N,512] = relu(%h_1)
    %dw1: f32[64,512] = linear_grad_weight(%dy, %r_1)

``%r`` is free as soon as ``%y`` is there, and of the block only what goes into it, ``%x``, and what
comes out of it, ``%y``, is kept. The copies stand right before the first node that needs them, and
give bitwise the same results: an operator is a function of its operands, random numbers included
(dropout draws from a seed and a counter).

T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016 (arXiv:1604.06174).

Runs after common subexpressions are eliminated, which would undo it.

Skips: values that a later part of the forward pass reads outside of their block; state and
functions of state alone; what the backward pass does not need.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..ir.graph import Graph, Node, Value
from .rewriting import Ledger
from .state import state_only

PASS = "recompute"


def recompute(
    graph: Graph, blocks: Sequence[str], results: Collection[Value], ledger: Ledger
) -> Graph:
    """The graph with the nodes of ``blocks`` (module paths) repeated where the backward pass needs
    them.

    ``results`` are the values that the forward pass is for: what they depend on is the forward
    pass, and everything else the backward pass. A node belongs to the longest path that fits.
    """
    return _Recompute(graph, blocks, results).run(ledger)


class _Recompute:
    def __init__(self, graph: Graph, blocks: Sequence[str], results: Collection[Value]) -> None:
        self.graph = graph
        self.blocks = sorted(blocks, key=len, reverse=True)
        self.forward = graph.ancestors(results)
        self.position = {n.name: i for i, n in enumerate(graph.nodes)}
        self.new = Graph(graph.name)
        self.first: dict[Value, Value] = {}
        self.again: dict[Value, Value] = {}
        self.inside = self._inside({v.node for v in results})

    def run(self, ledger: Ledger) -> Graph:
        repeated: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            if node.name not in self.forward:
                for needed in self._needed(node):
                    repeated.setdefault(self.inside[needed.name], []).append(needed)
                    self._copy(needed, self.again)
            self._copy(node, self.first)
        self.new.outputs = {k: self.first[v] for k, v in self.graph.outputs.items()}
        self.new.updates = {k: self.first[v] for k, v in self.graph.updates.items()}
        for block in self.blocks:
            nodes = repeated.get(block, [])
            if nodes:
                message = f"{len(nodes)} operators of {block} run again in the backward pass"
                ledger.did(PASS, "R001", nodes[0], message)
            else:
                ledger.note(
                    PASS, "R002", False, f"the backward pass needs nothing from inside of {block}"
                )
        return self.new

    def _inside(self, results: set[str]) -> dict[str, str]:
        """The nodes whose values are not kept, and their blocks."""
        prepared = state_only(self.graph)
        block = {
            n.name: found
            for n in self.graph.nodes
            if n.name in self.forward
            and n.operands
            and n.name not in prepared
            and (found := self._block(n)) is not None
        }

        def leaves(name: str) -> bool:
            readers = [u.name for u in self.graph.users(name) if u.name in self.forward]
            return name in results or any(block.get(u) != block[name] for u in readers)

        return {name: found for name, found in block.items() if not leaves(name)}

    def _block(self, node: Node) -> str | None:
        module = node.source.module
        for block in self.blocks:
            if module == block or module.startswith(block + "."):
                return block
        return None

    def _needed(self, node: Node) -> list[Node]:
        """What must run again before a node of the backward pass, in order."""
        pending = [v.node for v in node.operands]
        found: set[str] = set()
        while pending:
            name = pending.pop()
            if name in found or name not in self.inside or Value(name) in self.again:
                continue
            found.add(name)
            pending += [v.node for v in self.graph.node(name).operands]
        return [self.graph.node(n) for n in sorted(found, key=self.position.__getitem__)]

    def _copy(self, node: Node, made: dict[Value, Value]) -> None:
        """Adds a node to the new graph. Only the forward pass reads what is not kept."""
        ahead = made is self.first and node.name in self.forward
        operands = [
            self.first[v] if ahead else self.again.get(v, self.first[v]) for v in node.operands
        ]
        results = self.new.add_copy(node, operands, self.graph)
        made.update(zip(node.values, results, strict=True))
