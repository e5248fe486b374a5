"""2-D adaptive average pooling (the output size is given, windows follow) and its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType
from .checks import require_float, require_shape
from .record import GradContext, Op, Sample, register
from .spatial import Image, Pair, from_nchw, image, to_nchw


def _adaptive_avg_pool2d_infer(x: TensorType, *, output_size: Pair, layout: str) -> TensorType:
    op = "adaptive_avg_pool2d"
    require_float(op, input=x)
    source = image(op, x, layout)
    if min(output_size) < 1 or min(source.size) < 1:
        raise ShapeError(
            f"{op}: input {x} and output_size {output_size} must have positive heights and widths"
        )
    return TensorType(x.dtype, Image(source.n, source.c, *output_size).shape(layout))


def _adaptive_avg_pool2d_grad_infer(
    g: TensorType, *, size: Pair, output_size: Pair, layout: str
) -> TensorType:
    op = "adaptive_avg_pool2d_grad"
    gradient = image(op, g, layout)
    x = TensorType(g.dtype, Image(gradient.n, gradient.c, *size).shape(layout))
    expected = _adaptive_avg_pool2d_infer(x, output_size=output_size, layout=layout).shape
    require_shape(op, "the gradient", g, expected, f"output_size {output_size}")
    return x


def is_row_mean(op: str, attrs: Mapping[str, Any], x: TensorType) -> bool:
    """Whether a node with an operand ``x`` makes one pixel of each row of channels-last images."""
    if op != "adaptive_avg_pool2d" or attrs["layout"] != "NHWC":
        return False
    return tuple(attrs["output_size"]) == (x.shape[1], 1)


def adaptive_windows(size: int, out: int) -> list[slice]:
    """Window i is [floor(i * size / out), ceil((i + 1) * size / out)), as in PyTorch."""
    return [slice(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _adaptive_avg_pool2d(x: np.ndarray, *, output_size: Pair, layout: str) -> np.ndarray:
    images = to_nchw(x, layout)
    n, c, height, width = images.shape
    rows = np.empty((n, c, output_size[0], width), x.dtype)
    y = np.empty((n, c, *output_size), x.dtype)
    with np.errstate(all="ignore"):
        for i, window in enumerate(adaptive_windows(height, output_size[0])):
            np.sum(images[:, :, window], axis=2, out=rows[:, :, i])
            rows[:, :, i] /= window.stop - window.start
        for i, window in enumerate(adaptive_windows(width, output_size[1])):
            np.sum(rows[..., window], axis=3, out=y[..., i])
            y[..., i] /= window.stop - window.start
    return from_nchw(y, layout)


def _adaptive_avg_pool2d_grad(
    g: np.ndarray, *, size: Pair, output_size: Pair, layout: str
) -> np.ndarray:
    gradient = to_nchw(g, layout)
    n, c = gradient.shape[:2]
    columns = np.zeros((n, c, output_size[0], size[1]), g.dtype)
    dx = np.zeros((n, c, *size), g.dtype)
    with np.errstate(all="ignore"):
        for i, window in enumerate(adaptive_windows(size[1], output_size[1])):
            columns[..., window] += gradient[..., i, None] / (window.stop - window.start)
        for i, window in enumerate(adaptive_windows(size[0], output_size[0])):
            dx[:, :, window] += columns[:, :, i, None] / (window.stop - window.start)
    return from_nchw(dx, layout)


def _adaptive_avg_pool2d_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    size = image("adaptive_avg_pool2d", b.type(ctx.inputs[0]), ctx.attrs["layout"]).size
    return (b.op("adaptive_avg_pool2d_grad", g, size=size, **ctx.attrs),)


def _adaptive_avg_pool2d_grad_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    attrs = {name: ctx.attrs[name] for name in ("output_size", "layout")}
    return (b.op("adaptive_avg_pool2d", g, **attrs),)


_ADAPTIVE: list[tuple[tuple[int, int, int, int], Pair]] = [
    ((2, 3, 6, 8), (1, 1)),
    ((2, 2, 7, 5), (3, 2)),
    ((1, 2, 3, 4), (5, 4)),
    ((0, 2, 4, 4), (2, 2)),
    ((1, 1, 1, 1), (1, 1)),
]


def _adaptive_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(
            (from_nchw(rng.normal(size=shape), layout),),
            {"output_size": output_size, "layout": layout},
        )
        for shape, output_size in _ADAPTIVE
        for layout in ("NCHW", "NHWC")
    ]


def _adaptive_grad_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(
            (from_nchw(rng.normal(size=(n, c, *output_size)), layout),),
            {"size": (h, w), "output_size": output_size, "layout": layout},
        )
        for (n, c, h, w), output_size in _ADAPTIVE
        for layout in ("NCHW", "NHWC")
    ]


register(
    Op(
        "adaptive_avg_pool2d",
        "spatial",
        _adaptive_avg_pool2d_infer,
        _adaptive_avg_pool2d,
        grad=_adaptive_avg_pool2d_grad_rule,
        samples=_adaptive_samples,
    )
)
register(
    Op(
        "adaptive_avg_pool2d_grad",
        "spatial",
        _adaptive_avg_pool2d_grad_infer,
        _adaptive_avg_pool2d_grad,
        grad=_adaptive_avg_pool2d_grad_grad_rule,
        samples=_adaptive_grad_samples,
    )
)
