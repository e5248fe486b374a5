"""The kernel of attention's gradient against the numpy record."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.codegen.attention_grad import emit_attention_grad
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.ir.graph import Graph
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, DType, TensorType, float32, float64

N = Dim(1)
OP = "attention_grad"
RNG = np.random.default_rng(12)
SAMPLES = range(len(all_ops()[OP].samples(np.random.default_rng(3))))


def typed(*shape: int | Dim, dtype: DType = float32) -> TensorType:
    return TensorType(dtype, shape)


def draw(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def attrs(heads: int, dim: int, value_dim: int | None = None, **others: Any) -> dict[str, Any]:
    """The attributes for operands of rank 4."""
    found = {"heads": heads, "head_dim": dim, "value_dim": value_dim or dim, "scale": dim**-0.5}
    found |= {"starts": (0, 0, 0), "causal": False, "merged": False, "together": False}
    return {**found, **others}


def projection(
    tokens: int, heads: int, dim: int, dtype: DType = float32, **others: Any
) -> tuple[list[TensorType], dict[str, Any]]:
    """Types and attributes for one projection to queries, keys and values."""
    width = heads * dim
    kind = typed(N, tokens, 3 * width, dtype=dtype)
    options = {"starts": (0, width, 2 * width), "merged": True, "together": True, **others}
    return [typed(N, tokens, width, dtype=dtype), *[kind] * 3], attrs(heads, dim, **options)


@pytest.mark.parametrize("index", SAMPLES)
def test_the_samples_of_the_record_agree(single: Callable, index: int) -> None:
    """Each at one vector width and in one dtype; all are met."""
    target = replace(host(), vector_bytes=(16, 32, 64)[index % 3])
    dtype = (np.float32, np.float64)[index // 3 % 2]
    sample = all_ops()[OP].samples(np.random.default_rng(3))[index]
    arrays = [a.astype(dtype) for a in sample.arrays]
    node = single(emit_attention_grad, OP, arrays, target=target, **sample.attrs)
    node.check(*arrays, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    "rows,keys,dim,value_dim,causal",
    [
        (1, 1, 1, 1, False),
        (7, 7, 3, 3, True),
        (197, 197, 64, 64, False),
        (300, 300, 5, 7, True),  # several blocks of queries, each sees more keys
        (300, 20, 5, 7, True),  # the later blocks see no further keys
        (20, 300, 33, 40, True),  # keys that no query sees
        (3, 600, 33, 3, False),  # more keys than are summed in one go
        (600, 9, 17, 70, False),
        (4, 6, 600, 2, False),  # a head of more features than are summed in one go
    ],
)
def test_heads_of_any_size(
    single: Callable, rows: int, keys: int, dim: int, value_dim: int, causal: bool
) -> None:
    types = [typed(N, 2, rows, value_dim), typed(N, 2, rows, dim)]
    types += [typed(N, 2, keys, dim), typed(N, 2, keys, value_dim)]
    options = attrs(2, dim, value_dim, causal=causal)
    node = single(emit_attention_grad, OP, types, **options)
    for n in (0, 1, 3):
        node.check(*(draw(*t.at(n).shape) for t in types), n=n, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("causal", [False, True])
def test_one_projection_gets_one_gradient(single: Callable, dtype: DType, causal: bool) -> None:
    types, options = projection(50, 3, 20, dtype, causal=causal)
    node = single(emit_attention_grad, OP, types, **options)
    for n in (1, 4):
        g, x = draw(n, 50, 60, dtype=dtype.np), draw(n, 50, 180, dtype=dtype.np)
        node.check(g, x, x, x, n=n, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(N, 2, 11, 40), (N, 1, 1, 40), (1, 2, 11, 1), (1, 1, 11, 40), (1, 1, 1, 1)], ids=str
)
def test_masks_that_repeat(single: Callable, shape: tuple) -> None:
    types = [typed(N, 2, 11, 8)] * 2 + [typed(N, 2, 40, 8)] * 2 + [typed(*shape)]
    node = single(emit_attention_grad, OP, types, **attrs(2, 8, causal=True))
    for n in (1, 3):
        arrays = [draw(*t.at(n).shape) for t in types]
        arrays[-1].flat[::3] = -np.inf
        node.check(*arrays, n=n, rtol=1e-5, atol=1e-5)


def test_a_query_without_keys_gives_and_gets_nothing(single: Callable) -> None:
    types = [*[typed(1, 1, 4, 8)] * 2, *[typed(1, 1, 30, 8)] * 2, typed(1, 1, 4, 30)]
    node = single(emit_attention_grad, OP, types, **attrs(1, 8))
    mask = np.zeros((1, 1, 4, 30), np.float32)
    mask[..., 2, :] = -np.inf
    arrays = [draw(*t.shape) for t in types[:4]]
    results = node.outputs(*arrays, mask)
    assert (results[0][0, 0, 2] == 0).all()
    assert all(np.isfinite(r).all() for r in results)
    arrays[0][0, 0, 2] = 1e6  # its gradient reaches no key and no value
    again = node.outputs(*arrays, mask)
    assert all(np.array_equal(a, b) for a, b in zip(results, again, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_gradient_spoils_its_head_and_no_other(single: Callable, value: float) -> None:
    types = [typed(N, 2, 30, 8)] * 4
    node = single(emit_attention_grad, OP, types, **attrs(2, 8))
    arrays = [draw(2, 2, 30, 8) for _ in range(4)]
    arrays[0][0, 1, 7, 3] = value
    for found in node.outputs(*arrays, n=2):
        assert not np.isfinite(found[0, 1]).all()
        assert np.isfinite(found[0, 0]).all() and np.isfinite(found[1]).all()


def test_a_sample_has_the_same_bits_anywhere_in_a_batch(single: Callable) -> None:
    types, options = projection(37, 2, 12)
    node = single(emit_attention_grad, OP, types, **options)
    g, x = draw(3, 37, 24), draw(3, 37, 72)
    (alone,) = node.outputs(g[2:], x[2:], x[2:], x[2:])
    (together,) = node.outputs(g, x, x, x, n=3)
    assert alone[0].tobytes() == together[2].tobytes()


def test_empty_matrices_have_no_kernel() -> None:
    graph = Graph()
    q = graph.add("input", path="q", type=typed(N, 1, 3, 2))
    k = graph.add("input", path="k", type=typed(N, 1, 0, 2))
    found = graph.add(OP, q, q, k, k, **attrs(1, 2))
    assert emit_attention_grad(graph.node(found[0]), graph, host()) is None


def inner_loops(text: str) -> list[str]:
    """The blocks of a function that jump back to their own label."""
    blocks = re.split(r"(?m)^(?=\.\w+:)", text)
    return [b for b in blocks if re.search(rf"(?m)^\s+\w.*\s{re.escape(b.split(':')[0])}$", b)]


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("causal", [False, True])
def test_inner_loops_are_vectors_without_spills_or_calls(
    asm_for: Callable, single: Callable, target: Target, dtype: DType, causal: bool
) -> None:
    types, options = projection(197, 12, 64, dtype, causal=causal)
    if causal:
        types.append(typed(1, 1, 197, 197, dtype=dtype))
    kernel = single(emit_attention_grad, OP, types, target, **options).kernel
    asm = asm_for(kernel, target)
    multiplies = {AVX512: r"vfm\w+p[sd].*zmm", AVX2: r"vfm\w+p[sd].*ymm", NEON: r"fmla\s"}[target]
    rows = 0
    for function in re.split(r"(?m)^(?=\w+:)", asm.text):
        name, part = function.split(":")[0], replace(asm, text=function)
        if "_tile_" in name:
            assert part.spills == 0, name
            assert part.calls == 0
            assert part.count(multiplies) > 0
        elif name.endswith("_softmax"):
            rows += 1
            assert part.calls == 0
            loops = [replace(asm, text=block) for block in inner_loops(function)]
            assert [b for b in loops if b.count(multiplies) >= 4], "the exponentials"
            assert not any(b.spills for b in loops)
    assert rows == 1


def test_five_products_are_counted(single: Callable) -> None:
    types, options = projection(16, 2, 8)
    kernel = single(emit_attention_grad, OP, types, **options).kernel
    assert kernel.flops == Dim(2 * 2 * 16 * 16 * (3 * 8 + 2 * 8))
