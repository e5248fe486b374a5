"""Scaled dot-product attention: products, a softmax, and heads taken out of columns."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Node
from ...ir.ops.attention import SPLIT_HEADS
from ...ir.types import Extent
from .builder import OnnxBuilder
from .rules import rule


def _heads(b: OnnxBuilder, node: Node, names: tuple[str, ...], operand: int, dim: int) -> str:
    """An operand as (batch, heads, rows, dim)."""
    x, kind = names[operand], b.type(node, operand)
    if kind.rank == 4:
        return x
    heads, start = node.attrs["heads"], node.attrs["starts"][operand]
    stop = start + heads * dim
    if (start, stop) != (0, kind.shape[2]):
        x = b.add("Slice", x, b.ints(start), b.ints(stop), b.ints(2))
    # 0 keeps the operand's own extent.
    return b.add("Transpose", b.add("Reshape", x, b.ints(0, 0, heads, dim)), perm=SPLIT_HEADS)


def _weights(b: OnnxBuilder, node: Node, names: tuple[str, ...], mask: str | None) -> str:
    """``softmax(scale q k^T + mask)``; zeros where every key is masked, as without NaN."""
    attrs, dtype = node.attrs, b.type(node).dtype
    q, k = (_heads(b, node, names, i, attrs["head_dim"]) for i in (0, 1))
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.add("Mul", scores, b.scalar(attrs["scale"], dtype))
    if attrs["causal"]:
        rows, keys = _rows(b, node, 0), _rows(b, node, 1)
        later = np.triu(np.full((rows, keys), -np.inf, dtype.np), 1)
        scores = b.add("Add", scores, b.array(later))
    if mask is None:
        return b.add("Softmax", scores, axis=-1)
    p = b.add("Softmax", b.add("Add", scores, mask), axis=-1)
    return b.add("Where", b.add("IsNaN", p), b.scalar(0, dtype), p)


def _rows(b: OnnxBuilder, node: Node, operand: int) -> int:
    kind = b.type(node, operand)
    rows: Extent = kind.shape[-2]
    assert isinstance(rows, int)  # the shape rule has checked it
    return rows


@rule("attention_weights")
def _attention_weights(b: OnnxBuilder, node: Node, q: str, k: str, mask: str | None = None) -> str:
    return _weights(b, node, (q, k), mask)


@rule("attention")
def _attention(b: OnnxBuilder, node: Node, q: str, k: str, v: str, mask: str | None = None) -> str:
    values = _heads(b, node, (q, k, v), 2, node.attrs["value_dim"])
    y = b.add("MatMul", _weights(b, node, (q, k), mask), values)
    if not node.attrs["merged"]:
        return y
    width = node.attrs["heads"] * node.attrs["value_dim"]
    return b.add("Reshape", b.add("Transpose", y, perm=SPLIT_HEADS), b.ints(0, 0, width))
