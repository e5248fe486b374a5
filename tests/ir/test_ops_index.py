"""embedding and gather against PyTorch, and the texts of their errors."""

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.ops.record import get, infer_types
from netwright.ir.types import Dim, TensorType, float32, int64

N = Dim(1)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-6, atol=1e-6)


# -- embedding ------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("padding_idx", [None, 0, 3])
@pytest.mark.parametrize("index_dtype", [np.int64, np.int32])
@pytest.mark.parametrize("shape", [(6,), (3, 5), (1,), (), (0,), (2, 0), (40, 3)])
def test_embedding_equals_torch(differentiate, shape, index_dtype, padding_idx, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    idx = np.asarray(rng.integers(0, 4, shape)).astype(index_dtype)
    w = rng.normal(size=(4, 7)).astype(dtype)
    leaf = torch.tensor(w, requires_grad=True)
    y = torch.nn.functional.embedding(torch.tensor(idx), leaf, padding_idx=padding_idx)
    g = rng.normal(size=y.shape).astype(dtype)
    y.backward(torch.tensor(g))

    outputs, (no_gradient, dw) = differentiate("embedding", [idx, w], g, padding_idx=padding_idx)
    assert no_gradient is None
    close(outputs[0], y, dtype)
    close(dw, leaf.grad, dtype)


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_the_gradient_of_embedding_grad_skips_the_padding(differentiate, padding_idx):
    idx = np.array([[0, 1], [2, 1]])
    attrs = {"num": 3, "padding_idx": padding_idx}
    w = np.arange(6.0).reshape(3, 2) + 1
    _, (dg, _) = differentiate("embedding_grad", [np.ones((2, 2, 2)), idx], w, **attrs)
    expected = w[idx]
    expected[idx == padding_idx] = 0
    assert np.array_equal(dg, expected)


def test_nan_stays_in_its_row():
    g = np.ones((3, 2), np.float32)
    g[0, 0], g[1, 1] = np.nan, np.inf
    dw = get("embedding_grad").numpy(g, np.array([2, 0, 0]), num=3, padding_idx=None)
    np.testing.assert_array_equal(dw, np.array([[2, np.inf], [0, 0], [np.nan, 1]], np.float32))


# -- gather ---------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize(
    ("shape", "taken", "dim"),
    [
        ((4, 5), (4, 1), 1),
        ((4, 5), (2, 5), 0),
        ((2, 3, 4), (2, 9, 4), 1),
        ((2, 3, 4), (1, 2, 3), 2),
        ((7,), (30,), 0),
        ((3, 2), (0, 2), 0),
        ((1, 1), (1, 1), 1),
    ],
)
def test_gather_equals_torch(differentiate, shape, taken, dim, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, idx = rng.normal(size=shape).astype(dtype), rng.integers(0, shape[dim], taken)
    leaf = torch.tensor(x, requires_grad=True)
    y = torch.gather(leaf, dim, torch.tensor(idx))
    g = rng.normal(size=taken).astype(dtype)
    y.backward(torch.tensor(g))

    outputs, (dx, _) = differentiate("gather", [x, idx], g, dim=dim)
    close(outputs[0], y, dtype)
    close(dx, leaf.grad, dtype)
    _, (dg, _) = differentiate("scatter_add_grad", [g, idx], None, dim=dim, size=shape[dim])
    assert np.array_equal(dg, np.ones(taken))


def test_gather_takes_every_dtype():
    y = get("gather").numpy(np.array([[True, False]]), np.array([[1, 0, 0]]), dim=1)
    assert y.dtype == np.bool_ and np.array_equal(y, [[False, True, True]])


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [5, -1])
def test_an_index_out_of_range_is_named_with_its_place(bad):
    x = np.zeros((4, 5))
    with pytest.raises(IndexError, match=rf"index {bad} at position \(1, 0\).*dimension 1.*size 5"):
        get("gather").numpy(x, np.array([[0], [bad]]), dim=1)
    with pytest.raises(IndexError, match=rf"index {bad} at position \(2,\).*rows with size 4"):
        get("embedding").numpy(np.array([0, 1, bad]), x, padding_idx=None)
    with pytest.raises(IndexError, match=rf"index {bad} at position \(0,\)"):
        get("embedding_grad").numpy(np.ones((1, 2)), np.array([bad]), num=4, padding_idx=None)
    with pytest.raises(IndexError, match=rf"index {bad} at position \(0, 0\)"):
        get("scatter_add_grad").numpy(np.ones((1, 1)), np.array([[bad]]), dim=1, size=4)


def f32(*shape):
    return TensorType(float32, shape)


def i64(*shape):
    return TensorType(int64, shape)


def test_the_symbolic_batch_passes_through():
    padding = {"padding_idx": None}
    assert infer_types("embedding", [i64(N, 7), f32(100, 16)], padding) == (f32(N, 7, 16),)
    grad = infer_types("embedding_grad", [f32(N, 7, 16), i64(N, 7)], {"num": 100, **padding})
    assert grad == (f32(100, 16),)
    assert infer_types("gather", [f32(N, 10), i64(N, 1)], {"dim": 1}) == (f32(N, 1),)
    scattered = infer_types("scatter_add_grad", [f32(N, 1), i64(N, 1)], {"dim": 1, "size": 10})
    assert scattered == (f32(N, 10),)
    assert infer_types("gather", [f32(N, 10), i64(3, 10)], {"dim": 0}) == (f32(3, 10),)


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "text"),
    [
        ("embedding", [i64(3), f32(4)], {"padding_idx": None}, "number of embeddings, features"),
        ("embedding", [i64(3), f32(4, 2)], {"padding_idx": 4}, "within the 4 embeddings, got 4"),
        (
            "embedding_grad",
            [f32(3, 2), i64(4)],
            {"num": 4, "padding_idx": None},
            "one row for each index",
        ),
        ("gather", [f32(3, 4), i64(3)], {"dim": 1}, "the same number of dimensions"),
        ("gather", [f32(3, 4), i64(4, 1)], {"dim": 1}, "size does not match at dimension 0"),
        ("gather", [f32(N, 4), i64(2, 1)], {"dim": 1}, "size does not match at dimension 0"),
        ("gather", [f32(3, 4), i64(3, 4)], {"dim": 2}, "dimension 2 is out of range"),
        ("scatter_add_grad", [f32(3, 4), i64(3)], {"dim": 0, "size": 2}, "the same shape"),
    ],
)
def test_wrong_shapes_are_named(op, operands, attrs, text):
    with pytest.raises(ShapeError, match=text):
        infer_types(op, operands, attrs)


def test_a_float_index_is_refused():
    with pytest.raises(DTypeError, match="the index is float32, expected int64"):
        infer_types("gather", [f32(3), f32(3)], {"dim": 0})
