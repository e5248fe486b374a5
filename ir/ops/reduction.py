"""Reductions over ``dims`` (non-negative, distinct; an empty tuple reduces nothing)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import Dim, Shape, TensorType, int64, numel
from .checks import require_bool, require_dims, require_float, require_number
from .numerics import numeric, points, quiet
from .record import SUMMED, Op, Sample, register

Dims = tuple[int, ...]


def reduced_shape(shape: Shape, dims: Dims, keepdim: bool) -> Shape:
    """The shape after a reduction: dims become 1, or vanish without ``keepdim``."""
    if keepdim:
        return tuple(1 if i in dims else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in dims)


def _infer_reduction(name: str, require: Callable[..., None], empty_ok: bool) -> Callable[..., Any]:
    def infer(x: TensorType, *, dims: Dims, keepdim: bool) -> TensorType:
        require(name, x)
        require_dims(name, x, *dims)
        if not empty_ok and any(x.shape[d] == 0 for d in dims):
            raise ShapeError(f"{name}: {x} has no elements along dims {dims}, which have no {name}")
        return TensorType(x.dtype, reduced_shape(x.shape, dims, keepdim))

    return infer


def _kept(b: Any, ctx: Any, value: Any) -> Any:
    """A result (or its gradient) with the reduced dimensions back as 1."""
    if ctx.attrs["keepdim"]:
        return value
    shape = b.type(ctx.inputs[0]).shape
    return b.op("reshape", value, shape=reduced_shape(shape, ctx.attrs["dims"], True))


def _sum_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    shape = b.type(ctx.inputs[0]).shape
    return (b.op("broadcast_to", _kept(b, ctx, g), shape=shape),)


def _mean_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    x = b.type(ctx.inputs[0])
    count = numel(x.shape[d] for d in ctx.attrs["dims"])
    size = b.op("extent", size=count, dtype=x.dtype.short) if isinstance(count, Dim) else count
    return (b.op("broadcast_to", b.div(_kept(b, ctx, g), size), shape=x.shape),)


def _extremum_grad(b: Any, ctx: Any, g: Any) -> tuple[Any]:
    """Split evenly among the elements that equal the extremum."""
    x, dims = ctx.inputs[0], ctx.attrs["dims"]
    ties = b.eq(x, _kept(b, ctx, ctx.outputs[0]))
    count = b.op("sum", b.op("cast", ties, dtype=b.type(x).dtype.short), dims=dims, keepdim=True)
    return (b.where(ties, b.div(_kept(b, ctx, g), count), 0.0),)


def _sum(x: np.ndarray, *, dims: Dims, keepdim: bool) -> np.ndarray:
    return np.sum(x, axis=dims, keepdims=keepdim, dtype=x.dtype)


def _mean(x: np.ndarray, *, dims: Dims, keepdim: bool) -> np.ndarray:
    # Not np.mean: it warns about empty slices, whose mean is NaN in PyTorch.
    count = np.asarray(numel(x.shape[d] for d in dims), x.dtype)
    return np.sum(x, axis=dims, keepdims=keepdim, dtype=x.dtype) / count


def _samples(
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray], *, empty: bool = False
) -> Callable[[np.random.Generator], list[Sample]]:
    def samples(rng: np.random.Generator) -> list[Sample]:
        cases: list[tuple[tuple[int, ...], Dims, bool]] = [
            ((4, 5), (1,), False),
            ((4, 5), (0,), True),
            ((3, 4, 2, 5), (0, 2, 3), False),
            ((3, 4, 2), (0, 1, 2), False),
            ((3, 4, 2), (1,), True),
            ((5, 3), (), False),
            ((), (), False),
        ]
        if empty:
            cases.append(((3, 0), (1,), False))
        return [Sample((draw(rng, s),), {"dims": d, "keepdim": k}) for s, d, k in cases]

    return samples


def _distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values at least 0.1 apart, so that no maximum is near a tie."""
    count = int(np.prod(shape))
    return (rng.permutation(count) * 0.1 - 1.0).reshape(shape)


def _with_nan(samples: Callable[..., list[Sample]]) -> Callable[..., list[Sample]]:
    def extended(rng: np.random.Generator) -> list[Sample]:
        x = np.array([[np.nan, 1.0, 2.0], [3.0, 3.0, -np.inf], [np.inf, 0.0, np.nan]])
        found = samples(rng)
        return [*found, *(Sample((x,), s.attrs, False) for s in found[:2])]

    return extended


def _extremum(name: str, numpy: Callable[..., Any]) -> None:
    def run(x: np.ndarray, *, dims: Dims, keepdim: bool) -> np.ndarray:
        return numpy(x, axis=dims, keepdims=keepdim)

    infer = _infer_reduction(name, require_number, empty_ok=False)
    samples = _with_nan(_samples(_distinct))
    register(Op(name, "reduction", infer, numeric(run), _extremum_grad, None, samples))


def _logical(name: str, numpy: Callable[..., Any]) -> None:
    def run(x: np.ndarray, *, dims: Dims, keepdim: bool) -> np.ndarray:
        return numpy(x, axis=dims, keepdims=keepdim)

    infer = _infer_reduction(name, require_bool, empty_ok=True)
    samples = _samples(lambda rng, shape: rng.random(shape) < 0.5, empty=True)
    register(Op(name, "reduction", infer, quiet(run), None, None, samples))


def _arg_extremum(name: str, numpy: Callable[..., Any]) -> None:
    """The index of the first extremum along one dimension; NaN counts as the extremum."""

    def infer(x: TensorType, *, dim: int, keepdim: bool) -> TensorType:
        require_number(name, x)
        require_dims(name, x, dim)
        if x.shape[dim] == 0:
            raise ShapeError(f"{name}: {x} has no elements along dim {dim}, which have no {name}")
        return TensorType(int64, reduced_shape(x.shape, (dim,), keepdim))

    def run(x: np.ndarray, *, dim: int, keepdim: bool) -> np.ndarray:
        return np.asarray(numpy(x, axis=dim, keepdims=keepdim), np.int64)

    def samples(rng: np.random.Generator) -> list[Sample]:
        ties = rng.integers(0, 3, (4, 6)).astype(np.float64)
        holes = np.where(rng.random((4, 6)) < 0.3, np.nan, ties)
        return [
            Sample((_distinct(rng, (4, 6)),), {"dim": 1, "keepdim": False}),
            Sample((_distinct(rng, (2, 3, 4)),), {"dim": 1, "keepdim": True}),
            Sample((ties,), {"dim": 0, "keepdim": False}),
            Sample((holes,), {"dim": 1, "keepdim": False}),
        ]

    register(Op(name, "reduction", infer, quiet(run), None, None, samples))


register(
    Op(
        "sum",
        "reduction",
        _infer_reduction("sum", require_number, empty_ok=True),
        numeric(_sum),
        _sum_grad,
        None,
        _samples(points, empty=True),
        **SUMMED,
    )
)
register(
    Op(
        "mean",
        "reduction",
        _infer_reduction("mean", require_float, empty_ok=True),
        numeric(_mean),
        _mean_grad,
        None,
        _samples(points, empty=True),
    )
)
_extremum("amax", np.max)
_extremum("amin", np.min)
_logical("all", np.all)
_logical("any", np.any)
_arg_extremum("argmax", np.argmax)
_arg_extremum("argmin", np.argmin)
