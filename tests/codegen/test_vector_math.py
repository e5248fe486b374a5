"""Accuracy, special values and code of the elementary functions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.codegen.emitter import VectorEmitter, memory_type
from netwright.codegen.kernel import Kernel, TaskCount
from netwright.codegen.target import AVX2, AVX512, NEON, Target
from netwright.codegen.text import Function
from netwright.ir.types import DType, dtype_of, float32, float64

UNARY = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos")
FLOATS = (float32, float64)


def function_kernel(
    name: str, dtype: DType, lanes: int, arity: int = 1, registers: int = 32
) -> Kernel:
    """out[i] = name(in0[i], ..) over N vectors."""
    ins = [f"in{k}" for k in range(arity)]
    params = [("ptr", p) for p in ["out0", *ins, "scratch", "status"]]
    fn = Function(f"f_{name}", [*params, *[("i64", p) for p in ("N", "begin", "end")]])
    e = VectorEmitter(fn, lanes, dtype, registers=registers)
    with fn.loop("%N") as loop:
        at = fn.emit(f"mul i64 {loop.index}, {lanes}")
        kind = memory_type(dtype)
        values = [e.load(fn.element(f"%{p}", kind, at), dtype) for p in ins]
        e.store(getattr(e, name)(*values), fn.element("%out0", kind, at))
    return Kernel(fn.name, fn.render(), frozenset(fn.declarations), TaskCount(1))


@pytest.fixture
def evaluate(run: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """``evaluate(name, *arrays, lanes=8, registers=32)``: a function on arrays of one dtype."""

    def call(name: str, *arrays: np.ndarray, lanes: int = 8, registers: int = 32) -> np.ndarray:
        count = arrays[0].size
        padded = [np.resize(a, -(-count // lanes) * lanes) for a in arrays]
        out = np.empty_like(padded[0])
        kernel = function_kernel(name, dtype_of(out.dtype), lanes, len(arrays), registers)
        run(kernel, [out], padded, out.size // lanes)
        return out[:count]

    return call


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units of the last place of the result; ``exact`` is more precise."""
    rounded = exact.astype(got.dtype)
    finite = np.isfinite(rounded) & (np.abs(rounded) >= np.finfo(got.dtype).tiny * 4)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(rounded))
    np.testing.assert_array_equal(got[np.isinf(rounded)], rounded[np.isinf(rounded)])
    unit = np.spacing(np.abs(rounded[finite])).astype(exact.dtype)
    return float(np.max(np.abs(got[finite].astype(exact.dtype) - exact[finite]) / unit))


def samples(name: str, dtype: DType, count: int = 200_000) -> np.ndarray:
    """Logarithmic and uniform samples of the whole domain, and the points where formulas change."""
    rng = np.random.default_rng(0)
    top = {"exp": 88.7, "expm1": 88.7, "sin": 1e5, "cos": 1e5, "sigmoid": 87.0, "erf": 6.0}
    if dtype is float64:
        top |= {"exp": 709.7, "expm1": 709.7, "sigmoid": 700.0}
    limit = top.get(name, 30.0)
    tiny = -36.0 if dtype is float32 else -300.0
    spread = 10.0 ** rng.uniform(tiny, np.log10(limit), count)
    spread *= rng.choice([-1.0, 1.0], count)
    near_one = 1 + rng.uniform(-0.5, 0.5, count // 4)
    flat = rng.uniform(-limit, limit, count)
    x = np.concatenate([spread, flat, near_one, near_one - 1])
    if name == "log":
        x = np.concatenate([np.abs(x), 10.0 ** rng.uniform(tiny, -tiny, count)])
    if name == "log1p":
        x = np.concatenate([x[x > -1], 10.0 ** rng.uniform(0, -tiny, count)])
    return x.astype(dtype.np)


def exactly(name: str, x: np.ndarray) -> np.ndarray:
    """The function in numpy's long double (erf: in float64, which is good to 1 ulp)."""
    wide = x.astype(np.longdouble)
    if name == "sigmoid":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-wide))
    if name == "erf":
        return np.array([math.erf(v) for v in x.tolist()], np.longdouble)
    with np.errstate(divide="ignore", invalid="ignore"):
        return getattr(np, name)(wide)


# The table in vector_math's docstring: float32, float64.
BOUNDS = {
    "exp": (1.0, 1.0),
    "expm1": (2.0, 2.5),
    "log": (1.5, 1.5),
    "log1p": (2.0, 2.0),
    "tanh": (3.0, 3.0),
    "sigmoid": (2.5, 2.5),
    "erf": (6.0, 2.0),
    "sin": (2.0, 2.0),
    "cos": (2.0, 2.0),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.short)
@pytest.mark.parametrize("name", UNARY)
def test_error_stays_within_the_documented_ulps(
    name: str, dtype: DType, evaluate: Callable[..., np.ndarray]
) -> None:
    x = samples(name, dtype)
    assert ulps(evaluate(name, x), exactly(name, x)) <= BOUNDS[name][dtype is float64]


