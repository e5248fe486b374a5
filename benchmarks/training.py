"""What the training benchmarks train: models, optimizers, weights, batches, for all frameworks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

import netwright as nw
from netwright.commands.peers.judge import Judge
from netwright.commands.peers.training import TARGET_SETS, Recipe, Start, Training
from netwright.vision import models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))


class Source(Protocol):
    """Where the modules of a framework come from."""

    def example(self, name: str) -> ModuleType:
        """A program of examples/."""

    def zoo(self) -> ModuleType:
        """``netwright.vision.models``."""


class Ours:
    """netwright's own."""

    def example(self, name: str) -> ModuleType:
        """A program of examples/."""
        return importlib.import_module(name)

    def zoo(self) -> ModuleType:
        """``netwright.vision.models``."""
        return models


@dataclass(frozen=True)
class Task:
    """A model, a batch size and an optimizer; the same for every framework.

    build: makes the model of a Source; shape: of one sample; target: how many times faster than the
    fastest peer netwright is meant to be; jax: which function of train_jax.py is the same model, if
    one is.
    """

    model: str
    build: Callable[[Source], Any]
    shape: tuple[int, ...]
    batch: int
    recipe: Recipe
    target: float
    classes: int = 10
    jax: str | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """``CNN, Adam``."""
        return f"{self.model}, {self.recipe.title}"


def start_of(task: Task, seed: int = 0) -> Start:
    """The same for every framework and in every run."""
    nw.manual_seed(seed)
    state = task.build(Ours()).state_dict()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((task.batch, *task.shape), np.float32)
    labels = [rng.integers(0, task.classes, task.batch) for _ in range(TARGET_SETS)]
    return Start({key: value.numpy().copy() for key, value in state.items()}, [x], labels)


def training_of(
    library: Any, source: Source, task: Task, start: Start, wide: bool = False, **options: Any
) -> Training:
    """A task in a library with PyTorch's names."""
    model = task.build(source)
    model.load_state_dict(
        {key: library.from_numpy(value.copy()) for key, value in start.state.items()}
    )
    criterion = library.nn.CrossEntropyLoss()
    return Training(library, model, criterion, task.recipe, start, wide, **options)


def judge_of(task: Task, start: Start) -> Judge:
    """The reference is PyTorch in float64, without PyTorch eager netwright."""
    library: Any
    source: Source
    try:
        import torch
    except ImportError:
        library, source, origin = nw, Ours(), "eager netwright in float64"
    else:
        from train_pytorch import Theirs

        library, source, origin = torch, Theirs(), "PyTorch in float64"
    return Judge(lambda wide: training_of(library, source, task, start, wide), origin)
