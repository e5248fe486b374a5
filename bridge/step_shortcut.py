"""The short way of a training step that is like the last one.

Everything that a step depends on is still looked at, but compared with what the last call found
instead of being worked out again: the modules (by their counter), the arrays behind parameters,
buffers and optimizer state (by identity), the optimizer's options and groups. Hyper-parameters are
read anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import getitem, is_

import numpy as np

from ..compiler import Clip
from ..frontend import dispatch
from ..frontend.optim.optimizer import Optimizer
from ..frontend.random import default_generator
from ..frontend.tensor import Tensor
from .call import Call
from .shortcut import conditions, kinds_of
from .step_variants import UpdatingVariant


class StepShortcut:
    """Repeats a step of ``variant`` with other data; see `step_shortcut_for`."""

    def __init__(
        self, variant: UpdatingVariant, call: Call, n: int, optimizer: Optimizer, clip: Clip
    ) -> None:
        self._conditions_hold = conditions()
        self.variant, self._clip = variant, clip
        self._optimizer = _Snapshot(optimizer, variant)
        self._streams = variant.traced.random_streams
        inputs = kinds_of(variant, call)
        if self._streams:
            inputs.append(("rng", (2,), np.dtype(np.int64)))
        loss = variant.results["out"].dtype.np
        self._run = variant.executable.repeat(n, inputs, ("out", (), loss))

    @property
    def possible(self) -> bool:
        """Whether there is a short way at all."""
        return self._run is not None

    def __call__(
        self, args: tuple[object, ...], clip: Clip, limits: Mapping[str, float]
    ) -> Tensor | None:
        """The loss, or None if the call is not like the one before."""
        variant, optimizer = self.variant, self._optimizer.optimizer
        if (
            clip is not self._clip
            or self._run is None
            or not self._conditions_hold()
            or not self._optimizer.holds()
            or not variant.state.bound()
        ):
            return None
        variant.set_numbers(optimizer, limits)
        arrays = [a._array if isinstance(a, Tensor) else a for a in args]
        if self._streams:
            arrays.append(default_generator.next_key(self._streams))
        optimizer.advance((), counted=True)
        # Weights and counts change in one native call. Other programs learn of it before that, too:
        # Ctrl-C may come between the call and the line after it.
        variant.state.committed()
        try:
            loss = self._run(arrays)
        finally:
            variant.state.committed()
        if loss is None:  # other arguments: nothing has run
            default_generator.give_back(self._streams)
            return None
        return dispatch.wrap(loss)


class _Snapshot:
    """An optimizer's options, groups and state tensors, to be compared by identity."""

    def __init__(self, optimizer: Optimizer, variant: UpdatingVariant) -> None:
        self.optimizer = optimizer
        self._structure = optimizer.structure()
        self._state = optimizer.state
        self._dicts = list(optimizer.state.values())
        entries = [(d, name, value) for d in self._dicts for name, value in d.items()]
        self._holders = [holder for holder, _, _ in entries]
        self._names = [name for _, name, _ in entries]
        self._values = [value for _, _, value in entries]
        self._steps = [v for _, name, v in entries if name == "step" and isinstance(v, Tensor)]
        self._step_arrays = [t._array for t in self._steps]
        self._counts = [counts._array for counts in variant.counts.values()]

    def holds(self) -> bool:
        """Whether all is as it was, but for numbers in options and elements of tensors."""
        state = self.optimizer.state
        if (
            state is not self._state
            or len(state) != len(self._dicts)
            or not all(map(is_, state.values(), self._dicts))
            or self.optimizer.structure() != self._structure
        ):
            return False
        try:
            if not all(map(is_, map(getitem, self._holders, self._names), self._values)):
                return False
        except KeyError:
            return False
        if not all(map(is_, [t._array for t in self._steps], self._step_arrays)):
            return False
        for counts in self._counts:  # one set of numbers serves a group
            steps = counts.tobytes()
            if steps != steps[: counts.itemsize] * counts.size:
                return False
        return True


def step_shortcut_for(
    variant: UpdatingVariant, call: Call, optimizer: Optimizer, clip: Clip
) -> StepShortcut | None:
    """The shortcut for steps like that which ``variant`` has just done; None if there is none:
    arguments in nests or by keyword, operators that run through numpy, constants that somebody may
    write to."""
    if not call.plain or variant.traced.captured.alive():
        return None
    made = StepShortcut(variant, call, variant.batch(call.leaves), optimizer, clip)
    return made if made.possible else None
