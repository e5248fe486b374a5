"""The programs of a step, bound to the tensors that they read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..compiler import SCALE, Compilation
from ..frontend.optim.optimizer import Optimizer
from ..frontend.tensor import Tensor
from ..ir.graph import Graph
from ..ir.types import DTYPES
from ..passes.apply_optimizer import Update, hyper_path, state_path
from ..passes.differentiate import GRAD
from ..passes.number_inputs import number_path
from .gradient_buffers import GradientBuffers
from .variant import Variant

Groups = Mapping[str, tuple[int, Tensor]]
"""Of trained parameters, by path: the group in the optimizer, and the tensor."""


class NumberInputs:
    """The arrays behind a program's numbers (`passes.number_inputs`)."""

    def __init__(self, graph: Graph) -> None:
        self._kinds = {n.attrs["path"]: n.type.dtype for n in graph.sources("input")}
        self._known: dict[str, list[np.ndarray]] = {}
        self.arrays: dict[str, np.ndarray] = {}

    def set(self, path: str, value: float) -> None:
        """Gives a number its value for the coming run, in every dtype that the program has it."""
        if path not in self._known:
            full = [number_path(path, dtype) for dtype in DTYPES]
            found = {f: np.zeros((), self._kinds[f].np) for f in full if f in self._kinds}
            self._known[path] = list(found.values())
            self.arrays.update(found)
        for array in self._known[path]:
            array[...] = value


class UpdatingVariant(Variant):
    """A program that ends with the optimizer's update: a whole step, or the update alone.

    updated: the parameters that it updates.
    """

    def __init__(
        self,
        mode: str,
        made: Compilation,
        optimizer: Optimizer,
        updates: Sequence[Update],
        groups: Groups,
        buffers: GradientBuffers | None = None,
    ) -> None:
        self.mode = mode
        graph = made.stages["optimized"]
        used = [u for u in updates if u.path in graph.updates]
        self.updated = [groups[u.path][1] for u in used]
        self._optimizer_tensors = [
            (state_path(u.path, name), groups[u.path][1], name) for u in used for name in u.state
        ]
        extra = {
            path: optimizer.state_tensor(parameter, name)
            for path, parameter, name in self._optimizer_tensors
        }
        super().__init__(made, {**extra, **(buffers.tensors if buffers else {})})
        self._leaders = {u.group: groups[u.path][1] for u in reversed(used)}
        self._numbers = NumberInputs(graph)

    def numbers(
        self, optimizer: Optimizer, limits: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """The hyper-parameters of the coming step, and the ``limits`` by path, as inputs; follows
        exchanged state tensors."""
        for path, parameter, name in self._optimizer_tensors:
            tensor = optimizer.state_tensor(parameter, name)
            self.state.exchange(path, tensor)
        optimizer.check_equal_steps(self.updated)
        for index, leader in self._leaders.items():
            for name, value in optimizer.hyper(index, leader).items():
                self._numbers.set(hyper_path(index, name), value)
        for path, value in limits.items():
            self._numbers.set(path, value)
        return self._numbers.arrays


class GradientVariant(Variant):
    """A program that leaves gradients in buffers.

    reached: the paths of parameters that it computes gradients of.
    """

    mode = "gradients"

    def __init__(self, made: Compilation, buffers: GradientBuffers) -> None:
        super().__init__(made, buffers.tensors)
        self.buffers = buffers
        self.reached = tuple([p for p in buffers.order if GRAD + p in self.graph.updates])
        self._numbers = NumberInputs(self.graph)

    def numbers(self, scale: float) -> dict[str, np.ndarray]:
        """The factor of the loss as an input."""
        self._numbers.set(SCALE, scale)
        return self._numbers.arrays
