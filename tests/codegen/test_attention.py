"""Kernels of attention and its weights against the numpy records."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.codegen.attention import emit_attention
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, DType, TensorType, float32, float64

N = Dim(1)
RNG = np.random.default_rng(8)
OPS = ["attention", "attention_weights"]
SAMPLES = [
    (op, i) for op in OPS for i, _ in enumerate(all_ops()[op].samples(np.random.default_rng(3)))
]


def typed(*shape: int | Dim, dtype: DType = float32) -> TensorType:
    return TensorType(dtype, shape)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def attrs(heads: int, dim: int, value_dim: int | None = None, **others: Any) -> dict[str, Any]:
    """The attributes of attention on operands of rank 4."""
    found = {"heads": heads, "head_dim": dim, "value_dim": value_dim or dim, "scale": dim**-0.5}
    return {**found, "starts": (0, 0, 0), "causal": False, "merged": False, **others}


def projection(
    tokens: int, heads: int, dim: int, dtype: DType = float32, **others: Any
) -> tuple[list[TensorType], dict[str, Any]]:
    """Attention on one projection to queries, keys and values."""
    starts = (0, heads * dim, 2 * heads * dim)
    kind = typed(N, tokens, 3 * heads * dim, dtype=dtype)
    return [kind] * 3, attrs(heads, dim, starts=starts, merged=True, **others)


@pytest.mark.parametrize("op,index", SAMPLES)
def test_the_samples_of_the_record_agree(single: Callable, op: str, index: int) -> None:
    """Each at one vector width and in one dtype; all are met."""
    target = replace(host(), vector_bytes=(16, 32, 64)[index % 3])
    dtype = (np.float32, np.float64)[index // 3 % 2]
    sample = all_ops()[op].samples(np.random.default_rng(3))[index]
    arrays = [a.astype(dtype) for a in sample.arrays]
    node = single(emit_attention, op, arrays, target=target, **sample.attrs)
    node.check(*arrays, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize(
    "rows,keys,dim,value_dim,causal",
    [
        (1, 1, 1, 1, False),
        (7, 7, 3, 3, True),
        (197, 197, 64, 64, False),
        (70, 70, 64, 64, True),
        (1, 600, 64, 3, False),  # more keys than are summed in one go
        (90, 1031, 3, 5, False),
        (560, 560, 1, 1, True),
        (130, 9, 33, 70, False),
        (9, 130, 600, 2, True),  # more queries per head than are summed in one go
    ],
)
def test_heads_of_any_size(
    single: Callable, rows: int, keys: int, dim: int, value_dim: int, causal: bool
) -> None:
    types = [typed(N, 2, rows, dim), typed(N, 2, keys, dim), typed(N, 2, keys, value_dim)]
    node = single(emit_attention, "attention", types, **attrs(2, dim, value_dim, causal=causal))
    for n in (0, 1, 3):
        node.check(*(draw(*t.at(n).shape) for t in types), n=n, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", [float32, float64])
def test_heads_are_read_from_one_projection(single: Callable, dtype: DType) -> None:
    types, options = projection(50, 3, 20, dtype)
    node = single(emit_attention, "attention", types, **options)
    for n in (1, 4):
        x = RNG.normal(size=(n, 50, 180)).astype(dtype.np)
        node.check(x, x, x, n=n, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    "shape", [(N, 2, 11, 40), (N, 1, 1, 40), (1, 2, 11, 1), (1, 1, 11, 40), (1, 1, 1, 1)], ids=str
)
@pytest.mark.parametrize("op", OPS)
def test_masks_that_repeat(single: Callable, op: str, shape: tuple) -> None:
    types = [typed(N, 2, 11, 8), typed(N, 2, 40, 8), typed(N, 2, 40, 8), typed(*shape)]
    options = attrs(2, 8, causal=True)
    if op == "attention_weights":
        del types[2], options["value_dim"], options["merged"]
        options["starts"] = (0, 0)
    node = single(emit_attention, op, types, **options)
    for n in (1, 3):
        arrays = [draw(*t.at(n).shape) for t in types]
        arrays[-1].flat[::3] = -np.inf
        node.check(*arrays, n=n, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("keys", [5, 300])
def test_a_query_without_keys_gives_zeros(single: Callable, keys: int) -> None:
    types = [typed(1, 1, 4, 8), *[typed(1, 1, keys, 8)] * 2, typed(1, 1, 4, keys)]
    node = single(emit_attention, "attention", types, **attrs(1, 8))
    mask = np.zeros((1, 1, 4, keys), np.float32)
    mask[..., 2, :] = -np.inf
    arrays = [draw(*t.shape) for t in types[:3]]
    (found,) = node.outputs(*arrays, mask)
    assert (found[0, 0, 2] == 0).all()
    assert np.isfinite(found).all()
    node.check(*arrays, mask, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_number_spoils_what_it_reaches_and_nothing_else(
    single: Callable, value: float
) -> None:
    types = [typed(N, 2, 30, 8)] * 3
    node = single(emit_attention, "attention", types, **attrs(2, 8))
    for operand in range(3):
        arrays = [draw(2, 2, 30, 8) for _ in range(3)]
        arrays[operand][0, 1, 7, 3] = value
        node.check(*arrays, n=2, rtol=1e-5, atol=5e-6)
        (found,) = node.outputs(*arrays, n=2)
        assert not np.isfinite(found[0, 1, 7 if operand == 0 else slice(None)]).all()
        assert np.isfinite(found[0, 0]).all() and np.isfinite(found[1]).all()


def test_a_later_key_does_not_reach_a_causal_query(single: Callable) -> None:
    types, options = projection(80, 2, 16, causal=True)
    node = single(emit_attention, "attention", types, **options)
    x = draw(1, 80, 96)
    y = x.copy()
    y[:, 41:] = draw(1, 39, 96) * 100
    (one,), (other,) = node.outputs(x, x, x), node.outputs(y, y, y)
    assert np.array_equal(one[:, :41], other[:, :41])
    assert not np.allclose(one[:, 41:], other[:, 41:])


def test_a_sample_has_the_same_bits_anywhere_in_a_batch(single: Callable) -> None:
    types, options = projection(37, 2, 12)
    node = single(emit_attention, "attention", types, **options)
    x = draw(1, 37, 72)
    batch = np.concatenate([draw(2, 37, 72), x])
    (alone,), (together,) = node.outputs(x, x, x), node.outputs(batch, batch, batch, n=3)
    assert alone[0].tobytes() == together[2].tobytes()


def test_empty_matrices_have_no_kernel() -> None:
    from netwright.ir.graph import Graph

    graph = Graph()
    q = graph.add("input", path="q", type=typed(N, 1, 3, 2))
    k = graph.add("input", path="k", type=typed(N, 1, 0, 2))
    node = graph.node(graph.add("attention", q, k, k, **attrs(1, 2)))
    assert emit_attention(node, graph, host()) is None


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
    kernel = single(emit_attention, "attention", types, target, **options).kernel
    asm = asm_for(kernel, target)
    multiplies = {AVX512: r"vfm\w+p[sd].*zmm", AVX2: r"vfm\w+p[sd].*ymm", NEON: r"fmla\s"}[target]
    softmaxes = 0
    for function in re.split(r"(?m)^(?=\w+:)", asm.text):
        name, part = function.split(":")[0], replace(asm, text=function)
        if "_tile_" in name:
            assert part.spills == 0, name
            assert part.calls == 0
            assert part.count(multiplies) > 0
        elif name.endswith("_softmax"):
            softmaxes += 1
            assert part.calls == 0
            loops = [replace(asm, text=block) for block in inner_loops(function)]
            exponentials = [b for b in loops if b.count(multiplies) >= 4]
            assert exponentials
            assert not any(b.spills for b in loops)
    assert softmaxes == 1


def test_equal_layers_share_a_kernel(single: Callable) -> None:
    types, options = projection(16, 2, 8)
    kernels = [single(emit_attention, "attention", types, **options).kernel for _ in range(2)]
    assert kernels[0] == kernels[1]
    assert kernels[0].flops == Dim(2 * 2 * 16 * 16 * (8 + 8))
