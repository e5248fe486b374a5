"""Padding."""

from __future__ import annotations

from collections.abc import Sequence

from ....errors import ShapeError
from ...dispatch import apply
from ...shaping import slice_dim
from ...tensor import Tensor
from .checks import need_tensor, sizes, unsupported

MODES = ("constant", "reflect", "replicate", "circular")


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Adds ``value`` around: ``pad`` is (low, high) of the last dimension, then of the one before.

    Negative numbers cut off. Only mode 'constant' is supported.
    """
    need_tensor("pad", "input", 1, input)
    if mode not in MODES:
        raise NotImplementedError(f"Unrecognised padding mode {mode}")
    if mode != "constant":
        raise unsupported("pad", f"mode={mode!r}", "use mode='constant'")
    numbers = tuple(pad)
    if len(numbers) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
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
