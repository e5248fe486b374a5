"""Loss, optimizer and schedule of a training, made of its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..failure import Misuse
from ..losses import make_loss
from .settings import Settings

if TYPE_CHECKING:
    from ...frontend.nn.module import Module
    from ...frontend.optim.lr_scheduler import LambdaLR
    from ...frontend.optim.optimizer import Optimizer
    from ...frontend.tensor import Tensor


def make_criterion(settings: Settings) -> Module:
    """The loss. Misuse for label smoothing without classes."""
    name = settings.loss
    assert name is not None, "the data decides before"
    if not settings.label_smoothing:
        return make_loss(name)
    if name != "CrossEntropyLoss":
        raise Misuse(f"--label-smoothing goes with CrossEntropyLoss, not with {name}")
    from ...frontend import nn

    return nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)


def make_optimizer(model: Module, settings: Settings) -> Optimizer:
    """Misuse if the model has nothing to train."""
    from ...frontend import optim

    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise Misuse(f"{type(model).__name__} has no parameters that require a gradient")
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return optim.SGD(parameters, momentum=settings.momentum, **options)
    kind = optim.Adam if settings.optimizer == "adam" else optim.AdamW
    return kind(parameters, **options)


def make_schedule(optimizer: Optimizer, settings: Settings, updates_per_epoch: int) -> LambdaLR:
    """A schedule to be stepped after every update."""
    from ...frontend.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, rate_factor(settings, updates_per_epoch))


def rate_factor(settings: Settings, updates_per_epoch: int) -> Callable[[int], float]:
    """What the learning rate is multiplied with after so many updates; it does not depend on the
    way there, so that a resumed run has the same rates."""
    total = settings.epochs * updates_per_epoch
    climb = settings.warmup * updates_per_epoch

    def factor(update: int) -> float:
        if update + 1 < climb:
            return (update + 1) / climb
        passed = min(max(update - climb, 0.0) / (total - climb), 1.0)
        if settings.schedule == "cosine":
            return (1 + math.cos(math.pi * passed)) / 2
        if settings.schedule == "linear":
            return 1 - passed
        if settings.schedule == "step":
            return settings.gamma ** (update // (settings.step_size * updates_per_epoch))
        return 1.0

    return factor


def matches(loss: str, output: Tensor, target: Tensor) -> Tensor | None:
    """Which of a batch's predictions are right; None for a loss that does not classify."""
    if loss in ("CrossEntropyLoss", "NLLLoss"):
        return output.argmax(1) == (target.argmax(1) if target.is_floating_point() else target)
    if loss == "BCEWithLogitsLoss":
        return (output > 0) == (target > 0.5)
    if loss == "BCELoss":
        return (output > 0.5) == (target > 0.5)
    return None