def test_documented_bounds_are_the_tested_ones() -> None:
    from netwright.codegen import vector_math

    for line in (vector_math.__doc__ or "").splitlines():
        words = line.replace(",", "").split()
        for name in words:
            if name in BOUNDS and line.startswith("    "):
                numbers = [float(w) for w in words if w.replace(".", "").isdigit()]
                assert tuple(numbers[:2]) == BOUNDS[name]


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1e-30, -1e-30, 200.0, -200.0, 1e30]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.short)
@pytest.mark.parametrize("name", UNARY)
def test_special_values_follow_numpy(
    name: str, dtype: DType, evaluate: Callable[..., np.ndarray]
) -> None:
    values = [v for v in SPECIAL if name not in ("sin", "cos") or not 1e5 < abs(v) < math.inf]
    x = np.array(values, dtype.np)
    with np.errstate(all="ignore"):
        expected = exactly(name, x).astype(dtype.np)
    expected[np.abs(expected) < np.finfo(dtype.np).tiny] = 0
    np.testing.assert_allclose(evaluate(name, x), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "tanh", "sigmoid", "erf"])
def test_limits_are_reached_exactly(name: str, evaluate: Callable[..., np.ndarray]) -> None:
    ends = {
        "exp": ([-np.inf, -1e4, 88.8, np.inf], [0, 0, np.inf, np.inf]),
        "expm1": ([-np.inf, -1e4, 88.8, np.inf], [-1, -1, np.inf, np.inf]),
        "log": ([0, 1, np.inf, -1], [-np.inf, 0, np.inf, np.nan]),
        "tanh": ([-np.inf, -20, 20, np.inf], [-1, -1, 1, 1]),
        "sigmoid": ([-np.inf, -1e4, 1e4, np.inf], [0, 0, 1, 1]),
        "erf": ([-np.inf, -7, 7, np.inf], [-1, -1, 1, 1]),
    }
    x, expected = (np.array(v, np.float32) for v in ends[name])
    np.testing.assert_array_equal(evaluate(name, x), expected)


def test_log_of_subnormal_numbers_is_accurate(evaluate: Callable[..., np.ndarray]) -> None:
    x = np.array([1e-45, 1e-40, 1.1e-38], np.float32)
    np.testing.assert_allclose(evaluate("log", x), np.log(x.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("name", UNARY)
def test_one_lane_gives_the_bits_of_a_vector(
    name: str, evaluate: Callable[..., np.ndarray]
) -> None:
    x = samples(name, float32, 500)
    np.testing.assert_array_equal(evaluate(name, x, lanes=1), evaluate(name, x, lanes=8))


def test_pow_of_float32_is_almost_correctly_rounded(evaluate: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(-20, 20, 100_000)).astype(np.float32)
    y = rng.uniform(-4, 4, x.size).astype(np.float32)
    exact = x.astype(np.longdouble) ** y.astype(np.longdouble)
    assert ulps(evaluate("pow", x, y), exact) <= 1.0


def test_pow_of_float64_loses_at_most_the_exponent(evaluate: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    x, y = np.exp(rng.uniform(-20, 20, 100_000)), rng.uniform(-30, 30, 100_000)
    exact = x.astype(np.longdouble) ** y.astype(np.longdouble)
    relative = np.abs(evaluate("pow", x, y).astype(np.longdouble) / exact - 1)
    assert np.max(relative / (1 + np.abs(y * np.log(x)))) <= 2.0**-51


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.short)
def test_pow_has_the_special_cases_of_numpy(
    dtype: DType, evaluate: Callable[..., np.ndarray]
) -> None:
    points = np.array(
        [-np.inf, -3, -2.5, -2, -1, -0.5, -0.0, 0, 0.5, 1, 2, 2.5, 3, np.inf, np.nan], dtype.np
    )
    x, y = (a.ravel() for a in np.meshgrid(points, points))
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
    got = evaluate("pow", x, y)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    zero = expected == 0
    np.testing.assert_array_equal(np.signbit(got)[zero], np.signbit(expected)[zero])


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.short)
@pytest.mark.parametrize("name", [*UNARY, "pow"])
def test_constants_in_memory_give_the_bits_of_those_in_registers(
    name: str, dtype: DType, evaluate: Callable[..., np.ndarray]
) -> None:
    x = np.abs(samples(name, dtype, 500))
    arrays = [x, np.roll(x, 1) % 4] if name == "pow" else [x]
    few, many = (evaluate(name, *arrays, registers=r) for r in (16, 32))
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize("name", UNARY)
def test_functions_are_packed_arithmetic_without_calls_or_spills(
    name: str, target: Target, asm_for: Callable[..., Any]
) -> None:
    lanes = target.lanes(float32)
    code = asm_for(function_kernel(name, float32, lanes, registers=target.registers), target)
    fused = {
        AVX512: r"vfn?m\w+ps\s.*%zmm",
        AVX2: r"vfn?m\w+ps\s.*%ymm",
        NEON: r"fml[as]\s+v\d+\.4s",
    }
    assert code.count(fused[target]) >= 5
    assert code.count(r"vfn?m\w+ss|fmadd\s+s") == 0
    assert code.calls == 0
    assert code.spills == 0
