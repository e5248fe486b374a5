"""The short way of repeated calls: taken when nothing changed, left when anything did."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5, bias=False)
        self.norm = nn.BatchNorm1d(5)
        self.scale = 2.0

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.norm(self.first(x)).relu() * self.scale


@pytest.fixture
def no_grad() -> Iterator[None]:
    with nw.no_grad():
        yield


@pytest.fixture
def model(no_grad: None) -> Any:
    nw.manual_seed(0)
    model = Counted().eval()
    return model, nw.compile(model), nw.randn(3, 6)


def repeated(fast: Any, x: Any) -> Any:
    """A shortcut is made by the second call of a kind."""
    fast(x)
    fast(x)
    assert fast._shortcut is not None
    return fast._shortcut


def test_a_repeated_call_takes_it_and_gives_the_same_bits(model: Any) -> None:
    _, fast, x = model
    first = fast(x).numpy()
    shortcut = repeated(fast, x)
    again = shortcut((x,))
    assert again is not None and again.numpy().tobytes() == first.tobytes()
    assert fast(x.numpy()).numpy().tobytes() == first.tobytes()
    assert fast(x) is not fast(x)  # every call has a result of its own


def _edit(model: Any) -> None:
    model.first.weight.mul_(0.5)


def _edit_by_index(model: Any) -> None:
    model.first.weight[0, 0] = 3.0


def _exchange(model: Any) -> None:
    model.first.weight.data = nw.ones(5, 6)


def _edit_through_numpy(model: Any) -> None:
    model.first.weight.detach().numpy()[:] = 1.0


def _load(model: Any) -> None:
    model.load_state_dict({k: v * 0 + 1 for k, v in model.state_dict().items()})


def _change_an_attribute(model: Any) -> None:
    model.scale = 5.0


def _exchange_a_module(model: Any) -> None:
    model.first = nn.Linear(6, 5, bias=False)


CHANGES = [
    _edit, _edit_by_index, _exchange, _edit_through_numpy, _load, _change_an_attribute,
    _exchange_a_module,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_it_is_left_when_the_model_changes(model: Any, change: Any) -> None:
    module, fast, x = model
    shortcut = repeated(fast, x)
    change(module)
    assert shortcut((x,)) is None
    np.testing.assert_allclose(fast(x).numpy(), module(x).numpy(), rtol=1e-5, atol=1e-6)


def test_writes_through_an_array_that_numpy_holds_are_seen(model: Any) -> None:
    module, fast, x = model
    held = module.first.weight.detach().numpy()
    for value in (1.0, 2.0, 3.0):
        held[:] = value
        np.testing.assert_allclose(fast(x).numpy(), module(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((4, 6), np.float32),
        np.zeros((3, 6), np.float64),
        np.zeros((6, 3), np.float32).T,
        np.zeros((3, 12), np.float32)[:, ::2],
    ],
    ids=["batch", "dtype", "transposed", "strided"],
)
def test_it_is_left_for_other_arguments(model: Any, other: np.ndarray) -> None:
    _, fast, x = model
    assert repeated(fast, x)((other,)) is None
    assert repeated(fast, x)((x, x)) is None


def test_it_is_left_where_gradients_are_recorded(model: Any) -> None:
    _, fast, x = model
    shortcut = repeated(fast, x)
    with nw.enable_grad():
        assert shortcut((x,)) is None
        assert fast(x).requires_grad


def test_it_is_left_when_the_number_of_threads_changes(model: Any) -> None:
    _, fast, x = model
    shortcut = repeated(fast, x)
    try:
        nw.set_num_threads(1)
        assert shortcut((x,)) is None
    finally:
        nw.set_num_threads(None)  # the default, which is not the same as its value now


def test_a_compiled_model_inside_of_a_traced_one_is_part_of_the_trace(model: Any) -> None:
    module, fast, x = model
    repeated(fast, x)
    outer = nw.compile(nn.Sequential(fast, nn.ReLU()).eval())
    np.testing.assert_allclose(outer(x).numpy(), module(x).relu().numpy(), rtol=1e-5, atol=1e-6)


def test_models_with_random_numbers_or_updates_have_none(no_grad: None) -> None:
    fast = nw.compile(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train())
    x = nw.ones(2, 4)
    fast(x)
    fast(x)
    assert fast._shortcut is None


def test_a_batch_that_grows_between_repeated_calls_does_not_disturb_them(model: Any) -> None:
    module, fast, x = model
    shortcut = repeated(fast, x)
    fast(nw.randn(500, 6))
    again = shortcut((x,))
    assert again is not None
    np.testing.assert_allclose(again.numpy(), module(x).numpy(), rtol=1e-5, atol=1e-6)
