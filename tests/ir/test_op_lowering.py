"""Every elementwise ``lower`` rule against the record's numpy meaning, without code generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401  (registers the records)
from netwright.ir.lower import Emitter
from netwright.ir.ops import random, special
from netwright.ir.ops.record import all_ops
from netwright.ir.types import DType, dtype_of


def _arithmetic(function: Callable[..., Any]) -> Any:
    """Operands must have one dtype, as in LLVM; the result keeps it."""

    def run(self: NumpyEmitter, *values: np.ndarray) -> np.ndarray:
        dtypes = {v.dtype for v in values}
        assert len(dtypes) == 1, f"operands of different dtypes: {dtypes}"
        assert np.dtype(bool) not in dtypes, "arithmetic on a mask"
        with np.errstate(all="ignore"):
            return np.asarray(function(*values), dtype=values[0].dtype)

    return run


def _comparison(function: Callable[..., Any]) -> Any:
    def run(self: NumpyEmitter, *values: np.ndarray) -> np.ndarray:
        assert len({v.dtype for v in values}) == 1, "comparison of different dtypes"
        with np.errstate(all="ignore"):
            return np.asarray(function(*values))

    return run


def _logic(function: Callable[..., Any]) -> Any:
    def run(self: NumpyEmitter, *values: np.ndarray) -> np.ndarray:
        assert all(v.dtype == bool for v in values), "a logical operation on numbers"
        return np.asarray(function(*values))

    return run


class NumpyEmitter:
    """The emitter protocol on arrays of the loop's whole shape."""

    def __init__(self, dtype: DType, shape: tuple[int, ...]) -> None:
        self._dtype = dtype
        self._shape = shape

    def const(self, x: float, like: Any = None) -> np.ndarray:
        return np.asarray(x, self._dtype.np if like is None else like.dtype)

    def dtype(self, v: np.ndarray) -> DType:
        return dtype_of(v.dtype)

    def cast(self, v: np.ndarray, dtype: DType) -> np.ndarray:
        with np.errstate(all="ignore"):
            return v.astype(dtype.np)

    def select(self, mask: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        assert mask.dtype == bool
        assert a.dtype == b.dtype
        return np.where(mask, a, b)

    def uniform(self, seed: int, offset: int, stream: int) -> np.ndarray:
        index = np.arange(int(np.prod(self._shape)))
        return random.uniform(int(seed), int(offset), stream, index).reshape(self._shape)

    add, sub, mul = _arithmetic(np.add), _arithmetic(np.subtract), _arithmetic(np.multiply)
    div, neg, abs = _arithmetic(np.divide), _arithmetic(np.negative), _arithmetic(np.abs)
    fma = _arithmetic(lambda a, b, c: a * b + c)
    minimum, maximum = _arithmetic(np.minimum), _arithmetic(np.maximum)
    floor, ceil = _arithmetic(np.floor), _arithmetic(np.ceil)
    round, trunc = _arithmetic(np.rint), _arithmetic(np.trunc)
    sqrt, pow = _arithmetic(np.sqrt), _arithmetic(np.power)
    exp, expm1 = _arithmetic(np.exp), _arithmetic(np.expm1)
    log, log1p = _arithmetic(np.log), _arithmetic(np.log1p)
    tanh, sigmoid = _arithmetic(np.tanh), _arithmetic(special.sigmoid)
    erf, sin, cos = _arithmetic(special.erf), _arithmetic(np.sin), _arithmetic(np.cos)
    gt, ge, lt = _comparison(np.greater), _comparison(np.greater_equal), _comparison(np.less)
    le, eq, ne = _comparison(np.less_equal), _comparison(np.equal), _comparison(np.not_equal)
    isnan = _comparison(np.isnan)
    logical_and, logical_or = _logic(np.logical_and), _logic(np.logical_or)
    logical_xor, logical_not = _logic(np.logical_xor), _logic(np.logical_not)


OPS = {name: op for name, op in sorted(all_ops().items()) if op.kind == "elementwise"}
SAMPLES = {name: list(op.samples(np.random.default_rng(7))) for name, op in OPS.items()}
CASES = [(name, index) for name, samples in SAMPLES.items() for index in range(len(samples))]


def test_emitter_has_the_whole_protocol() -> None:
    protocol = {name for name in vars(Emitter) if not name.startswith("_")}
    assert protocol <= set(dir(NumpyEmitter))


@pytest.mark.parametrize(("name", "index"), CASES)
def test_lowering_agrees_with_numpy(name: str, index: int) -> None:
    op, sample = OPS[name], SAMPLES[name][index]
    assert op.lower is not None
    for dtype, tolerance in (("float32", op.rtol), ("float64", 1e-12)):
        arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in sample.arrays]
        expected = op.numpy(*arrays, **sample.attrs)
        if name == "uniform":  # its key is passed as two scalars
            values = [arrays[0][0], arrays[0][1]]
        else:
            values = [np.broadcast_to(a, expected.shape) for a in arrays]
        emitter = NumpyEmitter(dtype_of(expected.dtype), expected.shape)
        got = op.lower(emitter, *values, **sample.attrs)
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
