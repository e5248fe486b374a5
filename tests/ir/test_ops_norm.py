"""Batch and layer normalisation against PyTorch, their accuracy, and the texts of their errors."""

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.ops.record import get, infer_types
from netwright.ir.types import Dim, TensorType, float32, float64

N = Dim(1)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-11}
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
shapes = pytest.mark.parametrize(
    "shape", [(5, 3), (4, 3, 7), (2, 5, 3, 9), (3, 1, 2, 2), (1, 33, 5, 1), (2, 3, 2, 3, 4)]
)


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def batch_arrays(shape, dtype):
    rng = np.random.default_rng(0)
    channels = shape[1]
    x = rng.normal(2.0, 3.0, shape)
    gamma, beta, mean = rng.normal(size=(3, channels))
    return [a.astype(dtype) for a in (x, gamma, beta, mean, rng.uniform(0.5, 2.0, channels))]


def channels_last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


# -- batch normalisation --------------------------------------------------------------------------


@both_dtypes
@shapes
def test_batch_norm_equals_torch_in_evaluation(differentiate, shape, dtype):
    torch = pytest.importorskip("torch")
    arrays = batch_arrays(shape, dtype)
    x, gamma, beta = (torch.tensor(a, requires_grad=True) for a in arrays[:3])
    mean, var = (torch.tensor(a) for a in arrays[3:])
    y = torch.nn.functional.batch_norm(x, mean, var, gamma, beta, False, eps=1e-3)
    g = np.random.default_rng(1).normal(size=shape).astype(dtype)
    y.backward(torch.tensor(g))

    outputs, grads = differentiate("batch_norm", arrays, g, eps=1e-3, channel_dim=1)
    close(outputs[0], y, dtype)
    for grad, leaf in zip(grads, (x, gamma, beta), strict=False):
        close(grad, leaf.grad, dtype)


@both_dtypes
@shapes
@pytest.mark.parametrize("last", [False, True], ids=["channels_second", "channels_last"])
def test_batch_norm_equals_torch_in_training(differentiate, shape, dtype, last):
    torch = pytest.importorskip("torch")
    arrays = batch_arrays(shape, dtype)[:3]
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = torch.nn.functional.batch_norm(leaves[0], None, None, *leaves[1:], True, eps=1e-3)
    g = np.random.default_rng(1).normal(size=shape).astype(dtype)
    y.backward(torch.tensor(g))
    expected = [y.detach().numpy(), leaves[0].grad.numpy()]
    x64 = np.moveaxis(arrays[0], 1, 0).reshape(shape[1], -1).astype(np.float64)

    dim = len(shape) - 1 if last else 1
    if last:
        arrays[0], g = channels_last(arrays[0]), channels_last(g)
        expected = [channels_last(e) for e in expected]
    outputs, grads = differentiate("batch_norm_train", arrays, g, eps=1e-3, channel_dim=dim)
    y, mean, var, rstd = outputs
    close(y, expected[0], dtype)
    close(mean, x64.mean(1), dtype)
    close(var, x64.var(1), dtype)  # biased: divided by the count
    close(rstd, 1 / np.sqrt(x64.var(1) + 1e-3), dtype)
    close(grads[0], expected[1], dtype)
    close(grads[1], leaves[1].grad, dtype)
    close(grads[2], leaves[2].grad, dtype)


def test_statistics_of_a_long_float32_column_are_accurate():
    # A running float32 sum over 100000 rows would be off in the fourth digit.
    x = np.random.default_rng(0).uniform(0.9, 1.1, (100_000, 2)).astype(np.float32)
    ones = np.ones(2, np.float32)
    _, mean, var, _ = get("batch_norm_train").numpy(x, ones, ones, eps=1e-5, channel_dim=1)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-7)
    np.testing.assert_allclose(var, x.astype(np.float64).var(0), rtol=1e-6)


def test_variance_of_values_far_from_zero_is_not_cancelled():
    x = (1000 + np.random.default_rng(0).normal(size=(512, 3))).astype(np.float32)
    ones = np.ones(3, np.float32)
    _, _, var, _ = get("batch_norm_train").numpy(x, ones, ones, eps=0.0, channel_dim=1)
    np.testing.assert_allclose(var, x.astype(np.float64).var(0), rtol=1e-6)
    _, _, rstd = get("layer_norm").numpy(np.ascontiguousarray(x.T), ndim=1, eps=0.0)
    np.testing.assert_allclose(rstd, x.astype(np.float64).std(0) ** -1, rtol=1e-5)


def test_an_empty_batch_gives_nan_statistics_without_a_warning():
    arrays = batch_arrays((0, 3, 2, 2), np.float32)
    y, mean, var, _ = get("batch_norm_train").numpy(*arrays[:3], eps=1e-5, channel_dim=1)
    assert y.shape == (0, 3, 2, 2) and np.isnan(mean).all() and np.isnan(var).all()
    assert get("batch_norm").numpy(*arrays, eps=1e-5, channel_dim=1).shape == y.shape


