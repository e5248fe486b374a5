"""Kernels that read or add at indices against their numpy records."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from netwright.codegen.indexing import INDEXING, emit_indexing
from netwright.codegen.kernel import STATUS_INDEX_OUT_OF_RANGE
from netwright.codegen.target import AVX2, AVX512, Target, host
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, TensorType, float32, int64

N = Dim(1)
RNG = np.random.default_rng(5)


def f32(*shape: int | Dim) -> TensorType:
    return TensorType(float32, shape)


def i64(*shape: int | Dim) -> TensorType:
    return TensorType(int64, shape)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("op", INDEXING)
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_the_record_agree_for_every_vector_width(
    single: Callable, op: str, dtype: type, vector_bytes: int
) -> None:
    target = replace(host(), vector_bytes=vector_bytes)
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in sample.arrays]
        single(emit_indexing, op, arrays, target=target, **sample.attrs).check(*arrays)


@pytest.mark.parametrize("features", [1, 5, 16, 64, 150, 300])
@pytest.mark.parametrize("padding", [None, 3])
def test_embeddings_of_every_width_and_batch(
    single: Callable, features: int, padding: int | None
) -> None:
    types = [i64(N, 3), f32(11, features)]
    forward = single(emit_indexing, "embedding", types, padding_idx=padding)
    attrs = {"num": 11, "padding_idx": padding}
    backward = single(emit_indexing, "embedding_grad", [f32(N, 3, features), i64(N, 3)], **attrs)
    for n in (0, 1, 40):
        index = RNG.integers(0, 11, (n, 3))
        forward.check(index, draw(11, features), n=n)
        backward.check(draw(n, 3, features), index, n=n, atol=1e-5)


@pytest.mark.parametrize(
    "shape,taken,dim",
    [
        ((N, 10), (N, 1), 1),
        ((N, 10), (N, 13), 1),
        ((7, N), (4, N), 0),
        ((N, 6, 50), (N, 3, 50), 1),
        ((Dim(2),), (Dim(3),), 0),
    ],
)
def test_gather_and_its_gradient(single: Callable, shape: tuple, taken: tuple, dim: int) -> None:
    size = shape[dim]
    forward = single(emit_indexing, "gather", [f32(*shape), i64(*taken)], dim=dim)
    backward = single(
        emit_indexing, "scatter_add_grad", [f32(*taken), i64(*taken)], dim=dim, size=size
    )
    for n in (1, 5, 300):
        full, picked = (
            tuple(d.at(n) if isinstance(d, Dim) else d for d in s) for s in (shape, taken)
        )
        index = RNG.integers(0, full[dim], picked)
        forward.check(draw(*full), index, n=n)
        backward.check(draw(*picked), index, n=n, atol=1e-5)


def test_gather_accepts_a_smaller_index_as_torch_does(single: Callable) -> None:
    x, index = draw(5, 6, 7), RNG.integers(0, 6, (2, 9, 3))
    single(emit_indexing, "gather", [x, index], dim=1).check(x, index)


@pytest.mark.parametrize("bad", [-1, 6, 2**62, -(2**62)])
def test_a_bad_index_is_reported_and_touches_no_memory(single: Callable, bad: int) -> None:
    index = np.array([0, bad, 5])
    w, g = draw(6, 20), draw(3, 20)
    cases = [
        single(emit_indexing, "embedding", [index, w], padding_idx=None).status(index, w),
        single(emit_indexing, "embedding_grad", [g, index], num=6, padding_idx=None).status(
            g, index
        ),
        single(emit_indexing, "gather", [w[:, 0], index], dim=0).status(w[:, 0], index),
        single(emit_indexing, "scatter_add_grad", [g[:, 0], index], dim=0, size=6).status(
            g[:, 0], index
        ),
    ]
    for status in cases:
        assert status.tolist() == [STATUS_INDEX_OUT_OF_RANGE, bad]


def test_an_index_into_nothing_is_reported(single: Callable) -> None:
    index, w = np.array([0]), np.zeros((0, 4), np.float32)
    node = single(emit_indexing, "embedding", [index, w], padding_idx=None)
    assert node.status(index, w)[0] == STATUS_INDEX_OUT_OF_RANGE


@pytest.mark.parametrize("op", ["embedding", "embedding_grad"])
def test_rows_are_copied_and_added_as_vectors(
    asm_for: Callable, single: Callable, target: Target, op: str
) -> None:
    types = [i64(N), f32(1000, 256)] if op == "embedding" else [f32(N, 256), i64(N)]
    attrs = {"padding_idx": None} | ({"num": 1000} if op == "embedding_grad" else {})
    asm = asm_for(single(emit_indexing, op, types, target, **attrs).kernel, target)
    wide = {AVX512: r"vmovups.*zmm", AVX2: r"vmovups.*ymm"}
    assert asm.count(wide.get(target, r"(str|stp)\s+q")) > 0
    assert asm.calls == 0
