"""2-D pooling with a moving window: maximum, average, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import DTypeError, ShapeError
from ..types import TensorType
from .checks import require_float, require_shape
from .record import GradContext, Op, Sample, register
from .spatial import (
    Image,
    Padding,
    Pair,
    check_window,
    from_nchw,
    image,
    pool_extent,
    taps,
    to_nchw,
)

# -- shape rules ----------------------------------------------------------------------------------


def _pooled_size(
    size: Pair, kernel_size: Pair, stride: Pair, padding: Padding, dilation: Pair, ceil_mode: bool
) -> Pair:
    height, width = (
        pool_extent(size[i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode)
        for i in (0, 1)
    )
    return height, width


def _pooled_image(
    op: str,
    x: Image,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
) -> Image:
    check_window(op, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
    for kernel, pads, step in zip(kernel_size, padding, dilation, strict=True):
        if max(pads) > ((kernel - 1) * step + 1) // 2:
            raise ShapeError(
                f"{op}: pad should be at most half of effective kernel size, but got "
                f"pad={max(pads)}, kernel_size={kernel} and dilation={step}"
            )
    out = _pooled_size(x.size, kernel_size, stride, padding, dilation, ceil_mode)
    if min(out) < 1:
        raise ShapeError(
            f"{op}: given input size: ({x.c}x{x.h}x{x.w}). Calculated output size: "
            f"({x.c}x{out[0]}x{out[1]}). Output size is too small"
        )
    return Image(x.n, x.c, *out)


def _max_pool2d_infer(
    x: TensorType,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: str,
) -> TensorType:
    if not (x.dtype.is_float or x.dtype.is_int):
        raise DTypeError(f"max_pool2d: input is {x.dtype.name}, expected a number")
    source = image("max_pool2d", x, layout)
    out = _pooled_image("max_pool2d", source, kernel_size, stride, padding, dilation, ceil_mode)
    return TensorType(x.dtype, out.shape(layout))


def _max_pool2d_grad_infer(g: TensorType, x: TensorType, **attrs: Any) -> TensorType:
    require_float("max_pool2d_grad", gradient=g, input=x)
    expected = _max_pool2d_infer(x, **attrs).shape
    require_shape("max_pool2d_grad", "the gradient", g, expected, f"input {x}")
    return x


def _avg_pool2d_infer(
    x: TensorType,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    layout: str,
) -> TensorType:
    require_float("avg_pool2d", input=x)
    if divisor_override == 0:
        raise ShapeError("avg_pool2d: divisor_override must not be zero")
    source = image("avg_pool2d", x, layout)
    out = _pooled_image("avg_pool2d", source, kernel_size, stride, padding, (1, 1), ceil_mode)
    return TensorType(x.dtype, out.shape(layout))


def _avg_pool2d_grad_infer(g: TensorType, *, size: Pair, layout: str, **attrs: Any) -> TensorType:
    gradient = image("avg_pool2d_grad", g, layout)
    x = TensorType(g.dtype, Image(gradient.n, gradient.c, *size).shape(layout))
    expected = _avg_pool2d_infer(x, layout=layout, **attrs).shape
    require_shape("avg_pool2d_grad", "the gradient", g, expected, f"input {x}")
    return x


def side_by_side(op: str, attrs: Mapping[str, Any]) -> bool:
    """Whether a node is a pooling whose windows share no pixel, leave no gap and meet no padding;
    pixels at the lower and right edge may belong to none."""
    if op not in ("max_pool2d", "avg_pool2d") or attrs["ceil_mode"]:
        return False
    if attrs["kernel_size"] != attrs["stride"] or any(map(any, attrs["padding"])):
        return False
    return attrs.get("divisor_override") is None and attrs.get("dilation", (1, 1)) == (1, 1)


# -- maximum --------------------------------------------------------------------------------------


def _max_pool2d(
    x: np.ndarray,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: str,
) -> np.ndarray:
    """Maximum of each window, NaN if it contains one; padding never wins."""
    images = to_nchw(x, layout)
    n, c, *extent = images.shape
    size = (extent[0], extent[1])
    out = _pooled_size(size, kernel_size, stride, padding, dilation, ceil_mode)
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    y = np.full((n, c, *out), lowest, x.dtype)
    with np.errstate(all="ignore"):
        for tap in taps(size, out, kernel_size, stride, padding, dilation):
            reached = y[tap.out]
            np.maximum(reached, images[tap.inp], out=reached)
    return from_nchw(y, layout)


def _max_pool2d_grad(
    g: np.ndarray,
    x: np.ndarray,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    ceil_mode: bool,
    layout: str,
) -> np.ndarray:
    """Adds each element of ``g`` to the maximum of its window: the first one in row-major order, or
    the last NaN, as in PyTorch."""
    images, gradient = to_nchw(x, layout), to_nchw(g, layout)
    size = images.shape[2:]
    dx = np.zeros(images.shape, g.dtype)
    best = np.full(gradient.shape, -np.inf, x.dtype)
    chosen = np.full(gradient.shape, -1, np.int32)
    reached = list(taps(size, gradient.shape[2:], kernel_size, stride, padding, dilation))
    with np.errstate(all="ignore"):
        for k, tap in enumerate(reached):
            values, so_far = images[tap.inp], best[tap.out]
            hit = (values > so_far) | np.isnan(values) | (chosen[tap.out] < 0)
            best[tap.out] = np.where(hit, values, so_far)
            chosen[tap.out] = np.where(hit, k, chosen[tap.out])
        for k, tap in enumerate(reached):
            dx[tap.inp] += np.where(chosen[tap.out] == k, gradient[tap.out], g.dtype.type(0))
    return from_nchw(dx, layout)


def _max_pool2d_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    return (b.op("max_pool2d_grad", g, ctx.inputs[0], **ctx.attrs),)


# -- average --------------------------------------------------------------------------------------


def _window_counts(
    size: int, out: int, kernel: int, stride: int, padding: Pair, include_pad: bool
) -> np.ndarray:
    """Elements of each window along one dimension: in the padded, or only in the real input."""
    start = np.arange(out) * stride - padding[0]
    stop = np.minimum(start + kernel, size + padding[1])
    if not include_pad:
        start, stop = np.maximum(start, 0), np.minimum(stop, size)
    return stop - start


def _divisors(
    size: Pair,
    out: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    count_include_pad: bool,
    divisor_override: int | None,
    dtype: np.dtype[Any],
) -> np.ndarray:
    """What the sum of each window is divided by: (OH, OW)."""
    if divisor_override is not None:
        return np.full(out, divisor_override, dtype)
    rows, columns = (
        _window_counts(size[i], out[i], kernel_size[i], stride[i], padding[i], count_include_pad)
        for i in (0, 1)
    )
    return np.multiply.outer(rows, columns).astype(dtype)


def _avg_pool2d(
    x: np.ndarray,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    layout: str,
) -> np.ndarray:
    images = to_nchw(x, layout)
    n, c, *extent = images.shape
    size = (extent[0], extent[1])
    out = _pooled_size(size, kernel_size, stride, padding, (1, 1), ceil_mode)
    y = np.zeros((n, c, *out), x.dtype)
    with np.errstate(all="ignore"):
        for tap in taps(size, out, kernel_size, stride, padding):
            y[tap.out] += images[tap.inp]
        y /= _divisors(
            size, out, kernel_size, stride, padding, count_include_pad, divisor_override, x.dtype
        )
    return from_nchw(y, layout)


def _avg_pool2d_grad(
    g: np.ndarray,
    *,
    size: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    layout: str,
) -> np.ndarray:
    gradient = to_nchw(g, layout)
    n, c, *extent = gradient.shape
    out = (extent[0], extent[1])
    dx = np.zeros((n, c, *size), g.dtype)
    with np.errstate(all="ignore"):
        share = gradient / _divisors(
            size, out, kernel_size, stride, padding, count_include_pad, divisor_override, g.dtype
        )
        for tap in taps(size, out, kernel_size, stride, padding):
            dx[tap.inp] += share[tap.out]
    return from_nchw(dx, layout)


def _avg_pool2d_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    size = image("avg_pool2d", b.type(ctx.inputs[0]), ctx.attrs["layout"]).size
    return (b.op("avg_pool2d_grad", g, size=size, **ctx.attrs),)


def _avg_pool2d_grad_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    attrs = {name: value for name, value in ctx.attrs.items() if name != "size"}
    return (b.op("avg_pool2d", g, **attrs),)


# -- samples --------------------------------------------------------------------------------------

# (n, c, h, w), kernel_size, stride, padding, ceil_mode
_CASES: list[tuple[tuple[int, int, int, int], Pair, Pair, Padding, bool]] = [
    ((2, 3, 6, 8), (2, 2), (2, 2), ((0, 0), (0, 0)), False),
    ((1, 1, 1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), False),
    ((2, 2, 7, 5), (3, 3), (2, 2), ((1, 1), (1, 1)), False),
    ((1, 3, 7, 6), (3, 2), (2, 3), ((1, 0), (0, 1)), True),
    ((2, 1, 5, 9), (3, 4), (1, 2), ((0, 1), (2, 1)), False),
    ((1, 2, 4, 4), (2, 2), (3, 3), ((1, 1), (1, 1)), True),
    ((0, 2, 4, 4), (2, 2), (2, 2), ((0, 0), (0, 0)), False),
]


def _distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A shuffled grid: no two elements are close, so the maximum has a derivative."""
    count = int(np.prod(shape))
    return (rng.permutation(count) - count / 2).reshape(shape) * 0.1


