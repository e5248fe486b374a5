"""CompiledStep: forward, loss, backward and update as one native call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..compiler import Options
from ..frontend import dispatch, grad_mode
from ..frontend.nn.module import Module
from ..frontend.optim.optimizer import Optimizer
from ..frontend.random import get_rng_state, set_rng_state
from ..frontend.tensor import Tensor
from ..runtime import settings
from .call import Call
from .evaluation import mean_over_samples
from .interrupts import uninterrupted
from .module import CompiledModule, in_modes
from .profile import Profile
from .profiler import check_enabled, measure
from .step_halves import StepHalves
from .step_program import Loss, check_arguments
from .step_shortcut import StepShortcut, step_shortcut_for
from .step_variants import UpdatingVariant


class CompiledStep(StepHalves):
    """``loss = step(x, target)``: one training step.

    The last positional argument is the target, the other ones and those by keyword go to the
    model. Returns the loss of the batch before the update as a 0-d tensor. Parameters, buffers and
    the optimizer's state are updated in place; learning rate and other hyper-parameters are read
    from the optimizer at every call. ``.grad`` of the parameters is not touched.

    A KeyboardInterrupt takes effect between steps, never inside of one. docs/training.md tells
    more.
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
        super().__init__(
            model, loss, optimizer, options, accumulate, clip_grad_norm, clip_grad_value
        )
        self._predict = CompiledModule(model, options)
        self._shortcut: StepShortcut | None = None
        self._last_call: tuple[UpdatingVariant, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        in_halves = self.in_halves or self._waiting is not None
        shortcut = self._shortcut
        if shortcut is not None and not in_halves and not kwargs:
            loss = shortcut(args, self.clip, self.limits)
            if loss is not None:
                self.grad_norm = shortcut.variant.grad_norm
                return loss
        check_arguments(args)
        call = Call(args, kwargs)
        if in_halves or settings.disabled():
            return self._in_halves(call)
        variant = self._step_variant(call, self.clip)
        with uninterrupted():
            numbers = variant.numbers(self.optimizer, self.limits)
            results = variant.run(call.leaves, numbers)
            self._updated(variant)
        self._look_for_shortcut(variant, call)
        return dispatch.wrap(results["out"])

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", repr(self.loss))
        return f"CompiledStep({type(self.model).__name__}, {loss}, {type(self.optimizer).__name__})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, also by pickle, is of model, loss and optimizer together, with the gradients that
        # wait; it compiles its own programs when it needs them.
        limits = self.clip_grad_norm, self.clip_grad_value
        parts = self.model, self.loss, self.optimizer, self._options, self.accumulate, *limits
        return CompiledStep, parts, (self.gradient_scale, self.grads, self.accumulated)

    def __setstate__(self, state: tuple[float, dict[str, Any], int]) -> None:
        self.gradient_scale, gradients, calls = state
        self._set_gradients(self._checked_gradients(gradients) if calls else {}, calls)

    def _look_for_shortcut(self, variant: UpdatingVariant, call: Call) -> None:
        """Makes a shortcut when a call repeats the shapes of the one before."""
        before, self._last_call = self._last_call, (variant, call.shapes())
        if before is not None and before[0] is variant and before[1] == call.shapes():
            self._shortcut = step_shortcut_for(variant, call, self.optimizer, self.clip)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result in eval mode, compiled, without gradients."""
        with grad_mode.no_grad(), in_modes([(m, False) for m in self.model.modules()]):
            return self._predict(*args, **kwargs)

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """The loss in eval mode over a loader's batches ``(*inputs, target)``, compiled.

        Returns means over all samples, whatever the sizes of the batches: ``loss`` and, if the
        model's result has scores of classes along dimension 1 and the target is of class indices,
        ``accuracy``. The loss must be the mean over the samples of a batch, or, for a loss module
        with ``reduction="sum"``, their sum; targets equal to the loss module's ``ignore_index`` do
        not count. Raises ValueError if there are no samples, TypeError if a batch is no tuple.
        """
        modules = [m for root in self._roots.values() for m in root.modules()]
        with grad_mode.no_grad(), in_modes([(m, False) for m in modules]):
            return mean_over_samples(loader, self._evaluate_batch, self.loss)

    def compile_for(self, *args: Any, **kwargs: Any) -> None:
        """Compiles ``step(*args)`` and trains nothing: ``memory(n)`` then tells what training will
        need at batch size ``n``, before any of it is allocated."""
        check_arguments(args)
        check_enabled("compile_for")
        self._step_variant(Call(args, kwargs), self.clip)

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

    # -- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the coming steps depend on, for ``nw.save``: ``model`` and ``optimizer`` (and
        ``loss``, if it has state), ``rng`` (the default generator, for dropout and shuffling), and
        ``gradients`` that wait for an update, with their number of calls, ``accumulated``.

        The tensors are the model's and the optimizer's own: save or copy them to keep a moment.
        """
        found: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": get_rng_state(),
            "accumulated": self.accumulated,
            "gradients": self.grads,
        }
        if "loss" in self._roots:
            found["loss"] = self._roots["loss"].state_dict()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes back to a state from ``state_dict()``, as it is or as ``nw.load`` returned it: the
        steps that follow are, bit by bit, those that followed then.

        Raises ValueError for anything else, and what the model, the loss and the optimizer raise if
        the state is that of others.
        """
        needed = ("model", "optimizer", "rng", "accumulated", "gradients")
        if not isinstance(state_dict, Mapping):
            raise ValueError(
                "load_state_dict(): expected what a step's state_dict() gives, got "
                f"{type(state_dict).__name__}"
            )
        missing = [key for key in needed if key not in state_dict]
        if missing:
            raise ValueError(
                f"load_state_dict(): no {', '.join(map(repr, missing))}; expected what a step's "
                f"state_dict() gives, with the keys {', '.join(map(repr, needed))}"
            )
        calls = int(state_dict["accumulated"])
        gradients = self._checked_gradients(state_dict["gradients"]) if calls else {}
        self.model.load_state_dict(state_dict["model"])
        if "loss" in self._roots:
            self._roots["loss"].load_state_dict(state_dict.get("loss", {}))
        self.optimizer.load_state_dict(state_dict["optimizer"])
        set_rng_state(state_dict["rng"])
        self._set_gradients(gradients, calls)
