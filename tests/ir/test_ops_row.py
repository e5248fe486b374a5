"""softmax, log_softmax and cross_entropy against PyTorch, and the texts of their errors."""

import itertools

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError, UnsupportedError
from netwright.ir.autodiff import input_gradients
from netwright.ir.builder import ArrayBuilder
from netwright.ir.ops.record import GradContext, get, infer_types
from netwright.ir.types import Dim, TensorType, float32, float64, int32, int64

N = Dim(1)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
both_softmaxes = pytest.mark.parametrize("op", ["softmax", "log_softmax"])


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


# -- softmax --------------------------------------------------------------------------------------


@both_dtypes
@both_softmaxes
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((4, 7), 1),
        ((4, 7), 0),
        ((2, 3, 5), 1),
        ((2, 3, 4, 65), 3),
        ((1,), 0),
        ((5, 1), 1),
        ((0, 4), 1),
        ((4, 0), 1),
    ],
)
def test_softmax_equals_torch(differentiate, op, shape, dim, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * 5).astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    y = getattr(torch, op)(leaf, dim)
    g = rng.normal(size=shape).astype(dtype)
    y.backward(torch.tensor(g))

    outputs, (dx,) = differentiate(op, [x], g, dim=dim)
    close(outputs[0], y, dtype)
    close(dx, leaf.grad, dtype)


@both_dtypes
@both_softmaxes
def test_extreme_rows_equal_torch(op, dtype):
    torch = pytest.importorskip("torch")
    inf, nan = np.inf, np.nan
    rows = [[-inf] * 3, [-inf, 0, 1], [inf, 0, 1], [nan, 0, 1], [1e5, -1e5, 99999], [-1e30] * 3]
    x = np.array(rows, dtype)
    close(get(op).numpy(x, dim=1), getattr(torch, op)(torch.tensor(x), 1), dtype)


# -- cross_entropy --------------------------------------------------------------------------------


def torch_cross_entropy(torch, logits, target, weight, g, **attrs):
    leaf = torch.tensor(logits, requires_grad=True)
    class_weight = None if weight is None else torch.tensor(weight)
    y = torch.nn.functional.cross_entropy(leaf, torch.tensor(target), class_weight, **attrs)
    y.backward(torch.tensor(g).expand(y.shape) if g.ndim == 0 else torch.tensor(g))
    return y, leaf.grad


@both_dtypes
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", ["nothing", "some", "everything"])
def test_cross_entropy_equals_torch(
    differentiate, reduction, label_smoothing, weighted, ignored, dtype
):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for rows, classes in ((5, 10), (1, 1), (7, 33), (0, 4)):
        logits = (rng.normal(size=(rows, classes)) * 4).astype(dtype)
        target = rng.integers(0, classes, rows)
        ignore_index = -100
        if ignored == "some":
            ignore_index = classes - 1
        elif ignored == "everything":
            target[:] = ignore_index
        weight = rng.uniform(0.5, 2.0, classes).astype(dtype) if weighted else None
        g = rng.normal(size=rows if reduction == "none" else ()) * np.ones((), dtype)
        g = np.asarray(g, dtype)
        attrs = {
            "reduction": reduction,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
        }
        y, grad = torch_cross_entropy(torch, logits, target, weight, g, **attrs)
        operands = [logits, target] if weight is None else [logits, target, weight]
        close(get("cross_entropy").numpy(*operands, **attrs), y, dtype)
        close(get("cross_entropy_grad").numpy(g, *operands, **attrs), grad, dtype)
        if weight is None:
            _, (dx, _) = differentiate("cross_entropy", operands, g, **attrs)
            close(dx, grad, dtype)


PLAIN = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0}


def test_huge_logits_are_stable():
    logits = np.array([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], np.float32)
    target = np.array([0, 0])
    attrs = {**PLAIN, "reduction": "none"}
    assert np.array_equal(get("cross_entropy").numpy(logits, target, **attrs), [0, 2e4])
    g = np.ones(2, np.float32)
    dx = get("cross_entropy_grad").numpy(g, logits, target, **attrs)
    assert np.array_equal(dx, [[0, 0, 0], [-1, 0, 1]])


