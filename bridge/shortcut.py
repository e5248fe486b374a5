"""The short way of a call that is like the last one: the same shapes, state and modes.

A call of a compiled model finds its program, checks its arguments and synchronises its state, which
takes longer than the kernels of a small network. A shortcut remembers the outcome. It is good while
the counters of ``frontend.changes`` stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from ..frontend import dispatch, grad_mode
from ..frontend.changes import structure, writes
from ..frontend.tensor import Tensor
from ..frontend.trace import OutputRef
from ..ir.types import Dim
from ..runtime import settings
from ..runtime.executable import Repeat
from .call import Call
from .variant import Variant

Shortcut = Callable[[tuple[object, ...]], Tensor | None]
"""From a call's arguments to the result, or None if the call is not like the one before."""

# Environment variables and the affinity mask are looked at again after this time.
_FRESH_SECONDS = 0.05


def conditions() -> Callable[[], bool]:
    """Tells whether what a repeated call needs besides its arguments is as it is now: the modules
    and the settings."""
    modules, generation, threads = structure.count, settings.generation, settings.num_threads()
    expires = perf_counter() + _FRESH_SECONDS

    def hold() -> bool:
        nonlocal expires
        if (
            structure.count != modules
            or settings.generation != generation
            or dispatch.current.tracer is not None
        ):
            return False
        now = perf_counter()
        if now > expires:
            if settings.disabled() or settings.num_threads() != threads:
                return False
            expires = now + _FRESH_SECONDS
        return True

    return hold


def kinds_of(variant: Variant, call: Call) -> list[tuple[str, tuple[int, ...], np.dtype]]:
    """The paths of a call's arguments in the program, their shapes and dtypes."""
    arrays = [t._array for t in call.leaves]
    return [(p, a.shape, a.dtype) for p, a in zip(variant.traced.inputs, arrays, strict=True)]


def shortcut_for(variant: Variant, call: Call, n: int) -> Shortcut | None:
    """The shortcut for calls like ``call``, which ``variant`` has just served; None if there is
    none: several results, updates of state, random numbers, state that numpy may write to,
    constants that somebody may write to."""
    plain = isinstance(variant.traced.result, OutputRef) and len(variant.results) == 1
    if not plain or not variant.repeatable or not call.plain:
        return None
    if variant.state.sync() is None or variant.traced.captured.alive():
        return None
    ((name, kind),) = variant.results.items()
    shape = tuple([d.coef * n if isinstance(d, Dim) else d for d in kind.shape])
    run = variant.executable.repeat(n, kinds_of(variant, call), (name, shape, kind.dtype.np))
    if run is None:
        return None
    return _repeating(run, conditions())


def _repeating(run: Repeat, conditions_hold: Callable[[], bool]) -> Shortcut:
    """A function and no object: such calls are as long as a few lines of Python."""
    count, array_class, tensor_class, wrap = writes.count, np.ndarray, Tensor, Tensor._wrap
    is_grad_enabled = grad_mode.is_grad_enabled

    def shortcut(args: tuple[object, ...]) -> Tensor | None:
        if writes.count != count or is_grad_enabled() or not conditions_hold():
            return None
        arrays: Sequence[object] = args
        for a in args:
            if type(a) is not array_class:
                if type(a) is tensor_class and len(args) == 1:
                    arrays = (a._array,)
                else:
                    arrays = [a._array if isinstance(a, Tensor) else a for a in args]
                break
        result = run(arrays)
        return None if result is None else wrap(result)

    return shortcut
