"""Batch normalisation in training as steps that other passes can fuse.

Before::

    %y, %mean, %var, %rstd = batch_norm_train(%x, %gamma, %beta) {channel_dim=3, eps=1e-05}
    %r: f32[N,8,8,16] = relu(%y)
    ...
    %le: bool[N,8,8,16] = le(%r, 0)
    %g: f32[N,8,8,16] = where(%le, 0, %dr)
    %dx, %dgamma, %dbeta = batch_norm_grad(%g, %x, %gamma, %mean, %rstd) {channel_dim=3}
    %db: f32[16] = sum(%dx) {dims=(0,1,2), keepdim=False}

After::

    %moments: f64[32,2,16] = batch_norm_moments(%x) {parts=32}
    %mean, %var, %rstd, %scale = batch_norm_statistics(%moments, %gamma) {rows=64N, eps=1e-05}
    %y = add(mul(sub(%x, %mean), %scale), %beta)
    %r = relu(%y)
    ...
    %again = add(mul(sub(%x, %mean), %scale), %beta)      -- twice: for the sums, and for %dx
    %g = where(le(%again, 0), 0, %dr)
    %sums: f64[32,2,16] = batch_norm_grad_sums(%g, %x, %mean) {parts=32}
    %dgamma, %dbeta, %s, %offset, %slope, %db = batch_norm_grad_factors(%sums, %gamma, %rstd)
    %dx = mul(sub(sub(%g, mul(sub(%x, %mean), %slope)), %offset), %s)

Elementwise fusion joins the normalisation with the activation and the residual add behind it, and
puts all of the gradient into two sweeps. The derivative of ReLU is made from the operand of the
normalisation, which these sweeps read anyway, with the arithmetic of the forward pass: no mask is
stored. The sum of dx, the gradient of a bias in front, is zero but for rounding and comes out of
the statistics. If the gradient comes from a max pooling (``save_pool_places``), it is zero but at
the maxima, and its sums are those of the pooled map::

    %at: f32[N,4,4,16] = max_pool2d_gather(%x, %places) {kernel_size=(2,2)}
    %sums: f64[32,2,16] = batch_norm_grad_sums(%dpooled, %at, %mean) {parts=32}

Codes: B101 split, B102 the mask is computed again, B103 sum from the statistics, B104 sums of the
pooled map.

Skips: B111 the channels are not the last dimension (of more than one). The mask is not computed
again if it or the masked gradient is used elsewhere, or if the graph has only the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Source, Value
from ..ir.types import fixed, numel
from .rewriting import Ledger, erase_dead, rebuild

NAME = "split_batch_norm"


def split_batch_norm(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with batch_norm_train and batch_norm_grad as steps."""
    ledger = ledger if ledger is not None else Ledger()
    if not any(n.op in ("batch_norm_train", "batch_norm_grad") for n in graph.nodes):
        return graph
    new = rebuild(graph, _Splitter(graph, ledger).emit)
    erase_dead(new)
    return new


