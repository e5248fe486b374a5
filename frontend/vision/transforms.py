"""Transforms of single images, after ``torchvision.transforms``.

An image is a uint8 array (height, width) or (height, width, channels), or a float32 tensor
(channels, height, width). The transforms here also work on a whole batch of images at once, for
which ``transform_batch`` gives them one more dimension in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import dispatch
from ..tensor import Tensor
from .affine import InterpolationMode as InterpolationMode
from .affine import RandomAffine as RandomAffine


class Compose:
    """The transforms, one after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        lines = "".join(f"    {t}\n" for t in self.transforms)
        return f"Compose(\n{lines})"


class ToTensor:
    """An array (height, width[, channels]) as a tensor (channels, height, width).

    uint8 values 0 ... 255 become float32 in [0, 1]; other dtypes keep their values.
    """

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, Tensor):
            raise TypeError("ToTensor takes a numpy array, the image is a Tensor already")
        array = np.asarray(image)
        if array.ndim not in (2, 3):
            raise ValueError(
                "an image has 2 or 3 dimensions (height, width[, channels]), this one has "
                f"{array.ndim}"
            )
        return dispatch.wrap(_channels_first(array[None])[0])

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize:
    """``(image - mean) / std`` per channel of a float tensor (..., channels, height, width)."""

    def __init__(
        self, mean: Sequence[float] | float, std: Sequence[float] | float, inplace: bool = False
    ) -> None:
        self.mean = mean
        self.std = std
        self.inplace = inplace
        if (np.asarray(std) == 0).any():
            raise ValueError(f"Normalize: std is zero ({std}), which leads to division by zero")

    def __call__(self, image: Any) -> Tensor:
        if not isinstance(image, Tensor):
            raise TypeError(
                f"Normalize takes a Tensor, not {type(image).__name__}; put ToTensor() before it"
            )
        if not image.is_floating_point() or image.dim() < 3:
            raise TypeError(
                "Normalize takes a float tensor (..., channels, height, width), got "
                f"{image.dtype} {list(image.shape)}"
            )
        shape = (-1, 1, 1)
        mean = np.asarray(self.mean, image.dtype.np).reshape(shape)
        std = np.asarray(self.std, image.dtype.np).reshape(shape)
        found: Tensor = (image - dispatch.wrap(mean)) / dispatch.wrap(std)
        return image.copy_(found) if self.inplace else found

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class Lambda:
    """Any function of the image."""

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        if not callable(lambd):
            raise TypeError(f"Argument lambd should be callable, got {type(lambd).__name__}")
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        return self.lambd(image)

    def __repr__(self) -> str:
        return "Lambda()"


def transform_batch(transform: Any, images: np.ndarray) -> Tensor | None:
    """The transformed uint8 images (n, height, width) as one tensor.

    None if ``transform`` is not RandomAffine (or nothing), ToTensor and any number of Normalize in
    this order: then it must be called image by image.
    """
    steps: list[Any] = transform.transforms if type(transform) is Compose else [transform]
    move = steps[0] if steps and type(steps[0]) is RandomAffine else None
    if move is not None:
        steps = steps[1:]
    if not steps or type(steps[0]) is not ToTensor or images.ndim != 3:
        return None
    if any(type(step) is not Normalize for step in steps[1:]):
        return None
    if move is not None:
        images = move.batch(images)
    batch: Tensor = dispatch.wrap(_channels_first(images))
    for step in steps[1:]:
        batch = step(batch)
    return batch


def _channels_first(images: np.ndarray) -> np.ndarray:
    """(n, height, width[, channels]) as (n, channels, height, width); uint8 scaled to [0, 1]."""
    moved = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
    if images.dtype == np.uint8:
        return np.divide(moved, np.float32(255), dtype=np.float32)
    return np.array(dispatch.native(moved), order="C")
