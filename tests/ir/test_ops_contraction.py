"""matmul, linear and linear_grad_weight against PyTorch, and the texts of their errors."""

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.builder import ArrayBuilder
from netwright.ir.graph import Graph
from netwright.ir.ops.record import get, infer_types
from netwright.ir.types import Dim, TensorType, float32, float64, int64

N = Dim(1)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    expected = expected.detach().numpy() if hasattr(expected, "detach") else expected
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@both_dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 20), (1, 1), (2, 3, 7), (5,), (0, 6), (2, 1, 3, 65), (3, 0)])
def test_linear_equals_torch(differentiate, shape, bias, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape), rng.normal(size=(9, shape[-1])), rng.normal(size=9)]
    arrays = [a.astype(dtype) for a in arrays[: 3 if bias else 2]]
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = torch.nn.functional.linear(*leaves)
    g = rng.normal(size=y.shape).astype(dtype)
    y.backward(torch.tensor(g))

    outputs, grads = differentiate("linear", arrays, g)
    close(outputs[0], y, dtype)
    for grad, leaf in zip(grads, leaves, strict=True):
        close(grad, leaf.grad, dtype)


@both_dtypes
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 5), (5, 4)),
        ((1, 1), (1, 1)),
        ((2, 3, 5), (5, 4)),
        ((3, 5), (2, 5, 4)),
        ((2, 3, 5), (1, 5, 4)),
        ((3, 1, 2, 5), (4, 5, 7)),
        ((17, 33), (33, 19)),
        ((0, 3), (3, 2)),
        ((2, 0), (0, 3)),
        ((0, 2, 3), (0, 3, 4)),
    ],
)
def test_matmul_equals_torch(differentiate, a, b, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=a).astype(dtype), rng.normal(size=b).astype(dtype)]
    leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
    y = leaves[0] @ leaves[1]
    g = rng.normal(size=y.shape).astype(dtype)
    y.backward(torch.tensor(g))

    outputs, grads = differentiate("matmul", arrays, g)
    close(outputs[0], y, dtype)
    for grad, leaf in zip(grads, leaves, strict=True):
        close(grad, leaf.grad, dtype)


def test_matmul_of_integers_is_exact():
    a = np.arange(6).reshape(2, 3) * 2**40
    assert np.array_equal(get("matmul").numpy(a, np.ones((3, 1), np.int64)), a.sum(1)[:, None])


def test_infinities_and_nan_pass_without_a_warning():
    x = np.array([[np.inf, 1.0], [np.nan, 0.0], [-np.inf, np.inf]], np.float32)
    y = get("linear").numpy(x, np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(y, np.array([[np.inf], [np.nan], [np.nan]], np.float32))
    assert get("matmul").numpy(x, np.zeros((2, 1), np.float32)).shape == (3, 1)


def test_the_gradient_of_a_shared_weight_needs_no_batched_product():
    # dW of (batch, rows, k) @ (k, n) sums over the batch inside one product.
    seen = []

    class Recorder(ArrayBuilder):
        def _apply(self, name, values, attrs):
            seen.append(name)
            return super()._apply(name, values, attrs)

    from netwright.ir.autodiff import input_gradients
    from netwright.ir.ops.record import GradContext

    a, b = np.ones((2, 3, 4)), np.ones((4, 5))
    ctx = GradContext((a, b), (a @ b,), {}, (False, True))
    input_gradients(Recorder(), get("matmul"), ctx, [np.ones((2, 3, 5))])
    assert seen == ["linear_grad_weight"]


def test_the_symbolic_batch_passes_through():
    x, w = TensorType(float32, (N, 3, 20)), TensorType(float32, (10, 20))
    bias = TensorType(float32, (10,))
    g = TensorType(float32, (N, 3, 10))
    assert infer_types("linear", [x, w, bias], {}) == (g,)
    assert infer_types("linear_grad_weight", [g, x], {}) == (w,)
    assert infer_types("matmul", [g, w], {}) == (x,)


@pytest.mark.parametrize(
    ("op", "shapes", "text"),
    [
        (
            "linear",
            [(N, 20), (10, 784)],
            "linear: input has 20 features in its last dimension, weight expects 784",
        ),
        ("linear", [(N, 20), (10, 20), (11,)], r"bias has shape \[11\], expected \[10\]"),
        ("linear", [(), (10, 20)], "at least one dimension of 20 features"),
        ("linear", [(4, 20), (20,)], r"expected \(out features, in features\)"),
        ("matmul", [(2, 3), (4, 5)], "mat1 and mat2 shapes cannot be multiplied"),
        ("matmul", [(3,), (3, 5)], "at least 2 dimensions"),
        ("matmul", [(2, 3, 4), (3, 4, 5)], "cannot be broadcast"),
        ("matmul", [(N, 3), (3, N)], "not a multiple of the batch"),
        ("linear_grad_weight", [(2, 3), (4, 5)], "must agree in all dimensions but the last"),
    ],
)
def test_wrong_shapes_are_named(op, shapes, text):
    with pytest.raises(ShapeError, match=text):
        infer_types(op, [TensorType(float32, s) for s in shapes], {})


def test_wrong_dtypes_are_named():
    mixed = [TensorType(float64, (2, 3)), TensorType(float32, (4, 3))]
    with pytest.raises(DTypeError, match="input is float64, weight is float32"):
        infer_types("linear", mixed, {})
    with pytest.raises(DTypeError, match="expected float32 or float64"):
        infer_types("linear", [TensorType(int64, (2, 3)), mixed[1]], {})


def test_an_error_in_a_graph_names_the_source_line():
    from netwright.ir.graph import Source

    graph = Graph()
    x = graph.add("input", path="x", type=TensorType(float32, (N, 20)))
    w = graph.add("parameter", path="w", type=TensorType(float32, (10, 784)))
    with pytest.raises(ShapeError, match=r"classifier at model.py:12"):
        graph.add("linear", x, w, source=Source("classifier", "model.py", 12))
