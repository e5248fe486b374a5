"""The same weights in torch and in netwright give the same numbers: outputs, gradients, running
statistics and ten optimizer steps, in eager and in compiled form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.errors import LintWarning

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # its spinning threads would take the cores of ours

pytestmark = pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")
assert issubclass(LintWarning, UserWarning)

EPS = float(np.finfo(np.float32).eps)


def floats(*shape: int, seed: int = 0, low: float = -1.5, high: float = 1.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, shape).astype(np.float32)


def classes(n: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, n)


@dataclass(frozen=True)
class Case:
    """A model as a function of the framework's ``nn``, its input and its number of outputs."""

    build: Callable[[Any], Any]
    x: np.ndarray


CASES = {
    "mlp": Case(
        lambda nn: nn.Sequential(
            nn.Flatten(), nn.Linear(24, 33), nn.ReLU(), nn.Linear(33, 17), nn.ReLU(),
            nn.Linear(17, 5),
        ),
        floats(7, 2, 3, 4),
    ),
    "mlp_batch_norm": Case(
        lambda nn: nn.Sequential(
            nn.Linear(12, 19, bias=False), nn.BatchNorm1d(19), nn.ReLU(),
            nn.Linear(19, 9, bias=False), nn.BatchNorm1d(9, momentum=0.3, eps=1e-3), nn.Tanh(),
            nn.Linear(9, 5),
        ),
        floats(11, 12),
    ),
    "cnn": Case(
        lambda nn: nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(p=0.0),
            nn.Linear(128, 5),
        ),
        floats(6, 1, 12, 12),
    ),
    "text": Case(
        lambda nn: nn.Sequential(
            nn.Embedding(13, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 6),
            nn.LayerNorm([4, 6], elementwise_affine=False), nn.Flatten(), nn.Linear(24, 5),
        ),
        classes(36, 13).reshape(9, 4),
    ),
    "conv1d": Case(
        lambda nn: nn.Sequential(
            nn.Conv1d(3, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Conv1d(8, 8, 3, dilation=2, groups=2), nn.SiLU(), nn.Flatten(), nn.Linear(48, 5),
        ),
        floats(5, 3, 20),
    ),
    "grouped": Case(
        lambda nn: nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 12, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(12 * 49, 5),
        ),
        floats(4, 4, 7, 7),
    ),
    "strided_dilated": Case(
        lambda nn: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ELU(),
            nn.Conv2d(8, 6, 3, padding=2, dilation=2), nn.LeakyReLU(0.1),
            nn.Conv2d(6, 7, (3, 2), stride=(2, 1), padding=(0, 1)), nn.Tanh(),
            nn.Conv2d(7, 4, 3, padding="same"), nn.Flatten(), nn.Linear(4 * 3 * 9, 5),
        ),
        floats(4, 3, 15, 15),
    ),
    "average_pools": Case(
        lambda nn: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.AvgPool2d(3, stride=2, padding=1), nn.ReLU(),
            nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), nn.AdaptiveAvgPool2d((2, 3)),
            nn.Flatten(), nn.Linear(36, 5),
        ),
        floats(4, 2, 13, 14),
    ),
    "max_pools": Case(
        lambda nn: nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.MaxPool2d(3, stride=2, padding=1), nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
        ),
        floats(4, 2, 13, 14),
    ),
}  # fmt: skip

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda nn: nn.ReLU(),
    "relu6": lambda nn: nn.ReLU6(),
    "leaky_relu": lambda nn: nn.LeakyReLU(0.2),
    "elu": lambda nn: nn.ELU(0.7),
    "gelu": lambda nn: nn.GELU(),
    "gelu_tanh": lambda nn: nn.GELU(approximate="tanh"),
    "silu": lambda nn: nn.SiLU(),
    "sigmoid": lambda nn: nn.Sigmoid(),
    "tanh": lambda nn: nn.Tanh(),
    "hardswish": lambda nn: nn.Hardswish(),
    "hardsigmoid": lambda nn: nn.Hardsigmoid(),
    "softplus": lambda nn: nn.Softplus(beta=2.0, threshold=3.0),
    "softmax": lambda nn: nn.Softmax(dim=1),
    "log_softmax": lambda nn: nn.LogSoftmax(dim=-1),
}

