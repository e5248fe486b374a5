"""Kernels of batch and layer normalisation against their numpy records in float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from netwright.codegen.normalization import NORMS, emit_norm
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, TensorType, float32

N = Dim(1)
RNG = np.random.default_rng(5)


def f32(*shape: int | Dim) -> TensorType:
    return TensorType(float32, shape)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def at(shape: tuple, n: int) -> tuple:
    return tuple(d.at(n) if isinstance(d, Dim) else d for d in shape)


@pytest.mark.parametrize("op", NORMS)
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_the_record_agree_for_every_vector_width(
    single: Callable, op: str, dtype: type, vector_bytes: int
) -> None:
    target = replace(host(), vector_bytes=vector_bytes)
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = [a.astype(dtype) for a in sample.arrays]
        node = single(emit_norm, op, arrays, target=target, **sample.attrs)
        node.check(*arrays, rtol=1e-5, atol=1e-5)


# shape, channel_dim: (N, C), (N, C, L), NCHW, NHWC
SHAPES = [
    ((N, 5), 1),
    ((N, 16), 1),
    ((N, 70), 1),
    ((N, 3, 9), 1),
    ((N, 5, 3, 7), 1),
    ((N, 4, 40, 33), 1),
    ((N, 3, 4, 6), 3),
    ((N, 7, 5, 64), 3),
    ((N, 1, 3, 150), 3),
]


@pytest.mark.parametrize("shape,dim", SHAPES)
def test_batch_norm_of_every_layout_and_batch(single: Callable, shape: tuple, dim: int) -> None:
    channels = shape[dim]
    per_channel = [f32(channels)]
    attrs = {"channel_dim": dim}
    x_and = [f32(*shape), *per_channel]
    plain = single(emit_norm, "batch_norm", [*x_and, *per_channel * 3], eps=1e-5, **attrs)
    train = single(emit_norm, "batch_norm_train", [*x_and, *per_channel], eps=1e-5, **attrs)
    grad = single(emit_norm, "batch_norm_grad", [f32(*shape)] * 2 + per_channel * 3, **attrs)
    for n in (1, 2, 9, 70):
        x, g = draw(*at(shape, n)), draw(*at(shape, n))
        gamma, beta, mean = draw(3, channels)
        var = np.abs(draw(channels)) + 0.1
        plain.check(x, gamma, beta, mean, var, n=n, rtol=1e-5, atol=1e-5)
        if x.size // channels > 1:
            train.check(x, gamma, beta, n=n, rtol=2e-5, atol=2e-5)
        rstd = 1 / np.sqrt(var)
        atol = 2e-5 * (1 + x.size / channels) ** 0.5
        grad.check(g, x, gamma, mean, rstd, n=n, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("shape,dim", [((50_000, 16), 1), ((40, 3, 50, 50), 1)])
@pytest.mark.parametrize("mean,deviation", [(0.0, 1.0), (100.0, 1.0), (-1000.0, 0.5)])
def test_statistics_of_many_rows_are_accurate(
    single: Callable, shape: tuple, dim: int, mean: float, deviation: float
) -> None:
    x = (RNG.normal(size=shape) * deviation + mean).astype(np.float32)
    channels = shape[dim]
    ones = np.ones(channels, np.float32)
    node = single(emit_norm, "batch_norm_train", [x, ones, ones], eps=0.0, channel_dim=dim)
    _, found_mean, found_var, found_rstd = node.outputs(x, ones, ones)
    dims = tuple(d for d in range(len(shape)) if d != dim)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found_mean, exact.mean(axis=dims), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found_var, exact.var(axis=dims), rtol=2e-6)
    np.testing.assert_allclose(found_rstd, 1 / exact.std(axis=dims), rtol=2e-6)


def test_a_first_row_far_from_the_others_does_not_spoil_the_variance(single: Callable) -> None:
    x = (RNG.normal(size=(3000, 5)) + 1000).astype(np.float32)
    x[0] = 0
    ones = np.ones(5, np.float32)
    node = single(emit_norm, "batch_norm_train", [x, ones, ones], eps=0.0, channel_dim=1)
    np.testing.assert_allclose(node.outputs(x, ones, ones)[2], x.astype(float).var(axis=0), 2e-6)


def test_the_variance_of_a_constant_channel_is_zero(single: Callable) -> None:
    for shape, dim in (((200, 3), 1), ((9, 3, 31), 1)):
        x = np.full(shape, 0.1, np.float32)
        ones = np.ones(3, np.float32)
        node = single(emit_norm, "batch_norm_train", [x, ones, ones], eps=1e-5, channel_dim=dim)
        y, _, var, _ = node.outputs(x, ones, ones)
        assert (var <= 1e-15).all()
        np.testing.assert_allclose(y, 1, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 10, 33, 128, 700, 2500])
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_layer_norm_of_any_length(single: Callable, length: int, affine: int) -> None:
    vectors = [f32(length)] * affine
    forward = single(emit_norm, "layer_norm", [f32(N, length), *vectors], ndim=1, eps=1e-5)
    rows = [f32(N, length)] * 2 + [f32(N)] * 2 + vectors[:1]
    backward = single(emit_norm, "layer_norm_grad", rows, ndim=1)
    for n in (0, 1, 3, 20):
        x, g, parameters = draw(n, length) + 3, draw(n, length), list(draw(affine, length))
        if length > 1:
            forward.check(x, *parameters, n=n, rtol=2e-5, atol=2e-5)
        mean, rstd = x.mean(axis=1), (1 / np.sqrt(x.var(axis=1) + 1e-2)).astype(np.float32)
        backward.check(g, x, mean, rstd, *parameters[:1], n=n, rtol=2e-5, atol=2e-4)


def test_layer_norm_over_several_dimensions(single: Callable) -> None:
    x, w = draw(4, 3, 5, 7), draw(5, 7)
    node = single(emit_norm, "layer_norm", [x, w, w], ndim=2, eps=1e-5)
    node.check(x, w, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "op,types,attrs",
    [
        ("batch_norm", [f32(N, 8, 8, 64), *[f32(64)] * 4], {"channel_dim": 3, "eps": 1e-5}),
        ("batch_norm_train", [f32(N, 8, 8, 64), *[f32(64)] * 2], {"channel_dim": 3, "eps": 1e-5}),
        ("batch_norm_grad", [*[f32(N, 8, 8, 64)] * 2, *[f32(64)] * 3], {"channel_dim": 3}),
        ("batch_norm_train", [f32(N, 64, 28, 28), *[f32(64)] * 2], {"channel_dim": 1, "eps": 1e-5}),
        ("layer_norm", [f32(N, 256), *[f32(256)] * 2], {"ndim": 1, "eps": 1e-5}),
        ("layer_norm_grad", [*[f32(N, 256)] * 2, f32(N), f32(N), f32(256)], {"ndim": 1}),
    ],
)
def test_loops_are_vectors_without_calls(
    asm_for: Callable, single: Callable, target: Target, op: str, types: list, attrs: dict
) -> None:
    asm = asm_for(single(emit_norm, op, types, target, **attrs).kernel, target)
    wide = {AVX512: r"v\w+ps.*zmm", AVX2: r"v\w+ps.*ymm", NEON: r"(fadd|fsub|fmla|fmls)\s+v\d+\.4s"}
    assert asm.count(wide[target]) >= 4
    assert asm.calls == 0
