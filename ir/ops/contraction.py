"""Contractions: matmul, linear and the gradient of linear's weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import DTypeError, ShapeError
from ..types import TensorType, broadcast_shapes, numel, shape_text
from .checks import require_float, require_same_dtype, require_shape
from .record import SUMMED, GradContext, Op, Sample, register

IN_PLACE_ANCHORS = frozenset({"linear_grad_weight"})
"""Contractions whose kernels, with elementwise operators behind them in one region, may write the
results over operands of those operators: each element is read before it is written, and once."""


def rows_of(x: np.ndarray) -> np.ndarray:
    """``(..., k)`` as ``(rows, k)``; unlike ``reshape(-1, k)`` it works for empty arrays."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


# -- matmul ---------------------------------------------------------------------------------------


def _matmul_infer(a: TensorType, b: TensorType) -> TensorType:
    if a.rank < 2 or b.rank < 2:
        raise ShapeError(
            f"matmul: operands are {a} and {b}, both need at least 2 dimensions; "
            "reshape a vector to a row or a column"
        )
    require_same_dtype("matmul", a=a, b=b)
    if not (a.dtype.is_float or a.dtype.is_int):
        raise DTypeError(f"matmul: not defined for {a.dtype.name}; cast the operands to a number")
    if a.shape[-1] != b.shape[-2]:
        raise ShapeError(
            f"matmul: mat1 and mat2 shapes cannot be multiplied ({shape_text(a.shape)} and "
            f"{shape_text(b.shape)}): the last dimension of the first is {a.shape[-1]}, the "
            f"second to last of the second {b.shape[-2]}"
        )
    shape = (*broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    numel(shape)  # N x N results have no type
    return TensorType(a.dtype, shape)


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        if b.ndim == 2 and a.ndim > 2:  # one large product instead of many small ones
            return (rows_of(a) @ b).reshape(*a.shape[:-1], b.shape[-1])
        return np.matmul(a, b)


def _transposed(b: Any, value: Any) -> Any:
    rank = b.type(value).rank
    return b.op("permute", value, dims=(*range(rank - 2), rank - 1, rank - 2))


def _matmul_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    x, y = ctx.inputs
    dx = b.matmul(g, _transposed(b, y)) if ctx.needs(0) else None
    if not ctx.needs(1):
        return dx, None
    if b.type(y).rank == 2:  # sums over the leading dimensions, too
        return dx, b.linear_grad_weight(x, g)
    return dx, b.matmul(_transposed(b, x), g)


def _matmul_samples(rng: np.random.Generator) -> list[Sample]:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((3, 5), (5, 4)),
        ((1, 1), (1, 1)),
        ((7, 1), (1, 9)),
        ((2, 3, 5), (5, 4)),
        ((2, 3, 5), (2, 5, 4)),
        ((2, 1, 3, 5), (4, 5, 2)),
        ((3, 5), (2, 5, 4)),
        ((17, 33), (33, 19)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
    ]
    return [Sample((rng.normal(size=a), rng.normal(size=b))) for a, b in shapes]


# -- linear ---------------------------------------------------------------------------------------


def _linear_infer(x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
    require_float("linear", input=x, weight=w, bias=b)
    if w.rank != 2:
        raise ShapeError(f"linear: weight is {w}, expected (out features, in features)")
    if x.rank < 1:
        raise ShapeError(
            f"linear: input is {x}, expected at least one dimension of {w.shape[1]} features"
        )
    if x.shape[-1] != w.shape[1]:
        raise ShapeError(
            f"linear: input has {x.shape[-1]} features in its last dimension, "
            f"weight expects {w.shape[1]} (input {shape_text(x.shape)}, "
            f"weight {shape_text(w.shape)})"
        )
    require_shape("linear", "bias", b, (w.shape[0],), "one per row of the weight")
    return TensorType(x.dtype, (*x.shape[:-1], w.shape[0]))


def _linear(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    with np.errstate(all="ignore"):
        y = rows_of(x) @ w.T
        if b is not None:
            y += b
        return y.reshape(*x.shape[:-1], w.shape[0])


def _linear_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    x, w = ctx.inputs[:2]
    shape = b.type(x).shape
    dx = None
    if ctx.needs(0):
        if len(shape) == 1:
            row = b.op("reshape", g, shape=(1, *b.type(g).shape))
            dx = b.op("reshape", b.matmul(row, w), shape=shape)
        else:
            dx = b.matmul(g, w)
    dw = b.linear_grad_weight(g, x) if ctx.needs(1) else None
    if len(ctx.inputs) == 2:
        return dx, dw
    db = None
    if ctx.needs(2):
        leading = tuple(range(len(shape) - 1))
        db = b.op("sum", g, dims=leading, keepdim=False) if leading else g
    return dx, dw, db


def _linear_samples(rng: np.random.Generator) -> list[Sample]:
    cases = [((4, 7), 5), ((1, 1), 1), ((2, 3, 6), 4), ((5,), 3), ((0, 4), 2), ((9, 65), 33)]
    out = []
    for shape, features in cases:
        x, w = rng.normal(size=shape), rng.normal(size=(features, shape[-1]))
        out += [Sample((x, w)), Sample((x, w, rng.normal(size=features)))]
    return out


# -- linear_grad_weight ---------------------------------------------------------------------------


def _linear_grad_weight_infer(g: TensorType, x: TensorType) -> TensorType:
    require_float("linear_grad_weight", gradient=g, input=x)
    if g.rank < 1 or g.shape[:-1] != x.shape[:-1] or x.rank < 1:
        raise ShapeError(
            f"linear_grad_weight: gradient {g} and input {x} must agree in all dimensions "
            "but the last"
        )
    return TensorType(x.dtype, (g.shape[-1], x.shape[-1]))


def _linear_grad_weight(g: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``sum over rows of outer(g, x)``: (out, in)."""
    with np.errstate(all="ignore"):
        return rows_of(g).T @ rows_of(x)


def _linear_grad_weight_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    gradient, x = ctx.inputs
    d_gradient = b.linear(x, g) if ctx.needs(0) else None
    dx = b.linear(gradient, _transposed(b, g)) if ctx.needs(1) else None
    return d_gradient, dx


def _linear_grad_weight_samples(rng: np.random.Generator) -> list[Sample]:
    shapes: list[tuple[int, ...]] = [(4,), (1,), (2, 3), (0,), (35,), ()]
    return [Sample((rng.normal(size=(*s, 5)), rng.normal(size=(*s, 7)))) for s in shapes]


register(
    Op(
        "matmul",
        "contraction",
        _matmul_infer,
        _matmul,
        grad=_matmul_grad,
        samples=_matmul_samples,
        **SUMMED,
    )
)
register(
    Op(
        "linear",
        "contraction",
        _linear_infer,
        _linear,
        grad=_linear_grad,
        samples=_linear_samples,
        **SUMMED,
    )
)
# ``linear`` for a kernel that reads the weight as the left factor of the transposed product and
# therefore needs no packed copy of it. ``passes/pack_weights.py`` chooses it.
register(
    Op(
        "linear_transposed",
        "contraction",
        _linear_infer,
        _linear,
        samples=_linear_samples,
        **SUMMED,
    )
)
register(
    Op(
        "linear_grad_weight",
        "contraction",
        _linear_grad_weight_infer,
        _linear_grad_weight,
        grad=_linear_grad_weight_grad,
        samples=_linear_grad_weight_samples,
        **SUMMED,
    )
)
