"""Operators that move elements: reshape, permute, broadcast_to, cat, slice, pad.

Extents, slice bounds and sizes may be symbolic (multiples of N) in shape rules; the numpy
functions see numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import Dim, Extent, Shape, TensorType, broadcast_shapes, numel, shape_text
from .checks import require_dims, require_same_dtype
from .numerics import points
from .record import Op, Sample, register

# -- extents ----------------------------------------------------------------------------------


def add_extents(op: str, a: Extent, b: Extent) -> Extent:
    """``a + b``; ShapeError for a sum such as N + 1, which is not a multiple of N."""
    if isinstance(a, Dim):
        if isinstance(b, Dim):
            return Dim(a.coef + b.coef)
        if b == 0:
            return a
    elif isinstance(b, Dim):
        if a == 0:
            return b
    else:
        return a + b
    raise ShapeError(
        f"{op}: an extent of {a} + {b} is not a multiple of the batch size N; "
        "do this along another dimension"
    )


def _slice_length(op: str, x: TensorType, dim: int, start: Extent, stop: Extent, step: int) -> Any:
    """Number of elements in ``start:stop:step`` along ``dim``."""
    size = x.shape[dim]
    text = f"{op}: {start}:{stop}:{step} along dimension {dim} of {x}"
    if step < 1:
        raise ShapeError(f"{text}: the step must be at least 1")
    if isinstance(size, Dim):
        first = start.coef if isinstance(start, Dim) else 0
        whole = isinstance(stop, Dim) and (isinstance(start, Dim) or start == 0)
        if not whole or not isinstance(stop, Dim) or not 0 <= first < stop.coef <= size.coef:
            raise ShapeError(
                f"{text}: the bounds of a batch dimension must be multiples of N within it; "
                "slice another dimension, or trace with a fixed batch size"
            )
        return Dim(stop.coef - first) // step if step > 1 else Dim(stop.coef - first)
    if isinstance(start, Dim) or isinstance(stop, Dim) or not 0 <= start <= stop <= size:
        raise ShapeError(f"{text}: expected 0 <= start <= stop <= {size}")
    return -((start - stop) // step)


def _replace(shape: Shape, dim: int, extent: Extent) -> Shape:
    return (*shape[:dim], extent, *shape[dim + 1 :])


# -- reshape, permute, broadcast_to -----------------------------------------------------------


def _infer_reshape(x: TensorType, *, shape: Shape) -> TensorType:
    if any(not isinstance(d, Dim) and d < 0 for d in shape):
        raise ShapeError(f"reshape: the target {shape_text(shape)} has a negative extent")
    if numel(shape) != x.size:
        raise ShapeError(
            f"reshape: {x} has {x.size} elements, the target {shape_text(shape)} has {numel(shape)}"
        )
    return TensorType(x.dtype, tuple(shape))


register(
    Op(
        "reshape",
        "shape",
        _infer_reshape,
        lambda x, *, shape: x.reshape(shape),
        lambda b, ctx, g: (b.op("reshape", g, shape=b.type(ctx.inputs[0]).shape),),
        None,
        lambda rng: [
            Sample((points(rng, (4, 6)),), {"shape": (4, 3, 2)}),
            Sample((points(rng, (4, 3, 2)),), {"shape": (12, 2)}),
            Sample((points(rng, (1, 1)),), {"shape": ()}),
            Sample((points(rng, (3, 0)),), {"shape": (0, 5)}),
        ],
    )
)


def _infer_permute(x: TensorType, *, dims: tuple[int, ...]) -> TensorType:
    require_dims("permute", x, *dims)
    if len(dims) != x.rank:
        raise ShapeError(f"permute: dims {dims} must name each of the {x.rank} dimensions of {x}")
    return TensorType(x.dtype, tuple(x.shape[d] for d in dims))


def _permute_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    dims = ctx.attrs["dims"]
    inverse = tuple(sorted(range(len(dims)), key=dims.__getitem__))
    return (b.op("permute", g, dims=inverse),)


register(
    Op(
        "permute",
        "shape",
        _infer_permute,
        lambda x, *, dims: np.transpose(x, dims),
        _permute_grad,
        None,
        lambda rng: [
            Sample((points(rng, (4, 6)),), {"dims": (1, 0)}),
            Sample((points(rng, (2, 3, 4, 5)),), {"dims": (2, 0, 3, 1)}),
            Sample((points(rng, ()),), {"dims": ()}),
        ],
    )
)


def _infer_broadcast_to(x: TensorType, *, shape: Shape) -> TensorType:
    if x.rank > len(shape) or broadcast_shapes(x.shape, shape) != tuple(shape):
        raise ShapeError(
            f"broadcast_to: {x} does not expand to {shape_text(shape)}; only dimensions of size 1 "
            "expand, and new dimensions come first"
        )
    return TensorType(x.dtype, tuple(shape))


register(
    Op(
        "broadcast_to",
        "shape",
        _infer_broadcast_to,
        # A copy: numpy's view is read-only, and a gradient may be updated in place.
        lambda x, *, shape: np.broadcast_to(x, shape).copy(),
        lambda b, ctx, g: (g,),
        None,
        lambda rng: [
            Sample((points(rng, (3,)),), {"shape": (5, 3)}),
            Sample((points(rng, (4, 1, 2)),), {"shape": (4, 3, 2)}),
            Sample((points(rng, ()),), {"shape": (2, 3)}),
        ],
    )
)

# -- cat, slice -------------------------------------------------------------------------------


def _infer_cat(*xs: TensorType, dim: int) -> TensorType:
    if not xs:
        raise ShapeError("cat: expected at least one tensor")
    require_same_dtype("cat", *xs)
    first, total = xs[0], xs[0].shape[dim] if 0 <= dim < xs[0].rank else 0
    require_dims("cat", first, dim)
    for x in xs[1:]:
        if x.rank != first.rank or _replace(x.shape, dim, 0) != _replace(first.shape, dim, 0):
            raise ShapeError(
                f"cat: {first} and {x} must agree in every dimension except dimension {dim}"
            )
        total = add_extents("cat", total, x.shape[dim])
    return TensorType(first.dtype, _replace(first.shape, dim, total))


def _cat_grad(b: Any, ctx: Any, g: Any) -> tuple[Any, ...]:
    dim = ctx.attrs["dim"]
    grads: list[Any] = []
    start: Extent = 0
    for i, x in enumerate(ctx.inputs):
        stop = add_extents("cat", start, b.type(x).shape[dim])
        part = b.op("slice", g, dim=dim, start=start, stop=stop, step=1) if ctx.needs(i) else None
        grads.append(part)
        start = stop
    return tuple(grads)


register(
    Op(
        "cat",
        "shape",
        _infer_cat,
        lambda *xs, dim: np.concatenate(xs, axis=dim),
        _cat_grad,
        None,
        lambda rng: [
            Sample((points(rng, (4, 3)), points(rng, (4, 2)), points(rng, (4, 1))), {"dim": 1}),
            Sample((points(rng, (3, 5)), points(rng, (3, 5))), {"dim": 0}),
            Sample((points(rng, (2, 3, 2)),), {"dim": 2}),
        ],
    )
)


def _infer_slice(
    x: TensorType, *, dim: int, start: Extent, stop: Extent, step: int = 1
) -> TensorType:
    require_dims("slice", x, dim)
    length = _slice_length("slice", x, dim, start, stop, step)
    return TensorType(x.dtype, _replace(x.shape, dim, length))


def _slice(x: np.ndarray, *, dim: int, start: int, stop: int, step: int = 1) -> np.ndarray:
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def _slice_back(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    attrs = ctx.attrs
    size = b.type(ctx.inputs[0]).shape[attrs["dim"]]
    kept = {"dim": attrs["dim"], "start": attrs["start"], "step": attrs.get("step", 1)}
    return (b.op("slice_grad", g, **kept, size=size),)


register(
    Op(
        "slice",
        "shape",
        _infer_slice,
        _slice,
        _slice_back,
        None,
        lambda rng: [
            Sample((points(rng, (4, 7)),), {"dim": 1, "start": 1, "stop": 6, "step": 2}),
            Sample((points(rng, (3, 5, 2)),), {"dim": 1, "start": 2, "stop": 5, "step": 1}),
            Sample((points(rng, (5, 3)),), {"dim": 0, "start": 0, "stop": 5, "step": 1}),
            Sample((points(rng, (4, 3)),), {"dim": 1, "start": 2, "stop": 2, "step": 1}, False),
        ],
    )
)


def _infer_slice_grad(
    g: TensorType, *, dim: int, start: Extent, step: int = 1, size: Extent
) -> TensorType:
    require_dims("slice_grad", g, dim)
    whole = TensorType(g.dtype, _replace(g.shape, dim, size))
    stop = _slice_end(g.shape[dim], start, step)
    if _slice_length("slice_grad", whole, dim, start, stop, step) != g.shape[dim]:
        raise ShapeError(f"slice_grad: {g} is not {start}::{step} of {size} along dimension {dim}")
    return whole


def _slice_end(length: Extent, start: Extent, step: int) -> Extent:
    """The stop bound of a slice of ``length`` elements, no larger than needed."""
    if not isinstance(length, Dim) and not isinstance(start, Dim):
        return start + (length - 1) * step + 1 if length else start
    return add_extents("slice_grad", start, length * step)


def _slice_grad(g: np.ndarray, *, dim: int, start: int, step: int = 1, size: int) -> np.ndarray:
    out = np.zeros((*g.shape[:dim], size, *g.shape[dim + 1 :]), g.dtype)
    _slice(out, dim=dim, start=start, stop=start + g.shape[dim] * step, step=step)[...] = g
    return out


def _slice_grad_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    dim, start, step = ctx.attrs["dim"], ctx.attrs["start"], ctx.attrs.get("step", 1)
    stop = _slice_end(b.type(ctx.inputs[0]).shape[dim], start, step)
    return (b.op("slice", g, dim=dim, start=start, stop=stop, step=step),)


register(
    Op(
        "slice_grad",
        "shape",
        _infer_slice_grad,
        _slice_grad,
        _slice_grad_grad,
        None,
        lambda rng: [
            Sample((points(rng, (4, 3)),), {"dim": 1, "start": 1, "step": 2, "size": 6}),
            Sample((points(rng, (4, 3)),), {"dim": 1, "start": 2, "step": 3, "size": 11}),
            Sample((points(rng, (5, 3)),), {"dim": 0, "start": 0, "step": 1, "size": 5}),
        ],
    )
)

# -- pad --------------------------------------------------------------------------------------


def _infer_pad(
    x: TensorType, *, low: tuple[int, ...], high: tuple[int, ...], value: float = 0.0
) -> TensorType:
    if len(low) != x.rank or len(high) != x.rank or min((*low, *high), default=0) < 0:
        raise ShapeError(
            f"pad: low {low} and high {high} must have one number >= 0 for each of the "
            f"{x.rank} dimensions of {x}; use slice to crop"
        )
    return TensorType(
        x.dtype,
        tuple(add_extents("pad", d, p + q) for d, p, q in zip(x.shape, low, high, strict=True)),
    )


def _pad(
    x: np.ndarray, *, low: tuple[int, ...], high: tuple[int, ...], value: float = 0.0
) -> np.ndarray:
    widths = list(zip(low, high, strict=True))
    return np.pad(x, widths, constant_values=value) if widths else x


def _pad_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    shape = b.type(ctx.inputs[0]).shape
    for dim, (low, high) in enumerate(zip(ctx.attrs["low"], ctx.attrs["high"], strict=True)):
        if low or high:
            g = b.op("slice", g, dim=dim, start=low, stop=low + shape[dim], step=1)
    return (g,)


register(
    Op(
        "pad",
        "shape",
        _infer_pad,
        _pad,
        _pad_grad,
        None,
        lambda rng: [
            Sample((points(rng, (4, 3)),), {"low": (0, 1), "high": (0, 2), "value": 0.0}),
            Sample((points(rng, (3, 2, 4)),), {"low": (0, 2, 0), "high": (0, 0, 1), "value": -1.5}),
            Sample((points(rng, ()),), {"low": (), "high": (), "value": 0.0}),
        ],
    )
)
