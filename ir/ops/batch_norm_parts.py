"""Batch normalisation over the last dimension in steps: sums of parts of the rows, then statistics.

``batch_norm_train`` and ``batch_norm_grad`` need all rows before they can write the first. Seen as
steps, what reads and writes whole tensors is one sweep for sums and one elementwise sweep, which
take part in fusion; the steps in between are of the size of the channels. The rows are cut into a
number of parts that depends on nothing but the shape, so results do not depend on threads.
Parts are combined as in T. Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances", 1979. ``passes/split_batch_norm.py`` writes these operators; none has a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import Dim, Extent, TensorType, float64
from .checks import fixed_extent, require_float, require_shape
from .record import SUMMED, Op, Sample, register


def rows_per_part(rows: int, parts: int) -> int:
    """Rows of each part but the last ones, which may have fewer or none."""
    return max(1, -(-rows // max(1, parts)))


def _parts_of(x: np.ndarray, parts: int) -> Iterator[np.ndarray]:
    """The rows of each part in float64: (rows, channels)."""
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    per = rows_per_part(len(x), parts)
    return (x[k * per : (k + 1) * per] for k in range(parts))


def _counts(rows: int, parts: int) -> np.ndarray:
    """The number of rows of each part: (parts, 1)."""
    per = rows_per_part(rows, parts)
    return np.clip(rows - per * np.arange(parts), 0, per).astype(np.float64)[:, None]


def _sums_type(op: str, x: TensorType, parts: Extent) -> TensorType:
    require_float(op, input=x)
    least = parts.coef if isinstance(parts, Dim) else parts
    if x.rank < 2 or least < 1:
        raise ShapeError(f"{op}: cannot cut {x} into {parts} parts of its rows")
    return TensorType(float64, (parts, 2, fixed_extent(op, "the number of channels", x.shape[-1])))


def _check_sums(op: str, sums: TensorType, **per_channel: TensorType) -> TensorType:
    """The type of what there is one of per channel."""
    channels = sums.shape[-1:]
    require_shape(op, "the sums", sums, (sums.shape[0], 2, *channels), "two for each part")
    for name, t in per_channel.items():
        require_shape(op, name, t, channels, "one element per channel")
    return next(iter(per_channel.values()))


# -- forward --------------------------------------------------------------------------------------


def _moments(x: np.ndarray, *, parts: int) -> np.ndarray:
    """(mean, sum of squares around it) of each part; zeros for a part without rows."""
    found = np.zeros((parts, 2, x.shape[-1]))
    with np.errstate(all="ignore"):
        for k, rows in enumerate(_parts_of(x, parts)):
            if len(rows):
                found[k, 0] = rows.mean(axis=0)
                found[k, 1] = np.square(rows - found[k, 0]).sum(axis=0)
    return found


def _statistics_infer(
    moments: TensorType, gamma: TensorType, *, rows: Extent, eps: float
) -> tuple[TensorType, ...]:
    return (_check_sums("batch_norm_statistics", moments, weight=gamma),) * 4


def _statistics(
    moments: np.ndarray, gamma: np.ndarray, *, rows: int, eps: float
) -> tuple[np.ndarray, ...]:
    """(mean, biased variance, 1 / sqrt(variance + eps), gamma times that) of all rows."""
    counts = _counts(rows, len(moments))
    with np.errstate(all="ignore"):
        mean = (counts * moments[:, 0]).sum(axis=0) / np.float64(rows)
        around = moments[:, 1] + counts * np.square(moments[:, 0] - mean)
        variance = around.sum(axis=0) / np.float64(rows)
        rstd = 1 / np.sqrt(variance + eps)
        found = mean, variance, rstd, gamma * rstd
    return tuple(v.astype(gamma.dtype) for v in found)


# -- gradient -------------------------------------------------------------------------------------


def _grad_sums_infer(g: TensorType, x: TensorType, mean: TensorType, *, parts: int) -> TensorType:
    op = "batch_norm_grad_sums"
    require_float(op, gradient=g, mean=mean)
    require_shape(op, "the gradient", g, x.shape, "the input's shape")
    require_shape(op, "mean", mean, x.shape[-1:], "one element per channel")
    return _sums_type(op, x, parts)


def _grad_sums(g: np.ndarray, x: np.ndarray, mean: np.ndarray, *, parts: int) -> np.ndarray:
    """(sum of g, sum of g (x - mean)) of each part."""
    found = np.zeros((parts, 2, x.shape[-1]))
    with np.errstate(all="ignore"):
        pairs = zip(_parts_of(g, parts), _parts_of(x - mean, parts), strict=True)
        for k, (gradient, centred) in enumerate(pairs):
            found[k] = gradient.sum(axis=0), (gradient * centred).sum(axis=0)
    return found


def _grad_factors_infer(
    sums: TensorType, gamma: TensorType, rstd: TensorType, *, rows: Extent
) -> tuple[TensorType, ...]:
    return (_check_sums("batch_norm_grad_factors", sums, weight=gamma, rstd=rstd),) * 6


def _grad_factors(
    sums: np.ndarray, gamma: np.ndarray, rstd: np.ndarray, *, rows: int
) -> tuple[np.ndarray, ...]:
    """(dgamma, dbeta, scale, offset, slope, total).

    ``dx = scale (g - offset - slope (x - mean))``; total is the sum of dx over all rows, which is
    zero but for the rounding of ``offset``.
    """
    kind = gamma.dtype
    wide = rstd.astype(np.float64)
    with np.errstate(all="ignore"):
        dbeta, product = sums.sum(axis=0)
        dgamma = product * wide
        scale = gamma * wide
        offset = (dbeta / np.float64(rows)).astype(kind)
        slope = dgamma * wide / np.float64(rows)
        total = scale * (dbeta - np.float64(rows) * offset)
    return tuple(v.astype(kind) for v in (dgamma, dbeta, scale, offset, slope, total))


# -- samples --------------------------------------------------------------------------------------

_CASES = [((4, 3), 2), ((2, 3, 4, 5), 5), ((5, 1), 8), ((7, 33), 3), ((0, 4), 2)]


def _moments_samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample((rng.normal(size=shape),), {"parts": parts}) for shape, parts in _CASES]


def _statistics_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _moments_samples(rng):
        (x,) = s.arrays
        rows = x.size // x.shape[-1]
        if rows:  # of no rows, all are NaN
            arrays = (_moments(x, **s.attrs), rng.normal(size=x.shape[-1:]))
            samples.append(Sample(arrays, {"rows": rows, "eps": 1e-3}))
    return samples


def _grad_sums_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((rng.normal(size=x.shape), x, rng.normal(size=x.shape[-1:])), attrs)
        for (x,), attrs, _ in _moments_samples(rng)
    ]


def _grad_factors_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _grad_sums_samples(rng):
        x = s.arrays[0]
        rows = x.size // x.shape[-1]
        if rows:
            gamma, rstd = rng.uniform(0.5, 2.0, (2, x.shape[-1]))
            arrays = (_grad_sums(*s.arrays, **s.attrs), gamma, rstd)
            samples.append(Sample(arrays, {"rows": rows}))
    return samples


def _register(name: str, infer: Any, numpy: Any, samples: Any) -> None:
    register(Op(name, "norm", infer, numpy, samples=samples, **SUMMED))


def _moments_infer(x: TensorType, *, parts: Extent) -> TensorType:
    return _sums_type("batch_norm_moments", x, parts)


_register("batch_norm_moments", _moments_infer, _moments, _moments_samples)
_register("batch_norm_statistics", _statistics_infer, _statistics, _statistics_samples)
_register("batch_norm_grad_sums", _grad_sums_infer, _grad_sums, _grad_sums_samples)
_register("batch_norm_grad_factors", _grad_factors_infer, _grad_factors, _grad_factors_samples)
