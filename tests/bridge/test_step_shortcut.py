"""A step that repeats the one before takes the short way, and no change escapes it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.bridge.step_shortcut import StepShortcut


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def batch(seed: int, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    return array(n, 6, seed=seed), np.random.default_rng(seed).integers(0, 4, n)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16)
        self.drop, self.last = nn.Dropout(0.25), nn.Linear(16, 4)
        self.gain = 1.0

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.last(self.drop(self.norm(self.first(x)).relu())) * self.gain


Trained = tuple[nn.Module, optim.Optimizer, Any]
Make = Callable[[Any], optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "dampened": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: optim.Adam(p, lr=1e-2, amsgrad=True),
}


def make(name: str = "adam", **options: Any) -> Trained:
    nw.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    return (
        model,
        optimizer,
        nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **options),
    )


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each look at a shortcut led to the short way."""
    found: list[bool] = []
    call = StepShortcut.__call__

    def noted(self: StepShortcut, *args: Any) -> Any:
        result = call(self, *args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(StepShortcut, "__call__", noted)
    return found


def bits(model: nn.Module, optimizer: optim.Optimizer) -> list[bytes]:
    state = [t.numpy() for s in optimizer.state.values() for t in s.values()]
    return [a.tobytes() for a in (*(v.numpy() for v in model.state_dict().values()), *state)]


def run(made: Trained, changes: dict[int, Callable[..., Any]], short: bool) -> list[Any]:
    """Eight steps, with a change before some of them; ``short``: whether shortcuts may be used."""
    model, optimizer, step = made
    nw.manual_seed(1)
    found: list[Any] = []
    for i in range(8):
        if i in changes:
            changes[i](model, optimizer, step)
        if not short:
            step._shortcut = None
        found.append(step(*batch(i)).item())
    return [*found, *bits(model, optimizer)]


@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 0.5}], ids=["plain", "clipped"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_repeated_steps_take_it_and_give_the_same_bits(
    name: str, options: dict[str, Any], taken: list[bool]
) -> None:
    short = run(make(name, **options), {}, True)
    assert taken == [True] * 6  # from the third call on
    assert short == run(make(name, **options), {}, False)


def set_rate(model: Any, optimizer: Any, step: Any) -> None:
    optimizer.param_groups[0]["lr"] = 0.05


def edit_a_weight(model: Any, optimizer: Any, step: Any) -> None:
    model.first.weight.data[0] += 1.0


def edit_under_an_alias(model: Any, optimizer: Any, step: Any) -> None:
    model.first.weight.detach().numpy()[0] += 1.0


def exchange_data(model: Any, optimizer: Any, step: Any) -> None:
    model.first.weight.data = nw.ones(16, 6)


def change_an_attribute(model: Any, optimizer: Any, step: Any) -> None:
    model.gain = 0.5


def change_the_dropout(model: Any, optimizer: Any, step: Any) -> None:
    model.drop.p = 0.5


def to_eval(model: Any, optimizer: Any, step: Any) -> None:
    model.eval()


def load_weights(model: Any, optimizer: Any, step: Any) -> None:
    model.load_state_dict(make()[0].state_dict())


def load_optimizer(model: Any, optimizer: Any, step: Any) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def exchange_a_state_tensor(model: Any, optimizer: Any, step: Any) -> None:
    state = optimizer.state[model.last.weight]
    name = list(state)[-1]
    state[name] = nw.ones(4, 16)


def edit_a_state_tensor(model: Any, optimizer: Any, step: Any) -> None:
    state = optimizer.state[model.last.weight]
    state[list(state)[-1]].fill_(0.5)


def forget_the_state(model: Any, optimizer: Any, step: Any) -> None:
    optimizer.state.clear()


def change_the_rule(model: Any, optimizer: Any, step: Any) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.1


def change_the_limit(model: Any, optimizer: Any, step: Any) -> None:
    step.clip_grad_norm = 0.01


def an_eager_step(model: Any, optimizer: Any, step: Any) -> None:
    x, y = (nw.from_numpy(a) for a in batch(20))
    nn.CrossEntropyLoss()(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


CHANGES = [
    set_rate,
    edit_a_weight,
    edit_under_an_alias,
    exchange_data,
    change_an_attribute,
    change_the_dropout,
    to_eval,
    load_weights,
    load_optimizer,
    exchange_a_state_tensor,
    edit_a_state_tensor,
    forget_the_state,
    change_the_rule,
    change_the_limit,
    an_eager_step,
]


CASES = [("adam", change) for change in CHANGES]
# The first gradient is not dampened, so its numbers depend on whether there is a state.
CASES += [("dampened", change) for change in (set_rate, load_optimizer, forget_the_state)]


@cache
def unchanged(name: str) -> list[Any]:
    return run(make(name), {}, True)


@pytest.mark.parametrize(("name", "change"), CASES, ids=[f"{n}-{c.__name__}" for n, c in CASES])
def test_no_change_escapes_it(name: str, change: Callable[..., Any], taken: list[bool]) -> None:
    short = run(make(name), {5: change}, True)
    assert taken[:3] == [True, True, True]
    assert short == run(make(name), {5: change}, False)
    assert (short == unchanged(name)) == (change is load_optimizer)


def freeze(model: Any) -> None:
    model.first.weight.requires_grad_(False)


def exchange_a_parameter(model: Any) -> None:
    model.first.weight = nn.Parameter(nw.ones(16, 6))


@pytest.mark.parametrize("change", [freeze, exchange_a_parameter], ids=lambda c: c.__name__)
def test_frozen_and_exchanged_parameters_leave_it(
    change: Callable[..., Any], taken: list[bool]
) -> None:
    model, _, step = make("dampened")
    for i in range(4):
        step(*batch(i))
    before = model.first.weight
    held = before.detach().numpy().copy()
    change(model)
    taken.clear()
    if change is exchange_a_parameter:  # the optimizer has a parameter that the model has not
        with pytest.raises(ValueError, match="belongs neither to the model nor to the loss"):
            step(*batch(5))
    else:
        step(*batch(5))
    assert taken == [False]
    np.testing.assert_array_equal(before.detach().numpy(), held)


def test_counts_that_differ_within_a_group_are_refused_on_the_short_way_too() -> None:
    model, optimizer, step = make("adam")
    for i in range(4):
        step(*batch(i))
    optimizer.state[model.first.weight]["step"].fill_(9.0)
    before = bits(model, optimizer)
    with pytest.raises(nw.errors.UnsupportedError, match="different numbers of steps"):
        step(*batch(5))
    assert bits(model, optimizer) == before


def test_a_label_out_of_range_is_an_error_and_changes_nothing(taken: list[bool]) -> None:
    model, optimizer, step = make("adam")
    for i in range(4):
        step(*batch(i))
    before = bits(model, optimizer)
    taken.clear()
    with pytest.raises(IndexError, match="Target 7 is out of bounds"):
        step(array(8, 6), np.full(8, 7))
    assert taken == []  # the error comes from there: the call returned nothing
    assert bits(model, optimizer) == before
    step(*batch(5))
    assert taken == [True]
    assert {float(s["step"]) for s in optimizer.state.values()} == {5.0}


def test_other_shapes_and_ways_to_call_leave_it(taken: list[bool]) -> None:
    _, _, step = make("adam")
    for i in range(4):
        step(*batch(i))
    taken.clear()
    x, y = batch(4)
    for args in (batch(4, 5), (np.asfortranarray(x), y), (x, y.astype(np.uint8))):
        step(*args)
    assert taken == [False] * 3
    step(x, y)
    step(x, y)
    step(nw.from_numpy(x), nw.from_numpy(y))
    assert taken[-1]


def test_a_scheduler_is_followed(taken: list[bool]) -> None:
    def trained(short: bool) -> list[bytes]:
        model, optimizer, step = make("dampened")
        scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        nw.manual_seed(1)
        for i in range(6):
            if not short:
                step._shortcut = None
            step(*batch(i))
            scheduler.step()
        assert step.compilations == 1
        return bits(model, optimizer)

    assert trained(True) == trained(False)
    assert all(taken) and len(taken) == 4


def test_a_prediction_in_between_sees_every_step() -> None:
    model, _, step = make("adam")
    x, _ = batch(0)
    for i in range(6):
        step(*batch(i))
        got = step.predict(x).numpy()
        model.eval()
        np.testing.assert_allclose(
            got, model(nw.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5
        )
        model.train()
