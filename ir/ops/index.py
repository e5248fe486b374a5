"""Operators that read or add at indices: embedding, gather, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import Dim, Extent, TensorType, shape_text
from .checks import require_dims, require_float, require_index, require_same_dtype
from .record import GradContext, Op, Sample, register


def _check_range(idx: np.ndarray, size: int, start: str, what: str) -> None:
    """IndexError ``start`` with the first index outside [0, size) and its place."""
    outside = (idx < 0) | (idx >= size)
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise IndexError(
            f"{start}: index {idx[place]} at position {place} is out of bounds for {what} with "
            f"size {size}; indices must be 0 to {size - 1}"
        )


# -- embedding ------------------------------------------------------------------------------------


def _embedding_infer(idx: TensorType, w: TensorType, *, padding_idx: int | None) -> TensorType:
    require_index("embedding", "the index", idx)
    if w.rank != 2:
        raise ShapeError(f"embedding: weight is {w}, expected (number of embeddings, features)")
    _check_padding("embedding", padding_idx, w.shape[0])
    return TensorType(w.dtype, (*idx.shape, w.shape[1]))


def _check_padding(op: str, padding_idx: int | None, num: Extent) -> None:
    if padding_idx is not None and isinstance(num, int) and not 0 <= padding_idx < num:
        raise ShapeError(
            f"{op}: padding_idx must be within the {num} embeddings, got {padding_idx}"
        )


def _embedding(idx: np.ndarray, w: np.ndarray, *, padding_idx: int | None) -> np.ndarray:
    """Row ``idx`` of ``w`` for each index; ``padding_idx`` only matters for the gradient."""
    _check_range(idx, w.shape[0], "embedding: index out of range in self", "the weight's rows")
    return w[idx]


def _embedding_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    idx, w = ctx.inputs
    num = b.type(w).shape[0]
    padding_idx = ctx.attrs["padding_idx"]
    return None, b.op("embedding_grad", g, idx, num=num, padding_idx=padding_idx)


def _embedding_grad_infer(
    g: TensorType, idx: TensorType, *, num: Extent, padding_idx: int | None
) -> TensorType:
    op = "embedding_grad"
    require_index(op, "the index", idx)
    require_float(op, gradient=g)
    if g.rank != idx.rank + 1 or g.shape[:-1] != idx.shape:
        raise ShapeError(f"{op}: gradient is {g}, expected one row for each index of {idx}")
    _check_padding(op, padding_idx, num)
    return TensorType(g.dtype, (num, g.shape[-1]))


def _embedding_grad(
    g: np.ndarray, idx: np.ndarray, *, num: int, padding_idx: int | None
) -> np.ndarray:
    """The sum of the rows of ``g`` with the same index; row ``padding_idx`` stays zero."""
    _check_range(idx, num, "embedding_grad: index out of range", "the weight's rows")
    features = g.shape[-1]
    rows, flat = g.reshape(idx.size, features), idx.reshape(idx.size)
    if padding_idx is not None:
        kept = flat != padding_idx
        rows, flat = rows[kept], flat[kept]
    dw = np.zeros((num, features), g.dtype)
    if flat.size:
        # Rows of one index become neighbours, in their order, so each sum is one segment.
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        with np.errstate(all="ignore"):
            dw[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return dw


def _embedding_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    _, idx = ctx.inputs
    padding_idx = ctx.attrs["padding_idx"]
    rows = b.op("embedding", idx, g, padding_idx=padding_idx)
    if padding_idx is not None:
        padding = b.op("reshape", b.eq(idx, padding_idx), shape=(*b.type(idx).shape, 1))
        rows = b.where(padding, b.constant(0.0, b.type(g).dtype), rows)
    return rows, None


def _embedding_samples(rng: np.random.Generator) -> list[Sample]:
    cases: list[tuple[tuple[int, ...], int, int]] = [
        ((4,), 5, 3),
        ((2, 3), 4, 7),
        ((), 3, 2),
        ((0,), 3, 2),
        ((6,), 1, 1),
    ]
    samples = []
    for shape, num, features in cases:
        for padding_idx in (None, num - 1):
            idx, w = rng.integers(0, num, shape), rng.normal(size=(num, features))
            # The row of padding_idx is read but gets no gradient, on purpose.
            exact = padding_idx is None or not np.any(idx == padding_idx)
            samples.append(Sample((np.asarray(idx), w), {"padding_idx": padding_idx}, exact))
    return samples


def _embedding_grad_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _embedding_samples(rng):
        idx, w = s.arrays
        g = rng.normal(size=(*idx.shape, w.shape[1]))
        samples.append(Sample((g, idx), {"num": w.shape[0], **s.attrs}))
    return samples


# -- gather ---------------------------------------------------------------------------------------


def _no_larger(a: Extent, b: Extent) -> bool:
    """Whether a <= b for every batch size (known only for two numbers or equal symbols)."""
    if isinstance(a, Dim) or isinstance(b, Dim):
        return a == b
    return a <= b


def _gather_infer(x: TensorType, idx: TensorType, *, dim: int) -> TensorType:
    require_index("gather", "the index", idx)
    require_dims("gather", x, dim)
    if idx.rank != x.rank:
        raise ShapeError(
            f"gather: index {idx} should have the same number of dimensions as input {x}"
        )
    for d in range(x.rank):
        if d != dim and not _no_larger(idx.shape[d], x.shape[d]):
            raise ShapeError(
                f"gather: size does not match at dimension {d}: expected index "
                f"{shape_text(idx.shape)} to be no larger than input {shape_text(x.shape)} "
                f"apart from dimension {dim}"
            )
    return TensorType(x.dtype, idx.shape)


def _gather(x: np.ndarray, idx: np.ndarray, *, dim: int) -> np.ndarray:
    """``out[i, j, k] = x[i, idx[i, j, k], k]`` for dim 1, as torch.gather."""
    _check_range(idx, x.shape[dim], "gather", f"dimension {dim}")
    within = tuple(slice(None) if d == dim else slice(idx.shape[d]) for d in range(x.ndim))
    return np.take_along_axis(x[within], idx, axis=dim)


def _gather_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    x, idx = ctx.inputs
    dim = ctx.attrs["dim"]
    shape, taken = b.type(x).shape, b.type(idx).shape
    dx = b.op("scatter_add_grad", g, idx, dim=dim, size=shape[dim])
    missing = tuple(
        s - t if d != dim and s != t else 0
        for d, (s, t) in enumerate(zip(shape, taken, strict=True))
    )
    if any(missing):  # elements that a smaller index never reaches
        dx = b.op("pad", dx, low=(0,) * len(shape), high=missing, value=0.0)
    return dx, None


def _scatter_add_grad_infer(
    g: TensorType, idx: TensorType, *, dim: int, size: Extent
) -> TensorType:
    op = "scatter_add_grad"
    require_index(op, "the index", idx)
    require_dims(op, idx, dim)
    require_same_dtype(op, gradient=g)
    if g.shape != idx.shape:
        raise ShapeError(f"{op}: gradient {g} and index {idx} must have the same shape")
    return TensorType(g.dtype, (*g.shape[:dim], size, *g.shape[dim + 1 :]))


def _scatter_add_grad(g: np.ndarray, idx: np.ndarray, *, dim: int, size: int) -> np.ndarray:
    """``out[i, idx[i, j, k], k] += g[i, j, k]`` for dim 1, from zeros; in row-major order."""
    _check_range(idx, size, "scatter_add_grad", f"dimension {dim}")
    shape = (*g.shape[:dim], size, *g.shape[dim + 1 :])
    inner = math.prod(shape[dim + 1 :])
    outer = np.arange(math.prod(shape[:dim])).reshape(-1, 1, 1) * (size * inner)
    place = idx.reshape(math.prod(shape[:dim]), idx.shape[dim], inner) * inner
    flat = outer + place + np.arange(inner)
    out = np.zeros(math.prod(shape), g.dtype)
    with np.errstate(all="ignore"):
        np.add.at(out, flat.ravel(), g.ravel())
    return out.reshape(shape)


def _scatter_add_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    return b.op("gather", g, ctx.inputs[1], dim=ctx.attrs["dim"]), None


_GATHER_CASES: list[tuple[tuple[int, ...], tuple[int, ...], int]] = [
    ((4, 5), (4, 1), 1),
    ((4, 5), (2, 5), 0),
    ((2, 3, 4), (2, 6, 4), 1),
    ((2, 3, 4), (1, 2, 3), 2),
    ((7,), (9,), 0),
    ((3, 2), (0, 2), 0),
    ((1, 1), (1, 1), 1),
]


def _gather_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((rng.normal(size=shape), rng.integers(0, shape[dim], taken)), {"dim": dim})
        for shape, taken, dim in _GATHER_CASES
    ]


def _scatter_add_grad_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(
            (rng.normal(size=taken), rng.integers(0, shape[dim], taken)),
            {"dim": dim, "size": shape[dim]},
        )
        for shape, taken, dim in _GATHER_CASES
    ]


register(
    Op(
        "embedding",
        "index",
        _embedding_infer,
        _embedding,
        grad=_embedding_rule,
        samples=_embedding_samples,
    )
)
register(
    Op(
        "embedding_grad",
        "index",
        _embedding_grad_infer,
        _embedding_grad,
        grad=_embedding_grad_rule,
        samples=_embedding_grad_samples,
    )
)
register(Op("gather", "index", _gather_infer, _gather, grad=_gather_rule, samples=_gather_samples))
register(
    Op(
        "scatter_add_grad",
        "index",
        _scatter_add_grad_infer,
        _scatter_add_grad,
        grad=_scatter_add_grad_rule,
        samples=_scatter_add_grad_samples,
    )
)
