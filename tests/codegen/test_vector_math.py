"""Accuracy, special values and code of the elementary functions."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from netwright.codegen.emitter import VectorEmitter, memory_type
from netwright.codegen.kernel import Kernel, TaskCount
from netwright.codegen.target import Target
from netwright.codegen.text import Function
from netwright.ir.types import DType, dtype_of, float32, float64

UNARY = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos")
FLOATS = (float32, float64)


def function_kernel(name: str, dtype: DType, lanes: int, arity: int = 1) -> Kernel:
    """out[i] = name(in0[i], ..) over N vectors."""
    ins = [f"in{k}" for k in range(arity)]
    params = [("ptr", p) for p in ["out0", *ins, "scratch", "status"]]
    fn = Function(f"f_{name}", [*params, *[("i64", p) for p in ("N", "begin", "end")]])
    e = VectorEmitter(fn, lanes, dtype)
    with fn.loop("%N") as loop:
        at = fn.emit(f"mul i64 {loop.index}, {lanes}")
        kind = memory_type(dtype)
        values = [e.load(fn.element(f"%{p}", kind, at), dtype) for p in ins]
        e.store(getattr(e, name)(*values), fn.element("%out0", kind, at))
    return Kernel(fn.name, fn.render(), frozenset(fn.declarations), TaskCount(1))


@pytest.fixture
def evaluate(run: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """``evaluate(name, *arrays, lanes=8)``: one of our functions on arrays of one dtype."""

    def call(name: str, *arrays: np.ndarray, lanes: int = 8) -> np.ndarray:
        count = arrays[0].size
        padded = [np.resize(a, -(-count // lanes) * lanes) for a in arrays]
        out = np.empty_like(padded[0])
        kernel = function_kernel(name, dtype_of(out.dtype), lanes, len(arrays))
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
    """The function in a wider format: numpy's long double, or mpmath for erf."""
    wide = x.astype(np.longdouble)
    if name == "sigmoid":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-wide))
    if name == "erf":
        return np.array([mpmath.erf(float(v)) for v in x], np.longdouble)
    with np.errstate(divide="ignore", invalid="ignore"):
        return getattr(np, name)(wide)


BOUNDS = {
    "exp": (1.0, 1.2),
    "expm1": (2.0, 2.0),
    "log": (1.5, 1.5),
    "log1p": (2.0, 2.0),
    "tanh": (3.0, 3.0),
    "sigmoid": (2.5, 2.5),
    "erf": (6.0, 3.0),
    "sin": (2.0, 2.0),
    "cos": (2.0, 2.0),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.short)
@pytest.mark.parametrize("name", UNARY)
def test_error_stays_within_the_documented_ulps(
    name: str, dtype: DType, evaluate: Callable[..., np.ndarray]
) -> None:
    x = samples(name, dtype, 4_000 if name == "erf" else 200_000)
    error = ulps(evaluate(name, x), exactly(name, x))
    print(f"\n{name} {dtype.short}: {error:.2f} ulp")
    assert error <= BOUNDS[name][dtype is float64]