def test_an_ignored_row_is_zero_even_if_its_logits_are_nan():
    logits = np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32)
    loss = get("cross_entropy").numpy(logits, np.array([0, -100]), **PLAIN)
    assert np.isfinite(loss)
    g = np.float32(1)
    dx = get("cross_entropy_grad").numpy(np.asarray(g), logits, np.array([0, -100]), **PLAIN)
    assert np.array_equal(dx[1], [0, 0]) and np.isfinite(dx).all()


@pytest.mark.parametrize("label", [10, -1])
@pytest.mark.parametrize("op", ["cross_entropy", "cross_entropy_grad"])
def test_a_label_outside_the_classes_is_named_with_its_row(op, label):
    operands = [np.zeros((3, 10)), np.array([0, -100, label])]
    if op == "cross_entropy_grad":
        operands.insert(0, np.ones(()))
    text = rf"^Target {label} is out of bounds\. It is in row 2; the logits have 10 classes"
    with pytest.raises(IndexError, match=text):
        get(op).numpy(*operands, **PLAIN)


def test_the_class_weight_has_no_gradient_and_says_so():
    arrays = (np.zeros((2, 3)), np.array([0, 1]), np.ones(3))
    ctx = GradContext(arrays, (np.zeros(()),), PLAIN, (True, False, True))
    with pytest.raises(UnsupportedError, match="no gradient for the class weight"):
        input_gradients(ArrayBuilder(), get("cross_entropy"), ctx, [np.ones(())])


# -- shape rules ----------------------------------------------------------------------------------


def f32(*shape):
    return TensorType(float32, shape)


def i64(*shape):
    return TensorType(int64, shape)


def test_the_symbolic_batch_passes_through():
    logits, target, weight = f32(N, 10), i64(N), f32(10)
    for reduction, weighted in itertools.product(("none", "mean"), (True, False)):
        operands = [logits, target, weight] if weighted else [logits, target]
        loss = f32(N) if reduction == "none" else f32()
        attrs = {**PLAIN, "reduction": reduction}
        assert infer_types("cross_entropy", operands, attrs) == (loss,)
        assert infer_types("cross_entropy_grad", [loss, *operands], attrs) == (logits,)
    assert infer_types("softmax", [logits], {"dim": 1}) == (logits,)
    assert infer_types("log_softmax_grad", [logits, logits], {"dim": 1}) == (logits,)


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "text"),
    [
        (
            "cross_entropy",
            [f32(4, 10), i64(5)],
            PLAIN,
            r"expected input batch_size \(4\) to match target batch_size \(5\)",
        ),
        (
            "cross_entropy",
            [f32(4, 10), i64(4), f32(3)],
            PLAIN,
            r"either for all 10 classes or no classes but got weight tensor of shape: \[3\]",
        ),
        ("cross_entropy", [f32(4, 10, 7), i64(4, 7)], PLAIN, r"expected \(rows, classes\)"),
        (
            "cross_entropy",
            [f32(4, 10), i64(4)],
            {**PLAIN, "label_smoothing": 1.5},
            "label_smoothing must be between 0.0 and 1.0. Got: 1.5",
        ),
        (
            "cross_entropy",
            [f32(4, 10), i64(4)],
            {**PLAIN, "reduction": "average"},
            "'average' is not a valid value for reduction",
        ),
        ("softmax", [f32(4, 10)], {"dim": 2}, "softmax: dimension 2 is out of range"),
        ("softmax_grad", [f32(4, 9), f32(4, 10)], {"dim": 1}, "the gradient has shape"),
    ],
)
def test_wrong_shapes_are_named(op, operands, attrs, text):
    with pytest.raises(ValueError, match=text):
        infer_types(op, operands, attrs)


def test_shape_errors_are_the_projects_own():
    with pytest.raises(ShapeError):
        infer_types("cross_entropy", [f32(4, 10), i64(5)], PLAIN)


def test_wrong_dtypes_are_named():
    with pytest.raises(DTypeError, match="class indices must be int64, got int32"):
        infer_types("cross_entropy", [f32(4, 10), TensorType(int32, (4,))], PLAIN)
    with pytest.raises(DTypeError, match="logits is float32, weight is float64"):
        infer_types("cross_entropy", [f32(4, 2), i64(4), TensorType(float64, (2,))], PLAIN)
    with pytest.raises(DTypeError, match="softmax: input is int64"):
        infer_types("softmax", [i64(4, 2)], {"dim": 1})
