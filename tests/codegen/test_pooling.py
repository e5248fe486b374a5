"""Kernels of pooling and its gradients against their numpy records in float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from netwright.codegen.pooling import POOLS, emit_pool
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.ir.interpreter import run_node
from netwright.ir.ops.record import all_ops, infer_types
from netwright.ir.types import Dim, TensorType, float32

N = Dim(1)
RNG = np.random.default_rng(5)


def image(layout: str, n: int | Dim, c: int, h: int, w: int) -> TensorType:
    return TensorType(float32, (n, h, w, c) if layout == "NHWC" else (n, c, h, w))


def draw(kind: TensorType, n: int) -> np.ndarray:
    return RNG.normal(size=kind.at(n).shape).astype(np.float32)


@pytest.mark.parametrize("op", POOLS)
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_the_record_agree_for_every_vector_width(
    single: Callable, op: str, dtype: type, vector_bytes: int
) -> None:
    target = replace(host(), vector_bytes=vector_bytes)
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = [a.astype(dtype) for a in sample.arrays]
        single(emit_pool, op, arrays, target=target, **sample.attrs).check(*arrays)


def window(kernel: int, stride: int, pad: int = 0, dilation: int = 1, ceil: bool = False) -> dict:
    return {
        "kernel_size": (kernel, kernel),
        "stride": (stride, stride),
        "padding": ((pad, pad), (pad, pad)),
        "dilation": (dilation, dilation),
        "ceil_mode": ceil,
    }


WINDOWS = [
    window(2, 2),
    window(3, 2, 1),
    window(3, 1, 1),
    window(2, 3),
    window(3, 2, 0, 1, True),
    window(5, 2, 2),
    window(2, 2, 0, 2),
    window(2, 4, 1, 3, True),
]


@pytest.mark.parametrize("attrs", WINDOWS)
@pytest.mark.parametrize("layout,channels", [("NHWC", 19), ("NHWC", 64), ("NCHW", 3)])
def test_maximum_and_its_gradient(
    single: Callable, attrs: dict, layout: str, channels: int
) -> None:
    attrs = {**attrs, "layout": layout}
    for size in ((9, 12), (8, 8)):
        kind = image(layout, N, channels, *size)
        (out,) = infer_types("max_pool2d", [kind], attrs)
        forward = single(emit_pool, "max_pool2d", [kind], **attrs)
        backward = single(emit_pool, "max_pool2d_grad", [out, kind], **attrs)
        for n in (0, 1, 3):
            x = RNG.integers(0, 4, kind.at(n).shape).astype(np.float32)  # many ties
            forward.check(x, n=n)
            backward.check(draw(out, n), x, n=n)


def test_a_nan_is_the_maximum_of_its_windows_and_gets_the_gradient(single: Callable) -> None:
    kind = image("NHWC", 2, 10, 8, 9)
    x = draw(kind, 1)
    x[RNG.random(x.shape) < 0.2] = np.nan
    x[RNG.random(x.shape) < 0.2] = -np.inf
    for attrs in WINDOWS[:3]:
        attrs = {**attrs, "layout": "NHWC"}
        (out,) = infer_types("max_pool2d", [kind], attrs)
        single(emit_pool, "max_pool2d", [kind], **attrs).check(x)
        single(emit_pool, "max_pool2d_grad", [out, kind], **attrs).check(draw(out, 1), x)


def test_integers_have_a_maximum_too(single: Callable) -> None:
    x = RNG.integers(-9, 9, (2, 6, 6, 5)).astype(np.int64)
    single(emit_pool, "max_pool2d", [x], **window(3, 2, 1), layout="NHWC").check(x)


@pytest.mark.parametrize("attrs", [w for w in WINDOWS if w["dilation"] == (1, 1)])
@pytest.mark.parametrize("include,override", [(True, None), (False, None), (True, 7)])
@pytest.mark.parametrize("layout,channels", [("NHWC", 35), ("NCHW", 3)])
def test_average_and_its_gradient(
    single: Callable, attrs: dict, include: bool, override: int, layout: str, channels: int
) -> None:
    size = (9, 12)
    attrs = {k: v for k, v in attrs.items() if k != "dilation"}
    attrs |= {"layout": layout, "count_include_pad": include, "divisor_override": override}
    kind = image(layout, N, channels, *size)
    (out,) = infer_types("avg_pool2d", [kind], attrs)
    forward = single(emit_pool, "avg_pool2d", [kind], **attrs)
    backward = single(emit_pool, "avg_pool2d_grad", [out], size=size, **attrs)
    for n in (1, 3):
        forward.check(draw(kind, n), n=n)
        backward.check(draw(out, n), n=n)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 6), (5, 7), (11, 13)])
@pytest.mark.parametrize("layout,channels", [("NHWC", 130), ("NHWC", 5), ("NCHW", 3)])
def test_adaptive_average_and_its_gradient(
    single: Callable, size: tuple, layout: str, channels: int
) -> None:
    kind = image(layout, N, channels, 8, 12)
    attrs = {"output_size": size, "layout": layout}
    (out,) = infer_types("adaptive_avg_pool2d", [kind], attrs)
    forward = single(emit_pool, "adaptive_avg_pool2d", [kind], **attrs)
    backward = single(emit_pool, "adaptive_avg_pool2d_grad", [out], size=(8, 12), **attrs)
    for n in (1, 2):
        forward.check(draw(kind, n), n=n)
        backward.check(draw(out, n), n=n)


@pytest.mark.parametrize("channels", [3, 40, 672])
def test_a_global_average_of_one_image_is_shared_by_channels(
    single: Callable, channels: int
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 7, channels)).astype(np.float32)
    kind = TensorType(float32, (Dim(1), *x.shape[1:]))
    op, size = "adaptive_avg_pool2d", (1, 1)
    pool = single(emit_pool, op, [kind], output_size=size, layout="NHWC")
    assert (pool.kernel.tasks.at(1) > 1) == (channels > host().lanes(float32))
    pool.check(x, n=2)


@pytest.mark.parametrize("op", POOLS)
def test_loops_over_channels_are_vectors_without_calls(
    asm_for: Callable, single: Callable, target: Target, op: str
) -> None:
    kind = image("NHWC", N, 64, 28, 28)
    attrs: dict = {**window(3, 2, 1), "layout": "NHWC"}
    if "avg" in op:
        del attrs["dilation"]
        attrs |= {"count_include_pad": True, "divisor_override": None}
    if "adaptive" in op:
        attrs = {"output_size": (7, 7), "layout": "NHWC"}
    base = op.removesuffix("_grad")
    (out,) = infer_types(base, [kind], attrs)
    types = [kind]
    if op.endswith("_grad"):
        types = [out, kind] if "max" in op else [out]
        attrs |= {"size": (28, 28)} if "avg" in op else {}
    asm = asm_for(single(emit_pool, op, types, target, **attrs).kernel, target)
    wide = {AVX512: r"v(max|add|fmadd\w*)ps.*zmm", AVX2: r"v(max|add|fmadd\w*)ps.*ymm"}
    vectors = wide.get(target, r"(fadd|fmla|fcmgt|fmul|fcmeq|bit|bif|bsl)\s+v\d+")
    assert target in (AVX512, AVX2, NEON)
    assert asm.count(vectors) > 0
    assert asm.count(r"(callq?|bl)\s+(?!memset)") == 0


@pytest.mark.parametrize("size", [32, 112])
def test_a_global_average_is_as_accurate_as_eager(single: Callable, size: int) -> None:
    x = (np.random.default_rng(0).standard_normal((1, size, size, 24)) + 1).astype(np.float32)
    op = "adaptive_avg_pool2d"
    pool = single(emit_pool, op, [x], output_size=(1, 1), layout="NHWC")
    (exact,) = pool.expected(x)
    (eager,) = run_node(pool.node, [x], 1)
    error = np.abs(pool.outputs(x)[0] - exact).max()
    assert error <= 2 * np.abs(eager - exact).max()
