"""Learning rate schedules against torch's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from netwright.frontend.creation import ones, zeros
from netwright.frontend.optim import SGD, lr_scheduler

CASES: list[tuple[str, dict[str, Any]]] = [
    ("StepLR", {"step_size": 3}),
    ("StepLR", {"step_size": 1, "gamma": 0.9}),
    ("MultiStepLR", {"milestones": [2, 5, 5, 11], "gamma": 0.5}),
    ("ExponentialLR", {"gamma": 0.8}),
    ("CosineAnnealingLR", {"T_max": 7}),
    ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.01}),
    ("CosineAnnealingLR", {"T_max": 1}),
    ("LambdaLR", {"lr_lambda": lambda epoch: 0.95**epoch}),
    ("LambdaLR", {"lr_lambda": [lambda epoch: 1 / (epoch + 1), lambda epoch: 0.5**epoch]}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]


def groups(make: Any) -> list[dict[str, Any]]:
    return [{"params": [make(2)], "lr": 0.5}, {"params": [make(3)]}]


def pair(name: str, options: dict[str, Any]) -> Any:
    torch = pytest.importorskip("torch")
    ours = SGD(groups(lambda n: zeros(n, requires_grad=True)), lr=0.1)
    theirs = torch.optim.SGD(groups(lambda n: torch.zeros(n, requires_grad=True)), lr=0.1)
    mine = getattr(lr_scheduler, name)(ours, **options)
    reference = getattr(torch.optim.lr_scheduler, name)(theirs, **options)
    return ours, mine, theirs, reference


def rates(optimizer: Any) -> list[float]:
    return [g["lr"] for g in optimizer.param_groups]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_rates_equal_torchs(name: str, options: dict[str, Any]) -> None:
    ours, mine, theirs, reference = pair(name, options)
    for epoch in range(30):
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-12, abs=1e-15)
        assert mine.get_last_lr() == rates(ours)
        if epoch == 13:  # recursive schedules keep a change by hand
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["lr"] *= 3
        for optimizer, scheduler in ((ours, mine), (theirs, reference)):
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_given_epoch_uses_the_closed_form(name: str, options: dict[str, Any]) -> None:
    ours, mine, theirs, reference = pair(name, options)
    ours.step()
    theirs.step()
    for epoch in (4, 2, 12):
        for scheduler in (mine, reference):
            with pytest.warns(UserWarning, match="deprecated"):
                scheduler.step(epoch)
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 1, "factor": 0.5},
        {"patience": 0, "cooldown": 2, "min_lr": 0.004},
        {"mode": "max", "patience": 2, "threshold": 0.1},
        {"mode": "max", "threshold_mode": "abs", "threshold": 0.05, "patience": 1},
        {"threshold_mode": "abs", "patience": 1, "min_lr": [0.2, 0.0]},
    ],
)
def test_reduce_on_plateau_equals_torch(options: dict[str, Any]) -> None:
    ours, mine, theirs, reference = pair("ReduceLROnPlateau", options)
    metrics = [1.0, 0.8, 0.79, 0.79, 0.8, 0.81, 0.5, 0.5, 0.52, 0.6, 0.51, 0.5, 0.5, 0.49, 0.7]
    for metric in metrics * 2:
        mine.step(metric)
        reference.step(metric)
        assert rates(ours) == pytest.approx(rates(theirs))
    assert mine.get_last_lr() == rates(ours)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_checkpoint_continues_the_schedule(name: str, options: dict[str, Any]) -> None:
    ours, mine, _, _ = pair(name, options)
    for _ in range(5):
        ours.step()
        mine.step()
    resumed, other, _, _ = pair(name, options)
    other.load_state_dict(mine.state_dict())
    resumed.load_state_dict(ours.state_dict())
    for _ in range(9):
        for optimizer, scheduler in ((ours, mine), (resumed, other)):
            optimizer.step()
            scheduler.step()
        assert rates(ours) == rates(resumed)


def test_resuming_by_last_epoch_needs_the_initial_rate() -> None:
    optimizer = SGD([zeros(2)], lr=0.1)
    with pytest.raises(KeyError, match="initial_lr"):
        lr_scheduler.StepLR(optimizer, 2, last_epoch=3)


def test_stepping_before_the_optimizer_warns_once() -> None:
    optimizer = SGD([zeros(2)], lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


def test_a_compiled_step_counts_as_the_optimizers_step() -> None:
    p = ones(2)
    optimizer = SGD([p], lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.advance([p])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


def test_hyper_follows_the_schedule() -> None:
    p = ones(2)
    optimizer = SGD([p], lr=0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    structure = optimizer.structure()
    optimizer.step()
    scheduler.step()
    assert optimizer.hyper(0, p)["lr"] == 0.05
    assert optimizer.structure() == structure


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda o: lr_scheduler.StepLR([o], 1), TypeError, "list is not an Optimizer"),
        (lambda o: lr_scheduler.LambdaLR(o, [abs, abs]), ValueError, "Expected 1 lr_lambdas"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, "up"), ValueError, "mode up is unknown"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=1.0), ValueError, "Factor"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, min_lr=[0, 0]), ValueError, "expected 1"),
        (
            lambda o: lr_scheduler.ReduceLROnPlateau(o, threshold_mode="x"),
            ValueError,
            "threshold mode x",
        ),
    ],
)
def test_wrong_arguments_are_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(SGD([zeros(2)]))
