"""CompiledModule: what ``compile(model)`` returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import compiler
from ..compiler import Compilation, Options
from ..frontend import autograd, dispatch, grad_mode
from ..frontend.nn.module import Module
from ..frontend.tensor import Tensor
from ..runtime import settings
from .call import Call
from .fingerprint import Fingerprint
from .gradients import LazyBackward, TrainingVariant, Wanted, run_training
from .inspection import Inspection
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
        if dispatch.tracer is not None or settings.disabled():
            return self._model(*call.args, **call.kwargs)
        if not call.leaves:
            raise TypeError(
                f"{type(self._model).__name__}: a compiled model needs at least one tensor or "
                "numpy array as an argument"
            )
        wanted = self._wanted(call) if grad_mode.is_grad_enabled() else {}
        if wanted and self._model.training:
            return self._train(call, wanted)
        variant = self._variant("eval", (), call, _compile_inference, Variant)
        if wanted and not variant.repeatable:
            return self._train(call, wanted)
        arrays = self._run(variant, call)
        if not wanted:
            self._look_for_shortcut(variant, call)
            return variant.assemble({k: dispatch.wrap(a) for k, a in arrays.items()})
        lazy = LazyBackward(self._later_training_variant(call, wanted), call, wanted)
        return variant.assemble(_recorded(lazy, arrays))

    def _look_for_shortcut(self, variant: Variant, call: Call) -> None:
        """Makes a shortcut when a call repeats the shapes of the one before."""
        own = self.__dict__
        before, own["_last_call"] = own["_last_call"], (variant, call.shapes())
        if before is not None and before[0] is variant and before[1] == call.shapes():
            own["_shortcut"] = shortcut_for(variant, call, variant.batch(call.leaves))

    def _train(self, call: Call, wanted: Wanted) -> Any:
        """Forward that keeps what backward needs."""
        training = self._training_variant(call, wanted)
        n = training.batch(call.leaves)
        function, arrays = run_training(training, n, call, wanted)
        return training.assemble(_recorded(function, arrays))

    def _run(self, variant: Variant, call: Call) -> dict[str, np.ndarray]:
        n = variant.batch(call.leaves)
        inputs = variant.inputs(call.leaves)
        version = variant.state.sync()
        results = variant.outputs(n)
        variant.executable.run(n, inputs, results, version)
        variant.state.committed()
        return results

    def _wanted(self, call: Call) -> Wanted:
        wanted: Wanted = {i: t for i, t in enumerate(call.leaves) if t.requires_grad}
        wanted.update(self._fingerprint.trained)
        return wanted

    def _training_variant(self, call: Call, wanted: Wanted) -> TrainingVariant:
        needs = tuple(wanted)
        build = partial(_compile_training, needs=needs)
        return self._variant("train", needs, call, build, TrainingVariant)

    def _later_training_variant(
        self, call: Call, wanted: Wanted
    ) -> Callable[[], TrainingVariant]:
        """The training variant for the modes of now, to be made when backward runs."""
        modes = self._fingerprint.modes

        def make() -> TrainingVariant:
            with self._compile_lock, _in_modes(modes):
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
        variant = find(self._variants, general, call)
        if variant is not None:
            return variant
        with self._compile_lock:
            variant = find(self._variants, general, call)
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
                keep(self._variants, general, call, variant)
                compiler.warn(self._fingerprint.lint(fingerprint), self._warned)
                self._tell(variant)
        return variant


@contextmanager
def _in_modes(modes: list[tuple[Module, bool]]) -> Iterator[None]:
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


def _compile_training(
    made: Compilation, options: Options, needs: tuple[str | int, ...]
) -> None:
    wrt = {made.traced.inputs[k] if isinstance(k, int) else k for k in needs}
    compiler.compile_training(made, wrt, options)


def _recorded(function: Any, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The results as tensors whose gradients ``function`` computes."""
    tensors = autograd.record(function, list(arrays.values()))
    return dict(zip(arrays, tensors, strict=True))
