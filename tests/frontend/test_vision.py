"""The shipped digits, IDX files and image transforms."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netwright.frontend.creation import ones
from netwright.frontend.data import DataLoader, default_collate
from netwright.frontend.tensor import Tensor
from netwright.frontend.vision.datasets import MNIST, SHIPPED
from netwright.frontend.vision.idx import read_idx
from netwright.frontend.vision.transforms import Compose, Lambda, Normalize, ToTensor

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
STANDARD = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])


def idx_bytes(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_digits(folder: Path, n: int = 6, suffix: str = "", part: str = "train") -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28)).astype(np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
        content = idx_bytes(array)
        (folder / f"{name}-ubyte{suffix}").write_bytes(
            gzip.compress(content) if suffix else content
        )
    return images


@pytest.mark.parametrize(("train", "count"), [(True, 4000), (False, 1000)])
def test_the_default_source_are_the_shipped_digits(train: bool, count: int) -> None:
    digits = MNIST(train=train)
    assert len(digits) == count
    assert tuple(digits.data.shape) == (count, 28, 28)
    assert str(digits.data.dtype) == "netwright.uint8"
    assert str(digits.targets.dtype) == "netwright.int64"
    assert np.bincount(digits.targets.numpy(), minlength=10).min() >= count * 0.08
    assert 0.1 < digits.data.numpy().mean() / 255 < 0.16  # ink covers 13% of MNIST's pixels


def test_the_shipped_data_name_authors_and_license() -> None:
    text = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for words in ("Yann LeCun", "Corinna Cortes", "Christopher J.C. Burges", "Alike 3.0"):
        assert words in text


def test_a_sample_without_transform_is_a_tensor_between_zero_and_one() -> None:
    digits = MNIST(train=False)
    image, label = digits[3]
    assert tuple(image.shape) == (1, 28, 28) and str(image.dtype) == "netwright.float32"
    assert image.min().item() == 0.0 and image.max().item() <= 1.0
    assert type(label) is int and label == int(digits.targets[3])
    np.testing.assert_array_equal(
        image.numpy()[0], digits.data.numpy()[3].astype(np.float32) / np.float32(255)
    )
    assert digits[-1][1] == int(digits.targets[-1])


def test_transforms_get_the_pixels_and_the_label() -> None:
    digits = MNIST(train=False, transform=np.asarray, target_transform=lambda t: t + 10)
    image, label = digits[0]
    assert image.dtype == np.uint8 and image.shape == (28, 28)
    assert label == int(digits.targets[0]) + 10
    image[:] = 0  # a copy: the dataset keeps its pixels
    assert digits[0][0].any()


def test_indices_out_of_range_end_a_loop_over_the_samples() -> None:
    digits = MNIST(train=False)
    with pytest.raises(IndexError):
        digits[1000]
    with pytest.raises(TypeError, match="must be an int"):
        digits[0:3]


@pytest.mark.parametrize("transform", [None, ToTensor(), STANDARD])
def test_whole_batches_equal_collated_samples(transform: Any) -> None:
    digits = MNIST(train=False, transform=transform)
    fast = next(iter(DataLoader(digits, 16)))
    slow = default_collate([digits[i] for i in range(16)])
    for a, b in zip(fast, slow, strict=True):
        assert a.dtype is b.dtype
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"transform": Compose([ToTensor(), Lambda(lambda t: -t)])},
        {"target_transform": lambda t: -t},
    ],
)
def test_other_transforms_are_called_per_sample(options: dict[str, Any]) -> None:
    image, label = next(iter(DataLoader(MNIST(train=False, **options), 4)))
    assert tuple(image.shape) == (4, 1, 28, 28)
    assert image.max().item() <= 0 or label.max().item() <= 0


def test_tensors_gives_everything_and_normalizes() -> None:
    digits = MNIST(train=False)
    images, labels = digits.tensors()
    assert tuple(images.shape) == (1000, 1, 28, 28) and images.max().item() == 1.0
    normalized, _ = digits.tensors(normalize=True)
    assert abs(normalized.mean().item()) < 0.1 and abs(normalized.std().item() - 1) < 0.1
    labels.zero_()
    assert digits.targets.max().item() == 9


@pytest.mark.parametrize("below", [".", "MNIST/raw", "raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_found_in_root(tmp_path: Path, below: str, suffix: str) -> None:
    images = write_digits(tmp_path / below, suffix=suffix)
    digits = MNIST(tmp_path, train=True)
    np.testing.assert_array_equal(digits.data.numpy(), images)
    assert digits.targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert str(tmp_path) in repr(digits)


def test_a_root_without_files_is_an_error_or_with_download_a_warning(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Dataset not found.*t10k-images-idx3-ubyte"):
        MNIST(tmp_path, train=False)
    with pytest.warns(UserWarning, match="downloads nothing"):
        assert len(MNIST(tmp_path, train=False, download=True)) == 1000


def test_files_that_do_not_fit_are_errors_with_their_names(tmp_path: Path) -> None:
    write_digits(tmp_path, 6)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    with pytest.raises(ValueError, match=r"images-idx3-ubyte has 6 images.*has 5 labels"):
        MNIST(tmp_path)
    labels.write_bytes(idx_bytes(np.zeros((6, 2), np.uint8)))
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte: expected uint8 values in 1"):
        MNIST(tmp_path)
    labels.unlink()
    with pytest.raises(RuntimeError, match="has no train-labels-idx1-ubyte"):
        MNIST(tmp_path)


@pytest.mark.parametrize("dtype", sorted(CODES))
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_reads_every_type_in_native_byte_order(
    tmp_path: Path, dtype: str, compressed: bool
) -> None:
    array = np.array([[1, -2, 300], [4, 5, -60]]).astype(dtype)
    content = idx_bytes(array)
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = read_idx(path)
    assert found.dtype == array.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable


GOOD = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (GOOD[:3], "not an IDX file"),
        (b"\x00\x01" + GOOD[2:], "not an IDX file: it starts with '00 01 08 02'"),
        (GOOD[:2] + b"\x0a" + GOOD[3:], "not an IDX file"),
        (GOOD[:10], "truncated: its header of 12 bytes ends after 10"),
        (GOOD[:-1], "truncated.*needs 12 bytes after the header, there are 11"),
        (GOOD + b"\0", "left over.*needs 12 bytes"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "truncated"),
        (b"\0\0\x08\xff" + b"\0" * 1020, "too many"),
        (gzip.compress(GOOD, mtime=0)[:-9], "gzip file is truncated or damaged"),
        (gzip.compress(GOOD, mtime=0)[:14] + b"\xff" * 20, "gzip file is truncated or damaged"),
        (gzip.compress(GOOD, mtime=0)[:5], "gzip file is truncated or damaged"),
        (b"<!DOCTYPE html>", "not an IDX file"),
    ],
)
def test_damaged_files_are_clear_errors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "digits-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"digits-idx3-ubyte: .*{message}"):
        read_idx(path)


def test_to_tensor_scales_bytes_and_moves_the_channels() -> None:
    colors = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image = ToTensor()(colors)
    assert tuple(image.shape) == (3, 2, 4)
    np.testing.assert_array_equal(
        image.numpy(), colors.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    )
    floats = np.full((2, 2), 7.0, np.float32)
    kept = ToTensor()(floats)
    assert kept.tolist() == [[[7.0, 7.0], [7.0, 7.0]]]
    assert not np.may_share_memory(kept.numpy(), floats)


def test_normalize_works_per_channel_and_in_place_if_asked() -> None:
    image = ones(2, 3, 3)
    result = Normalize([0.0, 0.5], [1.0, 0.25])(image)
    assert result[0].mean().item() == 1.0 and result[1].mean().item() == 2.0
    assert image[1].mean().item() == 1.0
    assert Normalize(1.0, 2.0, inplace=True)(image) is image
    assert image.sum().item() == 0.0


def test_transforms_print_themselves() -> None:
    assert repr(STANDARD) == (
        "Compose(\n    ToTensor()\n    Normalize(mean=(0.1307,), std=(0.3081,))\n)"
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ToTensor()(ones(2, 2)), TypeError, "a Tensor already"),
        (lambda: ToTensor()(np.zeros(4)), ValueError, "2 or 3 dimensions"),
        (lambda: Normalize(0, 1)(np.zeros((1, 2, 2))), TypeError, "put ToTensor"),
        (lambda: Normalize(0, 1)(ones(2, 2)), TypeError, r"\[2, 2\]"),
        (lambda: Normalize((0,), (0,)), ValueError, "division by zero"),
        (lambda: Lambda(3), TypeError, "should be callable"),
    ],
)
def test_wrong_arguments_are_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_images_are_tensors() -> None:
    assert isinstance(STANDARD(np.zeros((28, 28), np.uint8)), Tensor)
