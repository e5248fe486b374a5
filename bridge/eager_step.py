"""The parts of a step without compiled code, for NETWRIGHT_DISABLE: the same meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from ..frontend import dispatch
from ..frontend.nn.utils import clip_grad_norm_, clip_grad_value_
from ..frontend.optim.optimizer import Optimizer
from ..frontend.tensor import Tensor
from .gradient_buffers import GradientBuffers


@contextmanager
def _gradients_kept(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, no parameter has a gradient; afterwards each has the one it had before."""
    kept = [(p, p._grad) for p in parameters]
    for parameter, _ in kept:
        parameter._grad = None
    try:
        yield
    finally:
        for parameter, grad in kept:
            parameter._grad = grad


def eager_gradients(
    loss: Callable[[], Tensor],
    scale: float,
    buffers: GradientBuffers,
    trained: Mapping[str, Tensor],
    others: Iterable[Tensor],
) -> tuple[Tensor, tuple[str, ...]]:
    """Runs ``loss()`` and its backward; adds the gradients of the ``trained`` parameters to the
    buffers, or replaces them if there are none yet. Returns the loss and the paths reached."""
    with _gradients_kept([*trained.values(), *others]):
        found = loss()
        (found * scale if scale != 1 else found).backward()
        reached = set(buffers.reached) if buffers.count else set()
        for path, parameter in trained.items():
            if parameter._grad is not None:
                array, grad = buffers.arrays[path], parameter._grad._array
                np.copyto(array, array + grad if path in reached else grad)
                reached.add(path)
    return found.detach(), tuple([p for p in buffers.order if p in reached])


def eager_update(
    optimizer: Optimizer,
    buffers: GradientBuffers,
    trained: Mapping[str, Tensor],
    max_norm: float | None,
    max_value: float | None,
) -> Tensor | None:
    """Clips and applies the gradients in the buffers; returns their norm if it was limited."""
    parameters = [trained[path] for path in buffers.reached]
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    norm = None
    with _gradients_kept(everything):
        for path in buffers.reached:
            trained[path]._grad = dispatch.wrap(buffers.arrays[path])
        if max_norm is not None:
            norm = clip_grad_norm_(parameters, max_norm)
        if max_value is not None:
            clip_grad_value_(parameters, max_value)
        optimizer.step()
    return norm
