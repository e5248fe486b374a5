"""A contraction and what follows it in one kernel, read from a node of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.ops.adaptive_pooling import is_row_mean
from ..ir.ops.contraction import IN_PLACE_ANCHORS
from ..ir.ops.record import get
from ..ir.types import Dim, Extent, TensorType, numel
from .epilogue import Body, Operand, TileEpilogue
from .moments import Parts
from .window_pool import window_pool


@dataclass(frozen=True)
class Contraction:
    """A contraction with what follows it: the anchor's operator, its operands, its epilogue.

    ``operands`` are the types of the anchor's operands and ``sources`` which of the kernel's
    inputs they are; ``result`` is the type of the anchor's result; ``pitch`` is how many elements
    the rows of the region's results are apart. ``moments`` asks for the moments of parts of the
    first result.
    """

    op: str
    attrs: Mapping[str, Any]
    operands: tuple[TensorType, ...]
    sources: tuple[int, ...]
    result: TensorType
    epilogue: TileEpilogue
    pitch: Extent
    moments: Parts | None = None

    def pointer(self, operand: int) -> str:
        """The kernel's parameter that holds an operand of the anchor."""
        return f"%in{self.sources[operand]}"


def contraction_of(node: Node, operands: Sequence[TensorType]) -> Contraction | None:
    """The contraction that a node computes, or None if its body is not one that tiles can finish.

    ``node`` is a contraction itself or a ``fused`` node, ``operands`` the types of its operands.
    """
    if node.op != "fused":
        bias = len(operands) - 1 if len(operands) == 3 else None
        return Contraction(
            node.op,
            node.attrs,
            tuple(operands),
            tuple(range(len(operands))),
            node.type,
            TileEpilogue((node.type.dtype,), bias),
            node.type.pitch,
        )
    body: Graph = node.attrs["body"]
    inputs = {n.value: int(n.attrs["path"]) for n in body.sources("input")}
    rest = [n for n in body.nodes if n.op != "input"]
    results = tuple(body.outputs[str(k)] for k in range(len(body.outputs)))
    moments = None
    if rest[-1].op == "batch_norm_moments":
        moments = _moments(body, rest.pop(), results)
        if moments is None:
            return None
        results = results[:-1]
    pool = window_pool(rest[-1]) if len(rest) > 1 else None
    if pool is not None:
        if results != (rest[-1].value,):
            return None
        results = rest.pop().operands
    last = rest[-1]
    sums = len(rest) > 1 and is_row_mean(last.op, last.attrs, body.type(last.operands[0]))
    if moments is not None and (sums or pool is not None):
        return None
    if sums:
        if results != (rest[-1].operands[0], rest[-1].value):
            return None
        results = rest.pop().operands
    anchors = [n for n in rest if get(n.op).kind in ("contraction", "spatial")]
    if len(anchors) != 1 or any(v not in inputs for v in anchors[0].operands):
        return None
    anchor = anchors[0]
    rest.remove(anchor)
    wanted = anchor.type.shape
    leaves = _leaves(body, rest, inputs, wanted)
    if leaves is None:
        return None
    if pool is not None and any(o.kind not in ("column", "scalar") for o in leaves.values()):
        return None
    if any(body.type(v).shape != wanted or v in inputs for v in results):
        return None
    kept = {anchor.value, *leaves, *(n.value for n in rest)}
    if any(v not in kept for n in rest for v in n.operands):
        return None
    sources = tuple(inputs[v] for v in anchor.operands)
    epilogue = TileEpilogue(
        tuple(body.type(v).dtype for v in results),
        sources[2] if len(sources) == 3 else None,
        operands=tuple(leaves.values()),
        body=Body(anchor.value, tuple(rest), tuple(leaves), results),
        in_place=anchor.op in IN_PLACE_ANCHORS,
        pool=pool,
        sums=sums,
    )
    types = tuple(operands[s] for s in sources)
    pitch = node.type.pitch
    return Contraction(
        anchor.op, anchor.attrs, types, sources, anchor.type, epilogue, pitch, moments
    )  # fmt: skip


def _moments(body: Graph, node: Node, results: Sequence[Value]) -> Parts | None:
    """What a ``batch_norm_moments`` asks for, if it is of the first result and the last one itself,
    and the rows of every sample are divided evenly."""
    if len(results) < 2 or results[0] != node.operands[0] or results[-1] != node.value:
        return None
    rows, parts = numel(body.type(node.operands[0]).shape[:-1]), node.attrs["parts"]
    if not isinstance(rows, Dim) or not isinstance(parts, Dim) or rows.coef % parts.coef:
        return None
    return Parts(rows.coef // parts.coef, len(results) - 1)


def _leaves(
    body: Graph,
    nodes: Sequence[Node],
    inputs: Mapping[Value, int],
    wanted: tuple[Extent, ...],
) -> dict[Value, Operand] | None:
    """What the elementwise nodes of a body read from outside, or None if tiles of a result of
    shape ``wanted`` cannot do them."""
    leaves: dict[Value, Operand] = {}
    for n in nodes:
        if n.op == "constant":
            if np.size(n.attrs["value"]) != 1:
                return None
            continue
        if n.op == "uniform":
            if n.type.shape != wanted:
                return None
        elif n.op != "broadcast_to" and get(n.op).lower is None:
            return None
        for v in n.operands:
            if v in inputs and v not in leaves:
                kind = "key" if n.op == "uniform" else _kind(body.type(v).shape, wanted)
                if kind is None:
                    return None
                leaves[v] = Operand(inputs[v], kind, body.type(v).dtype)
    return leaves


def _kind(shape: tuple[Extent, ...], result: tuple[Extent, ...]) -> str | None:
    """How an operand of ``shape`` lies against the rows and columns of ``result``."""
    padded = (1,) * (len(result) - len(shape)) + tuple(shape)
    if padded == tuple(result):
        return "full"
    if all(d == 1 for d in padded):
        return "scalar"
    if all(d == 1 for d in padded[:-1]) and padded[-1] == result[-1]:
        return "column"
    if padded[:-1] == tuple(result[:-1]) and padded[-1] == 1:
        return "row"
    return None
