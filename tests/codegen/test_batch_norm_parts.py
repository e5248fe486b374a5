"""Kernels of batch normalisation in steps: their accuracy, and regions in front of the sums.

That they agree with their records for every vector width is in ``test_normalization.py``.
"""

from collections.abc import Callable

import numpy as np
import pytest

from netwright.codegen.normalization import emit_norm
from netwright.codegen.select import select_kernel
from netwright.codegen.target import host
from netwright.ir.graph import Graph
from netwright.ir.interpreter import run_node
from netwright.ir.types import Dim, TensorType, bool_, float32

N = Dim(1)
RNG = np.random.default_rng(8)


def f32(*shape: int | Dim) -> TensorType:
    return TensorType(float32, shape)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 5, 16, 70, 392, 600])
def test_sums_and_statistics_for_every_width_and_batch(single: Callable, channels: int) -> None:
    x, per, parts = f32(N, 3, channels), f32(channels), {"parts": 8}
    moments = single(emit_norm, "batch_norm_moments", [x], **parts)
    sums = single(emit_norm, "batch_norm_grad_sums", [x, x, per], **parts)
    statistics = single(
        emit_norm, "batch_norm_statistics", [moments.node.type, per], rows=Dim(3), eps=1e-5
    )
    factors = single(emit_norm, "batch_norm_grad_factors", [sums.node.type, per, per], rows=Dim(3))
    for n in (1, 2, 9, 200):
        a, g = draw(n, 3, channels), draw(n, 3, channels)
        gamma, mean, rstd = draw(channels), draw(channels), np.abs(draw(channels)) + 0.1
        moments.check(a, n=n, atol=2e-5)
        sums.check(g, a, mean, n=n, rtol=1e-5, atol=1e-5 * (3 * n) ** 0.5)
        statistics.check(moments.outputs(a, n=n)[0], gamma, n=n)
        total = sums.outputs(g, a, mean, n=n)[0]
        # The sum of dx is what the rounding of the mean of g leaves.
        factors.check(total, gamma, rstd, n=n, atol=1e-5 * (3 * n) ** 0.5)


def test_no_rows_give_no_sums(single: Callable) -> None:
    moments = single(emit_norm, "batch_norm_moments", [f32(N, 20)], parts=8)
    (found,) = moments.outputs(draw(0, 20), n=0)
    assert not found.any()


@pytest.mark.parametrize("mean,deviation", [(0.0, 1.0), (100.0, 1.0), (-1000.0, 0.5)])
@pytest.mark.parametrize("rows", [33, 50_000])
def test_statistics_are_as_accurate_as_eager_in_float32(
    single: Callable, mean: float, deviation: float, rows: int
) -> None:
    x = (RNG.normal(size=(rows, 16)) * deviation + mean).astype(np.float32)
    x[: rows // 3] += 20 * deviation  # parts that differ
    ones = np.ones(16, np.float32)
    moments = single(emit_norm, "batch_norm_moments", [x], parts=32)
    (parts,) = moments.outputs(x)
    last = single(emit_norm, "batch_norm_statistics", [parts, ones], rows=rows, eps=0.0)
    found = last.outputs(parts, ones)
    wide = x.astype(np.float64)
    exact = wide.mean(axis=0), wide.var(axis=0), 1 / wide.std(axis=0)
    for value, right in zip(found, exact, strict=False):
        np.testing.assert_allclose(value, right, rtol=3e-7)


@pytest.mark.parametrize("channels", [3, 16, 64, 100, 300])
@pytest.mark.parametrize("kept", [False, True])
def test_a_region_in_front_of_the_sums_writes_what_is_used_elsewhere(
    run: Callable, channels: int, kept: bool
) -> None:
    """where(mask, 0, g * per channel * number), summed, and written if ``kept``."""
    rows, per = f32(N, 7, channels), f32(channels)
    types = [rows, TensorType(bool_, rows.shape), rows, per, per, f32(1)]
    body = Graph("reduction")
    g, mask, x, mean, factor, number = (
        body.add("input", path=str(i), type=t) for i, t in enumerate(types)
    )
    scaled = body.add("mul", g, body.add("mul", factor, number))
    masked = body.add("where", mask, body.add("constant", value=np.float32(0)), scaled)
    sums = body.add("batch_norm_grad_sums", masked, x, mean, parts=8)
    body.outputs.update({"0": masked, "1": sums} if kept else {"0": sums})
    graph = Graph()
    inputs = [graph.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    made = graph.add("fused", *inputs, kind="reduction", body=body)
    node = graph.node(made[0] if kept else made)
    kernel = select_kernel(node, graph, host())
    assert kernel is not None
    for n in (1, 6, 40):
        arrays = [
            draw(*t.at(n).shape) if t.dtype is float32 else RNG.random(t.at(n).shape) < 0.5
            for t in types
        ]
        expected = run_node(node, arrays, n)
        cuts = range(1, kernel.tasks.at(n), 3)
        for splits in ((), cuts):
            outs = [np.full(t.at(n).shape, 77, t.dtype.np) for t in node.types]
            run(kernel, outs, arrays, n, splits)
            for found, right in zip(outs, expected, strict=True):
                np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-4)
        if kept:
            np.testing.assert_array_equal(outs[0], expected[0])


def test_moments_of_a_computed_operand_write_it_once(run: Callable) -> None:
    """A sum of two branches that BatchNorm normalises (pre-activation networks)."""
    rows = f32(N, 5, 40)
    body = Graph("reduction")
    a, b = (body.add("input", path=str(i), type=rows) for i in range(2))
    x = body.add("add", a, b)
    body.outputs.update({"0": x, "1": body.add("batch_norm_moments", x, parts=8)})
    graph = Graph()
    inputs = [graph.add("input", path=str(i), type=rows) for i in range(2)]
    node = graph.node(graph.add("fused", *inputs, kind="reduction", body=body)[0])
    kernel = select_kernel(node, graph, host())
    assert kernel is not None
    arrays = [draw(30, 5, 40) for _ in range(2)]
    outs = [np.zeros(t.at(30).shape, t.dtype.np) for t in node.types]
    run(kernel, outs, arrays, 30, range(1, 8))
    x_found, moments = run_node(node, arrays, 30)
    np.testing.assert_array_equal(outs[0], x_found)
    np.testing.assert_allclose(outs[1], moments, rtol=1e-6, atol=1e-5)
