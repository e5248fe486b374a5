"""Losses of a step: any traceable function of nests of outputs and targets, and of parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim
from netwright.errors import NetwrightError, TraceError


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def labels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, n)


class Heads(nn.Module):
    """Scores of classes and an auxiliary head, as deep supervision has them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.main, self.aux = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.size = nn.Linear(16, 1)

    def forward(self, x: nw.Tensor, mask: Any = None, *, gain: float = 1.0) -> Any:
        hidden = self.body(x).relu()
        if mask is not None:
            hidden = hidden * mask
        return self.main(hidden) * gain, self.aux(hidden), {"size": self.size(hidden)}


def two_losses(output: Any, target: Any) -> nw.Tensor:
    return F.cross_entropy(output[0], target) + 0.3 * F.cross_entropy(output[1], target)


def three_targets(output: Any, target: Any) -> nw.Tensor:
    classes, (size, weight) = target
    error = (weight * (output[2]["size"] - size) ** 2).mean()
    return F.cross_entropy(output[0], classes) + error + 0.1 * output[1].abs().mean()


def named_targets(output: Any, target: Any) -> nw.Tensor:
    return two_losses(output, target["y"]) + F.l1_loss(output[2]["size"], target["size"])


def rows_that_count(output: Any, target: Any) -> nw.Tensor:
    each = F.cross_entropy(output[0], target["y"], reduction="none")
    rest = output[1].mean() + output[2]["size"].mean()
    return (each * target["valid"]).sum() / target["valid"].sum() + 0.1 * rest


Target = Callable[[int], Any]
LOSSES: dict[str, tuple[Callable[..., nw.Tensor], Target]] = {
    "sum of two losses": (two_losses, lambda i: labels(8, i)),
    "several targets": (
        three_targets,
        lambda i: (labels(8, i), [array(8, 1), array(8, 1, seed=i)]),
    ),
    "named targets": (named_targets, lambda i: {"y": labels(8, i), "size": array(8, 1, seed=i)}),
    "rows that count": (
        rows_that_count,
        lambda i: {"y": labels(8, i), "valid": (array(8, seed=i) > 0).astype(np.float32)},
    ),
}


def as_tensors(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return nw.from_numpy(value)
    if isinstance(value, dict):
        return {k: as_tensors(v) for k, v in value.items()}
    return type(value)(as_tensors(v) for v in value)


def trained(
    loss: Callable[..., nw.Tensor], target: Target, compiled: bool, **kwargs: Any
) -> tuple[list[float], dict[str, np.ndarray], Any]:
    """Four steps; the losses and the weights."""
    nw.manual_seed(0)
    model = Heads()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = nw.compile(model, loss=loss, optimizer=optimizer)
    found = []
    for i in range(4):
        x = array(8, 6, seed=i)
        if compiled:
            found.append(step(x, target(i), **kwargs).item())
        else:
            optimizer.zero_grad()
            inner = {k: as_tensors(v) if k == "mask" else v for k, v in kwargs.items()}
            value = loss(model(nw.from_numpy(x), **inner), as_tensors(target(i)))
            value.backward()
            optimizer.step()
            found.append(value.item())
    return found, {k: v.detach().numpy().copy() for k, v in model.named_parameters()}, step


def assert_trained_as_eager(loss: Callable[..., nw.Tensor], target: Target, **kwargs: Any) -> None:
    got, weights, step = trained(loss, target, True, **kwargs)
    expected, wanted, _ = trained(loss, target, False, **kwargs)
    assert got == pytest.approx(expected, rel=1e-4)
    for name, value in weights.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert step.compilations == 1
    assert step.fallbacks == 0


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
def test_outputs_and_targets_in_nests(name: str) -> None:
    assert_trained_as_eager(*LOSSES[name])


@pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
def test_arguments_by_keyword_go_to_the_model() -> None:
    mask = (array(8, 16, seed=9) > 0).astype(np.float32)
    assert_trained_as_eager(two_losses, lambda i: labels(8, i), mask=mask, gain=0.5)


@pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
def test_another_constant_by_keyword_is_another_program() -> None:
    nw.manual_seed(0)
    model = Heads()
    step = nw.compile(model, loss=two_losses, optimizer=optim.SGD(model.parameters(), lr=0.0))
    x, y = array(8, 6), labels(8)
    losses = [step(x, y, gain=gain).item() for gain in (1.0, 2.0, 1.0)]
    assert losses[0] == losses[2] != losses[1]
    assert step.compilations == 2
    halves = [step.gradients(x, y, gain=gain).item() for gain in (1.0, 2.0)]
    assert halves == pytest.approx(losses[:2])


def test_wrong_arguments_are_named() -> None:
    model = Heads()
    step = nw.compile(model, loss=two_losses, optimizer=optim.SGD(model.parameters(), lr=0.1))
    x, y = array(8, 6), labels(8)
    with pytest.raises(TypeError, match=r"step\(x, target\); got 1 argument"):
        step(x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'masks'"):
        step(x, y, masks=x)
    with pytest.raises(TypeError, match="too many positional arguments"):
        step(x, x, x, y)
    with pytest.raises(TypeError, match=r"multiple values for argument 'mask'|unexpected keyword"):
        step(x, x, y, mask=x)


def test_a_model_with_an_argument_called_target() -> None:
    class Forced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: nw.Tensor, target: nw.Tensor) -> nw.Tensor:
            return self.fc(x) + target

    model = Forced()
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optim.SGD(model.parameters(), lr=0.0))
    x, y = array(8, 6), array(8, 4)
    output = model(nw.from_numpy(x), nw.from_numpy(y))
    expected = nn.MSELoss()(output, nw.from_numpy(y + 1)).item()
    assert step(x, y, y + 1).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
