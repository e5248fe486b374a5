"""PyTorch's training steps: eager, and with torch.compile."""

from __future__ import annotations

import functools
from types import ModuleType

import on_torch
import torch
from training import Start, Task, training_of

from netwright.commands.peers import pytorch_training
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
    return pytorch_training.eager(training_of(torch, Theirs(), task, start, fused=True), threads)


def prepare_compiled(task: Task, start: Start, threads: int) -> Ready:
    """Model and loss by torch.compile."""
    training = training_of(torch, Theirs(), task, start, fused=True)
    return pytorch_training.compiled(training, threads)
