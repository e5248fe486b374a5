"""What makes a compiled model compile again: attributes, hooks, structure; and what does not."""

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.bridge.fingerprint import Fingerprint

X = np.random.default_rng(0).standard_normal((3, 4), np.float32)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.scale = 2.0

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.linear(x) * self.scale


def same(fast: nn.Module, model: nn.Module) -> bool:
    with nw.no_grad():
        return np.allclose(fast(X).numpy(), model(nw.from_numpy(X)).numpy(), atol=1e-6)


def test_a_changed_number_attribute_compiles_again() -> None:
    model = Scaled().eval()
    fast = nw.compile(model)
    assert same(fast, model)
    model.scale = 3.0
    assert same(fast, model)
    assert fast.compilations == 2
    model.scale = 2.0
    assert same(fast, model)
    assert fast.compilations == 2


def test_an_exchanged_submodule_is_followed() -> None:
    model = Scaled().eval()
    fast = nw.compile(model)
    assert same(fast, model)
    first, second = (nn.Linear(4, 2) for _ in range(2))
    for linear in (first, second):
        model.linear = linear
        assert same(fast, model)


def test_a_step_refuses_a_parameter_that_its_optimizer_does_not_have() -> None:
    model = Scaled()
    optimizer = nw.optim.SGD(model.parameters(), lr=0.1)
    step = nw.compile(model, loss=nn.MSELoss(), optimizer=optimizer)
    step(X, np.zeros((3, 2), np.float32))
    model.linear = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="optimizer"):
        step(X, np.zeros((3, 2), np.float32))


def test_a_hook_is_part_of_the_program_until_it_is_removed() -> None:
    model = Scaled().eval()
    fast = nw.compile(model)
    assert same(fast, model)
    handle = model.linear.register_forward_hook(lambda module, args, out: out + 1.0)
    assert same(fast, model)
    handle.remove()
    assert same(fast, model)


def test_new_values_in_parameters_compile_nothing() -> None:
    model = Scaled().eval()
    fast = nw.compile(model)
    assert same(fast, model)
    model.load_state_dict({"linear.weight": nw.ones(2, 4), "linear.bias": nw.zeros(2)})
    assert same(fast, model)
    assert fast.compilations == 1


def test_one_and_true_and_one_point_zero_are_different_attributes() -> None:
    model = Scaled()
    seen = set()
    for value in (1, 1.0, True):
        model.scale = value
        seen.add(Fingerprint(model).value)
    assert len(seen) == 3


def test_the_summary_is_not_computed_again_while_nothing_changes() -> None:
    fingerprint = Fingerprint(Scaled())
    assert fingerprint.value is fingerprint.value
