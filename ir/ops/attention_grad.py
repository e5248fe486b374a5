"""The gradient of attention with respect to queries, keys and values, as one operator.

With P the weights and S the scores of `attention`, and G the gradient of its result::

    dV = P^T G,   dP = G V^T,   dS = P (dP - sum over keys of P dP),
    dQ = scale dS K,   dK = scale dS^T Q

The weights are computed again: they are larger than all that they depend on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType
from .attention import (
    SPLIT_HEADS,
    as_heads,
    attention_samples,
    columns_are_all,
    joined,
    scores_grad,
    split,
    transposed,
    weights_of,
)
from .record import SUMMED, GradContext, Op, Sample, get, register

_WEIGHTS = ("heads", "head_dim", "scale", "causal")


# -- shapes and meaning ---------------------------------------------------------------------------


def _infer(
    g: TensorType,
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None = None,
    *,
    together: bool,
    **attrs: Any,
) -> TensorType | tuple[TensorType, ...]:
    operands = (q, k, v) if mask is None else (q, k, v, mask)
    wanted = get("attention").infer(*operands, **attrs)
    if g != wanted:
        raise ShapeError(
            f"attention_grad: the gradient is {g}, expected that of the result, {wanted}"
        )
    heads, dims = attrs["heads"], (attrs["head_dim"], attrs["head_dim"], attrs["value_dim"])
    if together:
        if not columns_are_all((q, k, v), heads, dims, attrs["starts"]):
            raise ShapeError(
                "attention_grad: the gradients are together only if query, key and value are all "
                f"columns of one operand; they are {q}, {k} and {v} from {attrs['starts']}"
            )
        return q
    return tuple(
        x if x.rank == 4 else TensorType(x.dtype, (*x.shape[:2], heads * dim))
        for x, dim in zip((q, k, v), dims, strict=True)
    )


def _attention_grad(
    g: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    heads: int,
    head_dim: int,
    value_dim: int,
    starts: tuple[int, int, int],
    scale: float,
    causal: bool,
    merged: bool,
    together: bool,
) -> np.ndarray | tuple[np.ndarray, ...]:
    """(dq, dk, dv): matrices (batch, heads, rows, dim) where the operand is, else the columns of
    the heads; ``together`` one array with all three where the operands are."""
    p = weights_of(
        q, k, mask,
        heads=heads, head_dim=head_dim, starts=starts[:2], scale=scale, causal=causal,
    )  # fmt: skip
    dims = (head_dim, head_dim, value_dim)
    queries, keys, values = (
        as_heads(x, heads, dim, start)
        for x, dim, start in zip((q, k, v), dims, starts, strict=True)
    )
    g = as_heads(g, heads, value_dim, 0)
    with np.errstate(all="ignore"):
        ds = np.matmul(g, values.swapaxes(2, 3))
        ds -= (p * ds).sum(axis=3, keepdims=True)
        ds *= p
        ds *= ds.dtype.type(scale)
        grads = (
            np.matmul(ds, keys),
            np.matmul(ds.swapaxes(2, 3), queries),
            np.matmul(p.swapaxes(2, 3), g),
        )
    if together:
        result = np.empty_like(q)
        for grad, dim, start in zip(grads, dims, starts, strict=True):
            as_heads(result, heads, dim, start)[...] = grad
        return result
    return tuple(
        grad if x.ndim == 4 else _merged(grad) for grad, x in zip(grads, (q, k, v), strict=True)
    )


def _merged(x: np.ndarray) -> np.ndarray:
    """(batch, heads, rows, dim) as (batch, rows, columns of all heads)."""
    batch, heads, rows, dim = x.shape
    return x.transpose(SPLIT_HEADS).reshape(batch, rows, heads * dim)


# -- its gradient ---------------------------------------------------------------------------------


def _sum(b: Any, *terms: Any) -> Any:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else b.add(total, term)
    return total


def _rule(b: Any, ctx: GradContext, *cotangents: Any) -> tuple[Any, ...]:
    """Through the formulas above, one after the other, in single operators."""
    g, q, k, v, *mask = ctx.inputs
    attrs = ctx.attrs
    heads, dim, value_dim = attrs["heads"], attrs["head_dim"], attrs["value_dim"]
    scale, starts, dims = attrs["scale"], attrs["starts"], (dim, dim, value_dim)
    columns = (0, 0, 0)
    if attrs["together"]:
        cotangents, columns = cotangents * 3, starts
    to_q, to_k, to_v = (
        None if c is None else split(b, c, heads, d, at)
        for c, d, at in zip(cotangents, dims, columns, strict=True)
    )
    common = {name: attrs[name] for name in _WEIGHTS}
    p = b.op("attention_weights", q, k, *mask, starts=starts[:2], **common)
    grad = split(b, g, heads, value_dim)
    queries, keys, values = (
        split(b, x, heads, d, at) for x, d, at in zip((q, k, v), dims, starts, strict=True)
    )
    dp = b.matmul(grad, transposed(b, values))
    ds = b.op("softmax_grad", dp, p, dim=3)

    def product(x: Any, y: Any) -> Any:
        return None if x is None or y is None else b.matmul(x, y)

    def turned(x: Any) -> Any:
        return None if x is None else transposed(b, x)

    def scaled(x: Any) -> Any:
        return None if x is None else b.mul(x, scale)

    to_ds = scaled(_sum(b, product(to_q, turned(keys)), product(queries, turned(to_k))))
    to_p, to_dp = product(grad, turned(to_v)), None
    if to_ds is not None:
        inner = GradContext((dp, p), (ds,), {"dim": 3}, (True, True))
        rule = get("softmax_grad").grad
        assert rule is not None
        to_dp, through = rule(b, inner, to_ds)
        to_p = _sum(b, to_p, through)
    inner = GradContext((q, k, *mask), (p,), {**common, "starts": starts[:2]}, ())
    needs = (ctx.needs(1), ctx.needs(2), ctx.needs(4))
    above = scores_grad(b, inner, p, to_p, needs) if to_p is not None else [None] * 3

    def whole(x: Any, like: Any, start: int) -> Any:
        return None if x is None else joined(b, x, b.type(like), start)

    grads = (
        whole(_sum(b, product(p, to_v), product(to_dp, values)), g, 0),
        _sum(b, above[0], whole(scaled(product(ds, to_k)), q, starts[0])),
        _sum(b, above[1], whole(scaled(product(turned(ds), to_q)), k, starts[1])),
        whole(product(turned(to_dp), grad), v, starts[2]),
        above[2],
    )
    return grads[: len(ctx.inputs)]


# -- samples --------------------------------------------------------------------------------------


def _samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for arrays, attrs in attention_samples(rng):
        g = rng.normal(size=get("attention").numpy(*arrays, **attrs).shape)
        q, k, v, *_ = arrays
        plain = Sample((g, *arrays), {**attrs, "together": False}, g.size > 0 and k.shape[-2] > 1)
        samples.append(plain)
        if q is k is v:
            samples.append(Sample((g, *arrays), {**attrs, "together": True}, g.size > 0))
    return samples


register(
    Op(
        "attention_grad",
        "contraction",
        _infer,
        _attention_grad,
        grad=_rule,
        samples=_samples,
        **SUMMED,
    )
)