def parts_for(channels: int) -> int:
    """Into how many parts the rows are cut: few where their sums would be many."""
    return max(8, min(32, 4096 // max(1, channels)))


@dataclass(frozen=True)
class _Forward:
    """What normalises in the new graph; ``operands`` are (x, mean, scale, beta)."""

    operands: tuple[Value, Value, Value, Value]


@dataclass(frozen=True)
class _Mask:
    """``where(le(relu(y), 0), 0, gradient)``: the normalisation that makes y, and the gradient."""

    forward: str
    gradient: Value


class _Splitter:
    def __init__(self, graph: Graph, ledger: Ledger) -> None:
        self.graph, self.ledger = graph, ledger
        self.forward: dict[str, _Forward] = {}
        self.totals: dict[str, Value] = {}
        self.env: dict[Value, Value] = {}

    def emit(self, new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        self.env.update(zip(node.operands, operands, strict=True))
        if node.op == "sum":
            return self._sum(node)
        if node.op not in ("batch_norm_train", "batch_norm_grad"):
            return None
        rank = self.graph.type(node.operands[0]).rank
        if rank < 2 or node.attrs["channel_dim"] != rank - 1:
            self.ledger.declined(NAME, "B111", node, "the channels are not the last dimension")
            return None
        split = self._train if node.op == "batch_norm_train" else self._grad
        return split(_Writer(new, node.source), node, operands)

    def _train(self, w: _Writer, node: Node, operands: list[Value]) -> tuple[Value, ...]:
        x, gamma, beta = operands
        shape = w.new.type(x).shape
        moments = w.op("batch_norm_moments", x, parts=parts_for(_channels(w, gamma)))
        mean, var, rstd, scale = w.ops(
            "batch_norm_statistics", moments, gamma,
            rows=numel(shape[:-1]), eps=node.attrs["eps"],
        )  # fmt: skip
        forward = self.forward[node.name] = _Forward((x, mean, scale, beta))
        self.ledger.did(NAME, "B101", node, "batch normalisation in steps")
        return w.normalised(forward), mean, var, rstd

    def _grad(self, w: _Writer, node: Node, operands: list[Value]) -> tuple[Value, ...]:
        g, x, gamma, mean, rstd = operands
        mask = self._mask(node)
        gradients = [g, g] if mask is None else [self._masked(w, mask) for _ in range(2)]
        if mask is not None:
            self.ledger.did(NAME, "B102", node, "the mask of ReLU is computed again")
        summed = self._at_maxima(w, node, gradients[0], x)
        sums = w.op("batch_norm_grad_sums", *summed, mean, parts=parts_for(_channels(w, gamma)))
        dgamma, dbeta, scale, offset, slope, total = w.ops(
            "batch_norm_grad_factors", sums, gamma, rstd, rows=numel(w.new.type(x).shape[:-1])
        )
        along = w.op("mul", w.op("sub", x, mean), slope)
        inside = w.op("sub", w.op("sub", gradients[1], along), offset)
        self.totals[node.name] = total
        self.ledger.did(NAME, "B101", node, "gradient of batch normalisation in steps")
        return w.op("mul", inside, scale), dgamma, dbeta

    def _at_maxima(self, w: _Writer, node: Node, g: Value, x: Value) -> tuple[Value, Value]:
        """The gradient and the operand where the gradient of a max pooling is not zero."""
        scatter = w.new.node(g)
        if scatter.op != "max_pool2d_scatter":
            return g, x
        small, places = scatter.operands
        taken = w.op("max_pool2d_gather", x, places, kernel_size=scatter.attrs["kernel_size"])
        self.ledger.did(NAME, "B104", node, "its sums are taken of the pooled map")
        return small, taken

    def _sum(self, node: Node) -> tuple[Value, ...] | None:
        """The sum of dx over all rows is known."""
        dx = node.operands[0]
        total = self.totals.get(dx.node) if dx.index == 0 else None
        rows = tuple(range(self.graph.type(dx).rank - 1))
        if total is None or tuple(sorted(node.attrs["dims"])) != rows or node.attrs["keepdim"]:
            return None
        self.ledger.did(NAME, "B103", node, "the sum of the gradient is known from its parts")
        return (total,)

    def _mask(self, node: Node) -> _Mask | None:
        """The mask of the ReLU behind the normalisation, if only its gradient reads it."""
        where = self.graph.node(node.operands[0])
        if where.op != "where" or self.graph.use_count(where.value) > 1:
            return None
        test, zero, gradient = where.operands
        le = self.graph.node(test)
        if le.op != "le" or self.graph.use_count(test) > 1 or not self._is_zero(zero):
            return None
        relu, limit = le.operands
        relu_node = self.graph.node(relu)
        if relu_node.op != "relu" or not self._is_zero(limit):
            return None
        y = relu_node.operands[0]
        forward = self.graph.node(y)
        same = forward.operands[:2] == (node.operands[1], node.operands[2])
        if y.index or forward.name not in self.forward or not same:
            return None
        if self.graph.type(gradient).shape != where.type.shape:
            return None
        return _Mask(forward.name, gradient)

    def _is_zero(self, value: Value) -> bool:
        node = self.graph.node(value)
        return node.op == "constant" and node.attrs["value"].size == 1 and not node.attrs["value"]

    def _masked(self, w: _Writer, mask: _Mask) -> Value:
        y = w.normalised(self.forward[mask.forward])
        zero = w.op("constant", value=np.asarray(0, w.new.type(y).dtype.np))
        return w.op("where", w.op("le", y, zero), zero, self.env[mask.gradient])


@dataclass(frozen=True)
class _Writer:
    """Adds nodes to a graph for one node of the old one."""

    new: Graph
    source: Source

    def ops(self, op: str, *operands: Value, **attrs: Any) -> tuple[Value, ...]:
        found = self.new.add(op, *operands, source=self.source, **attrs)
        return (found,) if isinstance(found, Value) else found

    def op(self, op: str, *operands: Value, **attrs: Any) -> Value:
        return self.ops(op, *operands, **attrs)[0]

    def normalised(self, forward: _Forward) -> Value:
        """(x - mean) scale + beta"""
        x, mean, scale, beta = forward.operands
        return self.op("add", self.op("mul", self.op("sub", x, mean), scale), beta)


def _channels(w: _Writer, gamma: Value) -> int:
    return fixed(w.new.type(gamma).shape[0])
