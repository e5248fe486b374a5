"""Chooses channels-last for every spatial operator, once for the whole graph.

Before::

    %c: f32[N,16,28,28] = conv2d(%x, %w) {layout="NCHW", ...}
    %r: f32[N,16,28,28] = relu(%c)
    %p: f32[N,16,14,14] = max_pool2d(%r) {layout="NCHW", ...}

After::

    %x_nhwc: f32[N,28,28,3] = permute(%x) {dims=(0,2,3,1)}
    %c: f32[N,28,28,16] = conv2d(%x_nhwc, %w) {layout="NHWC", ...}
    %r: f32[N,28,28,16] = relu(%c)
    %p: f32[N,14,14,16] = max_pool2d(%r) {layout="NHWC", ...}

Operators that can work on either order follow their operands. A value that only exists
channels-last is permuted back where an operator that cannot work on it (reshape, a matrix product,
a graph output) needs the written order. Each conversion is made once; where only extents of one
move it is a reshape, which costs nothing. Code Y101.

Skips: graphs without spatial operators in the written order; values of other than 4 dimensions;
``uniform``, whose draws belong to places in the written order; reductions that would change the
order of the dimensions that are left; weights, which are always (out, in, height, width).
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Source, Value
from ..ir.ops.record import get
from .rewriting import Ledger, add_like

NAME = "assign_layout"
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
_ALONG_DIM = (
    "cat",
    "slice",
    "slice_grad",
    "softmax",
    "log_softmax",
    "softmax_grad",
    "log_softmax_grad",
)


def assign_layout(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with all spatial operators channels-last."""
    spatial = [n for n in graph.nodes if _is_spatial(n)]
    if not spatial:
        return graph
    converter = _Converter(graph)
    new = converter.run()
    if ledger is not None:
        ledger.note(
            NAME,
            "Y101",
            True,
            f"{len(spatial)} operators channels-last, {converter.permutes} permutes",
        )
    return new


def _is_spatial(node: Node) -> bool:
    return node.op in _SPATIAL_OPERANDS and node.attrs.get("layout", "NCHW") == "NCHW"


def _layout_operands(graph: Graph, node: Node) -> tuple[int, ...]:
    """The operands that a node reads in either order, all in the same; () if it cannot."""
    if _is_spatial(node):
        return _SPATIAL_OPERANDS[node.op]
    everything = tuple(range(len(node.operands)))
    if get(node.op).kind == "elementwise":
        return everything if node.type.rank == 4 and node.op != "uniform" else ()
    if not node.operands or graph.type(node.operands[0]).rank != 4:
        return ()
    if node.op in _NORMS:
        return _NORMS[node.op] if node.attrs["channel_dim"] == 1 else ()
    if node.op in _ALONG_DIM or node.op == "pad":
        return everything
    if get(node.op).kind == "reduction":
        return (0,) if _keeps_order(node) else ()
    return ()


def _reduced(node: Node) -> tuple[int, ...]:
    return node.attrs["dims"] if "dims" in node.attrs else (node.attrs["dim"],)


def _keeps_order(node: Node) -> bool:
    """Whether a reduction leaves the same dimensions in the same order for either layout."""
    kept = [d for d in range(4) if d not in _reduced(node)]
    return node.attrs["keepdim"] or 1 not in kept or (2 not in kept and 3 not in kept)


