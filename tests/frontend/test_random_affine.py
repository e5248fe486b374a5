"""RandomAffine: geometry against torch's grid_sample, ranges, batches, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from netwright.frontend import manual_seed
from netwright.frontend.creation import ones, rand
from netwright.frontend.data import DataLoader, default_collate
from netwright.frontend.vision.datasets import MNIST
from netwright.frontend.vision.transforms import (
    Compose,
    InterpolationMode,
    Normalize,
    RandomAffine,
    ToTensor,
)

BILINEAR = InterpolationMode.BILINEAR


def digit() -> np.ndarray:
    pixels: np.ndarray = MNIST(train=False).data.numpy()[3]
    return pixels


def blob(row: float, column: float) -> np.ndarray:
    """A bright spot in a dark image (28, 28)."""
    rows, columns = np.mgrid[:28, :28]
    spot: np.ndarray = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)
    return spot.astype(np.float32)


def middle(image: np.ndarray) -> tuple[float, float]:
    """Centre of mass: row, column."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return (rows * image).sum() / image.sum(), (columns * image).sum() / image.sum()


def test_nothing_to_do_leaves_the_image_as_it_is() -> None:
    for mode in InterpolationMode:
        np.testing.assert_array_equal(RandomAffine(0, interpolation=mode)(digit()), digit())


def test_a_quarter_turn_is_clockwise() -> None:
    turned = RandomAffine((90, 90))(digit())
    np.testing.assert_array_equal(turned, np.rot90(digit(), -1))


def test_scale_enlarges_about_the_centre() -> None:
    row, column = middle(RandomAffine(0, scale=(2, 2), interpolation=BILINEAR)(blob(13.5, 15.5)))
    assert (row, column) == pytest.approx((13.5, 17.5), abs=0.02)
    fixed = RandomAffine(0, scale=(2, 2), center=(16, 14), interpolation=BILINEAR)
    assert middle(fixed(blob(13.5, 15.5))) == pytest.approx((13.5, 15.5), abs=0.02)


def test_shear_moves_rows_or_columns() -> None:
    along_x = RandomAffine(0, shear=(45, 45), interpolation=BILINEAR)
    assert middle(along_x(blob(10.5, 13.5))) == pytest.approx((10.5, 16.5), abs=0.02)
    along_y = RandomAffine(0, shear=(0, 0, 45, 45), interpolation=BILINEAR)
    assert middle(along_y(blob(13.5, 10.5))) == pytest.approx((16.5, 10.5), abs=0.02)


def test_moves_are_whole_pixels_within_the_fractions_of_width_and_height() -> None:
    manual_seed(0)
    image = np.zeros((9, 40), np.uint8)
    image[4, 20] = 1
    move = RandomAffine(0, translate=(0.1, 0.25))
    found = {tuple(np.argwhere(move(image))[0] - (4, 20)) for _ in range(600)}
    assert found == {(row, column) for row in range(-2, 3) for column in range(-4, 5)}


def test_degrees_and_scale_stay_in_their_ranges() -> None:
    manual_seed(0)
    image = np.full((28, 28), 1.0, np.float32)
    shrink = RandomAffine(0, scale=(0.5, 0.8), interpolation=BILINEAR)
    sizes = [math.sqrt(shrink(image).sum()) / 28 for _ in range(200)]
    assert 0.49 < min(sizes) < 0.52 and 0.78 < max(sizes) < 0.81
    turn = RandomAffine(30, interpolation=BILINEAR)
    rows = [middle(turn(blob(13.5, 21.5)))[0] - 13.5 for _ in range(200)]
    assert -4.05 < min(rows) < -3.8 and 3.8 < max(rows) < 4.05  # 8 sin(30 degrees)


