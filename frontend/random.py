"""Random numbers: ``manual_seed`` and the generators behind initialisation and dropout."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from . import dispatch

if TYPE_CHECKING:
    from .tensor import Tensor


class Generator:
    """Two streams from one seed.

    ``numpy`` (PCG64) serves ``rand``, ``randn``, initialisation and shuffling. ``next_key`` serves
    operators that run compiled (dropout): a key (seed, offset) for counter-based numbers, of which
    every draw takes the next offset.
    """

    def __init__(self, device: Any = "cpu") -> None:
        self.manual_seed(int.from_bytes(os.urandom(6), "little"))

    def manual_seed(self, seed: int) -> Generator:
        """Restarts both streams; the same seed gives the same numbers."""
        if not -(2**63) <= int(seed) < 2**64:
            raise RuntimeError(f"Overflow when unpacking long long: seed {seed}")
        self._seed = int(seed) % 2**64
        self._offset = 0
        self.numpy = np.random.Generator(np.random.PCG64(self._seed))
        return self

    def seed(self) -> int:
        """Restarts both streams at a seed from the operating system; returns it."""
        self.manual_seed(int.from_bytes(os.urandom(6), "little"))
        return self._seed

    def initial_seed(self) -> int:
        """The seed of the last restart."""
        return self._seed

    def next_key(self, count: int = 1) -> np.ndarray:
        """``[seed, offset]`` as int64; the next call's offset is ``count`` larger."""
        key = np.array([self._seed, self._offset], np.uint64).view(np.int64)
        self._offset += count
        return key

    def give_back(self, count: int) -> None:
        """Makes the last ``count`` offsets, which nobody has used, those of the next keys."""
        self._offset -= count

    def get_state(self) -> dict[str, Any]:
        """Everything that determines the numbers to come."""
        return {
            "seed": self._seed,
            "offset": self._offset,
            "numpy": self.numpy.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> Generator:
        """Goes back to a state from ``get_state``."""
        self._seed, self._offset = state["seed"], state["offset"]
        self.numpy.bit_generator.state = state["numpy"]
        return self


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Restarts the default generator; returns it."""
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Restarts the default generator at a random seed; returns the seed."""
    return default_generator.seed()


def initial_seed() -> int:
    """The default generator's seed."""
    return default_generator.initial_seed()


def get_rng_state() -> dict[str, Any]:
    """State of the default generator."""
    return default_generator.get_state()


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores the default generator."""
    default_generator.set_state(state)


def numpy_generator(generator: Generator | None = None) -> np.random.Generator:
    """The numpy generator of a Generator, by default of the default one."""
    return (default_generator if generator is None else generator).numpy


def draw_key(generator: Generator | None = None) -> tuple[Tensor, int]:
    """Key (int64 [seed, offset]) and stream for one ``uniform`` operator, traced or eager."""
    if dispatch.current.tracer is not None:
        return dispatch.current.tracer.random_key()
    chosen = default_generator if generator is None else generator
    return dispatch.wrap(chosen.next_key()), 0
