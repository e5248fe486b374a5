"""Chooses channels-last for every spatial operator, once for the whole graph.

Before::

    %c: f32[N,16,28,28] = conv2d(%x, %w) {layout="NCHW", ...}
    %r: f32[N,16,28,28] = relu(%c)
    %p: f32[N,16,14,14] = max_pool2d(%r) {layout="NCHW", ...}

After::

    %xt: f32[N,28,28,1] = permute(%x) {dims=(0,2,3,1)}
    %c: f32[N,28,28,16] = conv2d(%xt, %w) {layout="NHWC", ...}
    %r: f32[N,28,28,16] = relu(%c)
    %p: f32[N,14,14,16] = max_pool2d(%r) {layout="NHWC", ...}

A value that only exists channels-last is permuted back where an operator that cannot work on it
(reshape, softmax, a graph output) needs the written order; each conversion is made once.

Skips: graphs without spatial operators; operators with other than 4 dimensions.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from ..ir.types import numel
from .rewriting import Ledger, copy_node

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)
_NEW_DIM = {0: 0, 1: 3, 2: 1, 3: 2}

_SPATIAL_OPERANDS = {
    "conv2d": (0,),
    "conv2d_grad_input": (0,),
    "conv2d_grad_weight": (0, 1),
    "max_pool2d": (0,),
    "max_pool2d_grad": (0, 1),
    "avg_pool2d": (0,),
    "avg_pool2d_grad": (0,),
    "adaptive_avg_pool2d": (0,),
    "adaptive_avg_pool2d_grad": (0,),
}
_NORMS = {"batch_norm": (0,), "batch_norm_train": (0,), "batch_norm_grad": (0, 1)}


def assign_layout(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with all spatial operators channels-last."""
    if not any(n.op in _SPATIAL_OPERANDS for n in graph.nodes):
        return graph
    return _Converter(graph).run()


class _Converter:
    """One walk; ``first`` and ``last`` hold each value in the written and the converted order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.new = Graph(graph.name)
        self.first: dict[Value, Value] = {}
        self.last: dict[Value, Value] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if not self._convert(node):
                operands = [self.as_first(v) for v in node.operands]
                results = copy_node(self.new, node, operands)
                self.first.update(zip(node.values, results, strict=True))
        self.new.outputs = {k: self.as_first(v) for k, v in self.graph.outputs.items()}
        self.new.updates = {k: self.as_first(v) for k, v in self.graph.updates.items()}
        return self.new

    def as_first(self, value: Value) -> Value:
        """The value in the order in which the program was written."""
        if value not in self.first:
            source = self.graph.node(value).source
            self.first[value] = self.new.add(
                "permute", self.last[value], source=source, dims=TO_FIRST
            )
        return self.first[value]

    def as_last(self, value: Value) -> Value:
        """The value channels-last."""
        if value not in self.last:
            kind = self.graph.type(value)
            source = self.graph.node(value).source
            operand = self.first[value]
            if numel(kind.shape[2:]) == 1 or kind.shape[1] == 1:
                shape = tuple(kind.shape[i] for i in TO_LAST)
                self.last[value] = self.new.add("reshape", operand, source=source, shape=shape)
            else:
                self.last[value] = self.new.add("permute", operand, source=source, dims=TO_LAST)
        return self.last[value]

    def _convert(self, node: Node) -> bool:
        """Emits ``node`` channels-last if it can be and that is useful."""
        if node.op in _SPATIAL_OPERANDS and node.attrs.get("layout", "NCHW") == "NCHW":
            return self._emit(node, _SPATIAL_OPERANDS[node.op], layout="NHWC")
        held = [v for v in node.operands if v in self.last and v not in self.first]
        if not held or any(self.graph.type(v).rank != 4 for v in held):
            return False
        if node.op in _NORMS and node.attrs["channel_dim"] == 1:
            return self._emit(node, _NORMS[node.op], channel_dim=3)
        if get(node.op).kind == "elementwise" and node.type.rank == 4:
            return self._elementwise(node)
        if get(node.op).kind == "reduction" and "dims" in node.attrs:
            return self._reduction(node)
        if node.op == "cat":
            everything = tuple(range(len(node.operands)))
            return self._emit(node, everything, dim=_NEW_DIM[node.attrs["dim"]])
        return False

    def _emit(self, node: Node, converted: tuple[int, ...], **attrs: object) -> bool:
        operands = [
            self.as_last(v) if i in converted else self.as_first(v)
            for i, v in enumerate(node.operands)
        ]
        merged = {**node.attrs, **attrs}
        result = self.new.add(
            node.op, *operands, name=node.name, source=node.source, **merged
        )
        results = (result,) if isinstance(result, Value) else result
        for old, value in zip(node.values, results, strict=True):
            spatial = self.graph.type(old).rank == 4 and node.op != "conv2d_grad_weight"
            (self.last if spatial else self.first)[old] = value
        return True

    def _elementwise(self, node: Node) -> bool:
        operands = []
        for v in node.operands:
            rank = self.graph.type(v).rank
            if rank == 4:
                operands.append(self.as_last(v))
            elif rank == 0:
                operands.append(self.as_first(v))
            else:
                return False
        results = copy_node(self.new, node, operands)
        self.last.update(zip(node.values, results, strict=True))
        return True

    def _reduction(self, node: Node) -> bool:
        dims = tuple(sorted(_NEW_DIM[d] for d in node.attrs["dims"]))
        kept = [d for d in range(4) if d not in node.attrs["dims"]]
        if not node.attrs["keepdim"] and 1 in kept and (2 in kept or 3 in kept):
            return False
        result = self.new.add(
            node.op,
            self.as_last(node.operands[0]),
            name=node.name,
            source=node.source,
            **{**node.attrs, "dims": dims},
        )
        (self.last if node.attrs["keepdim"] else self.first)[node.value] = result
        return True
