"""Scaled dot-product attention (Vaswani et al., arXiv:1706.03762) and its weights.

Queries, keys and values come in one of two forms, each operand in its own:

- rank 4, (batch, heads, rows, head dim): the heads are matrices;
- rank 3, (batch, rows, features): the heads are neighbouring columns, head h of an operand is the
  columns ``start + h * dim`` and following. A projection to queries, keys and values at once can
  so be all three operands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import Extent, Shape, TensorType, shape_text
from .checks import fixed_extent, require_float
from .record import SUMMED, GradContext, Op, Sample, register

SPLIT_HEADS = (0, 2, 1, 3)
"""The permutation between (batch, rows, heads, dim) and (batch, heads, rows, dim)."""

# -- shapes ---------------------------------------------------------------------------------------


def _operand(
    op: str, name: str, x: TensorType, heads: int, dim: int, start: int
) -> tuple[Extent, int]:
    """(batch, rows) of an operand."""
    if x.rank == 4:
        batch, found, rows, last = x.shape
        if (found, last) != (heads, dim) or start:
            raise ShapeError(
                f"{op}: {name} is {x} and starts at column {start}, expected (batch, heads, rows, "
                f"head dim) with {heads} heads of {dim} from column 0"
            )
    elif x.rank == 3:
        batch, rows, features = x.shape
        width = fixed_extent(op, f"the number of features of {name}", features)
        if start < 0 or start + heads * dim > width:
            raise ShapeError(
                f"{op}: {name} is {x}, but its {heads} heads of {dim} are columns {start} to "
                f"{start + heads * dim}"
            )
    else:
        raise ShapeError(
            f"{op}: {name} is {x}, expected (batch, heads, rows, head dim) or "
            "(batch, rows, features)"
        )
    return batch, fixed_extent(op, f"the number of rows of {name}", rows)


def _weights_shape(
    op: str,
    q: TensorType,
    k: TensorType,
    mask: TensorType | None,
    heads: int,
    head_dim: int,
    starts: tuple[int, ...],
) -> Shape:
    require_float(op, query=q, key=k, mask=mask)
    batch, rows = _operand(op, "query", q, heads, head_dim, starts[0])
    other, keys = _operand(op, "key", k, heads, head_dim, starts[1])
    if other != batch:
        raise ShapeError(f"{op}: query has batch {batch}, key {other}; expand one of them")
    shape = (batch, heads, rows, keys)
    if mask is not None:
        fits = mask.rank == 4 and all(m in (1, s) for m, s in zip(mask.shape, shape, strict=True))
        if not fits:
            raise ShapeError(
                f"{op}: mask has shape {shape_text(mask.shape)}, expected {shape_text(shape)} or "
                "1 in some of its dimensions"
            )
    return shape


def _weights_infer(
    q: TensorType,
    k: TensorType,
    mask: TensorType | None = None,
    *,
    heads: int,
    head_dim: int,
    starts: tuple[int, int],
    scale: float,
    causal: bool,
) -> TensorType:
    shape = _weights_shape("attention_weights", q, k, mask, heads, head_dim, starts)
    return TensorType(q.dtype, shape)


def _infer(
    q: TensorType,
    k: TensorType,
    v: TensorType,
    mask: TensorType | None = None,
    *,
    heads: int,
    head_dim: int,
    value_dim: int,
    starts: tuple[int, int, int],
    scale: float,
    causal: bool,
    merged: bool,
) -> TensorType:
    batch, _, rows, keys = _weights_shape("attention", q, k, mask, heads, head_dim, starts)
    require_float("attention", query=q, value=v)
    found = _operand("attention", "value", v, heads, value_dim, starts[2])
    if found != (batch, keys):
        raise ShapeError(
            f"attention: value has batch {found[0]} and {found[1]} rows, key has batch {batch} "
            f"and {keys} rows; they must be equal"
        )
    shape = (batch, rows, heads * value_dim) if merged else (batch, heads, rows, value_dim)
    return TensorType(q.dtype, shape)


def columns_are_all(
    kinds: tuple[TensorType, ...], heads: int, dims: tuple[int, int, int], starts: tuple[int, ...]
) -> bool:
    """Whether the heads of the three operands are all columns of one, and none is of two."""
    if any(kind != kinds[0] for kind in kinds) or kinds[0].rank != 3:
        return False
    at = 0
    for start, dim in sorted(zip(starts, dims, strict=True)):
        if start != at:
            return False
        at += heads * dim
    return at == kinds[0].shape[2]


# -- meaning --------------------------------------------------------------------------------------


def as_heads(x: np.ndarray, heads: int, dim: int, start: int) -> np.ndarray:
    """A view (batch, heads, rows, dim)."""
    if x.ndim == 4:
        return x
    columns = x[:, :, start : start + heads * dim]
    return columns.reshape(*x.shape[:2], heads, dim).transpose(SPLIT_HEADS)


def weights_of(
    q: np.ndarray,
    k: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    heads: int,
    head_dim: int,
    starts: tuple[int, int],
    scale: float,
    causal: bool,
) -> np.ndarray:
    """``softmax(scale q k^T + mask)`` over the keys; zeros where every key is masked (-inf).

    ``causal``: query i sees keys 0 to i; the scores of later keys do not matter.
    """
    with np.errstate(all="ignore"):
        queries = as_heads(q, heads, head_dim, starts[0])
        keys = as_heads(k, heads, head_dim, starts[1])
        p = np.matmul(queries, keys.swapaxes(2, 3))
        p *= p.dtype.type(scale)
        if mask is not None:
            p += mask
        if causal:
            later = np.arange(p.shape[3]) > np.arange(p.shape[2])[:, None]
            p[..., later] = -np.inf
        top = np.max(p, axis=3, keepdims=True, initial=-np.inf)
        p -= np.where(top == -np.inf, 0, top)
        np.exp(p, out=p)
        total = p.sum(axis=3, keepdims=True)
        p /= np.where(total == 0, 1, total)
    return p


def _attention(
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
) -> np.ndarray:
    """The weights times the values; ``merged``: as (batch, rows, features).

    With ``causal`` it is open whether NaN or infinity in the value of a later key, whose weight is
    0, reaches a query.
    """
    p = weights_of(
        q, k, mask,
        heads=heads, head_dim=head_dim, starts=starts[:2], scale=scale, causal=causal,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        y = np.matmul(p, as_heads(v, heads, value_dim, starts[2]))
    if not merged:
        return y
    y = y.transpose(SPLIT_HEADS)
    return y.reshape(*y.shape[:2], heads * value_dim)


# -- gradients ------------------------------------------------------------------------------------


def split(b: Any, x: Any, heads: int, dim: int, start: int = 0) -> Any:
    """An operand (or its gradient) as (batch, heads, rows, dim)."""
    kind = b.type(x)
    if kind.rank == 4:
        return x
    batch, rows, features = kind.shape
    width = heads * dim
    if features != width:
        x = b.op("slice", x, dim=2, start=start, stop=start + width, step=1)
    x = b.op("reshape", x, shape=(batch, rows, heads, dim))
    return b.op("permute", x, dims=SPLIT_HEADS)


def joined(b: Any, g: Any, like: TensorType, start: int) -> Any:
    """The gradient (batch, heads, rows, dim) of an operand of the type ``like``, as it is."""
    if like.rank == 4:
        return g
    batch, heads, rows, dim = b.type(g).shape
    g = b.op("permute", g, dims=SPLIT_HEADS)
    return as_columns(b, b.op("reshape", g, shape=(batch, rows, heads * dim)), like, start)


def as_columns(b: Any, g: Any, like: TensorType, start: int) -> Any:
    """Columns from ``start`` on of the type ``like``, the others zero."""
    features = like.shape[2]
    if b.type(g).shape[2] == features:
        return g
    return b.op("slice_grad", g, dim=2, start=start, step=1, size=features)


def transposed(b: Any, x: Any) -> Any:
    return b.op("permute", x, dims=(0, 1, 3, 2))


def scores_grad(b: Any, ctx: GradContext, p: Any, dp: Any, needs: tuple[bool, ...]) -> list[Any]:
    """Gradients of query, key and mask for the gradient ``dp`` of the weights ``p``."""
    q, k = ctx.inputs[:2]
    heads, dim, scale = (ctx.attrs[name] for name in ("heads", "head_dim", "scale"))
    starts = ctx.attrs["starts"]
    ds = b.op("softmax_grad", dp, p, dim=3)
    grads: list[Any] = [None, None, ds if needs[2] else None]
    if needs[0]:
        dq = b.mul(b.matmul(ds, split(b, k, heads, dim, starts[1])), scale)
        grads[0] = joined(b, dq, b.type(q), starts[0])
    if needs[1]:
        dk = b.mul(b.matmul(transposed(b, ds), split(b, q, heads, dim, starts[0])), scale)
        grads[1] = joined(b, dk, b.type(k), starts[1])
    return grads


def _weights_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    needs = (ctx.needs(0), ctx.needs(1), ctx.needs(2))
    grads = scores_grad(b, ctx, ctx.outputs[0], g, needs)
    return tuple(grads[: len(ctx.inputs)])


def _attention_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    """One operator, unless somebody wants the gradient of the mask."""
    q, k, v, *mask = ctx.inputs
    attrs = ctx.attrs
    if ctx.needs(3):
        return _mask_grad(b, ctx, g)
    dims = (attrs["head_dim"], attrs["head_dim"], attrs["value_dim"])
    kinds = (b.type(q), b.type(k), b.type(v))
    together = b.same(q, k) and b.same(k, v)
    together = together and columns_are_all(kinds, attrs["heads"], dims, attrs["starts"])
    found = b.op("attention_grad", g, q, k, v, *mask, together=together, **attrs)
    if together:
        grads = (found, None, None)
    else:
        grads = tuple(
            x if kind.rank == 4 else as_columns(b, x, kind, start)
            for x, kind, start in zip(found, kinds, attrs["starts"], strict=True)
        )
    return (*grads, None) if mask else grads


def _mask_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    """From single operators: the gradient of a mask is that of the scores, summed.

    The weights are computed again: they are larger than everything that they depend on.
    """
    q, k, v, *mask = ctx.inputs
    heads, value_dim = ctx.attrs["heads"], ctx.attrs["value_dim"]
    *starts, start = ctx.attrs["starts"]
    common = {name: ctx.attrs[name] for name in ("heads", "head_dim", "scale", "causal")}
    p = b.op("attention_weights", q, k, *mask, starts=tuple(starts), **common)
    g = split(b, g, heads, value_dim)
    dp = b.matmul(g, transposed(b, split(b, v, heads, value_dim, start)))
    dq, dk, dmask = scores_grad(b, ctx, p, dp, (ctx.needs(0), ctx.needs(1), True))
    dv = joined(b, b.matmul(transposed(b, p), g), b.type(v), start) if ctx.needs(2) else None
    return dq, dk, dv, dmask


# -- samples --------------------------------------------------------------------------------------

# batch, heads, queries, keys, head dim, value dim
_SIZES = [
    (2, 3, 7, 5, 4, 4),
    (2, 1, 1, 1, 1, 1),
    (3, 2, 4, 9, 3, 6),
    (2, 2, 1, 17, 8, 1),
    (0, 2, 3, 3, 2, 2),
]


def _masks(rng: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    """A full mask, one per key with masked keys, and one that hides all keys from a query."""
    batch, _, rows, keys = shape
    padding = np.zeros((batch, 1, 1, keys))
    padding[..., keys - keys // 3 :] = -np.inf
    blind = rng.normal(size=(1, 1, rows, keys))
    if rows > 1:
        blind[:, :, rows // 2] = -np.inf
    return [rng.normal(size=shape), padding, blind]


def attention_samples(
    rng: np.random.Generator,
) -> list[tuple[tuple[np.ndarray, ...], dict[str, Any]]]:
    """(q, k, v, masks...) and attributes, for every form of the operands."""
    cases: list[tuple[tuple[np.ndarray, ...], dict[str, Any]]] = []
    for i, (batch, heads, rows, keys, dim, value_dim) in enumerate(_SIZES):
        attrs = {"heads": heads, "head_dim": dim, "value_dim": value_dim, "scale": dim**-0.5}
        q = rng.normal(size=(batch, heads, rows, dim))
        k = rng.normal(size=(batch, heads, keys, dim))
        v = rng.normal(size=(batch, heads, keys, value_dim))
        plain = {**attrs, "starts": (0, 0, 0), "causal": i % 2 == 0, "merged": False}
        cases.append(((q, k, v), plain))
        if batch:
            masks = _masks(rng, (batch, heads, rows, keys))
            cases += [((q, k, v, m), {**plain, "causal": False}) for m in masks]
        wide = rng.normal(size=(batch, keys, heads * (dim + value_dim) + 3))
        inside = {**attrs, "starts": (0, 2, 3 + heads * dim), "causal": False, "merged": True}
        cases.append(((q, wide, wide), inside))
    projection = rng.normal(size=(2, 6, 3 * 8))
    attrs = {"heads": 2, "head_dim": 4, "value_dim": 4, "scale": 0.7, "starts": (0, 8, 16)}
    for causal in (False, True):
        cases.append(((projection,) * 3, {**attrs, "causal": causal, "merged": True}))
    return cases


def _samples(rng: np.random.Generator) -> list[Sample]:
    return [Sample(arrays, attrs, arrays[0].size > 0) for arrays, attrs in attention_samples(rng)]


def _weights_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for (q, k, _, *mask), attrs in attention_samples(rng):
        kept = {n: attrs[n] for n in ("heads", "head_dim", "scale", "causal")}
        kept["starts"] = attrs["starts"][:2]
        # The weight of an only key is 1 whatever the scores are.
        samples.append(Sample((q, k, *mask), kept, q.size > 0 and k.shape[-2] > 1))
    return samples


register(
    Op(
        "attention",
        "contraction",
        _infer,
        _attention,
        grad=_attention_grad,
        samples=_samples,
        **SUMMED,
    )
)
register(
    Op(
        "attention_weights",
        "contraction",
        _weights_infer,
        weights_of,
        grad=_weights_grad,
        samples=_weights_samples,
        **SUMMED,
    )
)
