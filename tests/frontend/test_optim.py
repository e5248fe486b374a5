"""Optimizers against torch's trajectories, and the interface that compiled steps use."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from netwright.errors import UnsupportedError
from netwright.frontend import nn
from netwright.frontend.creation import ones, tensor, zeros
from netwright.frontend.optim import SGD, Adam, AdamW, Optimizer
from netwright.frontend.tensor import Tensor
from netwright.ir.builder import ArrayBuilder, GraphBuilder
from netwright.ir.graph import Graph
from netwright.ir.ops.record import get
from netwright.ir.types import TensorType, float32

CASES: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (SGD, {}),
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (SGD, {"lr": 0.1, "weight_decay": 0.05}),
    (SGD, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05, "nesterov": True}),
    (SGD, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05, "maximize": True}),
    (Adam, {}),
    (Adam, {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4}),
    (Adam, {"lr": 0.05, "betas": (0.0, 0.0)}),
    (Adam, {"lr": 0.05, "weight_decay": 0.1}),
    (Adam, {"lr": 0.05, "amsgrad": True}),
    (Adam, {"lr": 0.05, "maximize": True, "amsgrad": True, "weight_decay": 0.1}),
    (Adam, {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (AdamW, {}),
    (AdamW, {"lr": 0.05, "weight_decay": 0.2}),
    (AdamW, {"lr": 0.05, "weight_decay": 0.0}),
    (AdamW, {"lr": 0.05, "amsgrad": True, "maximize": True}),
]
IDS = [f"{cls.__name__}-{'-'.join(f'{k}={v}' for k, v in kw.items())}" for cls, kw in CASES]


def parameters(seed: int = 0, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(dtype) for s in ((3, 4), (5,), ())]


def gradients(step: int, like: list[np.ndarray]) -> list[np.ndarray]:
    rng = np.random.default_rng(1000 + step)
    # Sizes that vary over time make amsgrad's maximum differ from the running mean.
    scale = 10.0 if step % 7 == 0 else 1.0
    return [np.asarray(scale * rng.normal(size=a.shape), a.dtype) for a in like]


def pair(cls: type[Optimizer], options: dict[str, Any], arrays: list[np.ndarray]) -> Any:
    torch = pytest.importorskip("torch")
    ours = [tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    reference = getattr(torch.optim, cls.__name__)(theirs, **options)
    return ours, cls(ours, **options), theirs, reference


def train(
    ours: list[Tensor], optimizer: Optimizer, theirs: Any, reference: Any, steps: range
) -> None:
    torch = pytest.importorskip("torch")
    for step in steps:
        values = gradients(step, [p.detach().numpy() for p in ours])
        for p, q, g in zip(ours, theirs, values, strict=True):
            p.grad, q.grad = tensor(g), torch.tensor(g)
        optimizer.step()
        reference.step()


def assert_equal_parameters(ours: list[Tensor], theirs: Any, rtol: float = 2e-5) -> None:
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            p.detach().numpy(), q.detach().numpy(), rtol=rtol, atol=rtol / 10
        )


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_trajectory_equals_torch(cls: type[Optimizer], options: dict[str, Any]) -> None:
    ours, optimizer, theirs, reference = pair(cls, options, parameters())
    train(ours, optimizer, theirs, reference, range(25))
    assert_equal_parameters(ours, theirs)
    for p, q in zip(ours, theirs, strict=True):
        assert list(optimizer.state.get(p, {})) == list(reference.state.get(q, {}))
        for name, value in optimizer.state.get(p, {}).items():
            expected = reference.state[q][name].numpy()
            np.testing.assert_allclose(value.numpy(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_float64_parameters_are_updated_in_float64(
    cls: type[Optimizer], options: dict[str, Any]
) -> None:
    ours, optimizer, theirs, reference = pair(cls, options, parameters(dtype=np.float64))
    train(ours, optimizer, theirs, reference, range(20))
    assert_equal_parameters(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_the_compiled_steps_interface_gives_the_same_trajectory(
    cls: type[Optimizer], options: dict[str, Any]
) -> None:
    arrays = parameters()
    eager, compiled = [tensor(a) for a in arrays], [tensor(a) for a in arrays]
    one, two = cls(eager, **options), cls(compiled, **options)
    b, rule = ArrayBuilder(), two.update_rule(0)
    for step in range(20):
        values = gradients(step, arrays)
        for p, g in zip(eager, values, strict=True):
            p.grad = tensor(g)
        one.step()
        two.check_equal_steps(compiled)
        numbers = {k: np.float32(v) for k, v in two.hyper(0, compiled[0]).items()}
        for p, g in zip(compiled, values, strict=True):
            tensors = {n: two.state_tensor(p, n) for n in two.state_names(0)}
            new, state = rule(b, p._array, g, {n: t._array for n, t in tensors.items()}, numbers)
            p._array[...] = new
            assert set(state) == set(tensors)
            for name, value in state.items():
                tensors[name]._array[...] = value
        two.advance(compiled)
    for p, q in zip(eager, compiled, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
        assert list(one.state.get(p, {})) == list(two.state.get(q, {}))


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_a_rule_is_elementwise_and_uses_every_number(
    cls: type[Optimizer], options: dict[str, Any]
) -> None:
    optimizer = cls([zeros(2, 3)], **options)
    graph = Graph()
    kind = TensorType(float32, (2, 3))

    def source(op: str, name: str, type: TensorType) -> Any:
        return graph.add(op, name=name, path=name, type=type)

    param, grad = source("parameter", "p", kind), source("input", "g", kind)
    state = {n: source("buffer", n, kind) for n in optimizer.state_names(0)}
    numbers = optimizer.hyper(0, optimizer.param_groups[0]["params"][0])
    hyper = {n: source("input", n, TensorType(float32, ())) for n in numbers}
    new, new_state = optimizer.update_rule(0)(GraphBuilder(graph), param, grad, state, hyper)
    assert graph.type(new) == kind
    assert set(new_state) == set(state)
    assert {get(n.op).kind for n in graph.nodes} <= {"source", "elementwise"}
    assert all(graph.users(v) for v in hyper.values())


def test_groups_have_their_own_options() -> None:
    torch = pytest.importorskip("torch")
    arrays = parameters()
    ours = [tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    optimizer = SGD(
        [{"params": ours[:1], "lr": 0.5}, {"params": ours[1:2], "momentum": 0.9}], lr=0.1
    )
    reference = torch.optim.SGD(
        [{"params": theirs[:1], "lr": 0.5}, {"params": theirs[1:2], "momentum": 0.9}], lr=0.1
    )
    train(ours, optimizer, theirs, reference, range(10))
    optimizer.add_param_group({"params": ours[2], "nesterov": True, "momentum": 0.5})
    reference.add_param_group({"params": theirs[2], "nesterov": True, "momentum": 0.5})
    train(ours, optimizer, theirs, reference, range(10, 22))
    assert_equal_parameters(ours, theirs)


def test_parameters_without_a_gradient_keep_value_and_step_count() -> None:
    torch = pytest.importorskip("torch")
    ours, optimizer, theirs, reference = pair(Adam, {"lr": 0.1}, parameters())
    train(ours, optimizer, theirs, reference, range(5))
    for step in range(5, 12):
        for p, q, g in zip(ours, theirs, gradients(step, parameters()), strict=True):
            p.grad, q.grad = tensor(g), torch.tensor(g)
        ours[0].grad = theirs[0].grad = None
        optimizer.step()
        reference.step()
    train(ours, optimizer, theirs, reference, range(12, 22))
    assert_equal_parameters(ours, theirs)
    assert [optimizer.steps_taken(p) for p in ours] == [15.0, 22.0, 22.0]
    with pytest.raises(UnsupportedError, match="different numbers of steps"):
        optimizer.check_equal_steps(ours)
    optimizer.check_equal_steps(ours[1:])


def test_changed_options_take_effect_at_the_next_step() -> None:
    ours, optimizer, theirs, reference = pair(SGD, {"lr": 0.1}, parameters())
    before = optimizer.structure()
    for key, value in (("lr", 0.01), ("momentum", 0.9), ("weight_decay", 0.1), ("lr", 0.3)):
        optimizer.param_groups[0][key] = reference.param_groups[0][key] = value
        train(ours, optimizer, theirs, reference, range(6))
        assert_equal_parameters(ours, theirs)
    assert optimizer.structure() != before


def test_structure_ignores_numbers_and_notices_flags_and_groups() -> None:
    optimizer = Adam([zeros(2)], lr=0.1)
    before = optimizer.structure()
    optimizer.param_groups[0].update(lr=0.2, betas=(0.5, 0.9), eps=1e-3)
    assert optimizer.structure() == before
    for flag in ({"amsgrad": True}, {"weight_decay": 0.1}, {"maximize": True}):
        last = optimizer.structure()
        optimizer.param_groups[0].update(flag)
        assert optimizer.structure() != last
    last = optimizer.structure()
    optimizer.add_param_group({"params": [zeros(3)]})
    assert optimizer.structure() != last
    hash(optimizer.structure())


def test_step_writes_in_place_and_counts_the_version() -> None:
    p = ones(3, requires_grad=True)
    alias, version = p.detach(), p._storage.version
    p.grad = ones(3)
    SGD([p], lr=0.25).step()
    np.testing.assert_array_equal(alias.numpy(), np.full(3, 0.75, np.float32))
    assert p._storage.version > version
    assert p.requires_grad and p.is_leaf


def test_backward_through_a_stepped_parameter_is_an_error() -> None:
    p = ones(3, requires_grad=True)
    loss = (p * p).sum()
    p.grad = ones(3)
    SGD([p], lr=0.25).step()
    with pytest.raises(RuntimeError, match=r"in-?place"):
        loss.backward()


def test_buffers_made_for_a_compiled_step_are_state_only_after_it_ran() -> None:
    p = zeros(2)
    optimizer = SGD([p], momentum=0.9, dampening=0.5)
    buffer = optimizer.state_tensor(p, "momentum_buffer")
    assert optimizer.state_tensor(p, "momentum_buffer") is buffer
    assert optimizer.state_dict()["state"] == {}
    assert optimizer.hyper(0, p)["gain"] == 1.0
    optimizer.advance([p])
    assert optimizer.state[p]["momentum_buffer"] is buffer
    assert optimizer.hyper(0, p)["gain"] == 0.5


def test_closure_is_called_with_gradients_enabled_and_its_result_returned() -> None:
    p = ones(2, requires_grad=True)
    optimizer = SGD([p], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    np.testing.assert_array_equal(p.detach().numpy(), np.zeros(2, np.float32))


def test_zero_grad_drops_or_clears() -> None:
    p = ones(2, requires_grad=True)
    optimizer = SGD([p])
    gradient = ones(2)
    p.grad = gradient
    optimizer.zero_grad(set_to_none=False)
    assert p.grad is gradient and gradient.tolist() == [0.0, 0.0]
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    ("cls", "options"),
    [(SGD, {"momentum": 0.9, "dampening": 0.4}), (Adam, {"amsgrad": True}), (AdamW, {})],
)
def test_a_checkpoint_continues_the_trajectory(
    cls: type[Optimizer], options: dict[str, Any]
) -> None:
    ours, optimizer, theirs, reference = pair(cls, {"lr": 0.05, **options}, parameters())
    train(ours, optimizer, theirs, reference, range(8))
    resumed = [tensor(p.detach().numpy().copy(), requires_grad=True) for p in ours]
    second = cls(resumed, lr=1.0)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(resumed, second, theirs, reference, range(8, 20))
    assert_equal_parameters(resumed, theirs)


@pytest.mark.parametrize(("cls", "options"), [(SGD, {"momentum": 0.9}), (Adam, {"amsgrad": True})])
def test_a_torch_checkpoint_is_read(cls: type[Optimizer], options: dict[str, Any]) -> None:
    ours, optimizer, theirs, reference = pair(cls, {"lr": 0.05, **options}, parameters())
    train(ours, optimizer, theirs, reference, range(8))
    resumed = [tensor(q.detach().numpy().copy(), requires_grad=True) for q in theirs]
    second = cls(resumed)
    second.load_state_dict(reference.state_dict())
    train(resumed, second, theirs, reference, range(8, 20))
    assert_equal_parameters(resumed, theirs)


def test_state_dict_has_torchs_layout() -> None:
    ours, optimizer, theirs, reference = pair(Adam, {"lr": 0.05}, parameters())
    train(ours, optimizer, theirs, reference, range(2))
    mine, expected = optimizer.state_dict(), reference.state_dict()
    assert mine["param_groups"] == expected["param_groups"]
    assert {k: list(v) for k, v in mine["state"].items()} == {
        k: list(v) for k, v in expected["state"].items()
    }
    assert mine["state"][0]["step"].item() == 2.0
    assert repr(optimizer) == repr(reference)


def test_load_state_dict_copies_the_tensors() -> None:
    p = ones(2)
    optimizer = SGD([p], momentum=0.9)
    p.grad = ones(2)
    optimizer.step()
    saved = optimizer.state_dict()
    other = SGD([ones(2)], momentum=0.9)
    other.load_state_dict(saved)
    q = other.param_groups[0]["params"][0]
    assert other.state[q]["momentum_buffer"] is not saved["state"][0]["momentum_buffer"]
    optimizer.step()
    assert other.state[q]["momentum_buffer"].tolist() == [1.0, 1.0]


def test_adamw_stays_decoupled_after_loading_an_adam_checkpoint() -> None:
    optimizer = AdamW([zeros(2)], weight_decay=0.1)
    optimizer.load_state_dict(Adam([zeros(2)], weight_decay=0.1).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


def test_bad_checkpoints_are_refused_and_change_nothing() -> None:
    optimizer = Adam([zeros(2), zeros(3)])
    two_groups = Adam([{"params": [zeros(2)]}, {"params": [zeros(3)]}]).state_dict()
    for broken, message in (
        ({}, "state_dict has the keys"),
        (two_groups, "different number of parameter groups"),
        (Adam([zeros(2)]).state_dict(), "doesn't match the size"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(broken)
    wrong = optimizer.state_dict()
    wrong["state"] = {1: {"exp_avg": zeros(7)}}
    with pytest.raises(ValueError, match=r"exp_avg of shape \[7\] for parameter 1"):
        optimizer.load_state_dict(wrong)
    assert not optimizer.state


def test_deepcopy_of_model_and_optimizer_keeps_them_together() -> None:
    p = ones(2)
    optimizer = SGD([p], lr=0.5, momentum=0.9)
    p.grad = ones(2)
    optimizer.step()
    q, duplicate = copy.deepcopy((p, optimizer))
    q.grad = ones(2)
    duplicate.step()
    assert duplicate.param_groups[0]["params"][0] is q
    assert p.tolist() == [0.5, 0.5]
    assert q.tolist() == pytest.approx([-0.45, -0.45])


def test_named_parameters_are_accepted() -> None:
    layer = nn.Linear(2, 3)
    optimizer = SGD(layer.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.param_groups[0]["params"][0] is layer.weight


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD([]), ValueError, "empty parameter list"),
        (lambda: SGD(nn.Linear(2, 2)), TypeError, r"module Linear; pass its \.parameters"),
        (lambda: SGD(nn.Linear(2, 2).parameters), TypeError, r"call it: model\.parameters\(\)"),
        (lambda: SGD(zeros(2)), TypeError, "iterable of Tensors or dicts"),
        (lambda: SGD({zeros(2)}), TypeError, "ordered collections"),
        (lambda: SGD([np.zeros(2)]), TypeError, "can only optimize Tensors"),
        (lambda: SGD([ones(2, requires_grad=True) * 2]), ValueError, "non-leaf"),
        (lambda: SGD([{"lr": 1.0}]), KeyError, "params"),
        (lambda: SGD([zeros(2)], lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
        (lambda: SGD([zeros(2)], lr=float("nan")), ValueError, "Invalid learning rate: nan"),
        (lambda: SGD([zeros(2)], momentum=-1), ValueError, "Invalid momentum value: -1"),
        (lambda: SGD([zeros(2)], weight_decay=-1), ValueError, "Invalid weight_decay value: -1"),
        (lambda: SGD([zeros(2)], nesterov=True), ValueError, "Nesterov momentum requires"),
        (lambda: Adam([zeros(2)], lr=-1.0), ValueError, "Invalid learning rate: -1.0"),
        (lambda: Adam([zeros(2)], eps=-1), ValueError, "Invalid epsilon value: -1"),
        (lambda: Adam([zeros(2)], betas=(1.0, 0.9)), ValueError, "parameter at index 0: 1.0"),
        (lambda: Adam([zeros(2)], betas=(0.9, 2.0)), ValueError, "parameter at index 1: 2.0"),
        (lambda: SGD([zeros(2)], foreach=True), UnsupportedError, "foreach"),
        (lambda: AdamW([zeros(2)], capturable=True), UnsupportedError, "AdamW.capturable"),
        (lambda: SGD([zeros(2)], learning_rate=1), TypeError, "learning_rate"),
    ],
)
def test_wrong_arguments_are_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_parameter_in_two_places_is_an_error() -> None:
    p = zeros(2)
    with pytest.raises(ValueError, match="same parameter twice"):
        SGD([p, p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        SGD([{"params": [p]}, {"params": [p]}])


def test_torchs_default_values_of_gpu_options_are_accepted() -> None:
    Adam([zeros(2)], foreach=False, fused=None, capturable=False, differentiable=False)
    SGD([zeros(2)], foreach=None, fused=False)


def test_an_optimizer_of_the_user_without_a_rule_cannot_be_compiled() -> None:
    class SignDescent(Optimizer):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.sub_(p.grad.sign())

    optimizer = SignDescent([p := ones(2)], {})
    p.grad = ones(2)
    optimizer.step()
    assert p.tolist() == [0.0, 0.0]
    assert optimizer._opt_called
    with pytest.raises(UnsupportedError, match="SignDescent has no update_rule"):
        optimizer.update_rule(0)
