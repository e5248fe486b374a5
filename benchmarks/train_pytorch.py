"""PyTorch's training steps: eager, and with torch.compile."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import on_torch
import torch
from training import Start, Task, Training

from netwright.commands.peers.peer import Ready


class Theirs:
    """netwright's models as programs for PyTorch."""

    def example(self, name: str) -> ModuleType:
        """A program of examples/."""
        return on_torch.load(on_torch.EXAMPLES / f"{name}.py")

    def zoo(self) -> ModuleType:
        """``netwright.vision.models``."""
        return _zoo()


_zoo = functools.cache(on_torch.models)


def prepare_eager(task: Task, start: Start, threads: int) -> Ready:
    """A user's loop, with PyTorch's fused optimizers, its fastest."""
    training = Training(torch, Theirs(), task, start, fused=True)
    return _ready(training, training.eager_step, threads)


def prepare_compiled(task: Task, start: Start, threads: int) -> Ready:
    """Model and loss, forward and backward, by torch.compile; the optimizer is PyTorch's fused one,
    which is a kernel of its own already. Compiles for up to a minute; needs a C++ compiler."""
    torch._dynamo.reset()  # another thread count is another program
    training = Training(torch, Theirs(), task, start, fused=True)
    loss_of = torch.compile(lambda x, labels: training.criterion(training.model(x), labels))

    def step() -> Any:
        training.optimizer.zero_grad()
        loss = loss_of(training.x, training.next_labels())
        loss.backward()
        training.optimizer.step()
        return loss

    return _ready(training, step, threads)


def _ready(training: Training, step: Callable[[], Any], threads: int) -> Ready:
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own deprecated parts
        first = training.found(step())
    return Ready(step, lambda _: first)
