"""nn.functional: shapes, options and the errors' texts; comparisons with torch where it helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError, TraceError, UnsupportedError
from netwright.frontend import nn
from netwright.frontend.nn import functional as F
from netwright.frontend.random import manual_seed
from netwright.frontend.tensor import Tensor
from netwright.frontend.trace import trace


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def randn(*shape: int) -> Tensor:
    return Tensor(rng().normal(size=shape).astype(np.float32))


def ints(*values: Any) -> Tensor:
    return Tensor(np.array(values, np.int64))


def raises(kind: type[Exception], text: str) -> Any:
    return pytest.raises(kind, match=re.escape(text))


# -- errors ---------------------------------------------------------------------------------

X = randn(4, 5)
IMAGE = randn(1, 2, 8, 8)
WEIGHT = randn(3, 2, 3, 3)
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: F.linear(X, randn(2, 3)),
        ShapeError,
        "mat1 and mat2 shapes cannot be multiplied (4x5 and 3x2)",
    ),
    (lambda: F.linear(X, randn(2, 5).double()), DTypeError, "must have the same dtype"),
    (lambda: F.linear(ints(1, 2), randn(2, 2)), DTypeError, "convert it with .float()"),
    (lambda: F.linear(np.ones((2, 3)), randn(2, 3)), TypeError, "must be Tensor, not ndarray"),
    (
        lambda: F.conv2d(randn(1, 3, 8, 8), WEIGHT),
        ShapeError,
        "Given groups=1, weight of size [3, 2, 3, 3], expected input[1, 3, 8, 8] to have 2 "
        "channels, but got 3 channels instead",
    ),
    (
        lambda: F.conv2d(X, WEIGHT),
        ShapeError,
        "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [4, 5]",
    ),
    (
        lambda: F.conv1d(IMAGE, WEIGHT),
        ShapeError,
        "Expected 2D (unbatched) or 3D (batched) input to conv1d",
    ),
    (
        lambda: F.conv2d(randn(1, 2, 2, 2), WEIGHT),
        ShapeError,
        "Calculated padded input size per channel: (2 x 2). Kernel size: (3 x 3). Kernel size "
        "can't be greater than actual input size",
    ),
    (lambda: F.conv2d(IMAGE, WEIGHT, groups=2), ShapeError, "groups=2"),
    (lambda: F.conv2d(IMAGE, WEIGHT, stride=0), ShapeError, "non-positive stride"),
    (lambda: F.conv2d(IMAGE, WEIGHT, padding=-1), ShapeError, "negative padding"),
    (
        lambda: F.conv2d(IMAGE, WEIGHT, padding=[1, 2, 3]),
        ShapeError,
        "expected padding to be a single integer value or a list of 2 values",
    ),
    (lambda: F.conv2d(IMAGE, WEIGHT, stride=1.5), TypeError, "must be int or tuple of ints"),
    (lambda: F.conv2d(IMAGE, WEIGHT, padding="foo"), RuntimeError, "Invalid padding string"),
    (
        lambda: F.conv2d(IMAGE, WEIGHT, padding="same", stride=2),
        ShapeError,
        "padding='same' is not supported for strided convolutions",
    ),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "in_channels must be divisible by groups"),
    (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "out_channels must be divisible by groups"),
    (lambda: nn.Conv2d(4, 4, 3, groups=0), ValueError, "groups must be a positive integer"),
    (lambda: nn.Conv2d(4, 4, 3, padding="foo"), ValueError, "Invalid padding string 'foo'"),
    (
        lambda: nn.Conv2d(4, 4, 3, padding="same", stride=2),
        ValueError,
        "padding='same' is not supported for strided convolutions",
    ),
    (lambda: nn.Conv2d(4, 4, 3, padding_mode="foo"), ValueError, "padding_mode must be one of"),
    (
        lambda: F.max_pool2d(IMAGE, 2, padding=2),
        ShapeError,
        "pad should be at most half of effective kernel size, but got pad=2, kernel_size=2",
    ),
    (lambda: F.max_pool2d(X, 2), ShapeError, "3D or 4D (batch mode) tensor expected"),
    (lambda: F.max_pool2d(randn(1, 2, 1, 1), 2), ShapeError, "max_pool2d"),
    (lambda: F.max_pool2d(IMAGE, 2, return_indices=True), UnsupportedError, "return_indices"),
    (lambda: nn.MaxPool2d(2, return_indices=True), UnsupportedError, "return_indices"),
    (lambda: F.avg_pool2d(IMAGE, 2, divisor_override=0), RuntimeError, "divisor must be not zero"),
    (lambda: F.adaptive_avg_pool2d(X, 1), ShapeError, "Expected 3D or 4D tensor, but got [4, 5]"),
    (lambda: F.adaptive_avg_pool2d(IMAGE, (1,)), ShapeError, "output_size must be 2"),
    (
        lambda: nn.BatchNorm1d(5)(X[:1]),
        ValueError,
        "Expected more than 1 value per channel when training, got input size [1, 5]",
    ),
    (lambda: nn.BatchNorm1d(5)(X[:1]), ValueError, "drop_last=True"),
    (lambda: nn.BatchNorm2d(5)(X), ValueError, "expected 4D input (got 2D input)"),
    (lambda: nn.BatchNorm1d(5)(X[0]), ValueError, "expected 2D or 3D input (got 1D input)"),
    (
        lambda: nn.BatchNorm1d(3)(X),
        RuntimeError,
        "running_var should contain 5 elements not 3",
    ),
    (lambda: nn.BatchNorm1d(5)(X.double()), DTypeError, "must have the same dtype"),
    (
        lambda: F.batch_norm(X, None, None),
        RuntimeError,
        "running_mean must be defined in evaluation mode",
    ),
    (
        lambda: nn.LayerNorm(3)(X),
        ShapeError,
        "Given normalized_shape=[3], expected input with shape [*, 3], but got input of size[4, 5]",
    ),
    (lambda: F.layer_norm(X, 5), TypeError, "must be tuple of ints, not int"),  # type: ignore
    (lambda: F.layer_norm(X, ()), ShapeError, "at least 1-dimensional"),
    (lambda: nn.Embedding(3, 2)(X), DTypeError, "scalar types: Long, Int"),
    (lambda: nn.Embedding(3, 2)(ints(3)), IndexError, "out of range"),
    (lambda: nn.Embedding(3, 2, padding_idx=3), AssertionError, "within num_embeddings"),
    (lambda: nn.Embedding(3, 2, max_norm=1.0), UnsupportedError, "max_norm"),
    (lambda: nn.Embedding(3, 2, sparse=True), UnsupportedError, "sparse"),
    (lambda: nn.Embedding(3, 2, scale_grad_by_freq=True), UnsupportedError, "scale_grad"),
    (lambda: F.one_hot(ints(1, 2), 2), RuntimeError, "must be smaller than num_classes"),
    (lambda: F.one_hot(ints(-1, 2)), RuntimeError, "must be non-negative"),
    (lambda: F.one_hot(X), RuntimeError, "index tensor of type LongTensor"),
    (lambda: F.one_hot(ints()), RuntimeError, "Can not infer total number of classes"),
    (lambda: F.one_hot(ints(1), -3), RuntimeError, "num_classes should be positive"),
    (lambda: F.pad(X, (1, 2, 3)), RuntimeError, "Padding length must be divisible by 2"),
    (lambda: F.pad(X, (1,) * 6), ShapeError, "two times the input dimension"),
    (lambda: F.pad(X, (-3, -3)), ShapeError, "cuts more than dimension 1"),
    (lambda: F.pad(X, (99, 1), mode="reflect"), ShapeError, "Padding size should be less than"),
    (lambda: F.pad(X, (99, 1), mode="circular"), ShapeError, "Padding size should be at most"),
    (lambda: F.interpolate(X[None, None], 2, mode="bicubic"), UnsupportedError, "mode='bicubic'"),
    (lambda: F.pad(X, (1, 1), mode="foo"), NotImplementedError, "Unrecognised padding mode foo"),
    (lambda: F.softmax(ints(1, 2), 0), DTypeError, "must be a floating tensor"),
    (lambda: F.softmax(X, 3), IndexError, "range of [-2, 1], but got 3"),
    (lambda: F.gelu(X, approximate="foo"), RuntimeError, "either none or tanh"),
    (
        lambda: F.dropout(X, 1.5),
        ValueError,
        "dropout probability has to be between 0 and 1, but got 1.5",
    ),
    (lambda: nn.Dropout(-1), ValueError, "between 0 and 1, but got -1"),
    (lambda: F.dropout(ints(1, 2)), DTypeError, "floating"),
    (lambda: F.dropout2d(X[0]), ShapeError, "at least 2 dimensions"),
    (lambda: F.normalize(X, p=-1), UnsupportedError, "p=-1"),
    (lambda: F.normalize(X, out=X), UnsupportedError, "out="),
    (lambda: nn.Unflatten(1, (2, 2))(X), ShapeError, "is invalid for"),
    (lambda: nn.Unflatten(1, 3), TypeError, "must be a tuple of ints, but found type int"),
    (lambda: nn.Unflatten(1, (2, "a")), TypeError, "element of type str at pos 1"),
    # losses
    (
        lambda: F.cross_entropy(X, ints(0, 1, 2)),
        ValueError,
        "Expected input batch_size (4) to match target batch_size (3).",
    ),
    (
        lambda: F.cross_entropy(X, ints(0, 1, 2, 3).float()),
        RuntimeError,
        "expected target dtype to be Long or Byte",
    ),
    (lambda: F.cross_entropy(X, ints(0, 1, 2, 3).int()), DTypeError, ".long()"),
    (
        lambda: F.cross_entropy(X, Tensor(np.zeros((4, 5), np.int64))),
        RuntimeError,
        "Expected floating point type for target with class probabilities",
    ),
    (
        lambda: F.cross_entropy(X, ints([0], [1], [2], [3])),
        RuntimeError,
        "0D or 1D target tensor expected, multi-target not supported",
    ),
    (
        lambda: F.cross_entropy(X, X, ignore_index=1),
        RuntimeError,
        "ignore_index is not supported for floating point target",
    ),
    (lambda: F.cross_entropy(X, ints(0, 1, 2, 5)), IndexError, "Target 5 is out of bounds."),
    (lambda: F.cross_entropy(X, ints(0, 1, 2, -1)), IndexError, "Target -1 is out of bounds."),
    (lambda: F.nll_loss(X, ints(0, 1, 2, 7)), IndexError, "Target 7 is out of bounds"),
    (
        lambda: F.cross_entropy(X, ints(0, 1, 2, 3), weight=randn(3)),
        RuntimeError,
        "weight tensor should be defined either for all 5 classes or no classes but got weight "
        "tensor of shape: [3]",
    ),
    (
        lambda: F.cross_entropy(X, ints(0, 1, 2, 3), weight=randn(5).double()),
        DTypeError,
        "expected weight of dtype netwright.float32",
    ),
    (
        lambda: F.cross_entropy(X, ints(0, 1, 2, 3), label_smoothing=1.5),
        RuntimeError,
        "label_smoothing must be between 0.0 and 1.0. Got: 1.5",
    ),
    (
        lambda: F.cross_entropy(X, ints(0, 1, 2, 3), reduction="foo"),
        ValueError,
        "foo is not a valid value for reduction",
    ),
    (
        lambda: F.cross_entropy(randn(2, 3, 4), Tensor(np.zeros((2, 3), np.int64))),
        RuntimeError,
        "Expected target size [2, 4], got [2, 3]",
    ),
    (lambda: F.cross_entropy(ints(1, 2), ints(1)), DTypeError, "floating"),
    (lambda: F.cross_entropy(X, [1, 2]), TypeError, "argument 'target' (position 2) must be"),  # type: ignore
    (lambda: F.mse_loss(ints(1, 2), ints(1, 2)), DTypeError, "must be floating"),
    (lambda: F.mse_loss(X, X, weight=randn(5)), ValueError, "must have the same size"),
    (lambda: F.smooth_l1_loss(X, X, beta=-1), RuntimeError, "negative values for beta"),
    (
        lambda: F.binary_cross_entropy(X.sigmoid(), X[:, :1].sigmoid()),
        ValueError,
        "Using a target size ([4, 1]) that is different to the input size ([4, 5])",
    ),
    (
        lambda: F.binary_cross_entropy(X * 5, X.sigmoid()),
        RuntimeError,
        "all elements of input should be between 0 and 1",
    ),
    (
        lambda: F.binary_cross_entropy(X.sigmoid(), X * float("nan")),
        RuntimeError,
        "all elements of target should be between 0 and 1",
    ),
    (lambda: F.binary_cross_entropy(X.sigmoid(), X.long()), DTypeError, ".float()"),
    (
        lambda: F.binary_cross_entropy_with_logits(X, X[:, :1]),
        ValueError,
        "Target size ([4, 1]) must be the same as input size ([4, 5])",
    ),
    (lambda: F.binary_cross_entropy_with_logits(X, X.long()), DTypeError, ".float()"),
    (
        lambda: F.binary_cross_entropy_with_logits(X, X, weight=randn(2, 4, 5)),
        ShapeError,
        "not broadcastable",
    ),
]


@pytest.mark.parametrize("index", range(len(ERRORS)))
def test_misuse_raises_torchs_error_and_names_the_fix(index: int) -> None:
    call, kind, text = ERRORS[index]
    with raises(kind, text):
        call()


# -- batch norm -----------------------------------------------------------------------------


def test_batch_norm_moves_running_statistics_by_momentum_with_the_unbiased_variance() -> None:
    norm = nn.BatchNorm1d(2, momentum=0.25)
    x = Tensor(np.array([[0, 0], [2, 4], [4, 8]], np.float32))
    mean, var = norm.running_mean, norm.running_var
    version = mean._storage.version
    norm(x)
    assert norm.running_mean is mean
    assert mean._storage.version > version
    np.testing.assert_allclose(mean.numpy(), [0.5, 1.0])
    np.testing.assert_allclose(var.numpy(), [0.75 + 0.25 * 4, 0.75 + 0.25 * 16])
    assert norm.num_batches_tracked.item() == 1
    norm.eval()(x)
    assert norm.num_batches_tracked.item() == 1


def test_batch_norm_without_momentum_averages_all_batches() -> None:
    norm = nn.BatchNorm1d(1, momentum=None)
    for value in (1.0, 2.0, 6.0):
        norm(Tensor(np.full((4, 1), value, np.float32)))
    assert norm.running_mean.item() == pytest.approx(3.0)


def test_traced_batch_norm_updates_its_buffers_and_refuses_a_cumulative_average() -> None:
    x = randn(4, 3)
    norm = nn.BatchNorm1d(3)
    graph = trace(norm, {"": norm}, (x,)).graph
    assert set(graph.updates) == {"running_mean", "running_var", "num_batches_tracked"}
    assert norm.num_batches_tracked.item() == 0
    average = nn.BatchNorm1d(3, momentum=None)
    with raises(UnsupportedError, "cumulative average"):
        trace(average, {"": average}, (x,))


# -- dropout --------------------------------------------------------------------------------


def test_dropout_zeroes_the_share_p_and_scales_the_rest() -> None:
    manual_seed(0)
    y = F.dropout(Tensor(np.ones((200, 500), np.float32)), 0.3).numpy()
    kept = np.float32(1 / 0.7)
    assert set(np.unique(y)) == {np.float32(0), kept}
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.01)


def test_dropout_repeats_after_manual_seed_and_differs_between_calls() -> None:
    x = Tensor(np.ones(100, np.float32))
    manual_seed(7)
    first, second = F.dropout(x).tolist(), F.dropout(x).tolist()
    manual_seed(7)
    assert F.dropout(x).tolist() == first
    assert first != second


def test_dropout_gradient_is_the_mask() -> None:
    x = Tensor(np.ones(50, np.float32), requires_grad=True)
    y = F.dropout(x, 0.5)
    y.sum().backward()
    assert x.grad.tolist() == y.tolist()


def test_dropout_does_nothing_in_evaluation_or_for_p_0_and_everything_for_p_1() -> None:
    x = randn(3, 4)
    assert F.dropout(x, 0.5, training=False) is x
    assert nn.Dropout(0.5).eval()(x) is x
    assert F.dropout(x, 0.0) is x
    assert not F.dropout(x, 1.0).numpy().any()


def test_inplace_dropout_writes_into_its_input() -> None:
    x = Tensor(np.ones(50, np.float32))
    y = F.dropout(x, 0.5, inplace=True)
    assert y is x
    assert 0.0 in x.tolist()


def test_dropout2d_drops_whole_channels() -> None:
    manual_seed(1)
    y = F.dropout2d(Tensor(np.ones((8, 16, 3, 3), np.float32)), 0.5).numpy()
    channels = y.reshape(8, 16, 9)
    assert (channels == channels[..., :1]).all()
    assert 0 < (channels[..., 0] == 0).mean() < 1
    with pytest.warns(UserWarning, match="3D input"):
        F.dropout2d(Tensor(np.ones((2, 3, 4), np.float32)))
    with pytest.warns(UserWarning, match="2-D input"):
        F.dropout2d(Tensor(np.ones((2, 3), np.float32)))


# -- softmax, shapes, indices ---------------------------------------------------------------


def test_softmax_without_dim_warns_and_takes_torchs_dimension() -> None:
    for function in (F.softmax, F.log_softmax):
        for shape, dim in (((3,), 0), ((3, 4), 1), ((2, 3, 4), 0), ((2, 3, 4, 5), 1)):
            with pytest.warns(UserWarning, match="Implicit dimension choice"):
                implicit = function(randn(*shape))
            np.testing.assert_array_equal(implicit.numpy(), function(randn(*shape), dim).numpy())


def test_softmax_of_a_number_and_of_another_dtype() -> None:
    assert F.softmax(Tensor(np.float32(3.0) * np.ones(())), 0).item() == 1.0
    assert F.softmax(ints(1, 2), 0, dtype="float64").dtype.name == "float64"


@pytest.mark.parametrize(
    "padding", [(1, 2), (0, 0, 2, 1), (-1, 2), (1, -2, -1, 0), (0, 0)], ids=str
)
def test_pad_equals_torch(padding: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    array = rng().normal(size=(2, 4, 5)).astype(np.float32)
    x, t = Tensor(array, requires_grad=True), torch.from_numpy(array.copy()).requires_grad_()
    y = F.pad(x, padding, value=3.0)
    u = torch.nn.functional.pad(t, padding, value=3.0)
    np.testing.assert_array_equal(y.detach().numpy(), u.detach().numpy())
    (y * y).sum().backward()
    (u * u).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy())


def test_one_hot_values_and_classes() -> None:
    assert F.one_hot(ints(0, 2)).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert F.one_hot(ints(1), 4).tolist() == [[0, 1, 0, 0]]
    assert F.one_hot(ints([0, 1], [1, 0])).shape == (2, 2, 2)
    assert F.one_hot(ints(), 3).shape == (0, 3)
    assert F.one_hot(ints(1)).dtype.name == "int64"


def test_one_hot_of_an_unknown_number_of_classes_cannot_be_traced() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(x)

    net = Net()
    with pytest.raises(TraceError):
        trace(net, {"": net}, (ints(0, 1),))


@pytest.mark.parametrize("p", [1, 2, 3.5, float("inf")])
def test_normalize_equals_torch(p: float) -> None:
    torch = pytest.importorskip("torch")
    array = rng().normal(size=(3, 4)).astype(np.float32)
    x, t = Tensor(array, requires_grad=True), torch.from_numpy(array.copy()).requires_grad_()
    y, u = F.normalize(x, p), torch.nn.functional.normalize(t, p)
    np.testing.assert_allclose(y.detach().numpy(), u.detach().numpy(), rtol=1e-5)
    (y * Tensor(array)).sum().backward()
    (u * torch.from_numpy(array)).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_normalize_has_a_finite_gradient_at_zero() -> None:
    x = Tensor(np.zeros((1, 3), np.float32), requires_grad=True)
    F.normalize(x).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_linear_with_a_vector_weight_gives_one_number_per_row() -> None:
    assert F.linear(X, randn(5)).shape == (4,)
    assert F.linear(X, randn(5), Tensor(np.ones((), np.float32))).shape == (4,)


def test_flatten_is_the_tensors() -> None:
    assert F.flatten(randn(2, 3, 4), 1).shape == (2, 12)


def test_embedding_takes_int32_and_pretrained_tables() -> None:
    table = randn(4, 3)
    layer = nn.Embedding.from_pretrained(table)
    assert not layer.weight.requires_grad
    np.testing.assert_array_equal(layer(ints(2).int()).numpy(), table.numpy()[[2]])
    assert nn.Embedding(4, 3, padding_idx=-1).weight[3].tolist() == [0.0, 0.0, 0.0]
    with raises(ShapeError, "expected to be 2-dimensional"):
        nn.Embedding.from_pretrained(randn(4))


def test_empty_batches_pass_through_layers() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    assert net(Tensor(np.zeros((0, 2, 8, 8), np.float32))).shape == (0, 27)


def test_modules_record_the_line_that_made_them() -> None:
    file, line = nn.ReLU()._created_at
    assert file == __file__
    assert line > 0
