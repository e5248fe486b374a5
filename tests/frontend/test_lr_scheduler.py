"""Learning rate schedules against torch's."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

from netwright import optim
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
    ("ConstantLR", {"factor": 0.25, "total_iters": 4}),
    ("LinearLR", {"start_factor": 0.1, "total_iters": 6}),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.2}),
    ("PolynomialLR", {"total_iters": 8, "power": 2.0}),
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


JOINED: dict[str, Any] = {
    "warm restarts": lambda m, o: m.CosineAnnealingWarmRestarts(o, 3, T_mult=2, eta_min=0.01),
    "multiplicative": lambda m, o: m.MultiplicativeLR(o, lambda epoch: 0.9 + 0.01 * (epoch % 3)),
    "warm-up, then a cosine": lambda m, o: m.SequentialLR(
        o,
        [m.LinearLR(o, start_factor=0.1, total_iters=4), m.CosineAnnealingLR(o, T_max=12)],
        milestones=[4],
    ),
    "three in a row": lambda m, o: m.SequentialLR(
        o, [m.ConstantLR(o), m.ExponentialLR(o, 0.9), m.StepLR(o, 3)], milestones=[3, 9]
    ),
    "chained": lambda m, o: m.ChainedScheduler(
        [m.ConstantLR(o, factor=0.5, total_iters=3), m.ExponentialLR(o, gamma=0.9)]
    ),
    "one cycle": lambda m, o: m.OneCycleLR(o, max_lr=[0.3, 0.2], total_steps=31),
    "one cycle, three phases": lambda m, o: m.OneCycleLR(
        o, 0.3, epochs=4, steps_per_epoch=8, three_phase=True, anneal_strategy="linear"
    ),
}


def both(make: Any, kind: str) -> Any:
    """Optimizers and schedules, ours and torch's."""
    torch = pytest.importorskip("torch")
    options: dict[str, Any] = {"lr": 0.1} | ({"momentum": 0.9} if kind == "SGD" else {})
    ours = getattr(optim, kind)(groups(lambda n: zeros(n, requires_grad=True)), **options)
    made = groups(lambda n: torch.zeros(n, requires_grad=True))
    theirs = getattr(torch.optim, kind)(made, **options)
    return ours, make(lr_scheduler, ours), theirs, make(torch.optim.lr_scheduler, theirs)


def numbers(optimizer: Any) -> list[float]:
    """Rates and momenta."""
    momenta = [g["momentum"] if "momentum" in g else g["betas"][0] for g in optimizer.param_groups]
    return [*rates(optimizer), *momenta]


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("make", JOINED.values(), ids=JOINED)
def test_cycles_and_joined_schedules_equal_torchs(make: Any, kind: str) -> None:
    ours, mine, theirs, reference = both(make, kind)
    for _ in range(30):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-12, abs=1e-15)
        assert mine.get_last_lr() == rates(ours)
        for optimizer, scheduler in ((ours, mine), (theirs, reference)):
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("make", JOINED.values(), ids=JOINED)
def test_cycles_and_joined_schedules_continue_from_a_saved_state(make: Any) -> None:
    def fresh() -> Any:
        optimizer = SGD(groups(lambda n: zeros(n, requires_grad=True)), lr=0.1, momentum=0.9)
        return optimizer, make(lr_scheduler, optimizer)

    def advance(optimizer: Any, scheduler: Any) -> list[float]:
        optimizer.step()
        scheduler.step()
        return numbers(optimizer)

    optimizer, scheduler = fresh()
    for _ in range(7):
        advance(optimizer, scheduler)
    later, resumed = fresh()
    later.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    for _ in range(8):
        assert advance(later, resumed) == advance(optimizer, scheduler)


def test_warm_restarts_take_fractions_of_epochs() -> None:
    make = JOINED["warm restarts"]
    ours, mine, theirs, reference = both(make, "SGD")
    for epoch in (0.0, 0.25, 2.75, 3.0, 8.5, 9.5, 20.9):
        for optimizer, scheduler in ((ours, mine), (theirs, reference)):
            optimizer.step()
            scheduler.step(epoch)
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1), "total_steps OR"),
        (lambda o: lr_scheduler.OneCycleLR(o, [0.1], total_steps=5), "2 values for max_lr, got 1"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=0), "positive integer total_steps"),
        (lambda o: lr_scheduler.LinearLR(o, start_factor=0.0), "greater than 0"),
        (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 0), "positive integer T_0"),
        (lambda o: lr_scheduler.ChainedScheduler([]), "at least one scheduler"),
        (
            lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.StepLR(o, 2)], [1]),
            "one more than the number of milestone",
        ),
    ],
)
def test_wrong_schedules_are_errors_with_torchs_words(make: Any, words: str) -> None:
    optimizer = SGD(groups(lambda n: zeros(n, requires_grad=True)), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=words):
        make(optimizer)


def test_one_cycle_refuses_a_step_too_many() -> None:
    optimizer = SGD(groups(lambda n: zeros(n, requires_grad=True)), lr=0.1, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="Tried to step 4 times"):
        scheduler.step()
