"""nn.init: distributions, gains, in-place semantics, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from netwright.frontend import nn
from netwright.frontend.nn import init
from netwright.frontend.random import Generator, manual_seed
from netwright.frontend.tensor import Tensor


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


def test_initialisers_write_in_place_into_parameters_and_return_them() -> None:
    weight = nn.Parameter(zeros(6, 4))
    version = weight._storage.version
    for fill in (
        init.uniform_,
        init.normal_,
        init.ones_,
        init.zeros_,
        init.eye_,
        init.xavier_uniform_,
        init.xavier_normal_,
        init.kaiming_uniform_,
        init.kaiming_normal_,
        init.trunc_normal_,
        init.orthogonal_,
    ):
        assert fill(weight) is weight
        assert weight._storage.version > version
        version = weight._storage.version
    assert weight.requires_grad
    assert weight.is_leaf


def test_constants() -> None:
    assert init.constant_(zeros(2), 3.5).tolist() == [3.5, 3.5]
    assert init.ones_(zeros(2)).tolist() == [1.0, 1.0]
    assert init.zeros_(init.ones_(zeros(2))).tolist() == [0.0, 0.0]
    assert init.eye_(zeros(2, 3)).tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


SCALES: list[tuple[Any, float, bool]] = [
    (lambda w: init.uniform_(w, -2.0, 2.0), 2 / math.sqrt(3), True),
    (lambda w: init.normal_(w, 0.0, 3.0), 3.0, False),
    (lambda w: init.xavier_uniform_(w, gain=2.0), 2 * math.sqrt(2 / (100 * 9 + 80 * 9)), True),
    (init.xavier_normal_, math.sqrt(2 / (100 * 9 + 80 * 9)), False),
    (lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)), 1 / math.sqrt(3 * 100 * 9), True),
    (
        lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
        math.sqrt(2 / (80 * 9)),
        False,
    ),
]


@pytest.mark.parametrize("index", range(len(SCALES)))
def test_random_initialisers_have_the_documented_scale(index: int) -> None:
    manual_seed(index)
    fill, std, bounded = SCALES[index]
    values = fill(zeros(80, 100, 3, 3)).numpy()
    assert values.mean() == pytest.approx(0.0, abs=0.02 * std)
    assert values.std() == pytest.approx(std, rel=0.02)
    assert (np.abs(values).max() <= math.sqrt(3) * std * (1 + 1e-6)) is np.bool_(bounded)


@pytest.mark.parametrize(("a", "b"), [(-2, 2), (-0.1, 0.2), (1.5, 9), (-9, 0.5), (-30, 30)])
def test_trunc_normal_is_the_conditional_normal(a: float, b: float) -> None:
    torch = pytest.importorskip("torch")
    manual_seed(3)
    mean, std = 0.25, 1.5
    values = init.trunc_normal_(zeros(40000), mean, std, a, b).numpy()
    assert values.min() >= a
    assert values.max() <= b
    reference = torch.distributions.Normal(mean, std)
    grid = np.linspace(values.min(), values.max(), 9)[1:-1]
    low, high = (reference.cdf(torch.tensor(float(x))).item() for x in (a, b))
    for x in grid:
        expected = (reference.cdf(torch.tensor(float(x))).item() - low) / (high - low)
        assert (values <= x).mean() == pytest.approx(expected, abs=0.015)


def test_trunc_normal_far_from_the_mean_warns_and_stays_in_the_interval() -> None:
    with pytest.warns(UserWarning, match="more than 2 std"):
        values = init.trunc_normal_(zeros(50), mean=20.0, a=-1.0, b=1.0).numpy()
    assert ((values >= -1) & (values <= 1)).all()
    assert init.trunc_normal_(zeros(2), std=0.0, a=1.0, b=2.0, mean=1.5).tolist() == [1.5, 1.5]
    assert init.trunc_normal_(zeros(2), a=0.5, b=0.5).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (4, 2, 3)], ids=str)
def test_orthogonal_rows_or_columns_are_orthonormal(shape: tuple[int, ...]) -> None:
    matrix = init.orthogonal_(zeros(*shape), gain=2.0).numpy().reshape(shape[0], -1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, 4 * np.eye(small.shape[0]), atol=1e-5)
    assert init.orthogonal_(zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    "name", ["linear", "conv1d", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]
)
def test_gains_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))
    assert init.calculate_gain("leaky_relu", 0.3) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.3)
    )


def test_same_seed_gives_the_same_model() -> None:
    manual_seed(5)
    first = nn.Linear(3, 3).weight.tolist()
    manual_seed(5)
    assert nn.Linear(3, 3).weight.tolist() == first
    assert nn.Linear(3, 3).weight.tolist() != first


def test_a_generator_can_be_given() -> None:
    draws = [init.normal_(zeros(3), generator=Generator().manual_seed(1)).tolist() for _ in "ab"]
    assert draws[0] == draws[1]


def test_layers_without_inputs_are_made_with_torchs_warning() -> None:
    with pytest.warns(UserWarning, match="zero-element tensors is a no-op"):
        layer = nn.Linear(0, 2)
    assert layer.bias.tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="negative dimension -1"):
        nn.Linear(-1, 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: init.xavier_uniform_(zeros(2)), "Fan in and fan out can not be computed"),
        (lambda: init.kaiming_uniform_(zeros(2)), "Fan in and fan out can not be computed"),
        (lambda: init.kaiming_uniform_(zeros(2, 3), mode="foo"), "Mode foo not supported"),
        (
            lambda: init.kaiming_normal_(zeros(2, 3), nonlinearity="foo"),
            "Unsupported nonlinearity foo",
        ),
        (lambda: init.eye_(zeros(2)), "Only tensors with 2 dimensions are supported"),
        (lambda: init.orthogonal_(zeros(2)), "Only tensors with 2 or more dimensions"),
        (lambda: init.calculate_gain("leaky_relu", "a"), "negative_slope a not a valid number"),  # type: ignore
        (lambda: init.uniform_(zeros(2), 2, 1), "expects to return"),
        (lambda: init.normal_(zeros(2), 0, -1), "expects std >= 0.0"),
        (lambda: init.trunc_normal_(zeros(2), a=2, b=1), "expects a <= b"),
    ],
)
def test_misuse_raises_torchs_error(call: Any, text: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=text):
        call()
