"""What a step is bound to, changed behind its back: converted state, hooks; and copies of it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim
from netwright.errors import DTypeError, ShapeError, UnsupportedError

RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((12, 5)).astype(np.float32), RNG.integers(0, 4, 12)

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


def trained(calls: int = 3, **options: Any) -> tuple[nn.Module, Any]:
    nw.manual_seed(0)
    layers = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    model = nn.Sequential(*layers)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **options)
    for _ in range(calls):
        step(X, T)
    return model, step


# Native code read float32 state as float64: NaN, then a corrupted heap.
def test_state_of_another_dtype_than_a_converted_model_is_an_error_that_says_how_to_go_on() -> None:
    model, step = trained()
    model.double()
    before = [p.detach().numpy().copy() for p in model.parameters()]
    with pytest.raises(DTypeError, match=r"'0.weight.exp_avg' is float32 .* float64") as caught:
        step(X.astype(np.float64), T)
    assert "load_state_dict(optimizer.state_dict())" in str(caught.value)
    for old, new in zip(before, model.parameters(), strict=True):
        np.testing.assert_array_equal(old, new.detach().numpy())
    step.optimizer.load_state_dict(step.optimizer.state_dict())
    loss = step(X.astype(np.float64), T)
    assert loss.dtype is nw.float64
    twin, reference = trained()
    assert twin is not model
    assert loss.item() == pytest.approx(reference(X, T).item(), rel=1e-5)


def test_buffers_of_a_step_that_has_not_run_follow_a_converted_model() -> None:
    model, step = trained(calls=0)
    step.compile_for(X, T)
    model.double()
    assert np.isfinite(step(X.astype(np.float64), T).item())
    assert step.optimizer.state[model[0].weight]["exp_avg"].dtype is nw.float64


def test_state_of_another_shape_is_an_error() -> None:
    model, step = trained()
    step.optimizer.state[model[0].weight]["exp_avg_sq"] = nw.zeros(3)
    for call in (lambda: step(X, T), lambda: (step.gradients(X, T), step.update())):
        with pytest.raises(ShapeError, match=r"'0.weight.exp_avg_sq' is float32 of shape \[3\]"):
            call()


def test_one_cycle_changes_rate_and_momentum_of_one_program() -> None:
    model, step = trained(calls=0)
    schedule = optim.lr_scheduler.OneCycleLR(step.optimizer, max_lr=0.1, total_steps=6)
    for _ in range(6):
        step(X, T)
        schedule.step()
    assert step.compilations == 1

    twin, plain = trained(calls=0)
    schedule = optim.lr_scheduler.OneCycleLR(plain.optimizer, max_lr=0.1, total_steps=6)
    for _ in range(6):
        plain.optimizer.zero_grad()
        nn.CrossEntropyLoss()(twin(nw.from_numpy(X)), nw.from_numpy(T)).backward()
        plain.optimizer.step()
        schedule.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-5)


# Its gradient was used as if the hook were not there.
def test_a_hook_on_a_parameter_is_an_error_that_names_it() -> None:
    model, step = trained()
    handle = model[3].bias.register_hook(lambda gradient: gradient * 0)
    for call in (step, step.gradients):
        with pytest.raises(UnsupportedError, match=r"'3.bias' has a hook"):
            call(X, T)
    assert step.evaluate([(X, T)])["loss"] > 0
    handle.remove()
    step(X, T)
    assert step.compilations == 2  # the step and the evaluation


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_step_goes_on_by_itself_bit_by_bit(how: str) -> None:
    model, step = trained(calls=5, accumulate=2, clip_grad_norm=1.0)
    twin = COPIES[how](step)
    assert twin.accumulated == step.accumulated == 1
    losses = [step(X, T).item() for _ in range(3)]
    assert [twin(X, T).item() for _ in range(3)] == losses
    assert twin.model is not model
    for one, other in zip(model.parameters(), twin.model.parameters(), strict=True):
        assert one is not other
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loss": nn.CrossEntropyLoss}, r"loss=CrossEntropyLoss\(\)"),
        ({"optimizer": optim.SGD}, r"optimizer=SGD\(model.parameters\(\)\)"),
    ],
    ids=["loss", "optimizer"],
)
def test_a_class_in_the_place_of_an_object_is_named(arguments: dict[str, Any], words: str) -> None:
    model = nn.Linear(5, 4)
    right = {"loss": nn.MSELoss(), "optimizer": optim.SGD(model.parameters())}
    with pytest.raises(TypeError, match=words):
        nw.compile(model, **{**right, **arguments})


def test_a_step_takes_tensors_of_pytorch_which_eager_functions_name_as_what_they_are() -> None:
    torch = pytest.importorskip("torch", reason="gives PyTorch's tensors")
    _, step = trained(calls=0)
    _, twin = trained(calls=0)
    assert step(torch.from_numpy(X), torch.from_numpy(T)).item() == twin(X, T).item()
    with pytest.raises(TypeError, match=r"not torch\.Tensor; convert it with netwright"):
        F.relu(torch.from_numpy(X))  # type: ignore[arg-type]