def test_nan_and_infinity_stay_in_their_channel():
    x = np.ones((2, 3, 2), np.float32)
    x[0, 0, 0], x[1, 2, 1] = np.nan, np.inf
    ones = np.ones(3, np.float32)
    y, *_ = get("batch_norm_train").numpy(x, ones, ones, eps=1e-5, channel_dim=1)
    assert np.isnan(y[:, [0, 2]]).any() and np.isfinite(y[:, 1]).all()
    grad = get("batch_norm_grad").numpy(x, x, ones, ones, ones, channel_dim=1)
    assert np.isfinite(grad[0][:, 1]).all()


# -- layer normalisation --------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("affine", ["none", "weight", "weight_and_bias"])
@pytest.mark.parametrize(
    ("shape", "ndim"), [((4, 7), 1), ((2, 3, 5), 2), ((3, 5, 65), 1), ((6,), 1), ((0, 4), 1)]
)
def test_layer_norm_equals_torch(differentiate, shape, ndim, affine, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    normalised = shape[len(shape) - ndim :]
    count = {"none": 1, "weight": 2, "weight_and_bias": 3}[affine]
    arrays = [rng.normal(2.0, 3.0, shape), *rng.normal(size=(2, *normalised))][:count]
    arrays = [a.astype(dtype) for a in arrays]
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = torch.nn.functional.layer_norm(leaves[0], normalised, *leaves[1:], eps=1e-3)
    g = rng.normal(size=shape).astype(dtype)
    y.backward(torch.tensor(g))

    outputs, grads = differentiate("layer_norm", arrays, g, ndim=ndim, eps=1e-3)
    close(outputs[0], y, dtype)
    assert outputs[1].shape == outputs[2].shape == shape[: len(shape) - ndim]
    for grad, leaf in zip(grads, leaves, strict=True):
        close(grad, leaf.grad, dtype)


def test_layer_norm_of_one_element_is_the_bias():
    x, w, b = (np.array([[7.0], [np.float32(-3)]], np.float32), *np.ones((2, 1), np.float32))
    assert np.array_equal(get("layer_norm").numpy(x, w, b, ndim=1, eps=1e-5)[0], [[1], [1]])


# -- shape rules ----------------------------------------------------------------------------------


def f32(*shape):
    return TensorType(float32, shape)


def test_the_symbolic_batch_passes_through():
    x, c = f32(N, 16, 8, 8), f32(16)
    attrs = {"eps": 1e-5, "channel_dim": 1}
    assert infer_types("batch_norm", [x, c, c, c, c], attrs) == (x,)
    assert infer_types("batch_norm_train", [x, c, c], attrs) == (x, c, c, c)
    assert infer_types("batch_norm_grad", [x, x, c, c, c], {"channel_dim": 1}) == (x, c, c)
    y, w, row = f32(N, 5, 64), f32(64), f32(N, 5)
    assert infer_types("layer_norm", [y, w, w], {"ndim": 1, "eps": 1e-5}) == (y, row, row)
    assert infer_types("layer_norm_grad", [y, y, row, row], {"ndim": 1}) == (y,)
    assert infer_types("layer_norm_grad", [y, y, row, row, w], {"ndim": 1}) == (y, w, w)


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "text"),
    [
        (
            "batch_norm",
            [f32(N, 16, 8, 8), *[f32(16)] * 3, f32(8)],
            {"eps": 1e-5, "channel_dim": 1},
            r"running_var has shape \[8\], expected \[16\] \(one element per channel",
        ),
        (
            "batch_norm_train",
            [f32(N), f32(1), f32(1)],
            {"eps": 1e-5, "channel_dim": 1},
            "dimension 1 is out of range",
        ),
        (
            "batch_norm_train",
            [f32(2, N), f32(1), f32(1)],
            {"eps": 1e-5, "channel_dim": 1},
            "the number of channels is N",
        ),
        (
            "layer_norm",
            [f32(N, 64), f32(63)],
            {"ndim": 1, "eps": 1e-5},
            r"weight has shape \[63\], expected \[64\]",
        ),
        ("layer_norm", [f32(N, 64)], {"ndim": 2, "eps": 1e-5}, "a normalised dimension is N"),
        ("layer_norm", [f32(N, 64)], {"ndim": 3, "eps": 1e-5}, "cannot normalise the last 3"),
    ],
)
def test_wrong_shapes_are_named(op, operands, attrs, text):
    with pytest.raises(ShapeError, match=text):
        infer_types(op, operands, attrs)


def test_wrong_dtypes_are_named():
    with pytest.raises(DTypeError, match="input is float32, weight is float64"):
        infer_types("layer_norm", [f32(2, 3), TensorType(float64, (3,))], {"ndim": 1, "eps": 1e-5})