@pytest.mark.parametrize("mode", list(InterpolationMode))
def test_all_at_once_equals_torchs_grid_sample(mode: InterpolationMode) -> None:
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).random((3, 24, 20)).astype(np.float32)
    angle, sx, sy, scale = math.radians(25), math.radians(10), math.radians(-7), 0.8
    shear_x = np.array([[1, -math.tan(sx)], [0, 1]])
    shear_y = np.array([[1, 0], [-math.tan(sy), 1]])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ shear_y @ shear_x * scale)
    half = np.array([10, 12])  # grid_sample counts in half widths and half heights
    theta = torch.tensor(np.column_stack([inverse * half / half[:, None], [0, 0]]))[None]
    batch = torch.from_numpy(image)[None]
    grid = torch.nn.functional.affine_grid(theta.float(), batch.shape, align_corners=False)
    expected = torch.nn.functional.grid_sample(
        batch, grid, mode=mode.value, padding_mode="zeros", align_corners=False
    )
    move = RandomAffine((25, 25), scale=(0.8, 0.8), shear=(10, 10, -7, -7), interpolation=mode)
    got = move(np.moveaxis(image, 0, 2))
    np.testing.assert_allclose(np.moveaxis(got, 2, 0), expected[0].numpy(), atol=1e-5)


def test_fill_is_the_value_of_the_outside() -> None:
    small = RandomAffine(0, scale=(0.5, 0.5), fill=9)(np.zeros((8, 8), np.uint8))
    expected = np.full((8, 8), 9)
    expected[2:6, 2:6] = 0
    np.testing.assert_array_equal(small, expected)


def test_integers_are_rounded_and_dtypes_kept() -> None:
    half = RandomAffine(0, scale=(2, 2), interpolation=BILINEAR)
    image = np.array([[0, 0, 0, 0], [0, 0, 255, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    assert half(image).dtype == np.uint8
    exact = half(image.astype(np.float64))
    assert exact.dtype == np.float64
    np.testing.assert_array_equal(half(image), np.rint(exact))


def test_a_tensors_channels_move_together() -> None:
    manual_seed(0)
    plane = rand(28, 28)
    move = RandomAffine(40, translate=(0.2, 0.2), interpolation=BILINEAR)
    image = ones(2, 3, 1, 1) * plane
    moved = move(image)
    assert moved.shape == image.shape and moved.dtype is image.dtype
    same = np.broadcast_to(moved[0, 0].numpy(), (2, 3, 28, 28))
    np.testing.assert_array_equal(moved.numpy(), same)
    assert not np.array_equal(moved[0, 0].numpy(), plane.numpy())


@pytest.mark.parametrize("after", [[], [Normalize((0.1307,), (0.3081,))]])
def test_a_loaders_batches_are_those_of_single_images(after: list[Any]) -> None:
    move = RandomAffine(10, (0.1, 0.1), (0.9, 1.1), 5, BILINEAR)
    digits = MNIST(train=False, transform=Compose([move, ToTensor(), *after]))
    assert digits._read_batch(np.arange(3)) is not None  # whole, not sample by sample
    manual_seed(3)
    fast = next(iter(DataLoader(digits, 16)))
    manual_seed(3)
    slow = default_collate([digits[i] for i in range(16)])
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    plain = MNIST(train=False).tensors()[0].numpy()[:16]
    assert all((a != b).any() for a, b in zip(fast[0].numpy(), plain, strict=True))


def test_it_prints_itself() -> None:
    assert repr(RandomAffine(10)) == "RandomAffine(degrees=[-10.0, 10.0])"
    assert repr(RandomAffine((0, 5), (0.1, 0), (1, 2), 3, BILINEAR, 7, (4, 4))) == (
        "RandomAffine(degrees=[0.0, 5.0], translate=(0.1, 0.0), scale=(1.0, 2.0), "
        "shear=(-3.0, 3.0), interpolation=bilinear, fill=7, center=(4.0, 4.0))"
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RandomAffine(-1), ValueError, "degrees, if a single number, is not negative"),
        (lambda: RandomAffine((1, 2, 3)), ValueError, "degrees is a sequence of 2 numbers"),
        (lambda: RandomAffine(0, translate=0.1), ValueError, "translate is a sequence of 2"),
        (lambda: RandomAffine(0, translate=(0, 2)), ValueError, "translate is from 0 to 1"),
        (lambda: RandomAffine(0, scale=(0, 1)), ValueError, "scale is positive"),
        (lambda: RandomAffine(0, shear=(1, 2, 3)), ValueError, "shear is a sequence of 2 or 4"),
        (lambda: RandomAffine(0, interpolation="cubic"), TypeError, "InterpolationMode.NEAREST"),
        (lambda: RandomAffine(0)(np.zeros(3)), ValueError, "2 or 3 dimensions"),
        (lambda: RandomAffine(0)(ones(2, 2)), TypeError, r"\[2, 2\]"),
    ],
)
def test_wrong_arguments_are_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
