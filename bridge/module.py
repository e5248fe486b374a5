"""CompiledModule: what ``compile(model)`` returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import compiler
from ..compilation import Compilation
from ..compiler import Options
from ..frontend import autograd, dispatch, grad_mode
from ..frontend.nn.module import Module
from ..frontend.tensor import Tensor
from ..runtime import settings
from .call import Call
from .fingerprint import Fingerprint
from .gradients import LazyBackward, TrainingVariant, Wanted, run_saving, run_training
from .inspection import Inspection
from .profile import Profile
from .profiler import check_enabled, measure
from .shortcut import shortcut_for
from .variant import Variant, find, keep


class CompiledModule(Inspection, Module):
    """A module that runs compiled code.

    It shares parameters, buffers, submodules and the training flag with the module it was made
    from, so ``parameters()``, ``state_dict()``, ``train()`` and ``eval()`` act on both. Each new
    combination of mode, dtypes and shapes (the batch size apart) compiles once.
    """

    def __init__(self, model: Module, options: Options) -> None:
        own = self.__dict__
        own["_model"] = model
        own["_options"] = options
        own["_fingerprint"] = Fingerprint(model)
        own["_variants"] = {}
        own["_shortcut"] = None
        own["_last_call"] = None
        own["_warned"] = set()
        own["_compile_lock"] = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        if name == "_model":
            raise AttributeError(name)
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._model, name)

    def __len__(self) -> int:
        return len(self._model)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._model)

    def __getitem__(self, index: Any) -> Any:
        return self._model[index]

    def __repr__(self) -> str:
        return f"Compiled({self._model!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made of the model and the options; they compile for themselves."""
        return type(self), (self._model, self._options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The model's hooks are part of the traced program; Module.__call__ would run them again.
        shortcut = self._shortcut
        if shortcut is not None and not kwargs:
            result = shortcut(args)
            if result is not None:
                return result
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result, from native code."""
        call = Call(args, kwargs)
        if dispatch.current.tracer is not None or settings.disabled():
            return self._model(*call.args, **call.kwargs)
        variant, wanted = self._choose(call)
        if isinstance(variant, TrainingVariant):
            # Forward that keeps what backward needs.
            n = variant.batch(call.leaves)
            function, arrays = run_training(variant, n, call, wanted)
            return variant.assemble(_recorded(function, arrays), n)
        n = variant.batch(call.leaves)
        arrays = variant.run(call.leaves)
        variant.state.committed()
        if not wanted:
            self._look_for_shortcut(variant, call)
            return variant.assemble({k: dispatch.wrap(a) for k, a in arrays.items()}, n)
        lazy = LazyBackward(self._later_training_variant(call, wanted), call, wanted)
        return variant.assemble(_recorded(lazy, arrays), n)

    def compile_for(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what a call with these arguments would run now, and runs nothing; ``memory(n)``,
        ``graph()`` and ``explain()`` then speak of it. Raises what such a call would."""
        check_enabled("compile_for")
        self._choose(Call(args, kwargs))

    def profile(self, *args: Any, seconds: float = 2.0, **kwargs: Any) -> Profile:
        """How long each kernel of ``self(*args, **kwargs)`` takes, from about ``seconds`` of runs.

        What is profiled is what the call would do now: in train mode with gradients enabled,
        forward and backward (of the sum of the results). Nothing changes: running statistics are
        updated in copies. ``print`` the result for a table; docs/profiling.md explains it. Raises
        NetwrightError if NETWRIGHT_DISABLE is set.
        """
        check_enabled()
        call = Call(args, kwargs)
        variant, wanted = self._choose(call)
        n = variant.batch(call.leaves)
        variant.state.sync()
        if not isinstance(variant, TrainingVariant):

            def run() -> None:
                call = Call(args, kwargs)
                arrays = self._choose(call)[0].run(call.leaves)
                variant.assemble({k: dispatch.wrap(a) for k, a in arrays.items()}, n)

            return measure(variant.made, {"optimized": variant.mode}, run, n, variant.mode, seconds)
        training = variant
        training.backward.state.sync()

        def run_both() -> None:
            call = Call(args, kwargs)
            function, arrays = run_saving(training, n, call, wanted)
            function.backward(*map(np.ones_like, arrays.values()))

        phases = {"optimized": "forward", "backward": "backward"}
        return measure(training.made, phases, run_both, n, "train", seconds)

    def _look_for_shortcut(self, variant: Variant, call: Call) -> None:
        """Makes a shortcut when a call repeats the shapes of the one before."""
        own = self.__dict__
        before, own["_last_call"] = own["_last_call"], (variant, call.shapes())
        if before is not None and before[0] is variant and before[1] == call.shapes():
            own["_shortcut"] = shortcut_for(variant, call, variant.batch(call.leaves))

    def _choose(self, call: Call) -> tuple[Variant, Wanted]:
        """The program for a call in the modes of now, and what needs a gradient."""
        if not call.leaves:
            given = [*call.args, *call.kwargs.values()]
            kinds = ", ".join(type(a).__name__ for a in given) or "nothing"
            raise TypeError(
                f"{type(self._model).__name__}: a compiled model needs at least one netwright "
                f"tensor or numpy array as an argument, got {kinds}; make one with "
                "nw.tensor(...)"
            )
        wanted = self._wanted(call) if grad_mode.is_grad_enabled() else {}
        if wanted and self._model.training:
            return self._training_variant(call, wanted), wanted
        variant: Variant = self._variant("eval", (), call, _compile_inference, Variant)
        if wanted and not variant.repeatable:
            return self._training_variant(call, wanted), wanted
        return variant, wanted

    def _wanted(self, call: Call) -> Wanted:
        wanted: Wanted = {i: t for i, t in enumerate(call.leaves) if t.requires_grad}
        wanted.update(self._fingerprint.trained)
        return wanted

    def _training_variant(self, call: Call, wanted: Wanted) -> TrainingVariant:
        needs = tuple(wanted)
        build = partial(_compile_training, needs=needs)
        return self._variant("train", needs, call, build, TrainingVariant)

    def _later_training_variant(self, call: Call, wanted: Wanted) -> Callable[[], TrainingVariant]:
        """The training variant for the modes of now, to be made when backward runs."""
        modes = self._fingerprint.modes

        def make() -> TrainingVariant:
            with self._compile_lock, in_modes(modes):
                return self._training_variant(call, wanted)

        return make

    def _variant(
        self,
        mode: str,
        detail: Any,
        call: Call,
        build: Callable[[Compilation, Options], None],
        kind: Callable[[Compilation], Any],
    ) -> Any:
        """The compilation for this call, made if it is new."""
        fingerprint = self._fingerprint.value
        general = (mode, fingerprint, detail, call.key(not self._options.dynamic))
        variant = find(self._variants, general, call, self._warned)
        if variant is not None:
            return variant
        with self._compile_lock:
            variant = find(self._variants, general, call, self._warned)
            if variant is None:
                name = type(self._model).__name__
                made = compiler.capture(
                    self._model,
                    {"": self._model},
                    call.args,
                    call.kwargs,
                    self._options,
                    name,
                    self._warned,
                )
                build(made, self._options)
                variant = kind(made)
                training = any(m.training for m in self._model.modules())
                variant.mode = "forward" if mode == "eval" and training else mode
                keep(self._variants, general, call, variant, self._warned)
                compiler.warn(self._fingerprint.lint(fingerprint), self._warned)
                self._tell(variant)
        return variant


@contextmanager
def in_modes(modes: Iterable[tuple[Module, bool]]) -> Iterator[None]:
    """Sets the modules' training flags; afterwards they are what they were before."""
    changed = [(module, mode) for module, mode in modes if module.training != mode]
    for module, mode in changed:
        module.training = mode
    try:
        yield
    finally:
        for module, mode in changed:
            module.training = not mode


def _compile_inference(made: Compilation, options: Options) -> None:
    compiler.compile_inference(made, options)


def _compile_training(made: Compilation, options: Options, needs: tuple[str | int, ...]) -> None:
    wrt = {made.traced.inputs[k] if isinstance(k, int) else k for k in needs}
    compiler.compile_training(made, wrt, options)


def _recorded(function: Any, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The results as tensors whose gradients ``function`` computes."""
    tensors = autograd.record(function, list(arrays.values()))
    return dict(zip(arrays, tensors, strict=True))
