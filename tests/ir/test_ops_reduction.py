from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.autodiff import input_gradients
from netwright.ir.builder import ArrayBuilder
from netwright.ir.ops.record import GradContext, get, infer_types
from netwright.ir.types import Dim, TensorType, bool_, float32, int64

ALL = {"dims": (0, 1), "keepdim": False}


def gradient(name: str, x: np.ndarray, grad: Any = 1.0, **attrs: Any) -> np.ndarray:
    y = get(name).numpy(x, **attrs)
    ctx = GradContext((x,), (y,), attrs, (True,))
    g = np.broadcast_to(np.asarray(grad, x.dtype), y.shape)
    return input_gradients(ArrayBuilder(), get(name), ctx, [g])[0]


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_extremum_gradient_is_split_evenly_among_ties(name: str) -> None:
    sign = 1.0 if name == "amax" else -1.0
    x = sign * np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [np.inf, 0.0, np.inf]])
    got = gradient(name, x, dims=(1,), keepdim=False)
    np.testing.assert_allclose(got, [[0, 0.5, 0.5], [1 / 3] * 3, [0.5, 0, 0.5]])


def test_extremum_gradient_of_several_dims_counts_ties_of_all_of_them() -> None:
    x = np.array([[5.0, 1.0], [5.0, 5.0]])
    got = gradient("amax", x, grad=3.0, dims=(0, 1), keepdim=False)
    np.testing.assert_allclose(got, [[1, 0], [1, 1]])


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_extremum_propagates_nan(name: str) -> None:
    x = np.array([[1.0, np.nan], [np.nan, -np.inf], [1.0, 2.0]])
    y = get(name).numpy(x, dims=(1,), keepdim=False)
    np.testing.assert_array_equal(np.isnan(y), [True, True, False])


@pytest.mark.parametrize(("name", "first"), [("argmax", [2, 0, 1]), ("argmin", [0, 2, 1])])
def test_index_of_the_extremum_is_the_first_one_and_nan_wins(name: str, first: list[int]) -> None:
    x = np.array([[1.0, 2.0, 3.0, 3.0], [9.0, 8.0, 1.0, 1.0], [5.0, np.nan, 9.0, np.nan]])
    y = get(name).numpy(x, dim=1, keepdim=False)
    np.testing.assert_array_equal(y, first)
    assert y.dtype == np.int64


def test_mean_of_nothing_is_nan_without_a_warning() -> None:
    assert np.isnan(get("mean").numpy(np.zeros((2, 0)), **ALL))
    np.testing.assert_array_equal(get("sum").numpy(np.zeros((2, 0)), dims=(1,), keepdim=False), 0)


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_extremum_of_nothing_is_an_error(name: str) -> None:
    with pytest.raises(ShapeError, match=r"f32\[2,0\] has no elements along dims"):
        infer_types(name, [TensorType(float32, (2, 0))], {"dims": (1,), "keepdim": False})
    with pytest.raises(ShapeError, match="has no elements along dim 1"):
        infer_types("argmax", [TensorType(float32, (2, 0))], {"dim": 1, "keepdim": False})


def test_sum_keeps_the_dtype_and_mean_divides_by_all_reduced_elements() -> None:
    ones = np.ones((3, 4), np.int32)
    total = get("sum").numpy(ones, **ALL)
    assert (total.dtype, total.shape, int(total)) == (np.int32, (), 12)
    np.testing.assert_allclose(gradient("mean", np.ones((3, 4)), **ALL), np.full((3, 4), 1 / 12))


def test_no_dims_reduce_nothing() -> None:
    x = np.array([[1.0, 2.0]])
    for name in ("sum", "mean", "amax"):
        np.testing.assert_array_equal(get(name).numpy(x, dims=(), keepdim=False), x)
        np.testing.assert_array_equal(gradient(name, x, dims=(), keepdim=False), [[1, 1]])


def test_logical_reductions_take_bool_only() -> None:
    x = np.array([[True, False], [True, True]])
    np.testing.assert_array_equal(get("all").numpy(x, dims=(1,), keepdim=False), [False, True])
    np.testing.assert_array_equal(get("any").numpy(x[:0], dims=(0,), keepdim=False), [False] * 2)
    with pytest.raises(DTypeError, match="expected bool"):
        infer_types("all", [TensorType(float32, (2, 2))], ALL)
    with pytest.raises(DTypeError, match="expected numbers"):
        infer_types("sum", [TensorType(bool_, (2, 2))], ALL)


def test_symbolic_dimensions_are_kept_or_reduced() -> None:
    x = TensorType(float32, (Dim(1), 3, 4))
    kept = infer_types("sum", [x], {"dims": (1,), "keepdim": True})
    assert kept == (TensorType(float32, (Dim(1), 1, 4)),)
    assert infer_types("mean", [x], {"dims": (0, 2), "keepdim": False}) == (
        TensorType(float32, (3,)),
    )
    index = infer_types("argmax", [x], {"dim": 1, "keepdim": False})
    assert index == (TensorType(int64, (Dim(1), 4)),)


@pytest.mark.parametrize("dims", [(3,), (-1,), (0, 0)])
def test_wrong_dims_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="dimension"):
        infer_types("sum", [TensorType(float32, (2, 2, 2))], {"dims": dims, "keepdim": False})
