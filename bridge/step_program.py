"""The Python program that a step traces: ``loss(model(*inputs), target)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..compilation import Compilation
from ..errors import ShapeError, TraceError
from ..frontend.nn.module import Module
from ..frontend.tensor import Tensor

Loss = Callable[[Any, Any], Tensor]

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_arguments(args: tuple[Any, ...]) -> None:
    """TypeError unless there are inputs and a target."""
    if len(args) < 2:
        raise TypeError(
            "a compiled step takes the model's inputs and then the target: step(x, target); "
            f"got {len(args)} argument(s)"
        )


def check_loss(made: Compilation) -> None:
    """TraceError or ShapeError unless the program's result is one scalar."""
    graph = made.traced.graph
    if list(graph.outputs) != ["out"]:
        raise TraceError(f"the loss must return one tensor, it returned {', '.join(graph.outputs)}")
    kind = graph.type(graph.outputs["out"])
    if kind.shape:
        raise ShapeError(f"the loss must be a scalar, it is {kind}; use reduction='mean' or 'sum'")


def step_program(model: Module, loss: Loss, inputs: int) -> Callable[..., Tensor]:
    """``f(*inputs, target, **kwargs)``: the loss of the model's result for ``inputs`` positional
    arguments. Its signature has the names of the model's arguments."""

    def step(*args: Any, **kwargs: Any) -> Tensor:
        return loss(model(*args[:-1], **kwargs), args[-1])

    parameters = list(inspect.signature(model.forward).parameters.values())
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        step.__signature__ = _signature(parameters, inputs)  # type: ignore[attr-defined]
    return step


def _signature(parameters: list[inspect.Parameter], inputs: int) -> inspect.Signature:
    """The model's first ``inputs`` parameters, the target, the model's others by keyword."""
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    positional = [p for p in plain if p.kind in _BY_POSITION]
    names = {p.name for p in plain}
    target = next(t for t in ("target", "target_", "target__") if t not in names)
    first = [
        p.replace(kind=inspect.Parameter.POSITIONAL_ONLY, default=inspect.Parameter.empty)
        for p in positional[:inputs]
    ]
    rest = [
        p if p.kind is p.VAR_KEYWORD else p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in (*positional[inputs:], *(p for p in plain if p.kind not in _BY_POSITION))
    ]
    last = inspect.Parameter(target, inspect.Parameter.POSITIONAL_ONLY)
    return inspect.Signature([*first, last, *rest])
