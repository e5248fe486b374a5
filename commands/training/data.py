"""``--data``: the shipped digits, arrays in an ``.npz`` file, or a function's data sets."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..failure import Failure, Misuse
from ..model_file import call_function

if TYPE_CHECKING:
    from ...frontend.tensor import Tensor

_ARRAYS = "x_train and y_train and, to test with, x_test and y_test"


@dataclass(frozen=True)
class Data:
    """Sized data sets of (inputs ..., target); ``test`` may be None. file: the user's code."""

    train: Any
    test: Any
    file: Path | None = None


def load(spec: str, augment: bool = False) -> Data:
    """The data that ``--data spec`` names. Misuse or Failure if there is none."""
    if spec == "mnist":
        return _mnist(augment)
    if spec.endswith(".npz"):
        return _arrays(Path(spec))
    if ".py" in spec:
        return _function(spec)
    raise Misuse(f"--data {spec}: expected mnist, FILE.npz or FILE.py:function")


def is_classification(data: Data) -> bool:
    """Whether the targets are whole numbers."""
    sample = data.train[0]
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        raise Misuse(
            "a sample of the training data has to be a tuple (input, ..., target); it is "
            f"{type(sample).__name__}"
        )
    target = sample[-1]
    dtype = getattr(target, "dtype", None)
    kind = np.asarray(target).dtype if dtype is None else getattr(dtype, "np", dtype)
    return np.dtype(kind).kind in "iu"


def _mnist(augment: bool) -> Data:
    from ...frontend.data import TensorDataset
    from ...frontend.vision.datasets import MNIST
    from ...frontend.vision.transforms import Compose, InterpolationMode, RandomAffine, ToTensor

    test = TensorDataset(*MNIST(train=False).tensors())
    if not augment:
        return Data(TensorDataset(*MNIST(train=True).tensors()), test)
    move = RandomAffine(
        degrees=10,
        translate=(2 / 28, 2 / 28),
        scale=(0.9, 1.1),
        interpolation=InterpolationMode.BILINEAR,
    )
    return Data(MNIST(train=True, transform=Compose([move, ToTensor()])), test)


def _arrays(path: Path) -> Data:
    from ...frontend.data import TensorDataset

    if not path.is_file():
        raise Misuse(f"--data {path}: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Failure(f"{path} cannot be read as an archive of arrays: {error}") from error
    parts = []
    for part in ("train", "test"):
        names = (f"x_{part}", f"y_{part}")
        present = [n for n in names if n in arrays]
        if len(present) < 2 and (present or part == "train"):
            raise Misuse(f"{path} has the arrays {', '.join(arrays) or 'none'}; expected {_ARRAYS}")
        if not present:
            break
        inputs, targets = (_tensor(arrays[n], f"{n} of {path}") for n in names)
        if len(inputs) != len(targets) or not len(inputs):
            raise Misuse(
                f"{path}: {names[0]} has {len(inputs)} samples, {names[1]} has {len(targets)}; "
                "expected the same number, and at least one"
            )
        parts.append(TensorDataset(inputs, targets))
    return Data(parts[0], parts[1] if len(parts) > 1 else None)


def _tensor(array: np.ndarray, where: str) -> Tensor:
    """Integers as int64, floats as float32; bytes of several dimensions, which are images, as
    float32 from 0 to 1."""
    from ...frontend.functions import from_numpy

    if not array.ndim:
        raise Misuse(f"{where} is a single number; expected an array whose rows are samples")
    if array.dtype == np.uint8 and array.ndim > 1:
        array = array / np.float32(255)
    if array.dtype.kind in "iu":
        return from_numpy(np.ascontiguousarray(array, np.int64))
    if array.dtype.kind != "f":
        raise Misuse(f"{where} has elements of {array.dtype}; expected floats or integers")
    return from_numpy(np.ascontiguousarray(array, np.float32))


def _function(spec: str) -> Data:
    found, file = call_function(spec, "data")
    pair = found if isinstance(found, (tuple, list)) else (found, None)
    if len(pair) != 2:
        raise Misuse(
            f"{spec} returned {len(pair)} values; expected a training data set, or a training and "
            "a test data set"
        )
    for dataset, what in zip(pair, ("training", "test"), strict=True):
        if dataset is None and what == "test":
            continue
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise Misuse(
                f"{spec} returned {type(dataset).__name__} as the {what} data set; expected a "
                "Dataset with __getitem__ and __len__, such as TensorDataset"
            )
        if not len(dataset):
            raise Misuse(f"{spec}: the {what} data set is empty")
    return Data(pair[0], pair[1], file)
