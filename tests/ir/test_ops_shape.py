from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.ops.record import get, infer_types
from netwright.ir.types import Dim, TensorType, float32, int64

N = Dim(1)


def f32(*shape: Any) -> TensorType:
    return TensorType(float32, shape)


def infer(name: str, *types: TensorType, **attrs: Any) -> TensorType:
    (result,) = infer_types(name, types, attrs)
    return result


def test_reshape_moves_factors_in_and_out_of_the_batch() -> None:
    assert infer("reshape", f32(N, 6), shape=(2 * N, 3)) == f32(2 * N, 3)
    assert infer("reshape", f32(2 * N, 3), shape=(N, 6)) == f32(N, 6)
    assert infer("reshape", f32(N, 2, 3), shape=(6 * N,)) == f32(6 * N)


@pytest.mark.parametrize("shape", [(5,), (N, 5), (-1, 6), (N, N)])
def test_reshape_refuses_another_element_count(shape: Any) -> None:
    with pytest.raises(ShapeError, match=r"elements|negative|not a multiple"):
        infer("reshape", f32(N, 6), shape=shape)


def test_permute_needs_every_dimension_once() -> None:
    assert infer("permute", f32(N, 3, 4), dims=(2, 0, 1)) == f32(4, N, 3)
    for dims in ((0, 1), (0, 0, 1), (0, 1, 3)):
        with pytest.raises(ShapeError, match="permute"):
            infer("permute", f32(N, 3, 4), dims=dims)


def test_broadcast_to_expands_ones_only() -> None:
    assert infer("broadcast_to", f32(1, 3), shape=(N, 3)) == f32(N, 3)
    for x, shape in ((f32(2, 3), (1, 3)), (f32(3), (4,)), (f32(2, 3), (3,)), (f32(N), (4,))):
        with pytest.raises(ShapeError):
            infer("broadcast_to", x, shape=shape)


def test_broadcast_to_gives_a_writable_array() -> None:
    """Optimizers and clipping update gradients in place."""
    out = get("broadcast_to").numpy(np.ones(3), shape=(2, 3))
    out += 1
    np.testing.assert_array_equal(out, np.full((2, 3), 2.0))


def test_cat_adds_extents_of_one_kind() -> None:
    assert infer("cat", f32(N, 3), f32(N, 5), dim=1) == f32(N, 8)
    assert infer("cat", f32(N, 3), f32(2 * N, 3), dim=0) == f32(3 * N, 3)
    with pytest.raises(ShapeError, match=r"N \+ 4 is not a multiple of the batch"):
        infer("cat", f32(N, 3), f32(4, 3), dim=0)
    with pytest.raises(ShapeError, match="must agree in every dimension except dimension 1"):
        infer("cat", f32(N, 3), f32(4, 3), dim=1)
    with pytest.raises(ShapeError, match="at least one tensor"):
        infer("cat", dim=0)
    with pytest.raises(DTypeError, match="different dtypes"):
        infer("cat", f32(3), TensorType(int64, (3,)), dim=0)


@pytest.mark.parametrize(
    ("start", "stop", "step", "length"),
    [(0, 7, 1, 7), (1, 6, 2, 3), (1, 7, 3, 2), (6, 7, 5, 1), (3, 3, 1, 0), (7, 7, 2, 0)],
)
def test_slice_length_is_that_of_numpy(start: int, stop: int, step: int, length: int) -> None:
    attrs = {"dim": 1, "start": start, "stop": stop, "step": step}
    assert infer("slice", f32(N, 7), **attrs) == f32(N, length)
    out = get("slice").numpy(np.zeros((2, 7)), **attrs)
    assert out.shape == (2, length)


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 8, 1), (-1, 3, 1), (4, 3, 1), (0, 7, 0)])
def test_slice_bounds_are_checked(start: int, stop: int, step: int) -> None:
    with pytest.raises(ShapeError, match=r"slice: .* along dimension 1"):
        infer("slice", f32(N, 7), dim=1, start=start, stop=stop, step=step)


def test_slice_of_the_batch_takes_multiples_of_it() -> None:
    assert infer("slice", f32(3 * N, 2), dim=0, start=N, stop=3 * N, step=1) == f32(2 * N, 2)
    assert infer("slice", f32(2 * N, 2), dim=0, start=0, stop=2 * N, step=2) == f32(N, 2)
    for start, stop in ((0, 2), (1, N), (0, 4 * N), (N, N)):
        with pytest.raises(ShapeError, match="bounds of a batch dimension"):
            infer("slice", f32(3 * N, 2), dim=0, start=start, stop=stop, step=1)


def test_slice_grad_puts_the_elements_back() -> None:
    x = np.arange(11.0)
    attrs = {"dim": 0, "start": 2, "step": 3}
    part = get("slice").numpy(x, stop=9, **attrs)
    whole = get("slice_grad").numpy(part, size=11, **attrs)
    expected = np.where(np.isin(x, [2, 5, 8]), x, 0)
    np.testing.assert_array_equal(whole, expected)
    with pytest.raises(ShapeError, match="slice_grad"):
        infer("slice_grad", f32(4), size=11, **attrs)


def test_pad_leaves_the_batch_alone() -> None:
    assert infer("pad", f32(N, 3), low=(0, 1), high=(0, 2), value=0.0) == f32(N, 6)
    with pytest.raises(ShapeError, match=r"pad: an extent of N \+ 1"):
        infer("pad", f32(N, 3), low=(1, 0), high=(0, 0), value=0.0)
    with pytest.raises(ShapeError, match="use slice to crop"):
        infer("pad", f32(N, 3), low=(0, -1), high=(0, 0), value=0.0)


def test_pad_keeps_integers() -> None:
    out = get("pad").numpy(np.array([1, 2]), low=(1,), high=(0,), value=-3.0)
    np.testing.assert_array_equal(out, [-3, 1, 2])
    assert out.dtype == np.int64
