"""scaled_dot_product_attention."""

from __future__ import annotations

import math

from ....errors import DTypeError, ShapeError
from ....ir.types import Extent, Shape, broadcast_shapes, numel
from ...dispatch import apply
from ...tensor import Tensor
from .checks import need_float, need_tensor, sizes, unsupported
from .dropout import check_probability, dropout

_NAME = "scaled_dot_product_attention"


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(query @ key^T * scale + mask) @ value``. Vaswani et al. 2017.

    query (..., L, E), key (..., S, E), value (..., S, Ev) with leading dimensions that broadcast;
    gives (..., L, Ev). ``scale`` is 1 / sqrt(E) if None. ``attn_mask`` broadcasts to (..., L, S):
    True where a key takes part, or numbers of the query's dtype that are added to the scores.
    ``is_causal``: query i sees keys 0 to i. A query without any key gives zeros. With ``dropout_p``
    > 0 weights are dropped, whether or not a module is training.
    """
    for i, (name, tensor) in enumerate((("query", query), ("key", key), ("value", value)), 1):
        need_tensor(_NAME, name, i, tensor)
    if enable_gqa:
        raise unsupported(_NAME, "enable_gqa=True", "repeat key and value for the query's heads")
    check_probability(dropout_p)
    lead = _leading(query, key, value)
    batch, heads = _grouped(lead)
    q, k, v = (_as_heads(x, lead, batch, heads) for x in (query, key, value))
    operands = [q, k]
    if attn_mask is not None:
        shape = (*lead, query.shape[-2], key.shape[-2])
        operands.append(_as_mask(_additive(attn_mask, query), shape, batch, heads))
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    attrs = {
        "heads": heads,
        "head_dim": head_dim,
        "scale": 1 / math.sqrt(max(head_dim, 1)) if scale is None else float(scale),
        "causal": bool(is_causal),
    }
    if dropout_p > 0:
        weights = dropout(apply("attention_weights", *operands, starts=(0, 0), **attrs), dropout_p)
        result = weights @ v
    else:
        operands.insert(2, v)
        result = apply(
            "attention", *operands, value_dim=value_dim, starts=(0, 0, 0), merged=False, **attrs
        )
    shape = (*lead, query.shape[-2], value_dim)
    return result if result.shape == shape else result.reshape(*shape)


def _leading(query: Tensor, key: Tensor, value: Tensor) -> Shape:
    """The dimensions before the last two, broadcast."""
    tensors = (query, key, value)
    if min(t.ndim for t in tensors) < 2:
        raise ShapeError(
            "Expected query, key, and value to all be at least 2 dimensional, but got "
            f"query.dim: {query.ndim}, key.dim: {key.ndim} and value.dim: {value.ndim} instead"
        )
    need_float(_NAME, query)
    if key.dtype is not query.dtype or value.dtype is not query.dtype:
        raise DTypeError(
            "Expected query, key, and value to have the same dtype, but got "
            f"query.dtype: {query.dtype}, key.dtype: {key.dtype} and value.dtype: {value.dtype}; "
            "convert them to one dtype with .to()"
        )
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ShapeError(
            f"{_NAME}: query {sizes(query.shape)} and key {sizes(key.shape)} must have the same "
            f"last dimension, key and value {sizes(value.shape)} the same number of rows"
        )
    try:
        return broadcast_shapes(*(tuple(t.shape[:-2]) for t in tensors))
    except ShapeError as error:
        raise ShapeError(f"{_NAME}: leading dimensions of query, key and value: {error}") from None


def _grouped(lead: Shape) -> tuple[Extent, Extent]:
    """(batch, heads): the last leading dimension is the heads if there are several."""
    if len(lead) < 2:
        return numel(lead), 1
    return numel(lead[:-1]), lead[-1]


def _as_heads(x: Tensor, lead: Shape, batch: Extent, heads: Extent) -> Tensor:
    """(batch, heads, rows, dim)."""
    rows = tuple(x.shape[-2:])
    if tuple(x.shape[:-2]) != lead:
        x = x.expand(*lead, *rows)
    return x if x.ndim == 4 else x.reshape(batch, heads, *rows)


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    """The mask as numbers that are added to the scores."""
    need_tensor(_NAME, "attn_mask", 4, mask)
    if mask.dtype.name == "bool":
        return additive_mask(mask, query, keeps=True)
    if mask.dtype is not query.dtype:
        raise DTypeError(
            "Expected attn_mask dtype to be bool or to match query dtype, but got "
            f"attn_mask.dtype: {mask.dtype} and query.dtype: {query.dtype} instead"
        )
    return mask


def additive_mask(mask: Tensor, like: Tensor, keeps: bool) -> Tensor:
    """0 and -inf of the dtype of ``like`` for a bool mask; ``keeps`` is what gets 0."""
    nothing = like.new_full((), -math.inf)
    zero = like.new_zeros(())
    found: Tensor = apply("where", mask, *((zero, nothing) if keeps else (nothing, zero)))
    return found


def _as_mask(mask: Tensor, shape: Shape, batch: Extent, heads: Extent) -> Tensor:
    """The mask (batch or 1, heads or 1, L or 1, S or 1)."""
    full = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
    fits = len(full) == len(shape) and all(m in (1, d) for m, d in zip(full, shape, strict=True))
    if not fits:
        raise ShapeError(
            f"{_NAME}: attn_mask {sizes(mask.shape)} does not broadcast to the scores "
            f"{sizes(shape)}"
        )
    if len(shape) <= 4:
        apart = (*full[:-2], 1)[:2] if len(shape) < 4 else full[:2]
        return mask.reshape(*((1, 1) if len(shape) == 2 else apart), *full[-2:])
    outer = full[:-3]
    if any(d != 1 for d in outer):
        mask = mask.reshape(full).expand(*shape[:-3], *full[-3:])
        return mask.reshape(batch, *full[-3:])
    return mask.reshape(1, *full[-3:])
