"""MNIST: from IDX files, or the 5,000 digits that come with netwright."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import dispatch
from ..data.dataset import Dataset
from ..tensor import Tensor
from .idx import read_idx
from .transforms import ToTensor, transform_batch

SHIPPED = Path(__file__).with_name("mnist5k")
MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images, in [0, 1]


class MNIST(Dataset[tuple[Any, Any]]):
    """Handwritten digits: 28 x 28 images and labels 0 ... 9.

    root: folder with the IDX files (plain or .gz), itself or in ``MNIST/raw``. None: the digits
    that come with netwright, 4,000 for training and 1,000 for testing, a subset of the MNIST
    database by LeCun, Cortes and Burges (CC BY-SA 3.0). train: which of the two parts.
    download: nothing is ever downloaded; True means that the shipped digits will do, with a
    warning, where ``root`` has no files.

    A sample is (image, label). ``transform`` gets the image as a uint8 array (28, 28) where
    torchvision passes a PIL image. Without a transform the image is a float32 tensor (1, 28, 28)
    in [0, 1].

    data: uint8 tensor (n, 28, 28). targets: int64 tensor (n,).
    """

    classes = (
        "0 - zero",
        "1 - one",
        "2 - two",
        "3 - three",
        "4 - four",
        "5 - five",
        "6 - six",
        "7 - seven",
        "8 - eight",
        "9 - nine",
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        self.root = root
        self.train = train
        self.transform = transform
        self.target_transform = target_transform
        part = "train" if train else "t10k"
        folder = SHIPPED if root is None else _folder(Path(root).expanduser(), part, download)
        images_file = _file(folder, f"{part}-images", 3)
        labels_file = _file(folder, f"{part}-labels", 1)
        images, labels = _read(images_file, 3), _read(labels_file, 1)
        if len(images) != len(labels):
            raise ValueError(
                f"{images_file} has {len(images)} images, {labels_file} has {len(labels)} labels"
            )
        self.data: Tensor = dispatch.wrap(images)
        self.targets: Tensor = dispatch.wrap(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        pixels = self.data._array[index]
        if pixels.ndim != 2:
            raise TypeError(
                f"a sample's index must be an int, got {index!r}; for many samples use .data, "
                ".tensors() or a DataLoader"
            )
        image = ToTensor()(pixels) if self.transform is None else self.transform(pixels.copy())
        label = int(self.targets._array[index])
        return image, label if self.target_transform is None else self.target_transform(label)

    def _read_batch(self, indices: np.ndarray) -> Any:
        """The loader's batch at once, where the transform can do that."""
        if type(self).__getitem__ is not MNIST.__getitem__ or self.target_transform is not None:
            return None
        pixels = np.take(self.data._array, indices, axis=0)
        transform = ToTensor() if self.transform is None else self.transform
        images = transform_batch(transform, pixels)
        if images is None:
            return None
        return [images, dispatch.wrap(np.take(self.targets._array, indices))]

    def tensors(self, normalize: bool = False) -> tuple[Tensor, Tensor]:
        """All images, float32 (n, 1, 28, 28) in [0, 1], and labels, int64 (n,).

        normalize: subtracts MNIST's mean (0.1307) and divides by its deviation (0.3081). Neither
        ``transform`` nor ``target_transform`` is applied.
        """
        images = transform_batch(ToTensor(), self.data._array)._array  # type: ignore[union-attr]
        if normalize:
            images = (images - np.float32(MEAN)) / np.float32(STD)
        return dispatch.wrap(images), dispatch.wrap(self.targets._array.copy())

    def __repr__(self) -> str:
        where = "digits shipped with netwright" if self.root is None else os.fspath(self.root)
        split = "Train" if self.train else "Test"
        return (
            f"Dataset MNIST\n    Number of datapoints: {len(self)}\n    Root location: {where}\n"
            f"    Split: {split}"
        )


def _candidates(folder: Path, stem: str, rank: int) -> list[Path]:
    names = (f"{stem}-idx{rank}-ubyte", f"{stem}.idx{rank}-ubyte")
    return [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]


def _folder(root: Path, part: str, download: bool) -> Path:
    """Where the files of one part are."""
    for folder in (root / "MNIST" / "raw", root / "raw", root):
        if any(p.is_file() for p in _candidates(folder, f"{part}-images", 3)):
            return folder
    if not download:
        raise RuntimeError(
            f"Dataset not found: neither {root} nor {root / 'MNIST' / 'raw'} has "
            f"{part}-images-idx3-ubyte[.gz]; MNIST() without root reads the 5,000 digits that "
            "come with netwright"
        )
    warnings.warn(
        f"MNIST: {root} has no IDX files and netwright downloads nothing; the 5,000 digits that "
        "come with it are used (4,000 for training, 1,000 for testing)",
        UserWarning,
        stacklevel=3,
    )
    return SHIPPED


def _file(folder: Path, stem: str, rank: int) -> Path:
    candidates = _candidates(folder, stem, rank)
    for path in candidates:
        if path.is_file():
            return path
    raise RuntimeError(f"Dataset not found: {folder} has no {candidates[0].name}[.gz]")


def _read(path: Path, rank: int) -> np.ndarray:
    array = read_idx(path)
    if array.ndim != rank or array.dtype != np.uint8:
        raise ValueError(
            f"{path}: expected uint8 values in {rank} dimension(s), the file has {array.dtype} "
            f"{list(array.shape)}"
        )
    return array
