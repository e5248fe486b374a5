"""linear_transposed: rows of the batch along the vectors, the weight as it is in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.few_rows_unpacked import most_rows
from netwright.codegen.linear_transposed import is_faster, panel_vectors
from netwright.codegen.matmul import emit_matmul, linear_operator
from netwright.codegen.packing import choose_panel
from netwright.codegen.target import AVX2, AVX512, NEON, host
from netwright.ir.graph import Graph
from netwright.ir.interpreter import run_node
from netwright.ir.ops.packing import pack_columns
from netwright.ir.types import Dim, TensorType, float32, float64, int64

N = Dim(1)
LANES = host().lanes(float32)


def f32(*shape: Any) -> TensorType:
    return TensorType(float32, shape)


def operands(n: int, k: int, features: int, dtype: Any = float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((n, k), (features, k), (features,))
    return [rng.standard_normal(s).astype(dtype.np) for s in shapes]


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize(
    ("features", "k"), [(1, 1), (10, 7), (17, 64), (40, 530), (16, 1024), (35, 0)]
)
def test_any_size_matches_numpy(single: Any, features: int, k: int, dtype: Any) -> None:
    types = [TensorType(dtype, s) for s in ((N, k), (features, k), (features,))]
    node = single(emit_matmul, "linear_transposed", types)
    # No row, part of a vector, panels of one to four vectors, a part of the second panel.
    for n in (0, 1, LANES, LANES + 1, 3 * LANES, 4 * LANES - 1, 6 * LANES + 3):
        node.check(*operands(n, k, features, dtype), n=n, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [(1,), (3 * LANES,), (9, 8), (6 * LANES + 1,), (0,)])
def test_static_rows_have_code_for_their_own_panels_only(single: Any, rows: Any) -> None:
    node = single(emit_matmul, "linear_transposed", [f32(*rows, 19), f32(37, 19)])
    x, w, _ = operands(int(np.prod(rows)), 19, 37)
    node.check(x.reshape(*rows, 19), w, atol=1e-5)


def test_few_vectors_fit_a_small_cache(single: Any) -> None:
    """Panels of two vectors and of one give the bits of wider ones."""
    arrays, found = operands(5 * LANES + 2, 100, 40), []
    types = [f32(N, 100), f32(40, 100), f32(40)]
    widths = []
    for vectors in (4, 2, 1):
        small = replace(host(), l2=2 * 100 * vectors * host().vector_bytes)
        widths.append(panel_vectors(100, small))
        node = single(emit_matmul, "linear_transposed", types, target=small)
        found += node.outputs(*arrays, n=len(arrays[0]))
    assert widths == ([4, 2, 1] if host().registers >= 32 else [2, 2, 1])
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("k", [33, 784])
def test_the_bits_are_those_of_a_packed_weight(single: Any, k: int) -> None:
    x, w, b = operands(50, k, 40)
    panel = choose_panel(40, host(), float32)
    packed = pack_columns(w.T, panel)
    attrs = {"out_features": 40, "panel": panel}
    types = [f32(N, k), f32(packed.size), f32(40)]
    other = single(emit_matmul, "linear_packed", types, **attrs)
    node = single(emit_matmul, "linear_transposed", [f32(N, k), f32(40, k), f32(40)])
    (found,), (expected,) = node.outputs(x, w, b, n=50), other.outputs(x, packed, b, n=50)
    assert np.array_equal(found, expected)


def test_a_row_has_the_same_bits_at_any_place_of_any_batch(single: Any) -> None:
    x, w, b = operands(70, 600, 20)
    node = single(emit_matmul, "linear_transposed", [f32(N, 600), f32(20, 600), f32(20)])
    (whole,) = node.outputs(x, w, b, n=70)
    for start, stop in ((0, 1), (69, 70), (3, 5), (5, 60)):
        (part,) = node.outputs(x[start:stop], w, b, n=stop - start)
        assert np.array_equal(part, whole[start:stop])


@pytest.mark.parametrize(
    ("k", "bias", "dtype"),
    [(3, True, float32), (512, False, float32), (530, False, float32), (784, True, float64)],
)
def test_few_rows_have_the_bits_that_they_have_among_many(
    single: Any, k: int, bias: bool, dtype: Any
) -> None:
    """Long reductions are summed in the same blocks, of which the last one may be shorter, and what
    is left of a block after its last square in the same order."""
    lanes = host().lanes(dtype)
    x, w, b = operands(4 * lanes, k, 53, dtype)
    types = [TensorType(dtype, s) for s in ((N, k), (53, k), (53,))][: 2 + bias]
    node = single(emit_matmul, "linear_transposed", types)
    arrays = [w, b][: 1 + bias]
    (whole,) = node.outputs(x, *arrays, n=len(x))
    for rows in range(1, most_rows(lanes) + 2):
        (few,) = node.outputs(x[:rows], *arrays, n=rows)
        assert np.array_equal(few, whole[:rows])


@pytest.mark.parametrize("rows", [1, 3])
def test_static_rows_that_are_few_have_code_for_squares_only(single: Any, rows: int) -> None:
    node = single(emit_matmul, "linear_transposed", [f32(rows, 300), f32(48, 300)])
    helpers = [name for name, _ in node.kernel.helpers]
    assert [name for name in helpers if name.startswith("nw_few_rows_f32")] == helpers
    node.check(*operands(rows, 300, 48)[:2], atol=1e-4)


def test_infinities_and_nan_stay_in_their_row_and_column(single: Any) -> None:
    x, w, b = operands(20, 40, 33)
    x[3, 5], w[7, 2], b[9] = np.nan, np.inf, -np.inf
    node = single(emit_matmul, "linear_transposed", [f32(N, 40), f32(33, 40), f32(33)])
    (found,) = node.outputs(x, w, b, n=20)
    strange = ~np.isfinite(found)
    assert strange[3].all()
    assert strange[:, [7, 9]].all()
    assert strange.sum() == 33 + 2 * 19


# -- epilogues


def fused(single: Any, types: Sequence[TensorType], count: int, finish: Callable[..., Any]) -> Any:
    body = Graph("body")
    values = [body.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    results = finish(body.add, body.add("linear_transposed", *values[:count]), *values[count:])
    for k, value in enumerate(results if isinstance(results, list) else [results]):
        body.outputs[str(k)] = value
    return single(emit_matmul, "fused", types, kind="contraction", body=body)


def check_fused(node: Any, types: Sequence[TensorType], n: int, *more: np.ndarray) -> None:
    """Compares with the body's record, which has float32 constants and results of its own."""
    rng = np.random.default_rng(1)
    count = len(types) - len(more)
    arrays = [np.asarray(rng.standard_normal(t.at(n).shape), np.float32) for t in types[:count]]
    arrays += more
    expected = run_node(node.node, arrays, n)
    for found, wanted in zip(node.outputs(*arrays, n=n), expected, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_residual_channel_vectors_and_scalars_are_applied(single: Any) -> None:
    types = [f32(N, 30), f32(21, 30), f32(21), f32(N, 21), f32(21), f32(1, 21), f32(), f32(N, 1)]

    def finish(add: Any, y: Any, same: Any, c1: Any, c2: Any, scalar: Any, row: Any) -> Any:
        y = add("add", add("mul", y, c1), c2)
        y = add("mul", add("add", y, same), scalar)
        return [add("relu", add("add", y, row)), y]

    node = fused(single, types, 3, finish)
    for n in (1, 2 * LANES + 5):
        check_fused(node, types, n)


def test_several_results_of_several_dtypes(single: Any) -> None:
    types = [f32(N, 12), f32(21, 12), f32()]

    def finish(add: Any, y: Any, zero: Any) -> Any:
        return [add("gt", y, zero), add("relu", y)]

    check_fused(fused(single, types, 2, finish), types, 9)


def test_long_bodies_are_applied_to_rows(single: Any) -> None:
    types = [f32(N, 30), f32(21, 30), f32(N, 21)]

    def finish(add: Any, y: Any, same: Any) -> Any:
        return add("tanh", add("add", add("gelu", y, approximate="none"), same))

    check_fused(fused(single, types, 2, finish), types, 13)


def test_random_numbers_are_those_of_the_elements_linear_index(single: Any) -> None:
    types = [f32(N, 12), f32(21, 12), TensorType(int64, (2,))]

    def finish(add: Any, y: Any, key: Any) -> Any:
        return add("mul", y, add("uniform", key, shape=(N, 21), stream=3))

    check_fused(fused(single, types, 2, finish), types, 19, np.array([12345678901, 77]))


# -- the choice


def test_the_operator_that_packs_less_is_chosen() -> None:
    def chosen(rows: int, depth: int, outputs: int) -> str:
        return linear_operator(rows, depth, outputs, float32, AVX512)

    assert chosen(64, 784, 512) == chosen(256, 392, 196) == "linear_transposed"
    assert chosen(1, 784, 512) == chosen(8, 784, 512) == "linear_transposed"
    assert chosen(9, 784, 32) == "linear", "seven of sixteen lanes would be empty"
    assert chosen(1, 784, 10) == "linear", "there is no whole square of outputs"
    assert chosen(64, 512, 10) == "linear", "more rows would be packed than columns"
    assert chosen(256, 784, 392) == "linear_packed", "rows do not fit half of the cache"


def test_panels_that_do_not_fit_the_cache_are_not_chosen() -> None:
    for target in (AVX512, AVX2, NEON):
        longest = target.l2 // 2 // (2 * target.vector_bytes)
        assert is_faster(64, longest, 512, float32, target)
        assert not is_faster(64, longest + 1, 512, float32, target)
