"""Training steps to compare: a model, an optimizer and batches in a library with PyTorch's names,
and what the first step leaves."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TARGET_SETS = 8
"""Batches have the same inputs and targets that change from step to step, at random. So no model
can learn them: gradients keep their size however many steps are timed (those of a batch that is
known by heart vanish, and arithmetic with denormal numbers is slow)."""


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
class Start:
    """Where all libraries start: weights and buffers by ``state_dict`` key, the model's inputs, and
    several targets. The keys are those that every library's model has."""

    state: dict[str, np.ndarray]
    inputs: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]


class Training:
    """A model that has the start's weights, put into training mode, with its optimizer.

    wide: everything in float64. options: further ones of the optimizer.
    """

    def __init__(
        self,
        library: Any,
        model: Any,
        criterion: Any,
        recipe: Recipe,
        start: Start,
        wide: bool = False,
        **options: Any,
    ) -> None:
        self.library, self.recipe, self.start = library, recipe, start
        self.model = model.train()
        if wide:
            self.model.double()
        self.criterion = criterion
        self.optimizer = recipe.make(library, self.model.parameters(), **options)

        def tensor(array: np.ndarray) -> Any:
            widened = wide and array.dtype.kind == "f"
            return library.from_numpy(array.astype(np.float64) if widened else array.copy())

        self.inputs = [tensor(array) for array in start.inputs]
        self._targets = itertools.cycle([tensor(array) for array in start.targets])

    def next_target(self) -> Any:
        """That of the coming step."""
        return next(self._targets)

    def eager_step(self) -> Any:
        """A step as in a user's program; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(*self.inputs), self.next_target())
        loss.backward()
        self.optimizer.step()
        return loss

    def found(self, loss: Any) -> list[np.ndarray]:
        """Copies of what the first step made: see `results`."""
        parameters = {n: p for n, p in self.model.named_parameters() if n in self.start.state}
        weights = {name: p.detach().numpy() for name, p in parameters.items()}
        states = {
            name: {
                key: value.detach().numpy()
                for key, value in self.optimizer.state[p].items()
                if key != "step" and value is not None
            }
            for name, p in parameters.items()
        }
        buffers = {name: b.numpy() for name, b in self.model.named_buffers()}
        loss = loss.detach().numpy()
        return results(self.recipe, self.start, loss, weights, states, buffers)


def results(
    recipe: Recipe,
    start: Start,
    loss: Any,
    weights: Mapping[str, Any],
    states: Mapping[str, dict[str, Any]],
    buffers: Mapping[str, Any],
) -> list[np.ndarray]:
    """The loss; gradient and new weight of every parameter; every buffer of numbers that are no
    counters: in the order of the start's ``state_dict``."""
    arrays = [np.array(loss, np.float64)]
    for name, before in start.state.items():
        if name in weights:
            after = np.array(weights[name])
            arrays += [recipe.gradient(before, after, states[name]), after]
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
