"""2-D convolution and its two gradients, as one matrix product over unfolded images (im2col).

Reference: K. Chellapilla et al., "High Performance Convolutional Neural Networks for Document
Processing", 2006. Images are (N, C, H, W) or (N, H, W, C), weights always (O, C / groups, KH, KW).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType, shape_text
from .checks import fixed_extent, require_float, require_shape
from .record import SUMMED, GradContext, Op, Sample, register
from .spatial import (
    Image,
    Padding,
    Pair,
    check_window,
    conv_extent,
    from_nchw,
    image,
    taps,
    to_nchw,
)

# Unfolded images are KH * KW times larger than the images: that many elements at a time.
_UNFOLDED_ELEMENTS = 1 << 22


# -- shape rules ----------------------------------------------------------------------------------


def _weight_extents(op: str, w: TensorType, groups: int) -> tuple[int, int, int, int]:
    if w.rank != 4:
        raise ShapeError(
            f"{op}: weight is {w}, expected 4 dimensions (out channels, in channels / groups, "
            "kernel height, kernel width)"
        )
    o, c, kh, kw = (fixed_extent(op, "a dimension of the weight", d) for d in w.shape)
    if groups < 1:
        raise ShapeError(f"{op}: groups must be positive, got {groups}")
    if o < groups or o % groups:
        raise ShapeError(
            f"{op}: given groups={groups}, expected weight to be divisible by {groups} at "
            f"dimension 0, but got weight of size {shape_text(w.shape)}"
        )
    return o, c, kh, kw


def _output_image(
    op: str,
    x: Image,
    weight: tuple[int, int, int, int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Image:
    """Extents of the convolution's result."""
    o, c, *kernel = weight
    check_window(
        op, kernel_size=(kernel[0], kernel[1]), stride=stride, padding=padding, dilation=dilation
    )
    if x.c != c * groups:
        raise ShapeError(
            f"{op}: given groups={groups}, weight of size {shape_text(weight)}, expected the "
            f"input to have {c * groups} channels, but got {x.c} channels instead"
        )
    out = [conv_extent(x.size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
    if min(out) < 1:
        padded = [x.size[i] + sum(padding[i]) for i in (0, 1)]
        reach = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
        raise ShapeError(
            f"{op}: calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
            f"Kernel size: ({reach[0]} x {reach[1]}) with dilation. Kernel size can't be greater "
            "than actual input size"
        )
    return Image(x.n, o, out[0], out[1])


def _conv2d_infer(
    x: TensorType,
    w: TensorType,
    b: TensorType | None = None,
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> TensorType:
    require_float("conv2d", input=x, weight=w, bias=b)
    weight = _weight_extents("conv2d", w, groups)
    source = image("conv2d", x, layout)
    out = _output_image("conv2d", source, weight, stride, padding, dilation, groups)
    require_shape("conv2d", "bias", b, (weight[0],), "one element per output channel")
    return TensorType(x.dtype, out.shape(layout))


def _conv2d_grad_input_infer(
    g: TensorType,
    w: TensorType,
    *,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> TensorType:
    op = "conv2d_grad_input"
    require_float(op, gradient=g, weight=w)
    weight = _weight_extents(op, w, groups)
    gradient = image(op, g, layout)
    x = Image(gradient.n, weight[1] * groups, *size)
    out = _output_image(op, x, weight, stride, padding, dilation, groups)
    require_shape(op, "the gradient", g, out.shape(layout), f"images of {size[0]} x {size[1]}")
    return TensorType(g.dtype, x.shape(layout))


def _conv2d_grad_weight_infer(
    g: TensorType,
    x: TensorType,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> TensorType:
    op = "conv2d_grad_weight"
    require_float(op, gradient=g, input=x)
    gradient, source = image(op, g, layout), image(op, x, layout)
    if groups < 1 or source.c % groups:
        raise ShapeError(f"{op}: {source.c} channels cannot be divided into {groups} groups")
    weight = TensorType(g.dtype, (gradient.c, source.c // groups, *kernel_size))
    extents = _weight_extents(op, weight, groups)
    out = _output_image(op, source, extents, stride, padding, dilation, groups)
    require_shape(op, "the gradient", g, out.shape(layout), f"input {x}")
    return weight


# -- numpy ----------------------------------------------------------------------------------------


def _parts(n: int, elements: int) -> Iterator[slice]:
    """Slices of the batch with a bounded size of the unfolded images."""
    step = max(1, _UNFOLDED_ELEMENTS // max(1, elements))
    for start in range(0, n, step):
        yield slice(start, min(n, start + step))


def _unfold(
    x: np.ndarray, kernel: Pair, out: Pair, stride: Pair, padding: Padding, dilation: Pair
) -> np.ndarray:
    """(n, C, H, W) -> (C, KH, KW, n, OH, OW): every window, kernel elements first."""
    n, c, h, w = x.shape
    columns = np.empty((c, *kernel, n, *out), x.dtype)
    padded = any(p for pair in padding for p in pair)
    if padded:
        columns.fill(0)
    for tap in taps((h, w), out, kernel, stride, padding, dilation):
        columns[:, tap.kh, tap.kw][tap.out] = x[tap.inp].transpose(1, 0, 2, 3)
    return columns


def _channels_first(x: np.ndarray, groups: int) -> np.ndarray:
    """(n, O, OH, OW) -> (groups, O / groups, n * OH * OW)."""
    n, c, h, w = x.shape
    return x.transpose(1, 0, 2, 3).reshape(groups, c // groups, n * h * w)


def _conv2d(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> np.ndarray:
    images = to_nchw(x, layout)
    n, _, height, width = images.shape
    o, cg, *kernel = w.shape
    shape = (kernel[0], kernel[1])
    out = (
        conv_extent(height, shape[0], stride[0], padding[0], dilation[0]),
        conv_extent(width, shape[1], stride[1], padding[1], dilation[1]),
    )
    k = cg * math.prod(shape)
    matrix = w.reshape(groups, o // groups, k)
    pointwise = shape == stride == (1, 1) and out == (height, width)
    y = np.empty((n, o, *out), x.dtype)
    with np.errstate(all="ignore"):
        if pointwise and layout == "NCHW":
            grouped = images.reshape(n, groups, cg, math.prod(out))
            y = np.matmul(matrix, grouped).reshape(y.shape)
        elif cg == 1 and o == groups:  # depthwise: nothing to sum over but the kernel
            y.fill(0)
            for tap in taps((height, width), out, shape, stride, padding, dilation):
                factor = w[:, 0, tap.kh, tap.kw, None, None]
                y[tap.out] += images[tap.inp] * factor
        else:
            for part in _parts(n, k * groups * math.prod(out)):
                columns = _unfold(images[part], shape, out, stride, padding, dilation)
                product = matrix @ columns.reshape(groups, k, columns.size // (k * groups))
                y[part] = product.reshape(o, -1, *out).transpose(1, 0, 2, 3)
        if b is not None:
            y += b[:, None, None]
    return from_nchw(y, layout)


def _conv2d_grad_input(
    g: np.ndarray,
    w: np.ndarray,
    *,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> np.ndarray:
    gradient = to_nchw(g, layout)
    n, o, *extent = gradient.shape
    out = (extent[0], extent[1])
    cg, shape = w.shape[1], (w.shape[2], w.shape[3])
    k = cg * math.prod(shape)
    matrix = w.reshape(groups, o // groups, k).transpose(0, 2, 1)
    dx = np.zeros((n, cg * groups, *size), g.dtype)
    kernel_taps = list(taps(size, out, shape, stride, padding, dilation))
    with np.errstate(all="ignore"):
        for part in _parts(n, k * groups * math.prod(out)):
            columns = matrix @ _channels_first(gradient[part], groups)
            columns = columns.reshape(cg * groups, *shape, part.stop - part.start, *out)
            for tap in kernel_taps:
                reached = columns[:, tap.kh, tap.kw][tap.out]
                dx[part][tap.inp] += reached.transpose(1, 0, 2, 3)
    return from_nchw(dx, layout)


def _conv2d_grad_weight(
    g: np.ndarray,
    x: np.ndarray,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> np.ndarray:
    gradient, images = to_nchw(g, layout), to_nchw(x, layout)
    n, o, *extent = gradient.shape
    out = (extent[0], extent[1])
    c = images.shape[1]
    k = c // groups * math.prod(kernel_size)
    dw = np.zeros((groups, o // groups, k), g.dtype)
    with np.errstate(all="ignore"):
        for part in _parts(n, k * groups * math.prod(out)):
            columns = _unfold(images[part], kernel_size, out, stride, padding, dilation)
            rows = columns.reshape(groups, k, columns.size // (k * groups))
            dw += _channels_first(gradient[part], groups) @ rows.transpose(0, 2, 1)
    return dw.reshape(o, c // groups, *kernel_size)


# -- gradients: all three operators are linear in each operand -------------------------------------


def _geometry(ctx: GradContext) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups", "layout")
    return {name: ctx.attrs[name] for name in names}


def _image_size(b: Any, x: Any, layout: str) -> Pair:
    return image("conv2d", b.type(x), layout).size


def _conv2d_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    x, w = ctx.inputs[:2]
    attrs = _geometry(ctx)
    dx = dw = db = None
    if ctx.needs(0):
        size = _image_size(b, x, attrs["layout"])
        dx = b.op("conv2d_grad_input", g, w, size=size, **attrs)
    if ctx.needs(1):
        dw = b.op("conv2d_grad_weight", g, x, kernel_size=b.type(w).shape[2:], **attrs)
    if len(ctx.inputs) == 2:
        return dx, dw
    if ctx.needs(2):
        dims = (0, 1, 2) if attrs["layout"] == "NHWC" else (0, 2, 3)
        db = b.op("sum", g, dims=dims, keepdim=False)
    return dx, dw, db


def _conv2d_grad_input_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    gradient, w = ctx.inputs
    attrs = _geometry(ctx)
    d_gradient = b.op("conv2d", g, w, **attrs) if ctx.needs(0) else None
    dw = None
    if ctx.needs(1):
        kernel_size = b.type(w).shape[2:]
        dw = b.op("conv2d_grad_weight", gradient, g, kernel_size=kernel_size, **attrs)
    return d_gradient, dw


def _conv2d_grad_weight_grad(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    gradient, x = ctx.inputs
    attrs = _geometry(ctx)
    d_gradient = b.op("conv2d", x, g, **attrs) if ctx.needs(0) else None
    dx = None
    if ctx.needs(1):
        size = _image_size(b, x, attrs["layout"])
        dx = b.op("conv2d_grad_input", gradient, g, size=size, **attrs)
    return d_gradient, dx


# -- samples --------------------------------------------------------------------------------------

# (n, c, h, w), (o, kh, kw), stride, padding, dilation, groups
_CASES: list[tuple[tuple[int, ...], tuple[int, int, int], Pair, Padding, Pair, int]] = [
    ((2, 3, 5, 6), (4, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 1, 1, 1), (1, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 4, 5, 4), (3, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 2, 7, 5), (3, 3, 2), (2, 3), ((0, 1), (2, 0)), (1, 1), 1),
    ((1, 4, 8, 7), (6, 3, 3), (1, 2), ((2, 2), (1, 1)), (2, 2), 2),
    ((2, 3, 6, 5), (3, 3, 3), (2, 1), ((1, 1), (0, 2)), (1, 1), 3),
    ((1, 2, 5, 5), (4, 2, 2), (1, 1), ((1, 0), (0, 1)), (1, 2), 2),
    ((2, 3, 4, 3), (2, 4, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((0, 2, 4, 4), (3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
]


def _conv_cases(rng: np.random.Generator) -> Iterator[tuple[Any, ...]]:
    """(x, w, g, attrs) for each case in both layouts."""
    for shape, (o, *kernel), stride, padding, dilation, groups in _CASES:
        n, c, h, w = shape
        out = [
            conv_extent((h, w)[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)
        ]
        for layout in ("NCHW", "NHWC"):
            attrs = {
                "stride": stride,
                "padding": padding,
                "dilation": dilation,
                "groups": groups,
                "layout": layout,
            }
            x = from_nchw(rng.normal(size=shape), layout)
            g = from_nchw(rng.normal(size=(n, o, *out)), layout)
            yield x, rng.normal(size=(o, c // groups, *kernel)), g, attrs


def _conv2d_samples(rng: np.random.Generator) -> list[Sample]:
    samples: list[Sample] = []
    for x, w, _, attrs in _conv_cases(rng):
        bias = (rng.normal(size=w.shape[0]),) if len(samples) % 4 < 2 else ()
        samples.append(Sample((x, w, *bias), attrs))
    return samples


def _conv2d_grad_input_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((g, w), {"size": to_nchw(x, attrs["layout"]).shape[2:], **attrs})
        for x, w, g, attrs in _conv_cases(rng)
    ]


def _conv2d_grad_weight_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((g, x), {"kernel_size": w.shape[2:], **attrs}) for x, w, g, attrs in _conv_cases(rng)
    ]


register(
    Op(
        "conv2d",
        "spatial",
        _conv2d_infer,
        _conv2d,
        grad=_conv2d_grad,
        samples=_conv2d_samples,
        **SUMMED,
    )
)
register(
    Op(
        "conv2d_grad_input",
        "spatial",
        _conv2d_grad_input_infer,
        _conv2d_grad_input,
        grad=_conv2d_grad_input_grad,
        samples=_conv2d_grad_input_samples,
        **SUMMED,
    )
)
register(
    Op(
        "conv2d_grad_weight",
        "spatial",
        _conv2d_grad_weight_infer,
        _conv2d_grad_weight,
        grad=_conv2d_grad_weight_grad,
        samples=_conv2d_grad_weight_samples,
        **SUMMED,
    )
)
