"""CompiledStep: forward, loss, backward and update as one native call."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import compiler
from ..compiler import Compilation, Options
from ..errors import ShapeError, TraceError
from ..frontend import dispatch
from ..frontend.nn.module import Module
from ..frontend.optim.optimizer import Optimizer
from ..frontend.tensor import Tensor
from ..passes.apply_optimizer import Update, hyper_path, state_path
from ..passes.lint import lint_gradients
from ..runtime import settings
from .call import Call
from .fingerprint import Fingerprint
from .inspection import Inspection
from .module import CompiledModule
from .profile import Profile
from .profiler import check_enabled, measure
from .variant import Variant, find, keep

Loss = Callable[[Any, Any], Tensor]


class CompiledStep(Inspection):
    """``loss = step(x, target)``: one training step.

    The last argument is the target, the others go to the model. Returns the loss of the batch
    before the update as a 0-d tensor. Parameters, buffers and the optimizer's state are updated in
    place; learning rate and other hyper-parameters are read from the optimizer at every call.
    ``.grad`` of the parameters is not touched.
    """

    def __init__(self, model: Module, loss: Loss, optimizer: Optimizer, options: Options) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self._options = options
        self._variants: dict[Any, StepVariant] = {}
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        self._predict = CompiledModule(model, options)
        self._roots = {"": model}
        if isinstance(loss, Module):
            self._roots["loss"] = loss
        self._fingerprint = Fingerprint(*self._roots.values())
        self._parameter_groups()

    def predict(self, *args: Any) -> Any:
        """The model's result in eval mode, compiled, without gradients."""
        from ..frontend.grad_mode import no_grad

        modes = [(m, m.training) for m in self.model.modules()]
        self.model.eval()
        try:
            with no_grad():
                return self._predict(*args)
        finally:
            for module, training in modes:
                module.training = training

    def __call__(self, *args: Any) -> Tensor:
        _check_count(args)
        if settings.disabled():
            return self._eager(args)
        call = Call(args, {})
        variant = self._variant(call)
        results = variant.run(call.leaves, variant.numbers(self.optimizer))
        variant.state.committed()
        self.optimizer.advance(variant.updated)
        return dispatch.wrap(results["out"])

    def profile(self, *args: Any, seconds: float = 2.0) -> Profile:
        """How long each kernel of ``step(*args)`` takes, from about ``seconds`` of runs.

        Nothing is trained: the runs work on copies of parameters, buffers and optimizer state.
        ``print`` the result for a table; docs/profiling.md explains it. Raises NetwrightError if
        NETWRIGHT_DISABLE is set.
        """
        _check_count(args)
        check_enabled()
        variant = self._variant(Call(args, {}))
        variant.numbers(self.optimizer)
        variant.state.sync()

        def run() -> None:
            call = Call(args, {})
            found = self._variant(call)
            found.run(call.leaves, found.numbers(self.optimizer))

        n = variant.batch(Call(args, {}).leaves)
        return measure(variant.made, {"optimized": "step"}, run, n, "step", seconds)

    def _eager(self, args: tuple[Any, ...]) -> Tensor:
        call = Call(args, {})
        self.optimizer.zero_grad()
        loss = self.loss(self.model(*call.args[:-1]), call.args[-1])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    # -- compilation -------------------------------------------------------------------------

    def _parameter_groups(self) -> dict[str, tuple[int, Tensor]]:
        """Every trained parameter's path, its group in the optimizer, and its tensor."""
        paths = {
            id(p): (f"{prefix}.{name}" if prefix else name)
            for prefix, root in self._roots.items()
            for name, p in root.named_parameters()
        }
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

    def _variant(self, call: Call) -> StepVariant:
        found = self._fingerprint
        general = (
            found.value,
            tuple(found.trained),
            self.optimizer.structure(),
            call.key(not self._options.dynamic),
        )
        variant = find(self._variants, general, call)
        if variant is None:
            with self._lock:
                variant = self._compile(call)
                keep(self._variants, general, call, variant)
                compiler.warn(found.lint(general[0]), self._warned)
                self._tell(variant)
        return variant

    def _compile(self, call: Call) -> StepVariant:
        groups = {
            path: (index, p) for path, (index, p) in self._parameter_groups().items()
            if p.requires_grad
        }
        if not groups:
            raise RuntimeError(
                "element 0 of tensors does not require grad and does not have a grad_fn: every "
                "parameter of the optimizer is frozen; call requires_grad_() on those to train"
            )
        program = _program(self.model, self.loss)
        name = type(self.model).__name__ + "_step"
        made = compiler.capture(
            program, self._roots, call.args, {}, self._options, name, self._warned
        )
        _check_loss(made)
        updates = [
            Update(
                path,
                index,
                self.optimizer.update_rule(index),
                self.optimizer.state_names(index),
                tuple(self.optimizer.hyper(index, p)),
            )
            for path, (index, p) in groups.items()
        ]
        compiler.compile_step(made, updates, self._options)
        reached = made.stages["optimized"].updates
        warnings = lint_gradients(made.traced.graph, [u.path for u in updates], reached)
        compiler.warn(warnings, self._warned)
        return StepVariant(made, self.optimizer, updates, groups)


