"""A step in two halves: gradients into buffers, and their update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..compiler import Options
from ..frontend import dispatch
from ..frontend.nn.module import Module
from ..frontend.nn.state import as_array
from ..frontend.optim.optimizer import Optimizer
from ..frontend.tensor import Tensor
from ..runtime import settings
from .call import Call
from .eager_step import eager_gradients, eager_update
from .gradient_buffers import GradientBuffers
from .interrupts import uninterrupted
from .step_program import Loss, check_arguments
from .step_programs import StepPrograms
from .step_settings import StepSettings
from .step_variants import GradientVariant, UpdatingVariant

BucketReady = Callable[[list[np.ndarray], int], None]
"""Is told the flat arrays of gradients and the number of a bucket that is complete."""


class StepHalves(StepSettings, StepPrograms):
    """``gradients(x, target)`` and ``update()``.

    grad_norm: the norm that the last update has limited, before that, as a 0-d tensor; None
    without ``clip_grad_norm``.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        options: Options,
        accumulate: int,
        clip_grad_norm: float | None,
        clip_grad_value: float | None,
    ) -> None:
        StepSettings.__init__(self, accumulate, clip_grad_norm, clip_grad_value)
        StepPrograms.__init__(self, model, loss, optimizer, options)
        self.grad_norm: Tensor | None = None
        self._waiting: GradientBuffers | None = None

    def gradients(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward, loss and backward, without update: the loss as a 0-d tensor.

        The gradients of ``loss * gradient_scale / accumulate`` are added to those that wait in
        ``grads``. Running statistics are updated. Raises RuntimeError if gradients of other
        parameters wait: some were frozen or thawed since.
        """
        return self._gradients(args, kwargs)

    def gradients_in_buckets(
        self, bucket_bytes: int, ready: BucketReady, *args: Any, **kwargs: Any
    ) -> Tensor:
        """`gradients`, for those who begin with some while others are being computed.

        ``ready(flat_grads, k)`` is called as soon as the bucket ``k`` has its gradients: the
        ``k``-th piece of ``bucket_bytes`` of the arrays in ``flat_grads``. Buckets become ready in
        order, and nothing is computed during the call. Under NETWRIGHT_DISABLE it is not called.
        """
        return self._gradients(args, kwargs, bucket_bytes, ready)

    def _gradients(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        bucket_bytes: int | None = None,
        ready: BucketReady | None = None,
    ) -> Tensor:
        check_arguments(args)
        call = Call(args, kwargs)
        if settings.disabled():
            with uninterrupted():
                return self._eager_gradients(call)
        variant = self._gradient_variant(call, self._waiting, bucket_bytes)
        with uninterrupted():
            return self._run_gradients(variant, call, ready)

    def update(self) -> None:
        """Clips the gradients in ``grads`` and lets the optimizer apply them; then none wait.

        Does nothing if none do, so that it may follow the last batches of an epoch that are fewer
        than ``accumulate``.
        """
        buffers = self._waiting
        if buffers is None:
            return
        if settings.disabled():
            with uninterrupted():
                self._eager_update(buffers)
            return
        variant = self._update_variant(buffers, buffers.reached, self.clip)
        with uninterrupted():
            self._run_update(variant)

    def zero_grad(self) -> None:
        """Forgets the gradients that wait for an update."""
        if self._waiting is not None:
            self._waiting.count = 0
            self._waiting = None

    @property
    def accumulated(self) -> int:
        """How many backward passes' gradients wait for an update."""
        return 0 if self._waiting is None else self._waiting.count

    @property
    def grads(self) -> dict[str, np.ndarray]:
        """The gradients that wait for an update, by path of the parameter, in the order in which a
        backward pass finishes them. The arrays are the step's own: what is written into them is
        what ``update()`` applies. Empty if none wait."""
        found = self._waiting
        return {} if found is None else {path: found.arrays[path] for path in found.reached}

    @property
    def flat_grads(self) -> list[np.ndarray]:
        """The memory of ``grads``: one 1-d array per dtype, in the order of ``grads`` with zeros
        in between, such that each gradient starts at a multiple of 64 bytes."""
        return [] if self._waiting is None else list(self._waiting.flat)

    def _checked_gradients(self, gradients: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The ``grads`` of an earlier moment as arrays. ValueError if they are not gradients of the
        parameters that are trained now."""
        trained = {path: p for path, (_, p) in self._trained().items()}
        arrays = {}
        for path, value in gradients.items():
            array = as_array(value)
            expected = list(trained[path].shape) if path in trained else "no gradient"
            if array is None or expected != list(array.shape):
                found = type(value).__name__ if array is None else list(array.shape)
                raise ValueError(
                    f"load_state_dict(): the gradient of {path!r} is {found}, expected {expected}"
                )
            arrays[path] = array
        return arrays

    def _set_gradients(self, arrays: Mapping[str, np.ndarray], calls: int) -> None:
        """From here on these gradients, of so many calls, wait for an update, and no others."""
        self.zero_grad()
        if not calls:
            return
        trained = {path: p for path, (_, p) in self._trained().items()}
        buffers = self._buffers_for(trained, [*arrays, *(p for p in trained if p not in arrays)])
        for path, array in arrays.items():
            buffers.arrays[path][...] = array
        self._await(buffers, tuple([p for p in buffers.order if p in arrays]), calls)

    # -- runs, each as a whole -----------------------------------------------------------------

    def _in_halves(self, call: Call) -> Tensor:
        """A backward pass and, if it is the last one of its update, the update."""
        due = self.accumulated + 1 >= self.accumulate
        if settings.disabled():
            with uninterrupted():
                loss = self._eager_gradients(call)
                if due and self._waiting is not None:
                    self._eager_update(self._waiting)
            return loss
        variant, update = self._gradient_variant(call, self._waiting), None
        if due:
            update = self._update_variant(variant.buffers, variant.reached, self.clip)
        with uninterrupted():
            loss = self._run_gradients(variant, call)
            if update is not None:
                self._run_update(update)
        return loss

    def _run_gradients(
        self, variant: GradientVariant, call: Call, ready: BucketReady | None = None
    ) -> Tensor:
        self._check_waiting(variant.buffers, variant.reached)
        numbers = variant.numbers(self.gradient_scale / self.accumulate)
        tell = None if ready is None else partial(ready, variant.buffers.flat)
        results = variant.run(call.leaves, numbers, tell)
        variant.state.committed()
        self._await(variant.buffers, variant.reached)
        return dispatch.wrap(results["out"])

    def _run_update(self, variant: UpdatingVariant) -> None:
        numbers = variant.numbers(self.optimizer, self.limits)
        variant.run((), numbers)
        self._updated(variant)
        self.zero_grad()

    def _updated(self, variant: UpdatingVariant) -> None:
        """Notes what a run of a program with an update has done."""
        variant.state.committed()
        self.optimizer.advance(variant.updated, counted=True)
        self.grad_norm = variant.grad_norm

    def _eager_gradients(self, call: Call) -> Tensor:
        parameters = {path: p for path, (_, p) in self._trained().items()}
        buffers = self._buffers_for(parameters, reversed(parameters))
        self._check_waiting(buffers, None)
        others = [p for root in self._roots.values() for p in root.parameters()]
        loss, reached = eager_gradients(
            lambda: self.loss(self.model(*call.args[:-1], **call.kwargs), call.args[-1]),
            self.gradient_scale / self.accumulate,
            buffers,
            parameters,
            others,
        )
        self._await(buffers, reached)
        return loss

    def _eager_update(self, buffers: GradientBuffers) -> None:
        trained = {p: t for p, (_, t) in self._parameter_groups().items()}
        self.grad_norm = eager_update(
            self.optimizer, buffers, trained, self.clip_grad_norm, self.clip_grad_value
        )
        self.zero_grad()

    def _await(self, buffers: GradientBuffers, reached: tuple[str, ...], calls: int = 1) -> None:
        """Notes that the buffers hold the gradients of so many more backward passes."""
        buffers.count += calls
        buffers.reached = reached
        self._waiting = buffers

    def _check_waiting(self, buffers: GradientBuffers, reached: tuple[str, ...] | None) -> None:
        """RuntimeError if gradients of other parameters wait than those to be added."""
        waiting = self._waiting
        if waiting is None or (waiting is buffers and reached in (None, waiting.reached)):
            return
        raise RuntimeError(
            f"gradients of {waiting.count} call(s) wait for an update, and they are of other "
            "parameters than those that this call trains: parameters were frozen, thawed or "
            "exchanged. Call update() or zero_grad() before that"
        )
