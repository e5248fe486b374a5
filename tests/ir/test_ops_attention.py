"""attention, its weights and its gradient against PyTorch, and the texts of their errors."""

from typing import Any

import numpy as np
import pytest

from netwright.errors import DTypeError, ShapeError
from netwright.ir.graph import Graph
from netwright.ir.ops.record import get, infer_types
from netwright.ir.types import Dim, TensorType, float32, float64
from netwright.passes.differentiate import differentiate as diff_graph

N = Dim(1)
RNG = np.random.default_rng(2)


def attrs(**others: Any) -> dict[str, Any]:
    found = {"heads": 3, "head_dim": 4, "value_dim": 4, "scale": 0.5, "starts": (0, 0, 0)}
    return {**found, "causal": False, "merged": False, **others}


def heads(x: np.ndarray, start: int) -> np.ndarray:
    """Columns ``start`` and following as (batch, 3, rows, 4)."""
    batch, rows, _ = x.shape
    return x[:, :, start : start + 12].reshape(batch, rows, 3, 4).transpose(0, 2, 1, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_its_gradients_equal_torch(
    differentiate: Any, dtype: type, masked: bool, causal: bool
) -> None:
    torch = pytest.importorskip("torch")
    arrays = [RNG.normal(size=(2, 3, rows, 4)).astype(dtype) for rows in (5, 7, 7)]
    if masked:
        mask = RNG.normal(size=(2, 1, 5, 7)).astype(dtype)
        mask[0, 0, 3], mask[1, 0, :, 0] = -np.inf, -np.inf
        arrays.append(mask)
    # PyTorch's plain path takes one of the two: what causal hides is in its mask instead.
    hidden = np.triu(np.full((5, 7), -np.inf, dtype), 1) if causal and masked else None
    g = RNG.normal(size=(2, 3, 5, 4)).astype(dtype)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    operands = leaves if hidden is None else [*leaves[:3], leaves[3] + torch.tensor(hidden)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = torch.nn.functional.scaled_dot_product_attention(
            *operands, is_causal=causal and hidden is None, scale=0.5
        )
    wanted.backward(torch.tensor(g))
    outputs, grads = differentiate("attention", arrays, g, **attrs(causal=causal))
    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(outputs[0], wanted.detach().numpy(), tolerance, tolerance)
    for found, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(found, leaf.grad.numpy(), tolerance, tolerance)


def test_columns_and_matrices_are_the_same_heads(differentiate: Any) -> None:
    x = RNG.normal(size=(2, 6, 40))
    starts = (0, 13, 26)
    parts = [np.ascontiguousarray(heads(x, s)) for s in starts]
    apart, gradients = differentiate("attention", parts, np.ones((2, 3, 6, 4)), **attrs())
    options = attrs(starts=starts, merged=True)
    together, (dq, dk, dv) = differentiate("attention", [x] * 3, np.ones((2, 6, 12)), **options)
    np.testing.assert_allclose(heads(together[0], 0), apart[0], rtol=1e-12)
    for found, start, wanted in zip((dq, dk, dv), starts, gradients, strict=True):
        np.testing.assert_allclose(heads(found, start), wanted, rtol=1e-9, atol=1e-12)
        found[:, :, start : start + 12] = 0
        assert not found.any()


def test_one_operand_gets_one_gradient_and_three_get_three() -> None:
    graph = Graph()
    p = graph.add("input", path="p", type=TensorType(float32, (N, 6, 36)))
    q = graph.add("input", path="q", type=TensorType(float32, (N, 6, 36)))
    options = attrs(starts=(0, 12, 24), merged=True)
    graph.outputs["one"] = graph.add("attention", p, p, p, **options)
    graph.outputs["two"] = graph.add("attention", q, p, p, **options)
    backward = [n for n in diff_graph(graph, ["p", "q"]).nodes if n.op == "attention_grad"]
    assert {len(n.types): n.attrs["together"] for n in backward} == {1: True, 3: False}


def test_the_gradient_of_a_mask_comes_from_single_operators() -> None:
    graph = Graph()
    shapes = {"q": (N, 3, 5, 4), "k": (N, 3, 7, 4), "m": (N, 3, 5, 7)}
    q, k, m = (graph.add("input", path=n, type=TensorType(float32, s)) for n, s in shapes.items())
    graph.outputs["y"] = graph.add("attention", q, k, k, m, **attrs())
    ops = {wrt: {n.op for n in diff_graph(graph, [wrt]).nodes} for wrt in ("m", "q")}
    assert "attention_grad" in ops["q"] and "attention_grad" not in ops["m"]


@pytest.mark.parametrize(
    "change, together, text",
    [
        ({"starts": (0, 12, 23)}, True, "all columns of one operand"),
        ({"starts": (1, 12, 24)}, True, "all columns of one operand"),
        ({"merged": False}, False, "expected that of the result"),
    ],
)
def test_errors_of_the_gradient(change: dict, together: bool, text: str) -> None:
    x, g = TensorType(float32, (N, 6, 36)), TensorType(float32, (N, 6, 12))
    options = attrs(starts=(0, 12, 24), merged=True) | change
    with pytest.raises(ShapeError, match=text):
        infer_types("attention_grad", [g, x, x, x], {**options, "together": together})


def test_attention_is_the_weights_times_the_values() -> None:
    q, k, v = (RNG.normal(size=(2, 3, 5, 4)) for _ in range(3))
    options = attrs(causal=True)
    kept = {n: options[n] for n in ("heads", "head_dim", "scale", "causal")}
    weights = get("attention_weights").numpy(q, k, starts=(0, 0), **kept)
    np.testing.assert_allclose(weights.sum(axis=3), 1)
    assert not np.triu(weights, 1).any()
    np.testing.assert_allclose(get("attention").numpy(q, k, v, **options), weights @ v)


def test_a_batch_of_two_kinds_of_operands_has_a_type() -> None:
    q = TensorType(float32, (N, 3, 5, 4))
    kv = TensorType(float32, (N, 7, 30))
    kinds = infer_types("attention", [q, kv, kv], attrs(starts=(0, 2, 18), merged=True))
    assert kinds == (TensorType(float32, (N, 5, 12)),)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 6, 4)], {}, "value has batch 2 and 6 rows, key has"),
        ([(2, 3, 5, 4), (1, 3, 5, 4), (1, 3, 5, 4)], {}, "query has batch 2, key 1; expand"),
        ([(2, 2, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)], {}, "query is .* with 3 heads of 4"),
        ([(2, 5, 11), (2, 5, 12), (2, 5, 12)], {}, "its 3 heads of 4 are columns 0 to 12"),
        ([(2, 5, 12), (2, 5, 12), (2, 5, 12)], {"starts": (0, 1, 0)}, "key is .* columns 1 to 13"),
        ([(5, 12), (5, 12), (5, 12)], {}, r"expected \(batch, heads, rows, head dim\) or"),
        ([(2, N, 12), (2, 5, 12), (2, 5, 12)], {}, "the number of rows of query is N"),
        ([(N, 3, 5, 4)] * 3 + [(N, 3, 5)], {}, r"mask has shape \[N,3,5\], expected \[N,3,5,5\]"),
        ([(N, 3, 5, 4)] * 3 + [(N, 2, 5, 5)], {}, "or 1 in some of its dimensions"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes: list, options: dict, message: str) -> None:
    types = [TensorType(float32, s) for s in shapes]
    with pytest.raises(ShapeError, match=message):
        infer_types("attention", types, attrs(**options))


def test_dtypes_must_agree() -> None:
    types = [TensorType(d, (2, 3, 5, 4)) for d in (float32, float32, float64)]
    with pytest.raises(DTypeError, match="query is float32, value is float64"):
        infer_types("attention", types, attrs())
