"""Types: dtypes, the symbolic batch, shapes."""

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.types import (
    DTYPES,
    Dim,
    TensorType,
    bool_,
    broadcast_shapes,
    dtype_of,
    extent_at,
    float32,
    float64,
    int64,
    numel,
    shape_at,
    shape_text,
    uint8,
)

N = Dim(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_a_dtype_is_found_by_all_its_names(dtype: object) -> None:
    for spec in (dtype, dtype.short, dtype.name, dtype.np, dtype.np.type, str(dtype.np)):
        assert dtype_of(spec) is dtype


def test_python_types_have_pytorchs_dtypes() -> None:
    assert [dtype_of(t) for t in (bool, int, float)] == [bool_, int64, float32]


def test_byte_order_does_not_make_another_dtype() -> None:
    assert dtype_of(np.dtype(">f4")) is float32


@pytest.mark.parametrize("spec", ["f16", "complex64", np.complex64, np.dtype("f2"), object])
def test_a_dtype_that_does_not_exist_is_an_error_with_the_list(spec: object) -> None:
    with pytest.raises(DTypeError, match="netwright has bool, uint8"):
        dtype_of(spec)


def test_kinds_of_dtypes() -> None:
    assert float32.is_float and float64.is_floating_point and not int64.is_float
    assert int64.is_int and uint8.is_int and not bool_.is_int and not float32.is_int
    assert [d.itemsize for d in (bool_, uint8, float32, float64)] == [1, 1, 4, 8]
    assert repr(float32) == "netwright.float32"


def test_extents_multiply_and_divide_exactly() -> None:
    assert 3 * N == N * 3 == Dim(3)
    assert N * 1 is N
    assert Dim(6) // 3 == Dim(2)
    assert Dim(6) // Dim(3) == 2
    assert Dim(6).at(5) == 30


@pytest.mark.parametrize("divisor", [4, 0, Dim(4), Dim(0)])
def test_an_inexact_division_of_extents_is_an_error(divisor: object) -> None:
    with pytest.raises(ShapeError, match="not divisible"):
        Dim(6) // divisor


def test_a_square_of_the_batch_is_an_error() -> None:
    with pytest.raises(ShapeError, match="not a multiple of the batch"):
        N * N
    with pytest.raises(ShapeError, match="not a multiple of the batch"):
        numel((N, 2, N))


def test_extents_are_equal_by_their_coefficient_and_never_to_numbers() -> None:
    assert Dim(2) == Dim(2) and hash(Dim(2)) == hash(Dim(2))
    assert Dim(2) != 2 and Dim(2) != Dim(3)


@pytest.mark.parametrize(
    ("shape", "count"), [((), 1), ((2, 3), 6), ((N, 3), Dim(3)), ((N, 0), 0), ((0, N, N), 0)]
)
def test_numel_counts_symbolic_shapes(shape: tuple[int | Dim, ...], count: object) -> None:
    assert numel(shape) == count


def test_shapes_at_a_batch_size() -> None:
    assert shape_at((N, 3, Dim(2)), 4) == (4, 3, 8)
    assert extent_at(7, 4) == 7
    assert TensorType(float32, (N, 3)).at(0) == TensorType(float32, (0, 3))


@pytest.mark.parametrize(
    ("shapes", "result"),
    [
        (((2, 3), (3,)), (2, 3)),
        (((2, 1), (1, 3)), (2, 3)),
        (((), (4,)), (4,)),
        (((N, 1), (5,)), (N, 5)),
        (((N, 3), (N, 3)), (N, 3)),
        (((N, 3), (1, 3)), (N, 3)),
        (((0, 1), (1, 4)), (0, 4)),
        (((2, 1, 3), (4, 1), ()), (2, 4, 3)),
        ((), ()),
    ],
)
def test_shapes_broadcast_as_in_numpy(shapes: tuple, result: tuple) -> None:
    assert broadcast_shapes(*shapes) == result


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((N,), (2,)), ((N,), (Dim(2),)), ((0,), (2,))])
def test_shapes_that_do_not_broadcast_name_both_and_the_dimension(shapes: tuple) -> None:
    with pytest.raises(ShapeError, match=r"cannot be broadcast together.*dimension -1"):
        broadcast_shapes(*shapes)


def test_text_of_types() -> None:
    assert str(TensorType(float32, (N, 16, Dim(3)))) == "f32[N,16,3N]"
    assert str(TensorType(int64, ())) == "i64[]"
    assert shape_text((2, N)) == "[2,N]"


def test_tensor_types_are_values() -> None:
    kind = TensorType(float32, (N, 4))
    assert kind == TensorType(float32, (N, 4)) and hash(kind) == hash(TensorType(float32, (N, 4)))
    assert kind.rank == 2 and kind.size == Dim(4)
