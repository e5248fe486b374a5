"""What the training benchmarks train: models, optimizers, weights, batches, for all frameworks."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

import netwright as nw
from netwright.vision import models

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

LABEL_SETS = 8
"""Batches have the same images and labels that change from step to step, at random. So no model can
learn them: gradients keep their size however many steps are timed (those of a batch that is known
by heart vanish, and arithmetic with denormal numbers is slow)."""


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
class Recipe:
    """An optimizer of ``torch.optim`` and ``netwright.optim`` with its options."""

    title: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, library: Any, parameters: Any, **more: Any) -> Any:
        """The optimizer in a library with PyTorch's names."""
        return getattr(library.optim, self.kind)(parameters, **self.options, **more)

    @property
    def first_beta(self) -> float:
        """Adam's."""
        return float(self.options.get("betas", (0.9, 0.999))[0])

    def gradient(self, before: np.ndarray, after: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """The gradient of the first step in float64, from what the step left: the momentum is the
        gradient then, Adam's first moment a share of it; plain SGD moved the weight by it."""
        if "momentum_buffer" in state:
            return np.asarray(state["momentum_buffer"], np.float64)
        if "exp_avg" in state:
            return np.asarray(state["exp_avg"], np.float64) / (1 - self.first_beta)
        return (before.astype(np.float64) - after) / self.options["lr"]


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


@dataclass(frozen=True)
class Start:
    """Weights and buffers by ``state_dict`` key, images, and several sets of labels."""

    state: dict[str, np.ndarray]
    x: np.ndarray
    labels: list[np.ndarray]


def start_of(task: Task, seed: int = 0) -> Start:
    """The same for every framework and in every run."""
    nw.manual_seed(seed)
    state = task.build(Ours()).state_dict()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((task.batch, *task.shape), np.float32)
    labels = [rng.integers(0, task.classes, task.batch) for _ in range(LABEL_SETS)]
    return Start({key: value.numpy().copy() for key, value in state.items()}, x, labels)


class Training:
    """A model in training mode and its optimizer in a library with PyTorch's names, which the
    start's weights were copied into. ``wide``: in float64."""

    def __init__(
        self, library: Any, source: Source, task: Task, start: Start, wide: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        self.task, self.start = task, start
        self.model = task.build(source).train()
        self.model.load_state_dict(
            {key: library.from_numpy(value.copy()) for key, value in start.state.items()}
        )
        if wide:
            self.model.double()
        self.optimizer = task.recipe.make(library, self.model.parameters(), **options)
        self.criterion = library.nn.CrossEntropyLoss()
        self.x = library.from_numpy(start.x.astype(np.float64) if wide else start.x.copy())
        self._labels = itertools.cycle([library.from_numpy(t) for t in start.labels])

    def next_labels(self) -> Any:
        """Those of the coming step."""
        return next(self._labels)

    def eager_step(self) -> Any:
        """A step as in a user's program; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(self.x), self.next_labels())
        loss.backward()
        self.optimizer.step()
        return loss

    def found(self, loss: Any) -> list[np.ndarray]:
        """Copies of what the first step made: see ``Judge``."""
        weights = {name: p.detach().numpy() for name, p in self.model.named_parameters()}
        states = {
            name: {
                key: value.detach().numpy()
                for key, value in self.optimizer.state[p].items()
                if key != "step" and value is not None
            }
            for name, p in self.model.named_parameters()
        }
        buffers = {name: b.numpy() for name, b in self.model.named_buffers()}
        return results(self.task, self.start, loss.detach().numpy(), weights, states, buffers)


def results(
    task: Task,
    start: Start,
    loss: Any,
    weights: dict[str, Any],
    states: dict[str, dict[str, Any]],
    buffers: dict[str, Any],
) -> list[np.ndarray]:
    """The loss; gradient and new weight of every parameter; every buffer of numbers that are no
    counters: in the order of the start's ``state_dict``."""
    arrays = [np.array(loss, np.float64)]
    for name, before in start.state.items():
        if name in weights:
            after = np.array(weights[name])
            arrays += [task.recipe.gradient(before, after, states[name]), after]
    arrays += [np.array(buffers[name]) for name in buffer_names(start, weights)]
    return arrays


def buffer_names(start: Start, weights: Any) -> list[str]:
    """Running statistics."""
    return [n for n, v in start.state.items() if n not in weights and v.dtype.kind == "f"]


def without_dropout(model: Any) -> Any:
    """The model with all dropout at 0: two frameworks never drop the same elements."""
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    return model