def _pool_cases(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    for shape, kernel_size, stride, padding, ceil_mode in _CASES:
        for layout in ("NCHW", "NHWC"):
            attrs = {
                "kernel_size": kernel_size,
                "stride": stride,
                "padding": padding,
                "ceil_mode": ceil_mode,
                "layout": layout,
            }
            yield from_nchw(_distinct(rng, shape), layout), attrs


def _gradient(rng: np.random.Generator, x: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """A gradient of the pooled image's shape."""
    layout = attrs["layout"]
    n, c, *size = to_nchw(x, layout).shape
    out = _pooled_size(
        (size[0], size[1]),
        attrs["kernel_size"],
        attrs["stride"],
        attrs["padding"],
        attrs.get("dilation", (1, 1)),
        attrs["ceil_mode"],
    )
    return from_nchw(rng.normal(size=(n, c, *out)), layout)


def _max_pool2d_samples(rng: np.random.Generator) -> list[Sample]:
    samples = [Sample((x,), {**attrs, "dilation": (1, 1)}) for x, attrs in _pool_cases(rng)]
    dilated = {
        "kernel_size": (3, 2),
        "stride": (1, 2),
        "padding": ((2, 1), (1, 0)),
        "dilation": (2, 3),
        "ceil_mode": True,
        "layout": "NCHW",
    }
    special = _distinct(rng, (1, 2, 6, 7))
    special[0, 0, 2, 3], special[0, 1, 1, 1], special[0, 1, 4, 4] = np.nan, np.inf, -np.inf
    return [
        *samples,
        Sample((_distinct(rng, (2, 1, 8, 9)),), dilated),
        Sample((special,), {**samples[4].attrs}, differentiable=False),
        Sample((np.zeros((1, 1, 4, 4)),), {**samples[0].attrs}, differentiable=False),
    ]


def _max_pool2d_grad_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((_gradient(rng, s.arrays[0], s.attrs), *s.arrays), s.attrs, differentiable=False)
        for s in _max_pool2d_samples(rng)
    ]


def _avg_pool2d_samples(rng: np.random.Generator) -> list[Sample]:
    extras: list[dict[str, Any]] = [
        {"count_include_pad": True, "divisor_override": None},
        {"count_include_pad": False, "divisor_override": None},
        {"count_include_pad": True, "divisor_override": 3},
    ]
    return [Sample((x,), {**attrs, **extra}) for x, attrs in _pool_cases(rng) for extra in extras]


def _avg_pool2d_grad_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _avg_pool2d_samples(rng):
        size = to_nchw(s.arrays[0], s.attrs["layout"]).shape[2:]
        g = _gradient(rng, s.arrays[0], s.attrs)
        samples.append(Sample((g,), {"size": size, **s.attrs}))
    return samples


register(
    Op(
        "max_pool2d",
        "spatial",
        _max_pool2d_infer,
        _max_pool2d,
        grad=_max_pool2d_grad_rule,
        samples=_max_pool2d_samples,
    )
)
register(
    Op(
        "max_pool2d_grad",
        "spatial",
        _max_pool2d_grad_infer,
        _max_pool2d_grad,
        samples=_max_pool2d_grad_samples,
    )
)
register(
    Op(
        "avg_pool2d",
        "spatial",
        _avg_pool2d_infer,
        _avg_pool2d,
        grad=_avg_pool2d_grad_rule,
        samples=_avg_pool2d_samples,
    )
)
register(
    Op(
        "avg_pool2d_grad",
        "spatial",
        _avg_pool2d_grad_infer,
        _avg_pool2d_grad,
        grad=_avg_pool2d_grad_grad_rule,
        samples=_avg_pool2d_grad_samples,
    )
)
