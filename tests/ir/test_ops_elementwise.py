"""Values and gradients at special points; the expected ones were read off PyTorch 2.13."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.autodiff import input_gradients
from netwright.ir.builder import ArrayBuilder
from netwright.ir.ops import special
from netwright.ir.ops.record import GradContext, get, infer_types
from netwright.ir.types import Dim, TensorType, bool_, float32, int64

INF, NAN = math.inf, math.nan


def value_and_gradients(
    name: str, *arrays: Any, grad: float = 1.0, **attrs: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The result and the gradients of all float operands for a gradient of ``grad``."""
    inputs = tuple(np.asarray(a) for a in arrays)
    y = get(name).numpy(*inputs, **attrs)
    needs = tuple(a.dtype.kind == "f" for a in inputs)
    ctx = GradContext(inputs, (y,), attrs, needs)
    return y, input_gradients(ArrayBuilder(), get(name), ctx, [np.full_like(y, grad)])


def f64(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


UNARY_POINTS = [
    # name, attributes, points, values, gradients
    ("relu", {}, [-1, -0.0, 0, 2, INF, NAN], [0, 0, 0, 2, INF, NAN], [0, 0, 0, 1, 1, 1]),
    ("relu6", {}, [-INF, 0, 3, 6, 7, NAN], [0, 0, 3, 6, 6, NAN], [0, 0, 1, 0, 0, 1]),
    ("abs", {}, [-INF, -2, 0, 3, NAN], [INF, 2, 0, 3, NAN], [-1, -1, 0, 1, 0]),
    ("sqrt", {}, [-1, 0, 4, INF], [NAN, 0, 2, INF], [NAN, INF, 0.25, 0]),
    ("rsqrt", {}, [-1, 0, 4, INF], [NAN, INF, 0.5, 0], [NAN, -INF, -0.0625, 0]),
    ("reciprocal", {}, [-0.0, 0, 2, INF], [-INF, INF, 0.5, 0], [-INF, -INF, -0.25, 0]),
    ("log", {}, [-1, 0, 1, INF], [NAN, -INF, 0, INF], [-1, INF, 1, 0]),
    ("log1p", {}, [-1, 0, INF], [-INF, 0, INF], [INF, 1, 0]),
    ("exp", {}, [-INF, 0, INF, NAN], [0, 1, INF, NAN], [0, 1, INF, NAN]),
    ("expm1", {}, [-INF, 0, INF], [-1, 0, INF], [0, 1, INF]),
    ("sigmoid", {}, [-INF, -1e4, 0, 1e4, INF], [0, 0, 0.5, 1, 1], [0, 0, 0.25, 0, 0]),
    ("tanh", {}, [-INF, 0, INF, NAN], [-1, 0, 1, NAN], [0, 1, 0, NAN]),
    ("erf", {}, [-INF, 0, INF, NAN], [-1, 0, 1, NAN], [0, 2 / math.sqrt(math.pi), 0, NAN]),
    ("square", {}, [-INF, -3, 0], [INF, 9, 0], [-INF, -6, 0]),
    ("silu", {}, [-INF, 0, INF], [NAN, 0, INF], [NAN, 0.5, NAN]),
    ("elu", {"alpha": 1.0}, [-INF, 0, 800, INF, NAN], [-1, 0, 800, INF, NAN], [0, 1, 1, 1, 1]),
    ("leaky_relu", {"slope": 0.1}, [-INF, -2, 0, 3, NAN], [-INF, -0.2, 0, 3, NAN],
     [0.1, 0.1, 0.1, 1, 0.1]),
    ("hardswish", {}, [-4, -3, 0, 3, 5, INF, NAN], [0, 0, 0, 3, 5, INF, NAN],
     [0, 0, 0.5, 1, 1, 1, 1]),
    ("hardsigmoid", {}, [-INF, -3, 0, 3, INF, NAN], [0, 0, 0.5, 1, 1, NAN],
     [0, 0, 1 / 6, 0, 0, 0]),
    ("softplus", {"beta": 1.0, "threshold": 20.0}, [-INF, 0, 20, 21, 800, INF, NAN],
     [0, math.log(2), math.log1p(math.exp(20)), 21, 800, INF, NAN],
     [0, 0.5, 1 / (1 + math.exp(-20)), 1, 1, 1, NAN]),
    ("gelu", {"approximate": "none"}, [-30, -1, 0, 1, 30],
     [0, -0.158655253931, 0, 0.841344746069, 30], [0, -0.0833154705877, 0.5, 1.08331547059, 1]),
    ("gelu", {"approximate": "tanh"}, [-30, -1, 0, 1, 30],
     [0, -0.158808009392, 0, 0.841191990608, 30], [0, -0.0829640838458, 0.5, 1.08296408385, 1]),
    ("clamp", {"min": -1.0, "max": 2.0}, [-INF, -1, 0, 2, 3, NAN], [-1, -1, 0, 2, 2, NAN],
     [0, 1, 1, 1, 0, 0]),
    ("clamp", {"min": 0.0, "max": None}, [-1, 0, INF, NAN], [0, 0, INF, NAN], [0, 1, 1, 0]),
    ("clamp", {"min": 2.0, "max": -1.0}, [-5, 0, 5], [-1, -1, -1], [0, 0, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "attrs", "x", "y", "dx"), UNARY_POINTS)
def test_value_and_gradient_at_special_points(
    name: str, attrs: dict[str, Any], x: list[float], y: list[float], dx: list[float]
) -> None:
    value, (grad,) = value_and_gradients(name, f64(*x), **attrs)
    np.testing.assert_allclose(value, f64(*y), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(grad, f64(*dx), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["relu", "elu", "leaky_relu", "softplus", "clamp"])
def test_zero_gradient_stays_zero_where_the_other_branch_overflows(name: str) -> None:
    """A zero gradient must not meet exp(x) = inf in a product."""
    attrs = {
        "elu": {"alpha": 1.0},
        "leaky_relu": {"slope": 0.1},
        "softplus": {"beta": 1.0, "threshold": 20.0},
        "clamp": {"min": -1.0, "max": 1.0},
    }.get(name, {})
    _, (grad,) = value_and_gradients(name, f64(1e4, -1e4, INF), grad=0.0, **attrs)
    np.testing.assert_array_equal(grad, [0, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_goes_to_even_and_sign_of_nan_is_zero(dtype: type) -> None:
    x = np.array([-1.5, -0.5, 0.5, 1.5, 2.5], dtype)
    np.testing.assert_array_equal(get("round").numpy(x), [-2, 0, 0, 2, 2])
    signs = get("sign").numpy(np.array([-INF, -0.0, 3, NAN], dtype))
    np.testing.assert_array_equal(signs, [-1, 0, 1, 0])
    assert signs.dtype == dtype


@pytest.mark.parametrize(
    ("name", "grad"), [("maximum", [1, 0, 0.5, 1]), ("minimum", [0, 1, 0.5, 1])]
)
def test_extremum_splits_ties_in_half_and_propagates_nan(name: str, grad: list[float]) -> None:
    value, (dx, dy) = value_and_gradients(name, f64(2, 1, 3, NAN), f64(1, 2, 3, 0))
    assert math.isnan(value[3])
    np.testing.assert_array_equal(dx, grad)
    np.testing.assert_array_equal(dy, [1 - grad[0], 1 - grad[1], 0.5, 1])


POWERS = [
    # base, exponent, value, gradient of the base, gradient of the exponent
    (-2, 0, 1, 0, NAN),
    (-2, 2, 4, -4, NAN),
    (-2, 3, -8, 12, NAN),
    (-2, -1, -0.5, -0.25, NAN),
    (-2, 0.5, NAN, NAN, NAN),
    (0, -1, INF, -INF, -INF),
    (0, 0, 1, 0, 0),
    (0, 0.5, 0, INF, 0),
    (0, 1, 0, 1, 0),
    (0, 2, 0, 0, 0),
    (2, 3, 8, 12, 8 * math.log(2)),
    (INF, 0, 1, 0, INF),
    (NAN, 0, 1, 0, NAN),
]


@pytest.mark.parametrize(("x", "y", "value", "dx", "dy"), POWERS)
def test_power_and_its_gradients_at_edge_cases(
    x: float, y: float, value: float, dx: float, dy: float
) -> None:
    got, grads = value_and_gradients("pow", f64(x), f64(y))
    np.testing.assert_allclose([got[0], grads[0][0], grads[1][0]], [value, dx, dy], rtol=1e-14)


def test_power_gradient_of_a_constant_exponent_needs_no_logarithm() -> None:
    """Only the wanted gradient is computed: log of a negative base never happens."""
    x, y = f64(-2.0), f64(2.0)
    ctx = GradContext((x, y), (f64(4.0),), {}, (True, False))
    calls: list[str] = []

    class Recorder(ArrayBuilder):
        def op(self, name: str, *operands: Any, **attrs: Any) -> Any:
            calls.append(name)
            return super().op(name, *operands, **attrs)

    dx, dy = input_gradients(Recorder(), get("pow"), ctx, [f64(1.0)])
    assert dx[0] == -4
    assert dy is None
    assert "log" not in calls


def test_binary_cross_entropy_stays_finite_at_zero_and_one() -> None:
    """The logarithms are clipped at -100; the gradient's divisor at 1e-12."""
    value, (dx, dt) = value_and_gradients(
        "binary_cross_entropy", f64(0, 0, 1, 1, 0.3), f64(0, 1, 0, 1, 0.5)
    )
    np.testing.assert_allclose(value, [0, 100, 100, 0, 0.7803238741323342])
    np.testing.assert_allclose(dx, [0, -1e12, 1e12, 0, -0.9523809523809524])
    np.testing.assert_allclose(dt, [INF, INF, -INF, -INF, 0.8472978603872036])


def test_smooth_l1_with_beta_zero_is_the_absolute_error() -> None:
    value, (dx, dt) = value_and_gradients("smooth_l1", f64(-2, 1, 3), f64(1, 1, 1), beta=0.0)
    np.testing.assert_array_equal(value, [3, 0, 2])
    np.testing.assert_array_equal(dx, [-1, 0, 1])
    np.testing.assert_array_equal(dt, [1, 0, -1])


def test_where_keeps_infinities_of_the_other_branch_out_of_the_gradient() -> None:
    cond = np.array([True, False])
    _, (none, dx, dy) = value_and_gradients("where", cond, f64(1, INF), f64(NAN, 2), grad=INF)
    assert none is None
    np.testing.assert_array_equal(dx, [INF, 0])
    np.testing.assert_array_equal(dy, [0, INF])


def test_cast_gradient_returns_to_the_operands_dtype() -> None:
    y, (dx,) = value_and_gradients("cast", np.float32([1, 2]), dtype="f64")
    assert (y.dtype, dx.dtype) == (np.float64, np.float32)
    _, (none,) = value_and_gradients("cast", np.float32([1, 2]), dtype="i64")
    assert none is None


def test_gradient_of_a_broadcast_operand_is_summed() -> None:
    x, y = np.ones((2, 3)), f64(1, 2, 3)
    _, (dx, dy) = value_and_gradients("mul", x, y)
    np.testing.assert_array_equal(dx, [[1, 2, 3]] * 2)
    np.testing.assert_array_equal(dy, [2, 2, 2])


def test_integers_keep_their_dtype() -> None:
    x = np.array([-5, 0, 7])
    for name, expected in (("abs", [5, 0, 7]), ("relu", [0, 0, 7]), ("square", [25, 0, 49])):
        y = get(name).numpy(x)
        np.testing.assert_array_equal(y, expected)
        assert y.dtype == np.int64
    y = get("clamp").numpy(x, min=-1.0, max=3.0)
    np.testing.assert_array_equal(y, [-1, 0, 3])
    assert y.dtype == np.int64


# -- the functions that numpy lacks -----------------------------------------------------------


def test_erf_agrees_with_the_c_library() -> None:
    """Every branch of the approximation, its borders, and the tails."""
    borders = [0.46875, 0.46875 + 1e-12, 4.0, 6.0, 5.999999, 1e-30, 1e30]
    x = np.concatenate([np.linspace(-7, 7, 20001), borders])
    expected = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(special.erf(x), expected, rtol=5e-16)
    narrow = special.erf(x.astype(np.float32))
    assert narrow.dtype == np.float32
    exact = np.array([math.erf(v) for v in x.astype(np.float32)])
    np.testing.assert_allclose(narrow, exact, rtol=6e-8, atol=1e-45)


def test_erf_keeps_shape_and_sign_of_zero() -> None:
    assert special.erf(np.float64(0.3).reshape(())).shape == ()
    assert special.erf(np.zeros((2, 0))).shape == (2, 0)
    assert np.signbit(special.erf(f64(-0.0)))[0]


def test_sigmoid_is_accurate_far_in_the_tail() -> None:
    x = f64(-700, -40, -1, 0, 1, 40)
    exact = [math.exp(v) / (1 + math.exp(v)) if v < 0 else 1 / (1 + math.exp(-v)) for v in x]
    np.testing.assert_allclose(special.sigmoid(x), exact, rtol=1e-15)


# -- shape rules ------------------------------------------------------------------------------


def test_symbolic_batch_broadcasts_with_one_but_not_with_a_number() -> None:
    batch = TensorType(float32, (Dim(1), 3))
    assert infer_types("add", [batch, TensorType(float32, (1, 1))], {}) == (batch,)
    with pytest.raises(ShapeError, match=r"add: shapes .* cannot be broadcast"):
        infer_types("add", [batch, TensorType(float32, (4, 3))], {})


def test_comparisons_give_bool_and_logic_needs_it() -> None:
    x = TensorType(float32, (3,))
    assert infer_types("lt", [x, x], {}) == (TensorType(bool_, (3,)),)
    with pytest.raises(DTypeError, match=r"logical_and: operand 0 .* expected bool"):
        infer_types("logical_and", [x, x], {})
    with pytest.raises(DTypeError, match="the condition is f32"):
        infer_types("where", [x, x, x], {})


def test_attributes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 'none' or 'tanh'"):
        infer_types("gelu", [TensorType(float32, (3,))], {"approximate": "erf"})
    with pytest.raises(DTypeError, match=r"bound 0\.5 of i64\[3\] is not an integer"):
        infer_types("clamp", [TensorType(int64, (3,))], {"min": 0.5, "max": None})
