"""``--loss CrossEntropyLoss``: a loss by its name, and targets that fit a model's output."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from .failure import Misuse

if TYPE_CHECKING:
    from ..frontend.nn.module import Module
    from ..frontend.tensor import Tensor

LOSSES = (
    "CrossEntropyLoss",
    "NLLLoss",
    "MSELoss",
    "L1Loss",
    "SmoothL1Loss",
    "BCELoss",
    "BCEWithLogitsLoss",
)
DEFAULT = "CrossEntropyLoss"
"""For training steps that are only timed."""
_CLASSIFICATION = ("CrossEntropyLoss", "NLLLoss")


def add_argument(parser: argparse.ArgumentParser, purpose: str) -> None:
    """``--loss``."""
    parser.add_argument(
        "--loss", choices=LOSSES, metavar="LOSS", help=f"{purpose}; one of {', '.join(LOSSES)}"
    )


def make_loss(name: str) -> Module:
    """The loss with its defaults."""
    from ..frontend import nn

    made: Module = getattr(nn, name)()
    return made


def make_target(name: str, output: Any, seed: int = 0) -> Tensor:
    """Random labels for a classification loss (classes are dimension 1), else numbers in [0, 1).

    Misuse if the model's output does not fit the loss.
    """
    from ..frontend.functions import from_numpy
    from ..frontend.tensor import Tensor

    if not isinstance(output, Tensor):
        raise Misuse(f"--loss needs a model that returns one tensor; it returned {type(output)}")
    rng = np.random.default_rng(seed)
    shape = tuple(output.shape)
    if name not in _CLASSIFICATION:
        return from_numpy(rng.random(shape).astype(output.dtype.np))
    if len(shape) < 2:
        raise Misuse(f"{name} needs an output of shape (batch, classes, ...); it is {shape}")
    labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    return from_numpy(labels)
