"""Batch and layer normalisation with their gradients.

S. Ioffe, C. Szegedy, "Batch Normalization", 2015; J. L. Ba et al., "Layer Normalization", 2016.
Statistics are accumulated in float64 across rows, variances from centred values (two passes).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType, shape_text
from .checks import fixed_extent, require_dims, require_float, require_shape
from .record import SUMMED, GradContext, Op, Sample, register

# -- batch normalisation: helpers -----------------------------------------------------------------


def _channels(op: str, x: TensorType, channel_dim: int) -> int:
    require_dims(op, x, channel_dim)
    return fixed_extent(op, "the number of channels", x.shape[channel_dim])


def _check_per_channel(op: str, x: TensorType, channel_dim: int, **operands: TensorType) -> int:
    require_float(op, input=x, **operands)
    channels = _channels(op, x, channel_dim)
    for name, t in operands.items():
        why = f"one element per channel: input {shape_text(x.shape)}, channel_dim={channel_dim}"
        require_shape(op, name, t, (channels,), why)
    return channels


def _per_channel(v: np.ndarray, rank: int, channel_dim: int) -> np.ndarray:
    """(C,) as an array that broadcasts against the input."""
    return v.reshape(*(1,) * channel_dim, -1, *(1,) * (rank - channel_dim - 1))


def _channel_sums(x: np.ndarray, channel_dim: int) -> np.ndarray:
    """Sum over all dimensions but one, in float64: (C,).

    numpy adds pairwise only along contiguous memory, so rows are added in float64.
    """
    outer = math.prod(x.shape[:channel_dim])
    inner = math.prod(x.shape[channel_dim + 1 :])
    x = x.reshape(outer, x.shape[channel_dim], inner)
    rows = x.sum(axis=2) if inner > 1 else x.reshape(x.shape[:2])
    return rows.sum(axis=0, dtype=np.float64)


def _rstd(variance: np.ndarray, eps: float) -> np.ndarray:
    return (1 / np.sqrt(variance.astype(np.float64) + eps)).astype(variance.dtype)


# -- batch_norm (evaluation) ----------------------------------------------------------------------


def _batch_norm_infer(
    x: TensorType,
    gamma: TensorType,
    beta: TensorType,
    mean: TensorType,
    var: TensorType,
    *,
    eps: float,
    channel_dim: int,
) -> TensorType:
    _check_per_channel(
        "batch_norm", x, channel_dim, weight=gamma, bias=beta, running_mean=mean, running_var=var
    )
    return x


def _batch_norm(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    *,
    eps: float,
    channel_dim: int,
) -> np.ndarray:
    """``(x - mean) / sqrt(var + eps) * gamma + beta`` per channel."""
    with np.errstate(all="ignore"):
        y = x - _per_channel(mean, x.ndim, channel_dim)
        y *= _per_channel(gamma * _rstd(var, eps), x.ndim, channel_dim)
        y += _per_channel(beta, x.ndim, channel_dim)
    return y


def _batch_norm_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    x, gamma, _, mean, var = ctx.inputs
    channel_dim = ctx.attrs["channel_dim"]
    rank = b.type(x).rank
    dims = tuple(d for d in range(rank) if d != channel_dim)
    shape = tuple(1 if d != channel_dim else b.type(x).shape[d] for d in range(rank))

    def spread(v: Any) -> Any:
        return b.op("reshape", v, shape=shape)

    def total(v: Any) -> Any:
        return b.op("sum", v, dims=dims, keepdim=False) if dims else v

    rstd = b.rsqrt(b.add(var, ctx.attrs["eps"]))
    scale = b.mul(gamma, rstd)
    dx = b.mul(g, spread(scale)) if ctx.needs(0) else None
    dgamma = dbeta = dmean = dvar = None
    if ctx.needs(1) or ctx.needs(4):
        product = total(b.mul(g, b.sub(x, spread(mean))))
        dgamma = b.mul(product, rstd)
        dvar = b.mul(b.mul(b.mul(product, scale), b.mul(rstd, rstd)), -0.5)
    if ctx.needs(2) or ctx.needs(3):
        dbeta = total(g)
        dmean = b.neg(b.mul(dbeta, scale))
    return dx, dgamma, dbeta, dmean, dvar


# -- batch_norm_train -----------------------------------------------------------------------------


def _batch_norm_train_infer(
    x: TensorType, gamma: TensorType, beta: TensorType, *, eps: float, channel_dim: int
) -> tuple[TensorType, ...]:
    channels = _check_per_channel("batch_norm", x, channel_dim, weight=gamma, bias=beta)
    return (x, *(TensorType(x.dtype, (channels,)),) * 3)


def _batch_norm_train(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float, channel_dim: int
) -> tuple[np.ndarray, ...]:
    """(y, mean, biased variance, 1 / sqrt(variance + eps)); statistics over all but the channel."""
    count = x.size // max(1, x.shape[channel_dim])
    with np.errstate(all="ignore"):
        mean = (_channel_sums(x, channel_dim) / np.float64(count)).astype(x.dtype)
        y = x - _per_channel(mean, x.ndim, channel_dim)
        var = (_channel_sums(np.square(y), channel_dim) / np.float64(count)).astype(x.dtype)
        rstd = _rstd(var, eps)
        y *= _per_channel(gamma * rstd, x.ndim, channel_dim)
        y += _per_channel(beta, x.ndim, channel_dim)
    return y, mean, var, rstd


def _batch_norm_train_rule(b: Any, ctx: GradContext, g: Any, *_: Any) -> tuple[Any, ...]:
    """Only y is differentiable: the statistics only feed the running averages."""
    if g is None:
        return None, None, None
    x, gamma, _ = ctx.inputs
    _, mean, _, rstd = ctx.outputs
    return b.op("batch_norm_grad", g, x, gamma, mean, rstd, channel_dim=ctx.attrs["channel_dim"])


def _batch_norm_grad_infer(
    g: TensorType,
    x: TensorType,
    gamma: TensorType,
    mean: TensorType,
    rstd: TensorType,
    *,
    channel_dim: int,
) -> tuple[TensorType, ...]:
    op = "batch_norm_grad"
    require_float(op, gradient=g, input=x)
    require_shape(op, "the gradient", g, x.shape, "the input's shape")
    channels = _check_per_channel(op, x, channel_dim, weight=gamma, mean=mean, rstd=rstd)
    return (x, *(TensorType(x.dtype, (channels,)),) * 2)


def _batch_norm_grad(
    g: np.ndarray,
    x: np.ndarray,
    gamma: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    *,
    channel_dim: int,
) -> tuple[np.ndarray, ...]:
    """(dx, dgamma, dbeta): ``dx = gamma rstd (g - mean(g) - xhat mean(g xhat))``."""
    count = np.float64(x.size // max(1, x.shape[channel_dim]))
    with np.errstate(all="ignore"):
        centred = x - _per_channel(mean, x.ndim, channel_dim)
        dbeta = _channel_sums(g, channel_dim)
        dgamma = _channel_sums(g * centred, channel_dim) * rstd
        slope = (dgamma * rstd / count).astype(x.dtype)
        offset = (dbeta / count).astype(x.dtype)
        centred *= _per_channel(slope, x.ndim, channel_dim)
        dx = g - centred
        dx -= _per_channel(offset, x.ndim, channel_dim)
        dx *= _per_channel(gamma * rstd, x.ndim, channel_dim)
    return dx, dgamma.astype(x.dtype), dbeta.astype(x.dtype)


# -- layer_norm -----------------------------------------------------------------------------------


def _split_rows(op: str, x: TensorType, ndim: int) -> tuple[Any, Any]:
    """(leading, normalised) dimensions."""
    if not 1 <= ndim <= x.rank:
        raise ShapeError(f"{op}: cannot normalise the last {ndim} dimensions of {x}")
    normalised = x.shape[x.rank - ndim :]
    for extent in normalised:
        fixed_extent(op, "a normalised dimension", extent)
    return x.shape[: x.rank - ndim], normalised


def _layer_norm_infer(
    x: TensorType,
    w: TensorType | None = None,
    b: TensorType | None = None,
    *,
    ndim: int,
    eps: float,
) -> tuple[TensorType, ...]:
    require_float("layer_norm", input=x, weight=w, bias=b)
    leading, normalised = _split_rows("layer_norm", x, ndim)
    why = f"the last {ndim} dimensions of the input {shape_text(x.shape)}"
    require_shape("layer_norm", "weight", w, normalised, why)
    require_shape("layer_norm", "bias", b, normalised, why)
    return (x, *(TensorType(x.dtype, leading),) * 2)


def _rows(x: np.ndarray, ndim: int) -> np.ndarray:
    """(rows, normalised elements)."""
    split = x.ndim - ndim
    return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))


def _row_means(x: np.ndarray) -> np.ndarray:
    """Mean of each row: (rows, 1)."""
    return np.divide(x.sum(axis=1, keepdims=True), x.dtype.type(x.shape[1]))


def _layer_norm(
    x: np.ndarray,
    w: np.ndarray | None = None,
    b: np.ndarray | None = None,
    *,
    ndim: int,
    eps: float,
) -> tuple[np.ndarray, ...]:
    """(y, mean, 1 / sqrt(biased variance + eps)); the statistics have the leading dimensions."""
    rows = _rows(x, ndim)
    with np.errstate(all="ignore"):
        mean = _row_means(rows)
        y = rows - mean
        rstd = _rstd(_row_means(np.square(y)), eps)
        y *= rstd
        if w is not None:
            y *= w.reshape(-1)
        if b is not None:
            y += b.reshape(-1)
    leading = x.shape[: x.ndim - ndim]
    return y.reshape(x.shape), mean.reshape(leading), rstd.reshape(leading)


def _layer_norm_rule(b: Any, ctx: GradContext, g: Any, *_: Any) -> tuple[Any, ...]:
    """Only y is differentiable: mean and rstd exist for the gradient."""
    if g is None:
        return (None,) * len(ctx.inputs)
    _, mean, rstd = ctx.outputs
    x, *affine = ctx.inputs
    result = b.op("layer_norm_grad", g, x, mean, rstd, *affine[:1], ndim=ctx.attrs["ndim"])
    return result[: len(ctx.inputs)] if affine else (result,)


def _layer_norm_grad_infer(
    g: TensorType,
    x: TensorType,
    mean: TensorType,
    rstd: TensorType,
    w: TensorType | None = None,
    *,
    ndim: int,
) -> Any:
    op = "layer_norm_grad"
    require_float(op, gradient=g, input=x, mean=mean, rstd=rstd, weight=w)
    leading, normalised = _split_rows(op, x, ndim)
    require_shape(op, "the gradient", g, x.shape, "the input's shape")
    require_shape(op, "mean", mean, leading)
    require_shape(op, "rstd", rstd, leading)
    require_shape(op, "weight", w, normalised)
    return x if w is None else (x, w, w)


def _layer_norm_grad(
    g: np.ndarray,
    x: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    w: np.ndarray | None = None,
    *,
    ndim: int,
) -> Any:
    """dx, or (dx, dw, db) with a weight: ``dx = rstd (gw - mean(gw) - xhat mean(gw xhat))``."""
    gradient, rows = _rows(g, ndim), _rows(x, ndim)
    scale = rstd.reshape(-1, 1)
    with np.errstate(all="ignore"):
        xhat = (rows - mean.reshape(-1, 1)) * scale
        weighted = gradient if w is None else gradient * w.reshape(-1)
        dx = weighted - _row_means(weighted)
        dx -= xhat * _row_means(weighted * xhat)
        dx *= scale
        if w is None:
            return dx.reshape(x.shape)
        dw = (gradient * xhat).sum(axis=0, dtype=np.float64).astype(x.dtype)
        db = gradient.sum(axis=0, dtype=np.float64).astype(x.dtype)
    return dx.reshape(x.shape), dw.reshape(w.shape), db.reshape(w.shape)


# -- samples --------------------------------------------------------------------------------------

_BATCH_CASES: list[tuple[tuple[int, ...], int]] = [
    ((4, 3), 1),
    ((2, 3, 5), 1),
    ((2, 3, 4, 5), 1),
    ((2, 4, 5, 3), 3),
    ((5, 1), 1),
    ((1, 33, 1, 2), 1),
]


def _batch_norm_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for shape, dim in _BATCH_CASES:
        gamma, beta, mean = rng.normal(size=(3, shape[dim]))
        var = rng.uniform(0.5, 2.0, shape[dim])
        arrays = (rng.normal(size=shape), gamma, beta, mean, var)
        samples.append(Sample(arrays, {"eps": 1e-5, "channel_dim": dim}))
    return samples


def _batch_norm_train_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample(s.arrays[:3], {**s.attrs, "eps": 1e-3}) for s in _batch_norm_samples(rng)]


def _batch_norm_grad_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _batch_norm_train_samples(rng):
        x, gamma, _ = s.arrays
        _, mean, _, rstd = _batch_norm_train(*s.arrays, **s.attrs)
        arrays = (rng.normal(size=x.shape), x, gamma, mean, rstd)
        dim = {"channel_dim": s.attrs["channel_dim"]}
        samples.append(Sample(arrays, dim, differentiable=False))
    return samples


def _layer_norm_samples(rng: np.random.Generator) -> list[Sample]:
    cases: list[tuple[tuple[int, ...], int]] = [
        ((4, 7), 1),
        ((2, 3, 5), 2),
        ((2, 3, 33), 1),
        ((6,), 1),
        ((0, 4), 1),
    ]
    samples = []
    for shape, ndim in cases:
        x = rng.normal(size=shape)
        w, b = rng.normal(size=(2, *shape[len(shape) - ndim :]))
        attrs = {"ndim": ndim, "eps": 1e-3}
        samples += [Sample((x,), attrs), Sample((x, w), attrs), Sample((x, w, b), attrs)]
    return samples


def _layer_norm_grad_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _layer_norm_samples(rng):
        _, mean, rstd = _layer_norm(*s.arrays, **s.attrs)
        g = rng.normal(size=s.arrays[0].shape)
        arrays = (g, s.arrays[0], mean, rstd, *s.arrays[1:2])
        samples.append(Sample(arrays, {"ndim": s.attrs["ndim"]}, differentiable=False))
    return samples


register(
    Op(
        "batch_norm",
        "norm",
        _batch_norm_infer,
        _batch_norm,
        grad=_batch_norm_rule,
        samples=_batch_norm_samples,
        **SUMMED,
    )
)
register(
    Op(
        "batch_norm_train",
        "norm",
        _batch_norm_train_infer,
        _batch_norm_train,
        grad=_batch_norm_train_rule,
        samples=_batch_norm_train_samples,
        **SUMMED,
    )
)
register(
    Op(
        "batch_norm_grad",
        "norm",
        _batch_norm_grad_infer,
        _batch_norm_grad,
        samples=_batch_norm_grad_samples,
        **SUMMED,
    )
)
register(
    Op(
        "layer_norm",
        "norm",
        _layer_norm_infer,
        _layer_norm,
        grad=_layer_norm_rule,
        samples=_layer_norm_samples,
        **SUMMED,
    )
)
register(
    Op(
        "layer_norm_grad",
        "norm",
        _layer_norm_grad_infer,
        _layer_norm_grad,
        samples=_layer_norm_grad_samples,
        **SUMMED,
    )
)