_C, _P = classes(8, 5, 1), np.exp(floats(8, 5, seed=2))
_IGNORED = np.where(np.arange(8) % 3 == 0, -100, _C)
_BITS = (floats(8, 5, seed=3) > 0).astype(np.float32)
LOSSES: dict[str, tuple[Callable[[Any], Any], np.ndarray, str]] = {
    "cross_entropy": (lambda nn: nn.CrossEntropyLoss(), _C, ""),
    "cross_entropy_sum": (lambda nn: nn.CrossEntropyLoss(reduction="sum"), _C, ""),
    "cross_entropy_smooth": (lambda nn: nn.CrossEntropyLoss(label_smoothing=0.1), _C, ""),
    "cross_entropy_ignore": (lambda nn: nn.CrossEntropyLoss(), _IGNORED, ""),
    "cross_entropy_weight": (lambda nn: _weighted(nn.CrossEntropyLoss), _IGNORED, ""),
    "cross_entropy_all": (
        lambda nn: _weighted(nn.CrossEntropyLoss, label_smoothing=0.2, ignore_index=3), _C, "",
    ),
    "cross_entropy_probabilities": (
        lambda nn: _weighted(nn.CrossEntropyLoss, label_smoothing=0.1),
        (_P / _P.sum(1, keepdims=True)).astype(np.float32), "",
    ),
    "nll": (lambda nn: _weighted(nn.NLLLoss), _IGNORED, "log_softmax"),
    "mse": (lambda nn: nn.MSELoss(), floats(8, 5, seed=4), ""),
    "l1": (lambda nn: nn.L1Loss(), floats(8, 5, seed=4), ""),
    "smooth_l1": (lambda nn: nn.SmoothL1Loss(beta=0.4), floats(8, 5, seed=4), ""),
    "bce": (lambda nn: nn.BCELoss(), _BITS, "sigmoid"),
    "bce_weight": (lambda nn: _weighted(nn.BCELoss), _BITS, "sigmoid"),
    "bce_logits": (lambda nn: nn.BCEWithLogitsLoss(), _BITS, ""),
    "bce_logits_pos_weight": (
        lambda nn: nn.BCEWithLogitsLoss(pos_weight=_tensor(nn, floats(5, low=0.5, high=2.0))),
        _BITS, "",
    ),
}  # fmt: skip


def _tensor(namespace: Any, array: np.ndarray) -> Any:
    return (nw if namespace is nn else torch).from_numpy(array)


def _weighted(loss: Any, **options: Any) -> Any:
    weight = floats(5, seed=5, low=0.5, high=2.0)
    library = nw if loss.__module__.startswith("netwright") else torch
    return loss(weight=library.from_numpy(weight), **options)


def build(make: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The model in torch and here, with the same weights and running statistics."""
    torch.manual_seed(1)
    theirs, ours = make(torch.nn), make(nn)
    with torch.no_grad():
        for name, buffer in theirs.named_buffers():
            if "running" in name:
                buffer.copy_(torch.from_numpy(floats(*buffer.shape, low=0.5, high=1.5)))
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    return theirs, ours


def run_torch(model: Any, x: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Output, gradients of sum(output * weights), and buffers."""
    data = torch.from_numpy(x).requires_grad_(x.dtype.kind == "f")
    model.zero_grad()
    out = model(data)
    (out * torch.from_numpy(weights).to(out.dtype)).sum().backward()
    return _found(model, out, data)


def run_ours(model: Any, call: Any, x: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    data = nw.from_numpy(x).requires_grad_(x.dtype.kind == "f")
    model.zero_grad()
    out = call(data)
    (out * nw.from_numpy(weights).to(out.dtype)).sum().backward()
    return _found(model, out, data)


def _found(model: Any, out: Any, data: Any) -> dict[str, np.ndarray]:
    found = {"output": out.detach().numpy().copy()}
    if data.grad is not None:
        found["input.grad"] = data.grad.numpy().copy()
    for name, p in model.named_parameters():
        found[name + ".grad"] = p.grad.numpy().copy()
    for name, b in model.named_buffers():
        found[name] = b.numpy().copy()
    return found


def assert_close(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float) -> None:
    assert list(got) == list(expected)
    for name, value in expected.items():
        assert (got[name].shape, got[name].dtype) == (value.shape, value.dtype), name
        scale = max(float(np.abs(value).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=rtol * scale, err_msg=name)


def _activation(name: str) -> Callable[[Any], Any]:
    return lambda nn: nn.Sequential(nn.Linear(6, 5), ACTIVATIONS[name](nn), nn.Linear(5, 4))


ALL = {**CASES, **{name: Case(_activation(name), floats(8, 6, high=4.0)) for name in ACTIVATIONS}}


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, True) for name in ALL] + [(name, False) for name in CASES],  # activations have no mode
    ids=lambda v: v if isinstance(v, str) else "train" if v else "eval",
)
def test_forward_and_gradients_equal_torch_and_keep_the_certificate(
    name: str, training: bool
) -> None:
    case = ALL[name]
    theirs, ours = build(case.build)
    start = {k: v.clone() for k, v in ours.state_dict().items()}
    fast = nw.compile(ours)
    theirs.train(training)
    ours.train(training)
    with torch.no_grad():
        weights = floats(*theirs.eval()(torch.from_numpy(case.x)).shape, seed=9)
    theirs.train(training)
    expected = run_torch(theirs, case.x, weights)
    eager = run_ours(ours, ours, case.x, weights)
    ours.load_state_dict(start)
    compiled = run_ours(ours, fast, case.x, weights)
    assert_close(eager, expected, 2e-5)
    assert_close(compiled, expected, 2e-5)
    assert fast.fallbacks == 0

    exact_model = case.build(nn).double().train(training)
    exact_model.load_state_dict(start)
    wide = case.x.astype(np.float64) if case.x.dtype.kind == "f" else case.x
    exact = run_ours(exact_model, exact_model, wide, weights)
    assert_certificate(compiled, eager, exact)


