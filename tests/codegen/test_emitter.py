"""The emitter's arithmetic, masks and conversions against numpy, for vectors and scalars."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from netwright.codegen.emitter import Lane, VectorEmitter, memory_type
from netwright.codegen.kernel import Kernel, TaskCount
from netwright.codegen.llvm import assembly, module_text
from netwright.codegen.target import Target
from netwright.codegen.text import Function
from netwright.errors import CompileError, UnsupportedError
from netwright.ir.types import (
    DTYPES,
    DType,
    bool_,
    dtype_of,
    float32,
    float64,
    int32,
    int64,
    uint8,
)

NUMBERS = [d for d in DTYPES if d is not bool_]
Step = Callable[..., Lane]


def new_function() -> Function:
    params = [("ptr", p) for p in ("out0", "in0", "in1", "in2", "scratch", "status")]
    return Function("step", [*params, *[("i64", p) for p in ("N", "begin", "end")]])


@pytest.fixture(params=[1, 8], ids=["scalar", "vector"])
def apply(request: pytest.FixtureRequest, run: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """``apply(step, result_dtype, *arrays)``: ``step(e, *lanes)`` over up to three arrays."""

    def go(step: Step, result: DType, *arrays: np.ndarray) -> np.ndarray:
        count, lanes = arrays[0].size, request.param
        padded = [np.resize(a, -(-count // lanes) * lanes) for a in arrays]
        fn = new_function()
        e = VectorEmitter(fn, lanes, result)
        with fn.loop("%N") as loop:
            at = fn.emit(f"mul i64 {loop.index}, {lanes}")
            ins = [
                e.load(fn.element(f"%in{k}", memory_type(d), at), d)
                for k, d in enumerate(dtype_of(a.dtype) for a in arrays)
            ]
            e.store(step(e, *ins), fn.element("%out0", memory_type(result), at))
        out = np.zeros(padded[0].size, result.np)
        kernel = Kernel("step", fn.render(), frozenset(fn.declarations), TaskCount(1))
        spare = [np.zeros(1)] * (3 - len(padded))
        run(kernel, [out], [*padded, *spare], out.size // lanes)
        return out[:count]

    return go


def pairs(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    values: Sequence[Any] = [0, 1, 2, 3, 100, 127]
    if dtype.is_float:
        values = [0.0, -0.0, 1.5, -2.5, 3.5, np.inf, -np.inf, np.nan]
    elif dtype.np.kind == "i":
        values = [*values, -1, -128, -3]
    x, y = np.meshgrid(np.array(values, dtype.np), np.array(values, dtype.np))
    return x.ravel(), y.ravel()


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda d: d.short)
@pytest.mark.parametrize(
    ("name", "numpy"),
    [
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("maximum", np.maximum),
        ("minimum", np.minimum),
    ],
)
def test_arithmetic_wraps_and_propagates_nan_as_numpy_does(
    name: str, numpy: Any, dtype: DType, apply: Callable[..., np.ndarray]
) -> None:
    x, y = pairs(dtype)
    with np.errstate(all="ignore"):
        expected = numpy(x, y)
    got = apply(lambda e, a, b: getattr(e, name)(a, b), dtype, x, y)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda d: d.short)
@pytest.mark.parametrize(
    ("name", "numpy"),
    [
        ("gt", np.greater),
        ("ge", np.greater_equal),
        ("lt", np.less),
        ("le", np.less_equal),
        ("eq", np.equal),
        ("ne", np.not_equal),
    ],
)
def test_comparisons_give_masks(
    name: str, numpy: Any, dtype: DType, apply: Callable[..., np.ndarray]
) -> None:
    x, y = pairs(dtype)
    got = apply(lambda e, a, b: getattr(e, name)(a, b), bool_, x, y)
    np.testing.assert_array_equal(got, numpy(x, y))


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
@pytest.mark.parametrize(
    ("name", "numpy"),
    [
        ("neg", np.negative),
        ("abs", np.abs),
        ("floor", np.floor),
        ("ceil", np.ceil),
        ("round", np.rint),
        ("trunc", np.trunc),
        ("sqrt", np.sqrt),
    ],
)
def test_rounding_and_signs_are_exact(
    name: str, numpy: Any, dtype: DType, apply: Callable[..., np.ndarray]
) -> None:
    x = np.array([0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e10, np.inf, -np.inf, np.nan], dtype.np)
    with np.errstate(invalid="ignore"):
        expected = numpy(x)
    got = apply(lambda e, a: getattr(e, name)(a), dtype, x)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("first", [True, False], ids=["constant first", "constant last"])
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extremum_with_a_constant_keeps_nan(
    name: str, first: bool, apply: Callable[..., np.ndarray]
) -> None:
    x = np.array([np.nan, -1, 2, np.inf], np.float32)

    def step(e: VectorEmitter, a: Lane) -> Lane:
        c = e.const(0.5, a)
        return getattr(e, name)(c, a) if first else getattr(e, name)(a, c)

    numpy = getattr(np, name)
    np.testing.assert_array_equal(apply(step, float32, x), numpy(x, np.float32(0.5)))


@pytest.mark.parametrize("to", DTYPES, ids=lambda d: d.short)
@pytest.mark.parametrize("source", DTYPES, ids=lambda d: d.short)
def test_casts_follow_numpy(source: DType, to: DType, apply: Callable[..., np.ndarray]) -> None:
    values: Sequence[Any] = [0, 1, 2, 100]
    if source.is_float:
        values = [0.0, 0.5, 1.0, 2.75, 100.9]
    if source.is_float or source.np.kind == "i":
        values = [*values, *([-1, -100] if to.np.kind != "u" or source.is_int else [])]
    x = np.array(values).astype(source.np)
    got = apply(lambda e, a: e.cast(a, to), to, x)
    np.testing.assert_array_equal(got, x.astype(to.np))


def test_nan_is_true_and_is_nan(apply: Callable[..., np.ndarray]) -> None:
    x = np.array([np.nan, 0.0, -0.0, 1.0], np.float32)
    assert apply(lambda e, a: e.cast(a, bool_), bool_, x).tolist() == [True, False, False, True]
    assert apply(lambda e, a: e.isnan(a), bool_, x).tolist() == [True, False, False, False]


def test_logic_on_masks_follows_numpy(apply: Callable[..., np.ndarray]) -> None:
    x = np.array([False, False, True, True])
    y = np.array([False, True, False, True])
    for name in ("logical_and", "logical_or", "logical_xor"):
        got = apply(lambda e, a, b, name=name: getattr(e, name)(a, b), bool_, x, y)
        np.testing.assert_array_equal(got, getattr(np, name)(x, y))
    np.testing.assert_array_equal(apply(lambda e, a: e.logical_not(a), bool_, x), ~x)


def test_fma_rounds_once(apply: Callable[..., np.ndarray]) -> None:
    x = np.array([1 + 2**-12], np.float32)
    z = -(x * x)
    got = apply(lambda e, a, c: e.fma(a, a, c), float32, x, z)
    assert got[0] == 2.0**-24


def test_select_takes_each_lane(apply: Callable[..., np.ndarray]) -> None:
    mask = np.array([True, False, True])
    x, y = np.arange(3, dtype=np.int64), -np.arange(3, dtype=np.int64)
    got = apply(lambda e, m, a, b: e.select(m, a, b), int64, mask, x, y)
    np.testing.assert_array_equal(got, np.where(mask, x, y))


def test_unlike_dtypes_are_a_compile_error() -> None:
    e = VectorEmitter(new_function(), 8)
    with pytest.raises(CompileError, match="float32, int32"):
        e.add(e.constant(1, float32), e.constant(1, int32))


def test_operations_without_native_form_say_so() -> None:
    e = VectorEmitter(new_function(), 8)
    one = e.constant(1, uint8)
    with pytest.raises(UnsupportedError, match="div of uint8"):
        e.div(one, one)
    with pytest.raises(UnsupportedError, match="exp of uint8"):
        e.exp(one)


def test_constants_are_written_exactly() -> None:
    e = VectorEmitter(new_function(), 4)
    assert e.const(0.1).text == "splat (float 0x3FB99999A0000000)"
    assert e.constant(0.1, float64).text == "splat (double 0x3FB999999999999A)"
    assert e.constant(-np.inf, float32).text == "splat (float 0xFFF0000000000000)"
    assert VectorEmitter(new_function(), 1).constant(True, bool_).text == "true"


def test_a_table_may_follow_a_vector_that_is_wider_than_a_register(target: Target) -> None:
    fn = Function("f", [("ptr", "p")], linkage="")
    wide = fn.load("<16 x double>", "%p", 8)
    fn.follow("<16 x double>", wide)
    with fn.table() as (address, items):
        items.append(("double", "2.0"))
        fn.store("double", fn.load("double", address, 8), "%p", 8)
    # LLVM would end the process if it could not place the operand.
    assert "f:" in assembly(module_text([fn.render()], fn.declarations), target)
