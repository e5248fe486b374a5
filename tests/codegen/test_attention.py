"""Kernels of attention and its weights against the numpy records."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.codegen.attention import emit_attention
from netwright.codegen.target import host
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, TensorType, float32

N = Dim(1)
RNG = np.random.default_rng(8)
OPS = ["attention", "attention_weights"]


def f32(*shape: int | Dim) -> TensorType:
    return TensorType(float32, shape)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def attrs(heads: int, dim: int, value_dim: int | None = None, **others: Any) -> dict[str, Any]:
    """The attributes of attention on operands of rank 4."""
    found = {"heads": heads, "head_dim": dim, "value_dim": value_dim or dim, "scale": dim**-0.5}
    return {**found, "starts": (0, 0, 0), "causal": False, "merged": False, **others}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_the_record_agree_for_every_vector_width(
    single: Callable, op: str, dtype: type, vector_bytes: int
) -> None:
    target = replace(host(), vector_bytes=vector_bytes)
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = [a.astype(dtype) for a in sample.arrays]
        node = single(emit_attention, op, arrays, target=target, **sample.attrs)
        node.check(*arrays, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("rows,keys", [(1, 1), (7, 7), (197, 197), (1, 600), (130, 9), (3, 1031)])
@pytest.mark.parametrize("dim,value_dim", [(1, 1), (3, 5), (64, 64)])
@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_any_size(
    single: Callable, rows: int, keys: int, dim: int, value_dim: int, causal: bool
) -> None:
    types = [f32(N, 2, rows, dim), f32(N, 2, keys, dim), f32(N, 2, keys, value_dim)]
    node = single(emit_attention, "attention", types, **attrs(2, dim, value_dim, causal=causal))
    for n in (0, 1, 3):
        node.check(*(draw(*t.at(n).shape) for t in types), n=n, rtol=1e-5, atol=5e-6)