def assert_certificate(
    compiled: dict[str, np.ndarray], eager: dict[str, np.ndarray], exact: dict[str, np.ndarray]
) -> None:
    """Compiled is at most twice as far from float64 as eager. The floor is what rounding of
    values of this size costs in sums of this length, where eager may be exact by luck."""
    for name, truth in exact.items():
        scale = max(float(np.abs(truth).max(initial=0.0)), 1.0)
        error = np.abs(compiled[name] - truth).max(initial=0.0)
        reference = np.abs(eager[name] - truth).max(initial=0.0)
        assert error <= 2 * reference + 4 * EPS * scale, (name, error, reference)


@pytest.mark.parametrize("name", list(LOSSES))
def test_losses_equal_torch_and_ten_steps_follow_its_trajectory(name: str) -> None:
    make_loss, target, activation = LOSSES[name]

    def make(nn: Any) -> Any:
        layers = [nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)]
        return nn.Sequential(*layers, *([ACTIVATIONS[activation](nn)] if activation else []))

    theirs, ours = build(make)
    _, eager = build(make)
    their_loss, our_loss = make_loss(torch.nn), make_loss(nn)
    step = nw.compile(ours, loss=our_loss, optimizer=optim.SGD(ours.parameters(), lr=0.1))
    their_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    eager_optimizer = optim.SGD(eager.parameters(), lr=0.1)
    x = floats(8, 6)
    for i in range(10):
        got = step(x, target).item()
        their_optimizer.zero_grad()
        expected = their_loss(theirs(torch.from_numpy(x)), torch.from_numpy(target))
        expected.backward()
        their_optimizer.step()
        eager_optimizer.zero_grad()
        loss = our_loss(eager(nw.from_numpy(x)), nw.from_numpy(target))
        loss.backward()
        eager_optimizer.step()
        assert got == pytest.approx(expected.item(), rel=3e-5), i
        assert loss.item() == pytest.approx(expected.item(), rel=3e-5), i
    assert step.fallbacks == 0
    assert_close(_state(ours), _state(theirs), 5e-5)
    assert_close(_state(eager), _state(theirs), 5e-5)


def _state(model: Any) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.2}),
    "nesterov": ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("Adam", {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.02}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
}


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("name", ["mlp_batch_norm", "cnn", "text"])
def test_ten_compiled_steps_follow_torchs_trajectory(name: str, optimizer: str) -> None:
    case = CASES[name]
    theirs, ours = build(case.build)
    kind, options = OPTIMIZERS[optimizer]
    their_optimizer = getattr(torch.optim, kind)(theirs.parameters(), **options)
    our_optimizer = getattr(optim, kind)(ours.parameters(), **options)
    step = nw.compile(ours, loss=nn.CrossEntropyLoss(), optimizer=our_optimizer)
    target = classes(len(case.x), 5)
    theirs.train()
    for i in range(10):
        if i == 5:  # a changed learning rate is read in the next step
            for group in (*their_optimizer.param_groups, *our_optimizer.param_groups):
                group["lr"] *= 0.5
        their_optimizer.zero_grad()
        loss = torch.nn.CrossEntropyLoss()(theirs(torch.from_numpy(case.x)), torch.tensor(target))
        loss.backward()
        their_optimizer.step()
        assert step(case.x, target).item() == pytest.approx(loss.item(), rel=2e-4, abs=1e-5), i
    assert step.compilations == 1
    assert step.fallbacks == 0
    got, expected = _state(ours), _state(theirs)
    for key, value in expected.items():
        if value.dtype.kind == "f":
            # Adam divides by the root of tiny second moments: rounding is amplified where a
            # gradient is almost zero.
            atol = 2e-4 if kind != "SGD" else 2e-5
            np.testing.assert_allclose(got[key], value, rtol=2e-3, atol=atol, err_msg=key)
        else:
            assert got[key] == value


def test_an_optimizers_state_continues_from_torchs() -> None:
    case = CASES["mlp_batch_norm"]
    theirs, ours = build(case.build)
    their_optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    our_optimizer = optim.Adam(ours.parameters(), lr=0.01)
    step = nw.compile(ours, loss=nn.CrossEntropyLoss(), optimizer=our_optimizer)
    target = classes(len(case.x), 5)

    def their_step() -> float:
        their_optimizer.zero_grad()
        loss = torch.nn.CrossEntropyLoss()(theirs(torch.from_numpy(case.x)), torch.tensor(target))
        loss.backward()
        their_optimizer.step()
        return loss.item()

    step(case.x, target)  # our optimizer has state of its own, which the loaded one replaces
    for _ in range(4):
        their_step()
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    our_optimizer.load_state_dict(_as_numpy(their_optimizer.state_dict()))
    for _ in range(4):
        assert step(case.x, target).item() == pytest.approx(their_step(), rel=2e-4)


def _as_numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()
    if isinstance(value, dict):
        return {k: _as_numpy(v) for k, v in value.items()}
    return [_as_numpy(v) for v in value] if isinstance(value, list) else value
