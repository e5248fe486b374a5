"""Kernels of softmax, log_softmax, cross entropy and their gradients against the numpy records."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from netwright.codegen.cross_entropy import emit_cross_entropy, emit_cross_entropy_total
from netwright.codegen.kernel import STATUS_INDEX_OUT_OF_RANGE
from netwright.codegen.softmax import emit_softmax
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, TensorType, float32, int64

N = Dim(1)
RNG = np.random.default_rng(11)
SOFTMAX = ["softmax", "log_softmax", "softmax_grad", "log_softmax_grad"]
CROSS_ENTROPY = ["cross_entropy", "cross_entropy_grad", "cross_entropy_rows"]
PLAIN = {"ignore_index": -100, "label_smoothing": 0.0}


def f32(*shape: int | Dim) -> TensorType:
    return TensorType(float32, shape)


def draw(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) * 3).astype(np.float32)


def cast(arrays: tuple, dtype: type) -> list[np.ndarray]:
    return [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]


@pytest.mark.parametrize("op", SOFTMAX)
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_the_record_agree_for_every_vector_width(
    single: Callable, op: str, dtype: type, vector_bytes: int
) -> None:
    target = replace(host(), vector_bytes=vector_bytes)
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = cast(sample.arrays, dtype)
        if arrays[0].size == 0:
            arrays = [np.zeros_like(a) for a in arrays]
        node = single(emit_softmax, op, arrays, target=target, **sample.attrs)
        node.check(*arrays, rtol=5e-6, atol=3e-6)


@pytest.mark.parametrize("op", SOFTMAX)
@pytest.mark.parametrize("classes", [1, 2, 10, 31, 64, 100, 257, 1000, 2500])
def test_rows_of_any_length(single: Callable, op: str, classes: int) -> None:
    operands = 2 if op.endswith("grad") else 1
    node = single(emit_softmax, op, [f32(N, classes)] * operands, dim=1)
    for n in (0, 1, 3):
        arrays = [draw(n, classes)]
        if operands == 2:
            p = np.exp(draw(n, classes))
            p /= p.sum(axis=1, keepdims=True)
            arrays.append(p if op == "softmax_grad" else np.log(p))
        node.check(*arrays, n=n, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", SOFTMAX)
@pytest.mark.parametrize(
    "shape,dim", [((N, 5, 7), 1), ((N, 10, 33), 1), ((4, N), 0), ((2, 3, N), 1), ((N, 3), 0)]
)
def test_other_dimensions_than_the_last(single: Callable, op: str, shape: tuple, dim: int) -> None:
    operands = 2 if op.endswith("grad") else 1
    node = single(emit_softmax, op, [f32(*shape)] * operands, dim=dim)
    for n in (1, 2, 9, 40):
        full = tuple(d.at(n) if isinstance(d, Dim) else d for d in shape)
        arrays = [draw(*full), -np.abs(draw(*full))][:operands]
        node.check(*arrays, n=n, rtol=1e-5, atol=5e-5)


def test_a_nan_or_an_infinity_spoils_its_own_row_only(single: Callable) -> None:
    x = draw(6, 37)
    x[1, 3], x[2, 36], x[3] = np.nan, np.inf, -np.inf
    x[4, :30] = -np.inf
    for op in ("softmax", "log_softmax"):
        node = single(emit_softmax, op, [x], dim=1)
        node.check(x, atol=1e-5)
        assert np.isfinite(node.outputs(x)[0][[0, 5]]).all()


@pytest.mark.parametrize("op", CROSS_ENTROPY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_cross_entropy_give_the_same_result(
    single: Callable, op: str, dtype: type
) -> None:
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = cast(sample.arrays, dtype)
        node = single(emit_cross_entropy, op, arrays, **sample.attrs)
        node.check(*arrays, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [3, 10, 300])
def test_cross_entropy_of_every_kind(
    single: Callable, classes: int, reduction: str, weighted: bool, smoothing: float
) -> None:
    attrs = {"reduction": reduction, "ignore_index": 2, "label_smoothing": smoothing}
    weight = [RNG.uniform(0.5, 2, classes).astype(np.float32)] if weighted else []
    types = [f32(N, classes), TensorType(int64, (N,)), *weight]
    forward = single(emit_cross_entropy, "cross_entropy", types, **attrs)
    out = [f32(N) if reduction == "none" else f32()]
    backward = single(emit_cross_entropy, "cross_entropy_grad", out + types, **attrs)
    both = single(emit_cross_entropy, "cross_entropy_rows", out + types, **attrs)
    each = single(emit_cross_entropy, "cross_entropy", types, **{**attrs, "reduction": "none"})
    for n in (1, 2, 35):
        target = RNG.integers(0, classes, n)
        target[0] = 1
        arrays = [draw(n, classes), target, *weight]
        forward.check(*arrays, n=n, rtol=5e-6, atol=1e-5)
        g = draw(n) if reduction == "none" else np.float32(0.7).reshape(())
        backward.check(g, *arrays, n=n, rtol=1e-5, atol=1e-6)
        # In one sweep they have the same bits.
        losses, dx = both.outputs(g, *arrays, n=n)
        np.testing.assert_array_equal(losses, each.outputs(*arrays, n=n)[0])
        np.testing.assert_array_equal(dx, backward.outputs(g, *arrays, n=n)[0])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_total_of_losses_has_the_bits_of_the_loss(
    single: Callable, reduction: str, weighted: bool
) -> None:
    weight = [RNG.uniform(0.5, 2, 10).astype(np.float32)] if weighted else []
    types = [f32(N, 10), TensorType(int64, (N,)), *weight]
    attrs = {"reduction": reduction, "ignore_index": 2}
    plain = {**attrs, "label_smoothing": 0.0}
    whole = single(emit_cross_entropy, "cross_entropy", types, **plain)
    each = single(emit_cross_entropy, "cross_entropy", types, **{**plain, "reduction": "none"})
    total = single(
        emit_cross_entropy_total, "cross_entropy_total", [f32(N), *types[1:]], classes=10, **attrs
    )
    for n in (1, 35):
        arrays = [draw(n, 10), RNG.integers(3, 10, n), *weight]
        losses = each.outputs(*arrays, n=n)[0]
        found = total.outputs(losses, *arrays[1:], n=n)[0]
        np.testing.assert_array_equal(found, whole.outputs(*arrays, n=n)[0])


def test_the_mean_of_no_rows_is_nan_as_in_torch(single: Callable) -> None:
    types = [f32(N, 4), TensorType(int64, (N,))]
    node = single(
        emit_cross_entropy, "cross_entropy", types, reduction="mean", **{**PLAIN, "ignore_index": 1}
    )
    for n in (0, 3):
        (loss,) = node.outputs(draw(n, 4), np.ones(n, np.int64), n=n)
        assert np.isnan(loss)


def test_ignored_rows_get_no_gradient_even_if_they_are_nan(single: Callable) -> None:
    x, target = draw(3, 10), np.array([1, -100, 2])
    x[1] = np.nan
    g = np.ones((), np.float32)
    types = [g, x, target]
    node = single(emit_cross_entropy, "cross_entropy_grad", types, reduction="mean", **PLAIN)
    node.check(g, x, target)
    assert not node.outputs(g, x, target)[0][1].any()


@pytest.mark.parametrize("label", [-1, 10, 2**40, -(2**40)])
@pytest.mark.parametrize("op", CROSS_ENTROPY)
def test_a_bad_label_is_reported_and_touches_no_memory(
    single: Callable, op: str, label: int
) -> None:
    x, target, weight = draw(4, 10), np.array([1, 2, label, 3]), np.ones(10, np.float32)
    g = [] if op == "cross_entropy" else [np.ones((), np.float32)]
    arrays = [*g, x, target, weight]
    node = single(emit_cross_entropy, op, arrays, reduction="mean", **PLAIN)
    assert node.status(*arrays).tolist() == [STATUS_INDEX_OUT_OF_RANGE, label]


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("op", SOFTMAX)
def test_rows_are_vectors_without_calls(
    asm_for: Callable, single: Callable, target: Target, op: str, classes: int
) -> None:
    operands = 2 if op.endswith("grad") else 1
    kernel = single(emit_softmax, op, [f32(N, classes)] * operands, target, dim=1).kernel
    asm = asm_for(kernel, target)
    wide = {AVX512: r"v(mul|sub)ps.*zmm", AVX2: r"v(mul|sub)ps.*ymm", NEON: r"fsub\s+v\d+\.4s"}
    assert asm.count(wide[target]) > 0
    assert asm.calls == 0


@pytest.mark.parametrize("op", CROSS_ENTROPY)
def test_cross_entropy_calls_nothing(
    asm_for: Callable, single: Callable, target: Target, op: str
) -> None:
    g = [] if op == "cross_entropy" else [f32()]
    types = [*g, f32(N, 10), TensorType(int64, (N,))]
    kernel = single(emit_cross_entropy, op, types, target, reduction="mean", **PLAIN).kernel
    assert asm_for(kernel, target).calls == 0
