"""One model, one batch, one number of threads: every library's first training step, then times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UnsupportedError
from .. import losses
from ..failure import Failure
from .contest import NETWRIGHT, Say, compete
from .judge import Judge
from .peer import Peer, Ready
from .training import TARGET_SETS, Recipe, Start, Training

if TYPE_CHECKING:
    from ...frontend.nn.module import Module
    from ...frontend.tensor import Tensor
    from ...frontend.trace import Traced

PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "PyTorch", "torch", "pytorch_training:eager"),
        Peer("compile", "torch.compile", "torch", "pytorch_training:compiled"),
    )
}
"""Those that a user's model can be exported to."""

RECIPES = {
    "sgd": Recipe("SGD with momentum", "SGD", {"lr": 1e-3, "momentum": 0.9}),
    "adam": Recipe("Adam", "Adam", {"lr": 1e-3}),
    "adamw": Recipe("AdamW", "AdamW", {"lr": 1e-3}),
}
"""By the names of ``--optimizer``."""


@dataclass(frozen=True)
class _Task:
    """A model in training mode without dropout, traced for one batch, and what a step needs."""

    model: Module
    traced: Traced
    loss: str
    recipe: Recipe
    start: Start

    def in_netwright(self, wide: bool = False) -> Training:
        """A copy of the model itself."""
        from ... import frontend

        model, criterion = copy.deepcopy(self.model), losses.make_loss(self.loss)
        return Training(frontend, model, criterion, self.recipe, self.start, wide)

    def in_pytorch(self, wide: bool = False, **options: Any) -> Training:
        """The exported model. UnsupportedError if PyTorch has no form for it."""
        import torch

        from ...export.pytorch.module import build

        model = build(self.traced, double=wide, training=True)
        criterion = getattr(torch.nn, self.loss)()
        return Training(torch, model, criterion, self.recipe, self.start, wide, **options)


def contest(
    model: Module,
    inputs: Sequence[Tensor],
    loss: str,
    recipe: Recipe,
    peers: Sequence[str],
    threads: int,
    seconds: float,
    say: Say,
) -> dict[str, Any]:
    """Compares loss, gradients, new weights and running statistics of the first step with a
    reference, then times the steps of all that agree, interleaved for ``seconds``.

    model: in training mode, without dropout. Returns a row as docs/cli.md describes it; failures
    are those of the contest in inference.
    """
    from ...ir.report import flops

    task = _task(model, inputs, loss, recipe)
    say(0, len(peers) + 3, "reference")
    judge = _judge(task)
    made: list[Any] = []

    def ours() -> Ready:
        ready, compiled = prepare_compiled_step(task.in_netwright())
        made.append(compiled)
        return ready

    contenders: dict[str, Callable[[], Ready]] = {NETWRIGHT: ours}
    for name in peers:
        if PEERS[name].version() is not None:
            contenders[name] = _peer(name, task, threads)
    found = compete(contenders, judge, threads, seconds, say, PEERS)
    return {
        "threads": threads,
        "gflop": flops(made[0].graph(), len(task.start.inputs[0])) / 1e9,
        "reference": judge.origin,
        "yardstick": judge.yardstick,
        "fallbacks": made[0].fallbacks,
        **found,
    }


def prepare_compiled_step(training: Training) -> tuple[Ready, Any]:
    """One native call per step; the compiled step itself, too."""
    from ...bridge.compile import compile as compile_model

    compiled = compile_model(training.model, loss=training.criterion, optimizer=training.optimizer)

    def step() -> Any:
        return compiled(*training.inputs, training.next_target())

    first = training.found(step())
    return Ready(step, lambda _: first), compiled


def _task(model: Module, inputs: Sequence[Tensor], loss: str, recipe: Recipe) -> _Task:
    """Failure if there is nothing to train; Misuse if the output does not fit the loss."""
    from ...frontend import trace as tracing
    from ...frontend.grad_mode import no_grad

    if not any(p.requires_grad for p in model.parameters()):
        raise Failure("--train: the model has no parameters that require a gradient")
    with no_grad():
        output = copy.deepcopy(model)(*inputs)  # a copy: running statistics move
    # Traced for exactly this batch: the peers may use that it is fixed.
    name = type(model).__name__
    traced = tracing.trace(model, {"": model}, tuple(inputs), {}, False, name)
    targets = [losses.make_target(loss, output, seed).numpy() for seed in range(TARGET_SETS)]
    state = {path: np.array(tensor.detach().numpy()) for path, tensor in traced.state.items()}
    arrays = [np.ascontiguousarray(t.detach().numpy()) for t in inputs]
    return _Task(model, traced, loss, recipe, Start(state, arrays, targets))


def _judge(task: _Task) -> Judge:
    """The reference is the exported model or, where there is none, netwright's own."""
    if PEERS["torch"].version() is not None:
        try:
            return Judge(task.in_pytorch, "PyTorch in float64")
        except UnsupportedError:
            pass  # the peers that need it say why
    return Judge(task.in_netwright, "eager netwright in float64")


def _peer(name: str, task: _Task, threads: int) -> Callable[[], Ready]:
    def prepare() -> Ready:
        from .pytorch_training import FUSED

        function: Any = PEERS[name].prepare()
        ready: Ready = function(task.in_pytorch(**FUSED), threads)
        return ready

    return prepare
