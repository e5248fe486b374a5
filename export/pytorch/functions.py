"""The table of what each IR operator is in PyTorch: functions of tensors and IR attributes.

A function is what a PyTorch user would write: one call of ``torch`` or ``torch.nn.functional`` as
far as there is one. To add an operator, add an entry or a function with ``@operator("name")``.
Inputs are tensors, or numbers where the graph has a constant or the batch size. While a module is
built they are fx proxies, which have no shape: a function that needs one is registered with
``types=True`` and gets the operands' IR types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ...errors import UnsupportedError
from ...ir.ops.spatial import Padding
from ...ir.types import TensorType, shape_at

Pair = tuple[int, int]
Function = Callable[..., Any]

DTYPES: dict[str, torch.dtype] = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16,
    "i32": torch.int32, "i64": torch.int64, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip

FUNCTIONS: dict[str, Function] = {
    # arithmetic and functions
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x**y,
    "neg": lambda x: -x,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "abs": torch.abs,
    "sign": torch.sign,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    # comparison and logic
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "logical_not": torch.logical_not,
    "isnan": torch.isnan,
    "where": torch.where,
    "cast": lambda x, *, dtype: x.to(DTYPES[dtype]),
    "detach": lambda x: x.detach(),
    # activations
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "leaky_relu": lambda x, *, slope: F.leaky_relu(x, slope),
    "elu": lambda x, *, alpha: F.elu(x, alpha),
    "softplus": lambda x, *, beta, threshold: F.softplus(x, beta, threshold),
    # products, rows
    "linear": F.linear,
    "matmul": torch.matmul,
    "softmax": lambda x, *, dim: F.softmax(x, dim=dim),
    "log_softmax": lambda x, *, dim: F.log_softmax(x, dim=dim),
    # moving elements
    "permute": lambda x, *, dims: x.permute(dims),
    "broadcast_to": lambda x, *, shape: x.expand(shape),
    "cat": lambda *xs, dim: torch.cat(xs, dim),
    "embedding": lambda idx, w, *, padding_idx: F.embedding(idx, w, padding_idx),
    "gather": lambda x, idx, *, dim: torch.gather(x, dim, idx),
    "extent": lambda *, size, dtype: size,
    "argmax": lambda x, *, dim, keepdim: torch.argmax(x, dim, keepdim),
    "argsort": lambda x, *, dim, descending: torch.argsort(
        x, dim=dim, descending=descending, stable=True
    ),
    "argmin": lambda x, *, dim, keepdim: torch.argmin(x, dim, keepdim),
}


TYPED: set[str] = set()
"""Operators whose function has a keyword ``types``: a tuple of the operands' IR types."""


def operator(op: str, types: bool = False) -> Callable[[Function], Function]:
    """Registers a function as the meaning of an IR operator."""

    def register(function: Function) -> Function:
        FUNCTIONS[op] = function
        if types:
            TYPED.add(op)
        return function

    return register


def _reduction(op: str, function: Function) -> None:
    @operator(op)
    def reduce(x: Any, *, dims: tuple[int, ...], keepdim: bool) -> Any:
        return function(x, dims, keepdim) if dims else x


_REDUCTIONS: dict[str, Function] = {
    "sum": lambda x, dims, keepdim: torch.sum(x, dims, keepdim),
    "mean": lambda x, dims, keepdim: torch.mean(x, dims, keepdim),
    "amax": torch.amax,
    "amin": torch.amin,
    "all": torch.all,
    "any": torch.any,
}
for _op, _function in _REDUCTIONS.items():
    _reduction(_op, _function)


@operator("clamp")
def _clamp(x: Any, *, min: float | None = None, max: float | None = None) -> Any:
    # Whole numbers as ints: a float bound would make a float tensor of an integer one.
    low, high = (int(v) if v is not None and v.is_integer() else v for v in (min, max))
    return torch.clamp(x, low, high)


@operator("reshape")
def _reshape(x: Any, *, shape: tuple[Any, ...]) -> Any:
    return x.reshape(shape)


@operator("slice")
def _slice(x: Any, *, dim: int, start: Any, stop: Any, step: int = 1) -> Any:
    return x[(slice(None),) * dim + (slice(start, stop, None if step == 1 else step),)]