def test_a_penalty_on_the_models_own_parameters() -> None:
    found = []
    for compiled in (True, False):
        nw.manual_seed(0)
        model = Heads()
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def loss(output: Any, target: Any, model: nn.Module = model) -> nw.Tensor:
            penalty = sum((p**2).sum() for p in model.parameters() if p.dim() > 1)
            return F.cross_entropy(output[0], target) + 0.01 * penalty

        step = nw.compile(model, loss=loss, optimizer=optimizer)
        for i in range(3):
            x, y = array(8, 6, seed=i), labels(8, i)
            if compiled:
                step(x, y)
            else:
                optimizer.zero_grad()
                loss(model(nw.from_numpy(x)), nw.from_numpy(y)).backward()
                optimizer.step()
        found.append({k: v.detach().numpy().copy() for k, v in model.named_parameters()})
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("halves", [False, True])
def test_a_parameter_that_model_and_loss_share(halves: bool) -> None:
    class Penalty(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, output: nw.Tensor, target: nw.Tensor) -> nw.Tensor:
            return F.cross_entropy(output, target) + 0.1 * (self.weight**2).sum()

    nw.manual_seed(0)
    model = nn.Linear(6, 4)
    loss, optimizer = Penalty(model.weight), optim.SGD(model.parameters(), lr=0.1)
    twin = nn.Linear(6, 4)
    twin.load_state_dict(model.state_dict())
    twin_loss, other = Penalty(twin.weight), optim.SGD(twin.parameters(), lr=0.1)
    step = nw.compile(model, loss=loss, optimizer=optimizer)
    for i in range(3):
        x, y = array(8, 6, seed=i), labels(8, i)
        if halves:
            step.gradients(x, y)
            assert set(step.grads) == {"weight", "bias"}
            step.update()
        else:
            step(x, y)
        other.zero_grad()
        twin_loss(twin(nw.from_numpy(x)), nw.from_numpy(y)).backward()
        other.step()
    np.testing.assert_allclose(model.weight.detach().numpy(), twin.weight.detach().numpy(), 1e-5)


def test_what_is_no_scalar_loss_is_refused() -> None:
    model = nn.Linear(6, 4)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x, y = array(8, 6), array(8, 4)
    for loss, error, message in (
        (lambda o, t: (o - t) ** 2, NetwrightError, "the loss must be a scalar"),
        (lambda o, t: (o.mean(), o.sum()), TraceError, "the loss must return one tensor"),
        (lambda o, t: 1.0, TraceError, "returned no tensor"),
    ):
        with pytest.raises(error, match=message):
            nw.compile(model, loss=loss, optimizer=optimizer)(x, y)
        with pytest.raises(error, match=message.replace("returned no tensor", "it returned float")):
            nw.compile(model, loss=loss, optimizer=optimizer).evaluate([(x, y)])


def test_a_list_of_losses_is_refused_with_the_way_to_write_it() -> None:
    model = nn.Linear(6, 4)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="write a function that adds them"):
        nw.compile(model, loss=[F.mse_loss, F.l1_loss], optimizer=optimizer)  # type: ignore
