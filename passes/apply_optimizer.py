"""Adds the optimizer's update of every parameter to a differentiated graph.

Before::

    output "grad:weight" = %dw

After::

    %lr: f32[] = input {path="opt.0.lr"}
    %step: f32[2,4] = mul(%dw, %lr)
    %new: f32[2,4] = sub(%weight, %step)
    update "weight" = %new

The rule is the optimizer's own, written in the IR's operators, so eager and compiled training
compute the same. Hyper-parameters are inputs: a scheduler changes them without compiling again.
If the optimizer counts steps, the graph does, so that a call changes weights and counts at once::

    %steps: f32[2] = buffer {path="opt.0.steps"}
    %counted: f32[2] = add(%steps, 1.0)
    update "opt.0.steps" = %counted

Skips: parameters without a gradient; they are not touched, as in eager training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.builder import GraphBuilder
from ..ir.graph import NOWHERE, Graph
from ..ir.types import TensorType, float32
from .differentiate import GRAD
from .number_inputs import Numbers

Rule = Callable[..., tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Update:
    """How one parameter is updated.

    rule: ``(b, param, grad, state, hyper) -> (new param, new state)``; state: names of the
    optimizer's buffers for this parameter (each of the parameter's type); hyper: names of the
    numbers of parameter group ``group``; counts: whether the optimizer counts its steps.
    """

    path: str
    group: int
    rule: Rule
    state: Sequence[str]
    hyper: Sequence[str]
    counts: bool = False


def state_path(parameter: str, name: str) -> str:
    """Path of an optimizer buffer in the graph."""
    return f"opt.{parameter}.{name}"


def hyper_path(group: int, name: str) -> str:
    """Path of a hyper-parameter's input."""
    return f"opt.{group}.{name}"


def steps_path(group: int) -> str:
    """Path of the counts of steps of a group's updated parameters, one float32 vector."""
    return f"opt.{group}.steps"


def apply_optimizer(graph: Graph, updates: Sequence[Update]) -> Graph:
    """The graph with updates of parameters and optimizer state instead of ``grad:`` outputs."""
    new = graph.copy()
    builder = GraphBuilder(new)
    parameters = {n.attrs["path"]: n for n in new.sources("parameter")}
    numbers = Numbers(new)
    counted: Counter[int] = Counter()
    for update in updates:
        grad = new.outputs.get(GRAD + update.path)
        if grad is None:
            continue
        node = parameters[update.path]
        builder.source = node.source
        hyper = {
            h: numbers.get(hyper_path(update.group, h), h, node.type.dtype) for h in update.hyper
        }
        state = {
            s: new.add(
                "buffer",
                name=f"{s}_{node.name}",
                source=node.source,
                path=state_path(update.path, s),
                type=node.type,
            )
            for s in update.state
        }
        value, next_state = update.rule(builder, node.value, grad, state, hyper)
        new.updates[update.path] = value
        for name, result in next_state.items():
            new.updates[state_path(update.path, name)] = result
        if update.counts:
            counted[update.group] += 1
    builder.source = NOWHERE
    for group, size in counted.items():
        path = steps_path(group)
        kind = TensorType(float32, (size,))
        steps = new.add("buffer", name=f"steps_{group}", path=path, type=kind)
        new.updates[path] = builder.add(steps, 1.0)
    new.outputs = {k: v for k, v in new.outputs.items() if not k.startswith(GRAD)}
    return new
