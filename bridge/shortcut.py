"""The short way of a call that is like the last one: the same shapes, state and modes.

A call of a compiled model finds its program, checks its arguments and synchronises its state, which
takes longer than the kernels of a small network. A shortcut remembers the outcome. It is good while
the counters of ``frontend.changes`` stand still.
"""

from __future__ import annotations

import time

import numpy as np

from ..frontend import dispatch, grad_mode
from ..frontend.changes import structure, writes
from ..frontend.tensor import Tensor
from ..frontend.trace import OutputRef
from ..ir.types import Dim
from ..runtime import settings
from .call import Call
from .variant import Variant

# Environment variables and the affinity mask are looked at again after this time.
_FRESH_SECONDS = 0.05


class Conditions:
    """What must be as it was in the call that is repeated: the modules, the settings, and the kinds
    of the arguments."""

    def __init__(self, call: Call) -> None:
        self._structure = structure.count
        self._settings = settings.generation
        self._threads = settings.num_threads()
        self._expires = time.perf_counter() + _FRESH_SECONDS
        self._kinds = [(t._array.shape, t._array.dtype) for t in call.leaves]

    def arrays(self, args: tuple[object, ...]) -> list[np.ndarray] | None:
        """The arrays of the arguments, or None if a condition does not hold."""
        if (
            structure.count != self._structure
            or settings.generation != self._settings
            or dispatch.tracer is not None
            or len(args) != len(self._kinds)
        ):
            return None
        now = time.perf_counter()
        if now > self._expires:
            if settings.disabled() or settings.num_threads() != self._threads:
                return None
            self._expires = now + _FRESH_SECONDS
        arrays = []
        for arg, (shape, dtype) in zip(args, self._kinds, strict=True):
            array = arg._array if isinstance(arg, Tensor) else arg
            if (
                not isinstance(array, np.ndarray)
                or array.dtype is not dtype
                or array.shape != shape
                or not array.flags.carray
            ):
                return None
            arrays.append(array)
        return arrays


class Shortcut:
    """Repeats a call of ``variant`` with other data; see `shortcut_for`."""

    def __init__(self, variant: Variant, call: Call, n: int) -> None:
        self._conditions = Conditions(call)
        self._writes = writes.count
        ((name, kind),) = variant.results.items()
        self._shape = tuple([d.coef * n if isinstance(d, Dim) else d for d in kind.shape])
        self._dtype = kind.dtype.np
        self._run = variant.executable.repeat(n, variant.traced.inputs, [name])

    @property
    def possible(self) -> bool:
        """Whether there is a short way at all."""
        return self._run is not None

    def __call__(self, args: tuple[object, ...]) -> Tensor | None:
        """The result, or None if the call is not like the one before."""
        if writes.count != self._writes or grad_mode.is_grad_enabled():
            return None
        arrays = self._conditions.arrays(args)
        if arrays is None:
            return None
        result = np.empty(self._shape, self._dtype)
        arrays.append(result)
        assert self._run is not None
        self._run(arrays)
        return dispatch.wrap(result)


def shortcut_for(variant: Variant, call: Call, n: int) -> Shortcut | None:
    """The shortcut for calls like ``call``, which ``variant`` has just served; None if there is
    none: several results, updates of state, random numbers, state that numpy may write to."""
    plain = isinstance(variant.traced.result, OutputRef) and len(variant.results) == 1
    if not plain or not variant.repeatable or not call.plain:
        return None
    if variant.state.sync() is None:
        return None
    made = Shortcut(variant, call, n)
    return made if made.possible else None
