"""CompiledStep: forward, loss, backward and update as one native call, or in two parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..compiler import Options
from ..frontend import dispatch, grad_mode
from ..frontend.nn.module import Module
from ..frontend.optim.optimizer import Optimizer
from ..frontend.tensor import Tensor
from ..passes.clip_gradients import NORM
from ..runtime import settings
from .call import Call
from .eager_step import eager_gradients, eager_update
from .gradient_buffers import GradientBuffers
from .interrupts import uninterrupted
from .module import CompiledModule
from .profile import Profile
from .profiler import check_enabled, measure
from .step_program import Loss, check_arguments
from .step_programs import StepPrograms
from .step_settings import StepSettings
from .step_variants import UpdatingVariant


class CompiledStep(StepSettings, StepPrograms):
    """``loss = step(x, target)``: one training step.

    The last positional argument is the target, the other ones and those by keyword go to the
    model. Returns the loss of the batch before the update as a 0-d tensor. Parameters, buffers and
    the optimizer's state are updated in place; learning rate and other hyper-parameters are read
    from the optimizer at every call. ``.grad`` of the parameters is not touched.

    The two halves of a step are ``gradients(x, target)`` and ``update()``; docs/training.md tells
    more. A KeyboardInterrupt takes effect between steps, never inside of one.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        options: Options,
        accumulate: int = 1,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
    ) -> None:
        StepSettings.__init__(self, accumulate, clip_grad_norm, clip_grad_value)
        StepPrograms.__init__(self, model, loss, optimizer, options)
        self.grad_norm: Tensor | None = None
        self._predict = CompiledModule(model, options)
        self._waiting: GradientBuffers | None = None

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result in eval mode, compiled, without gradients."""
        modes = [(m, m.training) for m in self.model.modules()]
        self.model.eval()
        try:
            with grad_mode.no_grad():
                return self._predict(*args, **kwargs)
        finally:
            for module, training in modes:
                module.training = training

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        check_arguments(args)
        with uninterrupted():
            if self.in_halves or self._waiting is not None or settings.disabled():
                loss = self.gradients(*args, **kwargs)
                if self.accumulated >= self.accumulate:
                    self.update()
                return loss
            call = Call(args, kwargs)
            variant = self._step_variant(call, self.clip)
            numbers = variant.numbers(self.optimizer, self.limits)
            results = variant.run(call.leaves, numbers)
            self._updated(variant, results)
            return dispatch.wrap(results["out"])

    # -- the two halves ------------------------------------------------------------------------

    def gradients(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward, loss and backward, without update: the loss as a 0-d tensor.

        The gradients of ``loss * gradient_scale / accumulate`` are added to those that wait in
        ``grads``. Running statistics are updated. Raises RuntimeError if gradients of other
        parameters wait: some were frozen or thawed since.
        """
        check_arguments(args)
        with uninterrupted():
            call = Call(args, kwargs)
            scale = self.gradient_scale / self.accumulate
            if settings.disabled():
                loss, buffers, reached = self._eager_gradients(call, scale)
            else:
                variant = self._gradient_variant(call, self._waiting)
                _check_same(self._waiting, variant.buffers, variant.reached)
                results = variant.run(call.leaves, variant.numbers(scale))
                variant.state.committed()
                loss = dispatch.wrap(results["out"])
                buffers, reached = variant.buffers, variant.reached
            buffers.count += 1
            buffers.reached = reached
            self._waiting = buffers
            return loss

    def update(self) -> None:
        """Clips the gradients in ``grads`` and lets the optimizer apply them; then none wait.

        Does nothing if none do, so that it may follow the last batches of an epoch that are fewer
        than ``accumulate``.
        """
        with uninterrupted():
            buffers = self._waiting
            if buffers is None:
                return
            if settings.disabled():
                trained = {p: t for p, (_, t) in self._parameter_groups().items()}
                self.grad_norm = eager_update(
                    self.optimizer, buffers, trained, self.clip_grad_norm, self.clip_grad_value
                )
            elif buffers.reached:
                variant = self._update_variant(buffers, self.clip)
                numbers = variant.numbers(self.optimizer, self.limits)
                self._updated(variant, variant.run((), numbers))
            self.zero_grad()

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

    def profile(self, *args: Any, seconds: float = 2.0, **kwargs: Any) -> Profile:
        """How long each kernel of ``step(*args)`` takes, from about ``seconds`` of runs.

        Nothing is trained: the runs work on copies of parameters, buffers and optimizer state.
        ``print`` the result for a table; docs/profiling.md explains it. Raises NetwrightError if
        NETWRIGHT_DISABLE is set.
        """
        check_arguments(args)
        check_enabled()
        variant = self._step_variant(Call(args, kwargs), self.clip)
        variant.numbers(self.optimizer, self.limits)
        variant.state.sync()

        def run() -> None:
            call = Call(args, kwargs)
            found = self._step_variant(call, self.clip)
            found.run(call.leaves, found.numbers(self.optimizer, self.limits))

        n = variant.batch(Call(args, kwargs).leaves)
        return measure(variant.made, {"optimized": "step"}, run, n, "step", seconds)

    def _updated(self, variant: UpdatingVariant, results: Mapping[str, np.ndarray]) -> None:
        """Notes what a run of a program with an update has done."""
        variant.state.committed()
        self.optimizer.advance(variant.updated)
        self.grad_norm = dispatch.wrap(results[NORM]) if NORM in results else None

    def _eager_gradients(
        self, call: Call, scale: float
    ) -> tuple[Tensor, GradientBuffers, tuple[str, ...]]:
        trained = self._trained()
        parameters = {path: p for path, (_, p) in trained.items()}
        buffers = self._buffers_for(parameters, reversed(parameters))
        _check_same(self._waiting, buffers, None)
        others = [p for root in self._roots.values() for p in root.parameters()]
        loss, reached = eager_gradients(
            lambda: self.loss(self.model(*call.args[:-1], **call.kwargs), call.args[-1]),
            scale,
            buffers,
            parameters,
            others,
        )
        return loss, buffers, reached


def _check_same(
    waiting: GradientBuffers | None, buffers: GradientBuffers, reached: tuple[str, ...] | None
) -> None:
    """RuntimeError if gradients of other parameters are waiting than those to be added."""
    if waiting is None or (waiting is buffers and reached in (None, waiting.reached)):
        return
    raise RuntimeError(
        f"gradients of {waiting.count} call(s) wait for an update, and they are of other "
        "parameters than those that this call trains: parameters were frozen, thawed or exchanged. "
        "Call update() or zero_grad() before that"
    )
