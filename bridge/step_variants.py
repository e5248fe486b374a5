"""The programs of a step, bound to the tensors that they read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..compilation import Compilation
from ..compiler import SCALE
from ..frontend import dispatch
from ..frontend.optim.optimizer import Optimizer
from ..frontend.tensor import Tensor
from ..ir.graph import Graph
from ..ir.types import DTYPES
from ..passes.apply_optimizer import Update, hyper_path, state_path, steps_path
from ..passes.clip_gradients import NORM
from ..passes.differentiate import GRAD
from ..passes.number_inputs import number_path
from .gradient_buffers import GradientBuffers
from .variant import Variant, empty

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

    updated: the parameters that it updates; counts: their numbers of steps, by path; leaders: of
    each group the first of them, whose hyper-parameters count.
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
        self._counted = {
            steps_path(group): [groups[u.path][1] for u in used if u.group == group]
            for group in {u.group for u in used if u.counts}
        }
        extra = {
            path: optimizer.state_tensor(parameter, name)
            for path, parameter, name in self._optimizer_tensors
        }
        self.counts = {path: optimizer.step_counts(p) for path, p in self._counted.items()}
        extra |= self.counts
        super().__init__(made, {**extra, **(buffers.tensors if buffers else {})})
        self.leaders = {u.group: groups[u.path][1] for u in reversed(used)}
        self.number_inputs = NumberInputs(graph)
        # Of all results but the loss there is one array, which every run overwrites.
        self._kept = {k: empty(t, 1) for k, t in self.results.items() if k != "out"}

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm that the last run has limited, None if it limits none."""
        return dispatch.wrap(self._kept[NORM].copy()) if NORM in self._kept else None

    def outputs(self, n: int) -> dict[str, np.ndarray]:
        return {**super().outputs(n), **self._kept}

    def numbers(self, optimizer: Optimizer, limits: Mapping[str, float]) -> dict[str, np.ndarray]:
        """The hyper-parameters of the coming step, and the ``limits`` by path, as inputs; follows
        exchanged state tensors."""
        for path, parameter, name in self._optimizer_tensors:
            tensor = optimizer.state_tensor(parameter, name)
            self.state.exchange(path, tensor)
        for path, parameters in self._counted.items():
            counts = optimizer.step_counts(parameters)
            if counts._array is not self.counts[path]._array:
                self.counts[path] = counts
                self.state.exchange(path, counts)
        optimizer.check_equal_steps(self.updated)
        return self.set_numbers(optimizer, limits)

    def set_numbers(
        self, optimizer: Optimizer, limits: Mapping[str, float]
    ) -> dict[str, np.ndarray]:
        """`numbers` for a caller who knows that the optimizer's state is what it was."""
        for index, leader in self.leaders.items():
            for name, value in optimizer.hyper(index, leader).items():
                self.number_inputs.set(hyper_path(index, name), value)
        for path, value in limits.items():
            self.number_inputs.set(path, value)
        return self.number_inputs.arrays


class GradientVariant(Variant):
    """A program that leaves gradients in buffers.

    reached: the paths of parameters that it computes gradients of.
    """

    mode = "gradients"

    def __init__(self, made: Compilation, buffers: GradientBuffers) -> None:
        super().__init__(made, buffers.tensors)
        self.buffers = buffers
        self.reached = tuple([p for p in buffers.order if GRAD + p in self.graph.updates])
        self.number_inputs = NumberInputs(self.graph)

    def numbers(self, scale: float) -> dict[str, np.ndarray]:
        """The factor of the loss as an input."""
        self.number_inputs.set(SCALE, scale)
        return self.number_inputs.arrays
