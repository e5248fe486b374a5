"""Operators that move elements, read at indices, or stand for the batch size."""

from __future__ import annotations

from ...ir.graph import Node
from ...ir.types import Dim, dtype_of
from .builder import OnnxBuilder, slice_end
from .rules import rule, same

same("cat", "Concat", axis=lambda attrs: attrs["dim"])
same("gather", "GatherElements", axis=lambda attrs: attrs["dim"])


@rule("permute")
def _permute(b: OnnxBuilder, node: Node, x: str) -> str:
    dims = node.attrs["dims"]
    return b.add("Transpose", x, perm=dims) if dims else b.add("Identity", x)


@rule("reshape")
def _reshape(b: OnnxBuilder, node: Node, x: str) -> str:
    shape = node.attrs["shape"]
    symbolic = sum(isinstance(d, Dim) for d in shape)
    if symbolic == 1 and 0 not in shape:
        return b.add("Reshape", x, b.ints(*(-1 if isinstance(d, Dim) else d for d in shape)))
    return b.add("Reshape", x, b.extents(*shape), allowzero=int(0 in shape))


@rule("broadcast_to")
def _broadcast_to(b: OnnxBuilder, node: Node, x: str) -> str:
    shape, given = node.attrs["shape"], b.type(node).shape
    given = (1,) * (len(shape) - len(given)) + given
    # A 1 keeps the operand's own extent, so only extents that are new need the batch size.
    return b.add(
        "Expand", x, b.extents(*(1 if d == g else d for d, g in zip(shape, given, strict=True)))
    )


@rule("slice")
def _slice(b: OnnxBuilder, node: Node, x: str) -> str:
    dim, start, stop = (node.attrs[k] for k in ("dim", "start", "stop"))
    whole = stop == b.type(node).shape[dim]
    end = b.ints(slice_end(stop)) if whole else b.extents(stop)
    step = b.ints(node.attrs.get("step", 1))
    return b.add("Slice", x, b.extents(start), end, b.ints(dim), step)


@rule("pad")
def _pad(b: OnnxBuilder, node: Node, x: str) -> str:
    low, high = node.attrs["low"], node.attrs["high"]
    if not any((*low, *high)):
        return b.add("Identity", x)
    value = b.scalar(node.attrs.get("value", 0.0), b.type(node).dtype)
    return b.add("Pad", x, b.ints(*low, *high), value)


@rule("extent")
def _extent(b: OnnxBuilder, node: Node) -> str:
    size = b.add("Squeeze", b.extents(node.attrs["size"]), b.ints(0))
    return b.cast(size, dtype_of(node.attrs["dtype"]))


@rule("embedding")
def _embedding(b: OnnxBuilder, node: Node, indices: str, table: str) -> str:
    return b.add("Gather", table, indices, axis=0)
