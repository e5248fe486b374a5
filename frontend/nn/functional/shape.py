"""Padding, and pixels that move between space and channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ....errors import ShapeError
from ...dispatch import apply, as_operand
from ...shaping import slice_dim
from ...tensor import Tensor
from .checks import need_tensor, sizes

MODES = ("constant", "reflect", "replicate", "circular")


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Adds ``value`` around: ``pad`` is (low, high) of the last dimension, then of the one before.

    Negative numbers cut off. The modes 'reflect', 'replicate' and 'circular' continue the last one
    to three dimensions, of an input that has one or two dimensions in front of them.
    """
    need_tensor("pad", "input", 1, input)
    if mode not in MODES:
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    numbers = tuple(pad)
    if len(numbers) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if mode != "constant":
        if value is not None and value != 0:
            raise ValueError(f"Padding mode {mode!r} doesn't take in value argument")
        return _continued(input, numbers, mode)
    if len(numbers) > 2 * input.ndim:
        raise ShapeError(
            "Padding length should be less than or equal to two times the input dimension but "
            f"got padding length {len(numbers)} and input of dimension {input.ndim}"
        )
    low, high = [0] * input.ndim, [0] * input.ndim
    for i in range(len(numbers) // 2):
        low[-1 - i], high[-1 - i] = numbers[2 * i : 2 * i + 2]
    result = _cropped(input, low, high)
    low, high = [max(p, 0) for p in low], [max(p, 0) for p in high]
    if not any(low) and not any(high):
        return result
    return apply("pad", result, low=tuple(low), high=tuple(high), value=value or 0)


def _continued(input: Tensor, numbers: tuple[int, ...], mode: str) -> Tensor:
    spatial = len(numbers) // 2
    if spatial not in (1, 2, 3) or input.ndim not in (spatial + 1, spatial + 2):
        raise NotImplementedError(
            "Only 2D, 3D, 4D, 5D padding with non-constant padding are supported for now: "
            f"mode={mode!r} pads the last {spatial} dimensions of an input of {spatial + 1} or "
            f"{spatial + 2}, got size {sizes(input.shape)}"
        )
    result = input
    for i in range(spatial):
        low, high = numbers[2 * i : 2 * i + 2]
        if low or high:
            axis = input.ndim - 1 - i
            places = _places(int(input.shape[axis]), low, high, mode)
            result = select_along(result, axis, places)
    return result


def _places(size: int, low: int, high: int, mode: str) -> np.ndarray:
    """Where each element of the padded dimension comes from."""
    limit = {"reflect": size - 1, "circular": size}.get(mode)
    if limit is not None and max(low, high) > limit:
        what = (
            "less than the corresponding input dimension"
            if mode == "reflect"
            else ("at most the corresponding input dimension")
        )
        raise ShapeError(
            f"Padding size should be {what}, but got: padding ({low}, {high}) at a dimension of "
            f"size {size} with mode={mode!r}"
        )
    if size + low + high < 1 or size < 1:
        raise ShapeError(f"pad(): padding ({low}, {high}) leaves nothing of a size of {size}")
    places = np.arange(-low, size + high)
    if mode == "circular":
        return places % size
    if mode == "reflect":
        places = np.abs(places)
        return np.where(places >= size, 2 * (size - 1) - places, places)
    return np.clip(places, 0, size - 1)


def select_along(input: Tensor, axis: int, places: np.ndarray) -> Tensor:
    """``input[:, places]`` at an axis."""
    return input[(slice(None),) * axis + (as_operand(places),)]


def _cropped(input: Tensor, low: Sequence[int], high: Sequence[int]) -> Tensor:
    result = input
    for d, (before, after) in enumerate(zip(low, high, strict=True)):
        if before >= 0 and after >= 0:
            continue
        size = input.shape[d]
        start, stop = max(-before, 0), size + min(after, 0)
        if start > stop:
            raise ShapeError(
                f"pad(): padding ({before}, {after}) cuts more than dimension {d} of size "
                f"{sizes(input.shape)} has"
            )
        result = slice_dim(result, d, start, stop)
    return result


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """(*, C * r^2, H, W) to (*, C, H * r, W * r)."""
    r = _factor("pixel_shuffle", input, upscale_factor)
    *batch, c, h, w = input.shape
    if c % (r * r):
        raise ShapeError(
            "pixel_shuffle expects its input's 'channel' dimension to be divisible by the square "
            f"of upscale_factor, but input.size(-3)={c} is not divisible by {r * r}"
        )
    n = len(batch)
    x = input.reshape(*batch, c // (r * r), r, r, h, w)
    x = x.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*batch, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """(*, C, H * r, W * r) to (*, C * r^2, H, W)."""
    r = _factor("pixel_unshuffle", input, downscale_factor)
    *batch, c, h, w = input.shape
    if h % r or w % r:
        raise ShapeError(
            "pixel_unshuffle expects height and width to be divisible by downscale_factor, but "
            f"got size {sizes(input.shape)} and {r}"
        )
    n = len(batch)
    x = input.reshape(*batch, c, h // r, r, w // r, r)
    x = x.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*batch, c * r * r, h // r, w // r)


def _factor(name: str, input: Tensor, factor: int) -> int:
    need_tensor(name, "input", 1, input)
    if input.ndim < 3:
        raise ShapeError(f"{name} expects at least 3 dimensions, got size {sizes(input.shape)}")
    if factor < 1:
        raise RuntimeError(f"{name} expects a positive factor, but got {factor}")
    return factor
