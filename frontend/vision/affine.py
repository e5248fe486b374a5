"""Random affine maps of images, after ``torchvision.transforms.RandomAffine``."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import dispatch
from ..random import numpy_generator
from ..tensor import Tensor


class InterpolationMode(enum.Enum):
    """How a pixel is read between the pixels of an image."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"


class RandomAffine:
    """Rotates, shears, scales and moves an image by random amounts; its size stays the same.

    degrees: the angle, clockwise, is uniform in (-degrees, degrees) or between the two given
    numbers. translate: moves by a uniform whole number of pixels, at most these two fractions of
    the width and of the height. scale: the factor is uniform between these two. shear: degrees
    along x, uniform in (-shear, shear) or between two numbers; four numbers: along x, then along y.
    interpolation: see ``InterpolationMode``. fill: value of what lies outside of the image. center:
    the fixed point (x, y) in pixels from the upper left corner; None: the image's middle.

    The image is an array (height, width) or (height, width, channels), or a floating-point tensor
    (..., channels, height, width), of which every image moves by the same amounts. The result is
    of the same type and dtype; integers are rounded. ``manual_seed`` determines the numbers.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        interpolation: InterpolationMode = InterpolationMode.NEAREST,
        fill: float = 0,
        center: Sequence[float] | None = None,
    ) -> None:
        self.degrees = _range("degrees", degrees, (2,))
        self.translate = None if translate is None else _numbers("translate", translate, (2,))
        self.scale = None if scale is None else _numbers("scale", scale, (2,))
        self.shear = None if shear is None else _range("shear", shear, (2, 4))
        if self.translate and not all(0 <= t <= 1 for t in self.translate):
            raise ValueError(f"RandomAffine: translate is from 0 to 1, got {translate}")
        if self.scale and min(self.scale) <= 0:
            raise ValueError(f"RandomAffine: scale is positive, got {scale}")
        if not isinstance(interpolation, InterpolationMode):
            raise TypeError(
                "RandomAffine: interpolation is InterpolationMode.NEAREST or .BILINEAR, got "
                f"{interpolation!r}"
            )
        self.interpolation = interpolation
        self.fill = fill
        self.center = None if center is None else _numbers("center", center, (2,))

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor):
            if not image.is_floating_point() or image.dim() < 3:
                raise TypeError(
                    "RandomAffine takes an array, or a float tensor (..., channels, height, "
                    f"width), got {image.dtype} {list(image.shape)}"
                )
            planes = image.detach().numpy()
            moved = self._moved(planes.reshape(1, -1, *planes.shape[-2:]))
            return dispatch.wrap(moved.reshape(planes.shape))
        array = np.asarray(image)
        if array.ndim == 2:
            return self.batch(array[None])[0]
        if array.ndim == 3:
            return np.moveaxis(self._moved(np.moveaxis(array, 2, 0)[None])[0], 0, 2)
        raise ValueError(
            f"an image has 2 or 3 dimensions (height, width[, channels]), this one has {array.ndim}"
        )

    def batch(self, images: np.ndarray) -> np.ndarray:
        """Moves each of the images (n, height, width) by amounts of its own.

        They are those that calls with one image after the other would draw.
        """
        return self._moved(images[:, None])[:, 0]

    def _moved(self, planes: np.ndarray) -> np.ndarray:
        """Images (n, channels, height, width), each moved by amounts of its own."""
        height, width = planes.shape[2:]
        inverse = self._draw_inverses(len(planes), height, width)
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        targets = np.stack([x, y, np.ones_like(x)]).reshape(3, -1).astype(np.float32)
        sources = inverse.astype(np.float32) @ targets
        found = _read(planes, sources[:, 0], sources[:, 1], self.interpolation, self.fill)
        if not np.issubdtype(planes.dtype, np.floating):
            found = np.rint(found)
        return found.reshape(planes.shape).astype(planes.dtype)

    def _draw_inverses(self, count: int, height: int, width: int) -> np.ndarray:
        """Matrices (count, 2, 3) that take the result's pixels (x, y, 1) to the image's (x, y)."""
        # Every image takes as many numbers, so that a batch draws what single images would.
        uniform = numpy_generator().random((count, 6))

        def between(column: int, low: float, high: float) -> np.ndarray:
            drawn: np.ndarray = low + (high - low) * uniform[:, column]
            return drawn

        across, down = self.translate or (0.0, 0.0)
        shear = (*(self.shear or (0.0, 0.0)), 0.0, 0.0)[:4]
        angle = np.deg2rad(between(0, *self.degrees))
        move_x = np.rint(between(1, -across * width, across * width))
        move_y = np.rint(between(2, -down * height, down * height))
        scale = between(3, *(self.scale or (1.0, 1.0)))
        shear_x = np.tan(np.deg2rad(between(4, *shear[:2])))
        shear_y = np.tan(np.deg2rad(between(5, *shear[2:])))

        # Forward: scale, shear along x, shear along y, rotate (all about the centre), move.
        linear = np.empty((count, 2, 2))
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        linear[:, 0, 0] = cos + sin * shear_y
        linear[:, 1, 0] = sin - cos * shear_y
        linear[:, 0, 1] = -linear[:, 0, 0] * shear_x - sin
        linear[:, 1, 1] = -linear[:, 1, 0] * shear_x + cos
        inverse = np.linalg.inv(linear)
        # A pixel's coordinates are those of its middle, half a pixel off its corner.
        center = np.array(self.center or (width / 2, height / 2)) - 0.5
        target_center = center + np.stack([move_x, move_y], axis=1)
        offset = center[:, None] - inverse @ target_center[:, :, None]
        return np.concatenate([inverse, offset], axis=2)

    def __repr__(self) -> str:
        found = f"degrees={list(self.degrees)}"
        for name in ("translate", "scale", "shear"):
            if getattr(self, name) is not None:
                found += f", {name}={getattr(self, name)}"
        if self.interpolation is not InterpolationMode.NEAREST:
            found += f", interpolation={self.interpolation.value}"
        if self.fill != 0:
            found += f", fill={self.fill}"
        if self.center is not None:
            found += f", center={self.center}"
        return f"RandomAffine({found})"


def _read(
    planes: np.ndarray, x: np.ndarray, y: np.ndarray, mode: InterpolationMode, fill: float
) -> np.ndarray:
    """Values (n, channels, points) of images (n, channels, height, width) at x, y (n, points)."""
    height, width = planes.shape[2:]
    # The frame that stands for everything outside: one pixel in front, two behind for x + 1.
    frame = ((0, 0), (0, 0), (1, 2), (1, 2))
    framed = np.pad(planes, frame, constant_values=fill)
    flat = framed.reshape(*planes.shape[:2], -1)
    x, y = np.clip(x, -1, width), np.clip(y, -1, height)
    nearest = mode is InterpolationMode.NEAREST
    left, top = (np.rint(v) if nearest else np.floor(v) for v in (x, y))
    corner = ((top + 1) * framed.shape[3] + left + 1).astype(np.intp)

    def neighbour(down: int, right: int) -> np.ndarray:
        index = (corner + down * framed.shape[3] + right)[:, None]
        found: np.ndarray = np.take_along_axis(flat, index, axis=2)
        return found

    if nearest:
        return neighbour(0, 0)
    right, down = (x - left)[:, None], (y - top)[:, None]
    above = neighbour(0, 0) * (1 - right) + neighbour(0, 1) * right
    below = neighbour(1, 0) * (1 - right) + neighbour(1, 1) * right
    mixed: np.ndarray = above * (1 - down) + below * down
    return mixed


def _numbers(name: str, values: Any, lengths: tuple[int, ...]) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or len(values) not in lengths:
        expected = " or ".join(str(n) for n in lengths)
        raise ValueError(f"RandomAffine: {name} is a sequence of {expected} numbers, got {values}")
    return tuple(float(v) for v in values)


def _range(name: str, value: Any, lengths: tuple[int, ...]) -> tuple[float, ...]:
    """(-value, value) of a number; a sequence as it is."""
    if isinstance(value, Sequence):
        return _numbers(name, value, lengths)
    if value < 0:
        raise ValueError(f"RandomAffine: {name}, if a single number, is not negative, got {value}")
    return (-float(value), float(value))
