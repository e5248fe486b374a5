"""PyTorch's training steps: eager, and with torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from .peer import Ready
from .training import Training

FUSED = {"fused": True}
"""PyTorch's fastest optimizers: one kernel per group of parameters."""


def eager(training: Training, threads: int) -> Ready:
    """A user's loop."""
    return _ready(training, training.eager_step, threads)


def compiled(training: Training, threads: int) -> Ready:
    """Model and loss, forward and backward, by torch.compile; the optimizer stays PyTorch's, which
    is a kernel of its own already if it is fused. Compiles for up to a minute; needs a C++
    compiler."""
    torch._dynamo.reset()  # another thread count is another program
    loss_of = torch.compile(
        lambda target, *inputs: training.criterion(training.model(*inputs), target)
    )

    def step() -> Any:
        training.optimizer.zero_grad()
        loss = loss_of(training.next_target(), *training.inputs)
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
