"""Products, reductions, normalisation and softmax."""

from __future__ import annotations

import numpy as np

from ...ir.graph import Node
from ...ir.types import bool_, int32, shape_at
from .builder import OnnxBuilder
from .rules import rule, same

# -- products -----------------------------------------------------------------------------------

same("matmul", "MatMul")


@rule("linear")
def _linear(b: OnnxBuilder, node: Node, x: str, w: str, bias: str | None = None) -> str:
    if b.type(node).rank == 2:
        return b.add("Gemm", *((x, w) if bias is None else (x, w, bias)), transB=1)
    product = b.add("MatMul", x, b.add("Transpose", w, perm=[1, 0]))
    return product if bias is None else b.add("Add", product, bias)


# -- reductions ---------------------------------------------------------------------------------


def _reduction(op: str, onnx_op: str) -> None:
    @rule(op)
    def convert(b: OnnxBuilder, node: Node, x: str) -> str:
        dims = node.attrs["dims"]
        if not dims:
            return b.add("Identity", x)
        return b.add(onnx_op, x, b.ints(*dims), keepdims=int(node.attrs["keepdim"]))


_reduction("sum", "ReduceSum")
_reduction("mean", "ReduceMean")
_reduction("amax", "ReduceMax")
_reduction("amin", "ReduceMin")


def _quantifier(op: str, onnx_op: str) -> None:
    """Truth values reduced as numbers."""

    @rule(op)
    def convert(b: OnnxBuilder, node: Node, x: str) -> str:
        dims = node.attrs["dims"]
        if not dims:
            return b.add("Identity", x)
        keep = int(node.attrs["keepdim"])
        return b.cast(b.add(onnx_op, b.cast(x, int32), b.ints(*dims), keepdims=keep), bool_)


_quantifier("all", "ReduceMin")
_quantifier("any", "ReduceMax")

for _op, _onnx_op in (("argmax", "ArgMax"), ("argmin", "ArgMin")):
    same(
        _op,
        _onnx_op,
        axis=lambda attrs: attrs["dim"],
        keepdims=lambda attrs: int(attrs["keepdim"]),
    )

# -- rows and normalisation ---------------------------------------------------------------------

same("softmax", "Softmax", axis=lambda attrs: attrs["dim"])
same("log_softmax", "LogSoftmax", axis=lambda attrs: attrs["dim"])


@rule("batch_norm")
def _batch_norm(b: OnnxBuilder, node: Node, x: str, *statistics: str) -> str:
    rank, channel = b.type(node).rank, node.attrs["channel_dim"]
    eps = node.attrs["eps"]
    if channel == 1:
        return b.add("BatchNormalization", x, *statistics, epsilon=eps)
    # ONNX normalises dimension 1.
    swapped = list(range(rank))
    if rank > 1:
        swapped[1], swapped[channel] = swapped[channel], swapped[1]
        x = b.add("Transpose", x, perm=swapped)
        y = b.add("BatchNormalization", x, *statistics, epsilon=eps)
        return b.add("Transpose", y, perm=swapped)
    row = b.add("Unsqueeze", x, b.ints(0))
    y = b.add("BatchNormalization", row, *statistics, epsilon=eps)
    return b.add("Squeeze", y, b.ints(0))


@rule("layer_norm")
def _layer_norm(
    b: OnnxBuilder, node: Node, x: str, w: str | None = None, bias: str | None = None
) -> list[str]:
    """The first result alone: mean and rstd are there for the gradient."""
    kind, ndim = b.type(node), node.attrs["ndim"]
    if w is None:
        w = b.array(np.ones(shape_at(kind.shape[-ndim:], 1), kind.dtype.np))
    inputs = (x, w) if bias is None else (x, w, bias)
    return [b.add("LayerNormalization", *inputs, axis=-ndim, epsilon=node.attrs["eps"])]