class _Converter:
    """One walk; ``first`` and ``last`` hold each value in the written and the converted order."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.new = Graph(graph.name)
        self.first: dict[Value, Value] = {}
        self.last: dict[Value, Value] = {}
        self.born_last: set[Value] = set()
        self.wanted_last = self._demand()
        self.permutes = 0

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if self._prefers_last(node):
                self._emit_last(node)
            else:
                operands = [self.as_first(v) for v in node.operands]
                results = self.new.add_copy(node, operands, self.graph)
                self.first.update(zip(node.values, results, strict=True))
        self.new.outputs = {k: self.as_first(v) for k, v in self.graph.outputs.items()}
        self.new.updates = {k: self.as_first(v) for k, v in self.graph.updates.items()}
        return self.new

    def _demand(self) -> set[Value]:
        """Values that a spatial operator reads, itself or behind operators of either order."""
        found: set[Value] = set()
        for node in reversed(self.graph.nodes):
            if _is_spatial(node) or any(v in found for v in node.values):
                found.update(node.operands[i] for i in _layout_operands(self.graph, node))
        return found

    def _prefers_last(self, node: Node) -> bool:
        converted = _layout_operands(self.graph, node)
        if not converted or _is_spatial(node):
            return bool(converted)
        operands = [node.operands[i] for i in converted]
        if any(v in self.born_last for v in operands):
            return True
        wanted = any(v in self.wanted_last for v in node.values)
        return wanted and any(v in self.last for v in operands)

    # -- the two orders ------------------------------------------------------------------------

    def as_first(self, value: Value) -> Value:
        """The value in the order in which the program was written."""
        if value not in self.first:
            self.first[value] = self._reordered(value, self.last[value], TO_FIRST, "nchw")
        return self.first[value]

    def as_last(self, value: Value) -> Value:
        """The value channels-last; of less than 4 dimensions, as it broadcasts against such."""
        if value not in self.last:
            kind = self.graph.type(value)
            found = self.first[value]
            if 0 < kind.rank < 4:
                shape = (1,) * (4 - kind.rank) + kind.shape
                found = self.new.add(
                    "reshape",
                    found,
                    name=f"{value.node}_4d",
                    source=self._source(value),
                    shape=shape,
                )
            if kind.rank:
                found = self._reordered(value, found, TO_LAST, "nhwc")
            self.last[value] = found
        return self.last[value]

    def _reordered(self, value: Value, operand: Value, dims: tuple[int, ...], suffix: str) -> Value:
        shape = self.new.type(operand).shape
        moved = [d for d in dims if shape[d] != 1]
        options: dict[str, object] = {"dims": dims}
        op = "permute"
        if moved == sorted(moved):
            op, options = "reshape", {"shape": tuple(shape[d] for d in dims)}
        self.permutes += op == "permute"
        result: Value = self.new.add(
            op, operand, name=f"{value.node}_{suffix}", source=self._source(value), **options
        )
        return result

    def _source(self, value: Value) -> Source:
        return self.graph.node(value).source

    # -- one operator --------------------------------------------------------------------------

    def _emit_last(self, node: Node) -> None:
        converted = _layout_operands(self.graph, node)
        operands = [
            self.as_last(v) if i in converted else self.as_first(v)
            for i, v in enumerate(node.operands)
        ]
        results = add_like(self.new, node, node.op, operands, **_attrs_last(node))
        for old, value in zip(node.values, results, strict=True):
            if self._is_image(node, old):
                self.last[old] = value
                self.born_last.add(old)
            else:
                self.first[old] = value

    def _is_image(self, node: Node, value: Value) -> bool:
        """Whether a result has the order of the operands: not a weight, not a vector."""
        return self.graph.type(value).rank == 4 and node.op != "conv2d_grad_weight"


def _attrs_last(node: Node) -> dict[str, object]:
    """The attributes for channels-last operands."""
    attrs: dict[str, object] = dict(node.attrs)
    if node.op in _SPATIAL_OPERANDS:
        attrs["layout"] = "NHWC"
    elif node.op in _NORMS:
        attrs["channel_dim"] = 3
    elif node.op == "pad":
        attrs["low"], attrs["high"] = (
            tuple(node.attrs[k][d] for d in TO_LAST) for k in ("low", "high")
        )
    elif "dims" in attrs:
        attrs["dims"] = tuple(sorted(_NEW_DIM[d] for d in node.attrs["dims"]))
    elif "dim" in attrs:
        attrs["dim"] = _NEW_DIM[node.attrs["dim"]]
    return attrs
