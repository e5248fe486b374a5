"""Finds or compiles the programs of a step: the whole, and its halves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import compiler
from ..compilation import Compilation
from ..compiler import Clip, Options
from ..errors import UnsupportedError
from ..frontend.nn.module import Module
from ..frontend.optim.optimizer import Optimizer
from ..frontend.tensor import Tensor
from ..passes.apply_optimizer import Update
from ..passes.lint import lint_gradients
from ..runtime import settings
from .call import Call
from .evaluation import evaluation_program
from .fingerprint import Fingerprint
from .gradient_buffers import GradientBuffers, ready_order
from .inspection import Inspection
from .step_program import Loss, check_loss, step_program
from .step_variants import GradientVariant, Groups, UpdatingVariant
from .variant import Variant, find, keep


class StepPrograms(Inspection):
    """The programs of a model, a loss and an optimizer, each compiled when it is first needed."""

    def __init__(self, model: Module, loss: Loss, optimizer: Optimizer, options: Options) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self._options = options
        self._variants: dict[Any, Any] = {}
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        self._roots = {"": model}
        if isinstance(loss, Module):
            self._roots["loss"] = loss
        self._fingerprint = Fingerprint(*self._roots.values())
        self._buffers: list[GradientBuffers] = []
        self._parameter_groups()

    def _parameter_groups(self) -> Groups:
        """Every parameter of the optimizer: its path, its group, and its tensor."""
        paths: dict[int, str] = {}
        for prefix, root in self._roots.items():
            for path, parameter in root.named_parameters(prefix):
                paths.setdefault(id(parameter), path)  # as a trace names what both have
        groups: dict[str, tuple[int, Tensor]] = {}
        for index, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in paths:
                    raise ValueError(
                        f"the optimizer has a parameter of shape {tuple(parameter.shape)} that "
                        "belongs neither to the model nor to the loss; make the optimizer from "
                        "model.parameters()"
                    )
                groups[paths[id(parameter)]] = (index, parameter)
        if not groups:
            raise ValueError("the optimizer has no parameters of this model")
        return groups

    def _trained(self) -> Groups:
        """Those of the optimizer's parameters that require a gradient."""
        groups = {k: v for k, v in self._parameter_groups().items() if v[1].requires_grad}
        if not groups:
            raise RuntimeError(
                "element 0 of tensors does not require grad and does not have a grad_fn: every "
                "parameter of the optimizer is frozen; call requires_grad_() on those to train"
            )
        return groups

    def _buffers_for(
        self, parameters: Mapping[str, Tensor], order: Iterable[str]
    ) -> GradientBuffers:
        """Buffers for the gradients of these parameters: always the same for the same ones."""
        found = next((b for b in self._buffers if b.fits(parameters)), None)
        if found is None:
            found = GradientBuffers(order, parameters)
            self._buffers.append(found)
        return found

    # -- programs ------------------------------------------------------------------------------

    def _step_variant(self, call: Call, clip: Clip) -> UpdatingVariant:
        """The program for a whole step."""
        general = self._general(("step", self.optimizer.structure(), clip), call)
        variant: UpdatingVariant | None = find(self._variants, general, call, self._warned)
        if variant is None:
            with self._compiling():
                groups = self._trained()
                made = self._captured_step(call)
                updates = self._updates(groups)
                compiler.compile_step(made, updates, clip, self._options)
                self._lint_unreached(made, groups, made.stages["optimized"].updates)
                variant = UpdatingVariant("step", made, self.optimizer, updates, groups)
                keep(self._variants, general, call, variant, self._warned)
                self._tell(variant)
        return variant

    def _gradient_variant(
        self, call: Call, waiting: GradientBuffers | None, bucket_bytes: int | None = None
    ) -> GradientVariant:
        """The program that replaces gradients or, if some are ``waiting``, adds to them.
        bucket_bytes: size of the buckets between which it is cut; None for no cut."""
        add = waiting is not None
        mode = ("gradients", add, bucket_bytes, tuple(self._parameter_groups()))
        general = self._general(mode, call)
        variant: GradientVariant | None = find(self._variants, general, call, self._warned)
        if variant is None:
            with self._compiling():
                groups = self._trained()
                made = self._captured_step(call)
                parameters = {path: p for path, (_, p) in groups.items()}
                order = ready_order(made.traced.graph, parameters)
                buffers = self._buffers_for(parameters, order)
                buckets = [] if bucket_bytes is None else buffers.buckets(bucket_bytes)
                compiler.compile_gradients(made, set(groups), add, self._options, groups=buckets)
                variant = GradientVariant(made, buffers)
                self._lint_unreached(made, groups, variant.reached)
                keep(self._variants, general, call, variant, self._warned)
                self._tell(variant)
        return variant

    def _update_variant(
        self, buffers: GradientBuffers, paths: tuple[str, ...], clip: Clip
    ) -> UpdatingVariant:
        """The program that applies the gradients of the parameters ``paths`` in the buffers."""
        groups = self._parameter_groups()
        gone = [path for path in paths if path not in groups]
        if gone:
            raise RuntimeError(
                f"update(): a gradient of {gone[0]!r} waits, which the optimizer no longer has; "
                "call update() or zero_grad() before parameters are taken out of it"
            )
        reached = {path: groups[path] for path in paths}
        parameters = tuple([(path, index, id(p)) for path, (index, p) in reached.items()])
        key = ("update", self.optimizer.structure(), clip, id(buffers), parameters)
        variant: UpdatingVariant | None = self._variants.get(key)
        if variant is None:
            with self._compiling():
                updates = self._updates(reached)
                tensors = {path: p for path, (_, p) in reached.items()}
                name = type(self.model).__name__ + "_update"
                made = compiler.compile_update(name, tensors, updates, clip, self._options)
                variant = UpdatingVariant("update", made, self.optimizer, updates, reached, buffers)
                self._variants[key] = variant
                self._tell(variant)
        return variant

    def _evaluate_batch(self, call: Call) -> dict[str, Any]:
        """What `evaluation_program` gives for a batch, in the modes of now."""
        program = evaluation_program(self.model, self.loss)
        if settings.disabled():
            return program(*call.args)
        general = self._general("eval", call)
        variant: Variant | None = find(self._variants, general, call, self._warned)
        if variant is None:
            with self._compiling():
                made = self._captured(program, call, "evaluation")
                compiler.compile_inference(made, self._options)
                variant = Variant(made)
                keep(self._variants, general, call, variant, self._warned)
                self._tell(variant)
        return variant.run(call.leaves)

    def _general(self, mode: Any, call: Call) -> tuple[Any, ...]:
        """What a program for calls like this one depends on, the batch size apart."""
        found = self._fingerprint
        if found.hooked and mode != "eval":
            raise UnsupportedError(
                f"the parameter {found.hooked[0]!r} has a hook on its gradient (register_hook), "
                "which a compiled step would not call; remove() it and change step.grads between "
                "step.gradients() and step.update(), or train with loss.backward()"
            )
        return mode, found.value, tuple(found.trained), call.key(not self._options.dynamic)

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """One program at a time; attributes that its trace changes are linted."""
        with self._lock:
            before = self._fingerprint.value
            yield
            compiler.warn(self._fingerprint.lint(before), self._warned)

    def _captured_step(self, call: Call) -> Compilation:
        program = step_program(self.model, self.loss, len(call.args) - 1)
        made = self._captured(program, call, "step")
        check_loss(made)
        return made

    def _captured(self, program: Callable[..., Any], call: Call, name: str) -> Compilation:
        return compiler.capture(
            program,
            self._roots,
            call.args,
            call.kwargs,
            self._options,
            f"{type(self.model).__name__}_{name}",
            self._warned,
        )

    def _updates(self, groups: Groups) -> list[Update]:
        optimizer = self.optimizer
        return [
            Update(
                path,
                index,
                optimizer.update_rule(index),
                optimizer.state_names(index),
                tuple(optimizer.hyper(index, parameter)),
                optimizer.counts_steps,
            )
            for path, (index, parameter) in groups.items()
        ]

    def _lint_unreached(self, made: Compilation, trained: Groups, reached: Iterable[str]) -> None:
        found = lint_gradients(made.traced.graph, list(trained), list(reached))
        compiler.warn(found, self._warned)
