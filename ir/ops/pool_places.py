"""Max pooling whose windows tile the image, with the place of each maximum in its window.

The place is one byte: tap ``kh * KW + kw`` of the first maximum, or of the last NaN. It is all
that the gradient needs of the image: the gradient of the pooled map is *scattered* to the places.
What is multiplied by a scattered gradient and summed matters at the places alone, so there is a
*gather*, too: ``sum(scatter(g) * x) == sum(g * gather(x))``. Windows are ``kernel_size`` apart,
without padding; rows and columns of the image that no window reaches get zeros. Images are
channels-last. ``passes/save_pool_places.py`` writes these operators; none has a gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import DTypeError, ShapeError
from ..types import TensorType, uint8
from .checks import require_float, require_shape
from .record import Op, Sample, register
from .spatial import Image, Pair, image

MAX_TAPS = 256
"""Places of a window that one byte tells apart."""


# -- shape rules ----------------------------------------------------------------------------------


def _pooled(op: str, x: Image, kernel_size: Pair) -> Image:
    height, width = kernel_size
    if min(kernel_size) < 1 or height * width > MAX_TAPS:
        raise ShapeError(
            f"{op}: kernel_size={kernel_size}, expected positive numbers with a product of at "
            f"most {MAX_TAPS}"
        )
    if x.h < height or x.w < width:
        raise ShapeError(f"{op}: no window of {height}x{width} fits an image of {x.h}x{x.w}")
    return Image(x.n, x.c, x.h // height, x.w // width)


def _require_places(op: str, places: TensorType) -> None:
    if places.dtype is not uint8:
        raise DTypeError(f"{op}: the places are {places.dtype.name}, expected uint8")


def _max_pool_infer(x: TensorType, *, kernel_size: Pair) -> tuple[TensorType, TensorType]:
    op = "max_pool2d_with_places"
    require_float(op, input=x)
    shape = _pooled(op, image(op, x, "NHWC"), kernel_size).shape("NHWC")
    return TensorType(x.dtype, shape), TensorType(uint8, shape)


def _scatter_infer(
    g: TensorType, places: TensorType, *, kernel_size: Pair, size: Pair
) -> TensorType:
    op = "max_pool2d_scatter"
    require_float(op, gradient=g)
    _require_places(op, places)
    require_shape(op, "the places", places, g.shape, "one for each gradient")
    small = image(op, g, "NHWC")
    large = Image(small.n, small.c, *size)
    expected = _pooled(op, large, kernel_size).shape("NHWC")
    require_shape(op, "the gradient", g, expected, f"windows of {kernel_size} in {size}")
    return TensorType(g.dtype, large.shape("NHWC"))


def _gather_infer(x: TensorType, places: TensorType, *, kernel_size: Pair) -> TensorType:
    op = "max_pool2d_gather"
    require_float(op, input=x)
    _require_places(op, places)
    expected = _pooled(op, image(op, x, "NHWC"), kernel_size).shape("NHWC")
    require_shape(op, "the places", places, expected, f"windows of {kernel_size} in {x}")
    return TensorType(x.dtype, expected)


# -- meaning --------------------------------------------------------------------------------------


def _windows(x: np.ndarray, kernel_size: Pair) -> np.ndarray:
    """The elements of each window in the last dimension: (N, OH, OW, C, taps)."""
    kh, kw = kernel_size
    n, h, w, c = x.shape
    oh, ow = h // kh, w // kw
    tiles = x[:, : oh * kh, : ow * kw].reshape(n, oh, kh, ow, kw, c)
    return tiles.transpose(0, 1, 3, 5, 2, 4).reshape(n, oh, ow, c, kh * kw)


def _max_pool(x: np.ndarray, *, kernel_size: Pair) -> tuple[np.ndarray, np.ndarray]:
    """(maxima, places); argmax takes the first NaN for the largest, so the last one is found from
    the other end."""
    windows = _windows(x, kernel_size)
    nan = np.isnan(windows)
    last = windows.shape[-1] - 1 - nan[..., ::-1].argmax(axis=-1)
    places = np.where(nan.any(axis=-1), last, windows.argmax(axis=-1))[..., None]
    best = np.take_along_axis(windows, places, axis=-1)
    return best[..., 0], places[..., 0].astype(np.uint8)


def _scatter(g: np.ndarray, places: np.ndarray, *, kernel_size: Pair, size: Pair) -> np.ndarray:
    """``g`` at its places, zeros elsewhere."""
    (kh, kw), (n, oh, ow, c) = kernel_size, g.shape
    windows = np.zeros((*g.shape, kh * kw), g.dtype)
    np.put_along_axis(windows, places[..., None].astype(np.int64), g[..., None], axis=-1)
    tiles = windows.reshape(n, oh, ow, c, kh, kw).transpose(0, 1, 4, 2, 5, 3)
    out = np.zeros((n, *size, c), g.dtype)
    out[:, : oh * kh, : ow * kw] = tiles.reshape(n, oh * kh, ow * kw, c)
    return out


def _gather(x: np.ndarray, places: np.ndarray, *, kernel_size: Pair) -> np.ndarray:
    """The elements of ``x`` at the places."""
    at = places[..., None].astype(np.int64)
    return np.take_along_axis(_windows(x, kernel_size), at, axis=-1)[..., 0]


# -- samples --------------------------------------------------------------------------------------

_CASES: list[tuple[tuple[int, int, int, int], Pair]] = [
    ((2, 6, 8, 3), (2, 2)),
    ((1, 7, 9, 5), (2, 2)),
    ((1, 7, 6, 2), (3, 2)),
    ((2, 5, 4, 1), (1, 4)),
    ((2, 3, 3, 4), (1, 1)),
    ((0, 4, 4, 2), (2, 2)),
]


def _samples_of_images(rng: np.random.Generator) -> list[Sample]:
    found = []
    for shape, kernel_size in _CASES:
        x = rng.integers(-2, 3, shape).astype(np.float64)  # with ties
        found.append(Sample((x,), {"kernel_size": kernel_size}, differentiable=False))
    special = rng.normal(size=(2, 4, 6, 3))
    special[rng.random(special.shape) < 0.3] = np.nan
    special[rng.random(special.shape) < 0.3] = -np.inf
    return [*found, Sample((special,), {"kernel_size": (2, 3)}, differentiable=False)]


def _scatter_samples(rng: np.random.Generator) -> list[Sample]:
    found = []
    for (x,), attrs, _ in _samples_of_images(rng):
        y, places = _max_pool(x, **attrs)
        attrs = {**attrs, "size": x.shape[1:3]}
        found.append(Sample((rng.normal(size=y.shape), places), attrs, differentiable=False))
    return found


def _gather_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((rng.normal(size=x.shape), _max_pool(x, **attrs)[1]), attrs, differentiable=False)
        for (x,), attrs, _ in _samples_of_images(rng)
    ]


def _register(name: str, infer: Any, numpy: Any, samples: Any) -> None:
    register(Op(name, "spatial", infer, numpy, samples=samples))


_register("max_pool2d_with_places", _max_pool_infer, _max_pool, _samples_of_images)
_register("max_pool2d_scatter", _scatter_infer, _scatter, _scatter_samples)
_register("max_pool2d_gather", _gather_infer, _gather, _gather_samples)
