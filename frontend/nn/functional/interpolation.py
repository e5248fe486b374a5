"""Images of another size: nearest neighbours and linear interpolation, one dimension at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ....errors import ShapeError
from ...dispatch import as_operand
from ...tensor import Tensor
from .checks import need_float, need_tensor, sizes, unsupported
from .shape import select_along

LINEAR = {"linear": 3, "bilinear": 4, "trilinear": 5}
NEAREST = ("nearest", "nearest-exact")


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """The input (N, C, *) with its spatial dimensions at ``size``, or ``scale_factor`` times as
    large. Modes: nearest, nearest-exact, linear (N, C, L), bilinear (N, C, H, W), trilinear.

    Positions are PyTorch's: corners are pixels' corners, or pixels with ``align_corners``.
    """
    need_tensor("interpolate", "input", 1, input)
    if input.ndim not in (3, 4, 5):
        raise ShapeError(
            f"interpolate(): expected an input of 3 to 5 dimensions, got size {sizes(input.shape)}"
        )
    if mode not in LINEAR and mode not in NEAREST:
        raise unsupported("interpolate", f"mode={mode!r}", f"use {', '.join((*NEAREST, *LINEAR))}")
    if antialias:
        raise unsupported("interpolate", "antialias=True", "use antialias=False")
    if mode in NEAREST and align_corners is not None:
        raise ValueError(
            "align_corners option can only be set with the interpolating modes: linear | bilinear "
            "| bicubic | trilinear"
        )
    if mode in LINEAR:
        need_float("interpolate", input)
        if input.ndim != LINEAR[mode]:
            fitting = next(m for m, n in LINEAR.items() if n == input.ndim)
            raise NotImplementedError(
                f"Got {input.ndim}D input, but {mode} mode needs {LINEAR[mode]}D input; use "
                f"mode={fitting!r}"
            )
    old = [int(d) for d in input.shape[2:]]
    new, scales = _extents(old, size, scale_factor)
    if recompute_scale_factor:
        scales = [None] * len(old)
    result = input
    for axis, (before, after, scale) in enumerate(zip(old, new, scales, strict=True), start=2):
        step = before / after if scale is None else 1.0 / scale
        if mode in NEAREST:
            result = _nearest(result, axis, after, step, 0.5 if mode == "nearest-exact" else 0.0)
        elif before != after or step != 1:
            result = _linear(result, axis, after, step, bool(align_corners))
    return result


def _extents(old: list[int], size: Any, scale: Any) -> tuple[list[int], list[float | None]]:
    """The new extents, and the factors where they were given."""
    if (size is None) == (scale is None):
        both = "only one of size or scale_factor should be defined"
        raise ValueError("either size or scale_factor should be defined" if size is None else both)
    given = scale if size is None else size
    values = list(given) if isinstance(given, Sequence) else [given] * len(old)
    if len(values) != len(old):
        raise ValueError(
            "Input and output must have the same number of spatial dimensions, but got input with "
            f"spatial dimensions of {old} and output size of {values}"
        )
    factors: list[float | None] = [None if scale is None else float(v) for v in values]
    new = [
        int(v) if f is None else math.floor(n * f)
        for n, f, v in zip(old, factors, values, strict=True)
    ]
    if min(new) < 1 or min(old) < 1:
        raise ShapeError(
            f"Input and output sizes should be greater than 0, but got input {old} and output {new}"
        )
    return new, factors


def _nearest(x: Tensor, axis: int, count: int, step: float, shift: float) -> Tensor:
    positions = (np.arange(count, dtype=np.float32) + np.float32(shift)) * np.float32(step)
    places = np.minimum(np.floor(positions), int(x.shape[axis]) - 1).astype(np.int64)
    return x if _is_all(places, x, axis) else select_along(x, axis, places)


def _linear(x: Tensor, axis: int, count: int, step: float, align_corners: bool) -> Tensor:
    size = int(x.shape[axis])
    if align_corners:
        positions = np.arange(count) * ((size - 1) / (count - 1) if count > 1 else 0.0)
    else:
        positions = np.maximum((np.arange(count) + 0.5) * step - 0.5, 0.0)
    low = np.minimum(np.floor(positions), size - 1).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    shape = (-1, *[1] * (x.ndim - 1 - axis))
    weight = (positions - low).astype(x.dtype.np).reshape(shape)
    below, above = select_along(x, axis, low), select_along(x, axis, high)
    return below * as_operand(1 - weight) + above * as_operand(weight)


def _is_all(places: np.ndarray, x: Tensor, axis: int) -> bool:
    return len(places) == x.shape[axis] and bool((places == np.arange(len(places))).all())
