"""``checkpoint.npz``: a run between two steps, so that it continues as if it had never stopped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..failure import Failure, Misuse

if TYPE_CHECKING:
    from ...bridge.step import CompiledStep
    from ...frontend.nn.module import Module

CHECKPOINT = "checkpoint.npz"
_KIND = "netwright train"
_VERSION = 2


def seed(number: int) -> None:
    """Restarts netwright's random numbers, Python's and numpy's global ones."""
    from ...frontend import manual_seed

    manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def random_state() -> dict[str, Any]:
    """Everything that determines the random numbers to come."""
    from ...frontend import get_rng_state

    return {
        "netwright": get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Goes back to a state of `random_state`."""
    from ...frontend import set_rng_state

    set_rng_state(state["netwright"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])


def waiting(step: CompiledStep) -> dict[str, Any]:
    """This process's gradients that wait for an update, by the keys of a step's state."""
    state = step.state_dict()
    return {key: state[key] for key in ("accumulated", "gradients")}


def save(folder: Path, content: dict[str, Any]) -> None:
    """Replaces the folder's checkpoint when the new one has been written completely.

    Failure if it cannot be written; the old one is intact then.
    """
    from ...frontend.serialization import save as save_archive

    try:
        save_archive({"kind": _KIND, "version": _VERSION, **content}, folder / CHECKPOINT)
    except OSError as error:
        raise Failure(f"{folder / CHECKPOINT} cannot be written: {error}") from error


def load(folder: Path) -> dict[str, Any]:
    """The folder's checkpoint. Misuse if there is none, Failure if it cannot be read."""
    from ...frontend.serialization import load as load_archive

    path = folder / CHECKPOINT
    if not path.is_file():
        raise Misuse(f"{path} does not exist, so there is nothing to resume; leave --resume out")
    try:
        found = load_archive(path)
    except ValueError as error:
        raise Failure(str(error)) from error
    if not isinstance(found, dict) or found.get("kind") != _KIND:
        raise Misuse(f"{path} is not a checkpoint of netwright train; name another --out")
    if found["version"] != _VERSION:
        raise Misuse(
            f"{path} has version {found['version']} of the format, this netwright reads {_VERSION}"
        )
    content: dict[str, Any] = found
    return content


def load_weights(model: Module, saved: dict[str, Any], folder: Path) -> None:
    """Failure if the weights are those of another model."""
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise Failure(f"{folder / CHECKPOINT} does not fit the model: {reason}") from error