@operator("pad")
def _pad(x: Any, *, low: tuple[int, ...], high: tuple[int, ...], value: float = 0.0) -> Any:
    # From the last dimension to the first.
    widths = [w for pair in reversed(list(zip(low, high, strict=True))) for w in pair]
    return F.pad(x, widths, value=value) if any(widths) else x


# -- images ---------------------------------------------------------------------------------------


def _symmetric(op: str, padding: Padding) -> Pair:
    (top, bottom), (left, right) = padding
    if top != bottom or left != right:
        raise UnsupportedError(f"{op} with the asymmetric padding {padding}; pad before")
    return top, left


def _require_nchw(op: str, layout: str) -> None:
    if layout != "NCHW":
        raise UnsupportedError(f"{op} in layout {layout}; use the graph before assign_layout")


@operator("conv2d")
def _conv2d(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> Any:
    _require_nchw("conv2d", layout)
    (top, bottom), (left, right) = padding
    if top != bottom or left != right:
        x = F.pad(x, (left, right, top, bottom))
        top = left = 0
    return F.conv2d(x, w, b, stride, (top, left), dilation, groups)


@operator("max_pool2d")
def _max_pool2d(
    x: Any,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: str,
) -> Any:
    _require_nchw("max_pool2d", layout)
    both = _symmetric("max_pool2d", padding)
    return F.max_pool2d(x, kernel_size, stride, both, dilation, ceil_mode)


@operator("avg_pool2d")
def _avg_pool2d(
    x: Any,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    layout: str,
) -> Any:
    _require_nchw("avg_pool2d", layout)
    both = _symmetric("avg_pool2d", padding)
    return F.avg_pool2d(
        x, kernel_size, stride, both, ceil_mode, count_include_pad, divisor_override
    )


@operator("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(x: Any, *, output_size: Pair, layout: str) -> Any:
    _require_nchw("adaptive_avg_pool2d", layout)
    return F.adaptive_avg_pool2d(x, output_size)


# -- normalisation --------------------------------------------------------------------------------


@operator("batch_norm")
def _batch_norm(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, *, eps: float, channel_dim: int
) -> Any:
    if channel_dim == 1:
        return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps)
    y = F.batch_norm(x.movedim(channel_dim, 1), mean, var, gamma, beta, False, 0.0, eps)
    return y.movedim(1, channel_dim)


@operator("layer_norm", types=True)
def _layer_norm(
    x: Any, w: Any = None, b: Any = None, *, ndim: int, eps: float, types: tuple[TensorType, ...]
) -> Any:
    """The first result alone: mean and rstd are there for the gradient."""
    return F.layer_norm(x, shape_at(types[0].shape[-ndim:], 1), w, b, eps)


# -- attention ------------------------------------------------------------------------------------


def _heads(x: Any, kind: TensorType, heads: int, dim: int, start: int) -> Any:
    """An operand as (batch, heads, rows, dim); of columns, if it is not so already."""
    if kind.rank == 4:
        return x
    return x[:, :, start : start + heads * dim].unflatten(2, (heads, dim)).transpose(1, 2)


@operator("attention", types=True)
def _attention(
    q: Any,
    k: Any,
    v: Any,
    mask: Any = None,
    *,
    heads: int,
    head_dim: int,
    value_dim: int,
    starts: tuple[int, int, int],
    scale: float,
    causal: bool,
    merged: bool,
    types: tuple[TensorType, ...],
) -> Any:
    q = _heads(q, types[0], heads, head_dim, starts[0])
    k = _heads(k, types[1], heads, head_dim, starts[1])
    v = _heads(v, types[2], heads, value_dim, starts[2])
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)
    return y.transpose(1, 2).flatten(2) if merged else y


@operator("attention_weights", types=True)
def _attention_weights(
    q: Any,
    k: Any,
    mask: Any = None,
    *,
    heads: int,
    head_dim: int,
    starts: tuple[int, int],
    scale: float,
    causal: bool,
    types: tuple[TensorType, ...],
) -> Any:
    q = _heads(q, types[0], heads, head_dim, starts[0])
    k = _heads(k, types[1], heads, head_dim, starts[1])
    scores = q @ k.transpose(2, 3) * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return F.softmax(scores, dim=-1).nan_to_num(0.0)
