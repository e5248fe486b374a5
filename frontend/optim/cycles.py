"""Schedules that rise and fall: OneCycleLR, CosineAnnealingWarmRestarts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .optimizer import Optimizer
from .schedule import LRScheduler, check_optimizer


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * done))


def _line(start: float, end: float, done: float) -> float:
    return start + (end - start) * done


_SHAPES = {"cos": _cosine, "linear": _line}


class OneCycleLR(LRScheduler):
    """Up to ``max_lr``, then down far below the start, within ``total_steps`` updates: call
    ``step()`` after every batch.

    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning
    rates" (2018). The rate starts at ``max_lr / div_factor``, is ``max_lr`` after ``pct_start`` of
    the steps and ends at a ``final_div_factor``-th of the start; three_phase: first back to the
    start, as fast as up. cycle_momentum: momentum (or Adam's first beta) goes the other way, from
    ``max_momentum`` to ``base_momentum`` and back. Rates and momenta: a number, or one per group.
    total_steps: or ``epochs`` and ``steps_per_epoch``. Raises ValueError for numbers out of range,
    for an optimizer without momentum, and for a step too many.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer)
        self.total_steps = _total_steps(total_steps, epochs, steps_per_epoch)
        if not 0 <= pct_start <= 1 or not isinstance(pct_start, float):
            raise ValueError(f"Expected float between 0 and 1 pct_start, but got {pct_start}")
        if anneal_strategy not in _SHAPES:
            raise ValueError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy!r}"
            )
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        self._phases = _phases(pct_start * self.total_steps, self.total_steps, three_phase)
        highest = _per_group(optimizer, "max_lr", max_lr)
        if last_epoch == -1:
            for group, rate in zip(optimizer.param_groups, highest, strict=True):
                group["initial_lr"] = rate / div_factor
                group["max_lr"] = rate
                group["min_lr"] = group["initial_lr"] / final_div_factor
        if cycle_momentum:
            self._use_momentum(optimizer, base_momentum, max_momentum, last_epoch == -1)
        super().__init__(optimizer, last_epoch)

    def _use_momentum(self, optimizer: Optimizer, base: Any, highest: Any, starts: bool) -> None:
        if not {"momentum", "betas"} & set(optimizer.defaults):
            raise ValueError(
                "optimizer must support momentum or beta1 with `cycle_momentum` option enabled; "
                "pass cycle_momentum=False"
            )
        self.use_beta1 = "betas" in optimizer.defaults
        lows = _per_group(optimizer, "base_momentum", base)
        highs = _per_group(optimizer, "max_momentum", highest)
        if starts:
            for group, low, high in zip(optimizer.param_groups, lows, highs, strict=True):
                self._set_momentum(group, high)
                group["base_momentum"], group["max_momentum"] = low, high

    def _set_momentum(self, group: dict[str, Any], value: float) -> None:
        if self.use_beta1:
            group["betas"] = (value, *group["betas"][1:])
        else:
            group["momentum"] = value

    def get_lr(self) -> list[float]:
        step = self.last_epoch
        if step > self.total_steps:
            raise ValueError(
                f"Tried to step {step} times. The specified number of total steps is "
                f"{self.total_steps}"
            )
        start = 0.0
        for phase in self._phases:
            end = phase[0]
            if step <= end or phase is self._phases[-1]:
                break
            start = end
        _, rates, momenta = phase
        done = (step - start) / (end - start)
        between = _SHAPES[self.anneal_strategy]
        found = []
        for group in self.optimizer.param_groups:
            found.append(between(group[rates[0]], group[rates[1]], done))
            if self.cycle_momentum:
                self._set_momentum(group, between(group[momenta[0]], group[momenta[1]], done))
        return found


def _total_steps(total: int | None, epochs: int | None, per_epoch: int | None) -> int:
    given = {"total_steps": total, "epochs": epochs, "steps_per_epoch": per_epoch}
    if total is not None:
        given = {"total_steps": total}
    elif epochs is None or per_epoch is None:
        raise ValueError(
            "You must define either total_steps OR (epochs AND steps_per_epoch): "
            "steps_per_epoch=len(loader)"
        )
    else:
        total = epochs * per_epoch
    for name, value in given.items():
        if value is not None and (not isinstance(value, int) or value <= 0):
            raise ValueError(f"Expected positive integer {name}, but got {value}")
    return total


_Phase = tuple[float, tuple[str, str], tuple[str, str]]


def _phases(rise: float, total: int, three: bool) -> list[_Phase]:
    """The last step of each phase, and the group's options that rate and momentum go between."""
    up: _Phase = (rise - 1.0, ("initial_lr", "max_lr"), ("max_momentum", "base_momentum"))
    end = total - 1.0
    if not three:
        return [up, (end, ("max_lr", "min_lr"), ("base_momentum", "max_momentum"))]
    down: _Phase = (2.0 * rise - 2.0, ("max_lr", "initial_lr"), ("base_momentum", "max_momentum"))
    return [up, down, (end, ("initial_lr", "min_lr"), ("max_momentum", "max_momentum"))]


def _per_group(optimizer: Optimizer, name: str, value: float | Sequence[float]) -> list[float]:
    groups = len(optimizer.param_groups)
    if not isinstance(value, Sequence):
        return [float(value)] * groups
    if len(value) != groups:
        raise ValueError(f"expected {groups} values for {name}, got {len(value)}")
    return [float(v) for v in value]


class CosineAnnealingWarmRestarts(LRScheduler):
    """From the initial rate down to ``eta_min`` along a cosine in ``T_0`` epochs, and again, each
    time ``T_mult`` times as long.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017).
    ``step(epoch)`` takes fractions of epochs, too. Raises ValueError for lengths below 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if T_0 <= 0 or not isinstance(T_0, int):
            raise ValueError(f"Expected positive integer T_0, but got {T_0}")
        if T_mult < 1 or not isinstance(T_mult, int):
            raise ValueError(f"Expected integer T_mult >= 1, but got {T_mult}")
        self.T_0 = T_0
        self.T_mult = T_mult
        self.eta_min = eta_min
        self._epoch: float | None = None
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: float | None = None) -> None:
        """Goes to the next epoch, or to ``epoch``: ``step(epoch + i / len(loader))``."""
        if epoch is None:
            super().step()
            return
        if epoch < 0:
            raise ValueError(f"Expected non-negative epoch, but got {epoch}")
        self._epoch = epoch
        self._set(math.floor(epoch))
        self._epoch = None

    def get_lr(self) -> list[float]:
        start, length = 0.0, self.T_0
        epoch = self.last_epoch if self._epoch is None else self._epoch
        while epoch >= start + length:
            start, length = start + length, length * self.T_mult
        done = (epoch - start) / length
        return [_cosine(base, self.eta_min, done) for base in self.base_lrs]