class StepVariant(Variant):
    """A compiled step bound to the optimizer's state."""

    mode = "step"

    def __init__(
        self,
        made: Compilation,
        optimizer: Optimizer,
        updates: list[Update],
        groups: dict[str, tuple[int, Tensor]],
    ) -> None:
        graph = made.stages["optimized"]
        used = [u for u in updates if u.path in graph.updates]
        self.updated = [groups[u.path][1] for u in used]
        extra = {
            state_path(u.path, name): optimizer.state_tensor(groups[u.path][1], name)
            for u in used
            for name in u.state
        }
        super().__init__(made, extra)
        self._optimizer_tensors = [
            (state_path(u.path, name), groups[u.path][1], name) for u in used for name in u.state
        ]
        self._numbers: dict[int, dict[str, np.ndarray]] = {}
        self._leaders = {u.group: groups[u.path][1] for u in reversed(used)}
        for index, leader in self._leaders.items():
            self._numbers[index] = {}
            for name in optimizer.hyper(index, leader):
                for path in (hyper_path(index, name), hyper_path(index, name) + ".f64"):
                    if path in self._inputs:
                        array = np.zeros((), self._inputs[path].dtype.np)
                        self._numbers[index][path] = array

    def numbers(self, optimizer: Optimizer) -> dict[str, np.ndarray]:
        """The hyper-parameters of the coming step as inputs; follows exchanged state tensors."""
        for path, parameter, name in self._optimizer_tensors:
            tensor = optimizer.state_tensor(parameter, name)
            self.state.exchange(path, tensor)
        optimizer.check_equal_steps(self.updated)
        found: dict[str, np.ndarray] = {}
        for index, leader in self._leaders.items():
            values = optimizer.hyper(index, leader)
            for path, array in self._numbers[index].items():
                name = path.removeprefix(hyper_path(index, "")).removesuffix(".f64")
                array[...] = values[name]
                found[path] = array
        return found


def _check_count(args: tuple[Any, ...]) -> None:
    if len(args) < 2:
        raise TypeError(
            "a compiled step takes the model's inputs and then the target: step(x, target); "
            f"got {len(args)} argument(s)"
        )


def _check_loss(made: Compilation) -> None:
    graph = made.traced.graph
    if list(graph.outputs) != ["out"]:
        raise TraceError(
            f"the loss must return one tensor, it returned {', '.join(graph.outputs)}"
        )
    kind = graph.type(graph.outputs["out"])
    if kind.shape:
        raise ShapeError(
            f"the loss must be a scalar, it is {kind}; use reduction='mean' or 'sum'"
        )


def _program(model: Module, loss: Loss) -> Callable[..., Tensor]:
    """``loss(model(*inputs), target)`` with the model's argument names."""

    def step(*args: Any) -> Tensor:
        return loss(model(*args[:-1]), args[-1])

    names = [
        p.replace(kind=inspect.Parameter.POSITIONAL_ONLY, annotation=inspect.Parameter.empty)
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    variadic = any(
        p.kind is p.VAR_POSITIONAL for p in inspect.signature(model.forward).parameters.values()
    )
    if not variadic:
        target = inspect.Parameter("target", inspect.Parameter.POSITIONAL_ONLY)
        names = [p.replace(default=inspect.Parameter.empty) for p in names]
        step.__signature__ = inspect.Signature([*names, target])  # type: ignore[attr-defined]
    return step
