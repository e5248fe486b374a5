"""Convolutions that take the moments of their result: the same result, exact moments of it."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.codegen.conv_moments import is_faster, moments_rows
from netwright.codegen.packing import choose_panel
from netwright.codegen.select import select_kernel
from netwright.codegen.target import Target, host
from netwright.codegen.winograd import is_faster as winograd_is_faster
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.types import Dim, DType, TensorType, float32, float64, numel
from netwright.passes.fuse_moments import fuse_moments
from netwright.passes.pack_weights import pack_weights

N = Dim(1)
# Height, width, input channels, output channels, size of the kernel, stride, bias.
CASES = [
    (12, 9, 5, 70, 3, 1, True),  # a part of a vector in the last panel
    (28, 28, 1, 16, 5, 1, False),  # tiles of one vector
    (16, 14, 16, 40, 3, 2, False),
    (7, 3, 8, 3, 3, 1, True),  # tiles over several lines
    (8, 8, 300, 64, 3, 2, False),  # summed by kernel rows
    (14, 14, 24, 100, 1, 1, False),  # matrix products
    (9, 11, 7, 33, 1, 1, True),
    (30, 20, 20, 16, 1, 1, False),  # several runs per part
    (16, 16, 12, 20, 1, 2, False),
]


def program(case: Any, dtype: DType, target: Target, winograd: bool = False) -> Graph:
    """A convolution and the moments of its result, in kernels of their own."""
    h, w, ci, co, k, stride, bias = case
    graph = Graph()
    x = graph.add("input", name="x", path="x", type=TensorType(dtype, (N, h, w, ci)))
    state = [graph.add("input", name="w", path="w", type=TensorType(dtype, (co, ci, k, k)))]
    if bias:
        state.append(graph.add("input", name="b", path="b", type=TensorType(dtype, (co,))))
    y = graph.add(
        "conv2d", x, *state, name="conv", stride=(stride,) * 2, groups=1, layout="NHWC",
        padding=((k // 2, k // 2),) * 2, dilation=(1, 1),
    )  # fmt: skip
    graph.outputs["y"] = y
    moments = graph.add("batch_norm_moments", y, name="moments", parts=8)
    gamma = graph.add("input", name="gamma", path="gamma", type=TensorType(dtype, (co,)))
    rows = numel(graph.type(y).shape[:-1])
    mean, *_ = graph.add("batch_norm_statistics", moments, gamma, name="last", rows=rows, eps=1e-5)
    graph.outputs["mean"] = mean

    def tile(inputs: int, outputs: int, size: tuple[int, int], kind: DType) -> int:
        return 2 * winograd_is_faster(inputs, outputs, size, kind, target)

    def panel(columns: int, kind: DType) -> int:
        return choose_panel(columns, target, kind)

    return pack_weights(graph, panel, choose_tile=tile if winograd else None)


def fused(graph: Graph, target: Target) -> Graph:
    def rows(node: Node, graph: Graph) -> int:
        return moments_rows(node, graph, target)

    return fuse_moments(graph, rows)


def results(graph: Graph, ins: dict[str, np.ndarray], n: int, run: Any, cut: int) -> list[Any]:
    values: dict[Any, np.ndarray] = {graph.node(k).value: v for k, v in ins.items()}
    for node in graph.nodes:
        if node.op == "input":
            continue
        kernel = select_kernel(node, graph, host())
        assert kernel is not None, node.op
        outs = [np.full(t.at(n).shape, np.nan, t.dtype.np) for t in node.types]
        splits = range(cut, kernel.tasks.at(n), cut) if cut else ()
        run(kernel, outs, [values[v] for v in node.operands], n, splits)
        values.update(zip(node.values, outs, strict=True))
    return [values[v] for v in (graph.outputs["y"], graph.node("last").operands[0])]


def inputs_of(graph: Graph, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        s.name: rng.standard_normal(s.type.at(n).shape).astype(s.type.dtype.np)
        for s in graph.sources("input")
    }


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_result_has_the_same_bits_and_its_moments_are_exact(
    run: Any, case: Any, dtype: DType
) -> None:
    apart = program(case, dtype, host())
    together = fused(apart, host())
    node = together.node("conv")
    assert len(node.types) == 2
    (moments,) = (n for n in node.attrs["body"].nodes if n.op == "batch_norm_moments")
    for n in (0, 1, 3):
        ins = inputs_of(apart, n)
        y, _ = results(apart, ins, n, run, 0)
        first = results(together, ins, n, run, 0)
        assert first[0].tobytes() == y.tobytes()
        (expected,) = run_node(moments, [y], n)
        tolerance = 3e-6 if dtype is float32 else 1e-13
        scale = max(1.0, np.abs(expected[:, 0]).max(initial=0.0))
        np.testing.assert_allclose(first[1][:, 0], expected[:, 0], atol=tolerance * scale)
        np.testing.assert_allclose(first[1][:, 1], expected[:, 1], rtol=tolerance)
        for cut in (1, 7):
            again = results(together, ins, n, run, cut)
            assert [a.tobytes() for a in again] == [f.tobytes() for f in first]


@pytest.mark.parametrize("mean,deviation", [(0.0, 1.0), (100.0, 1.0), (-1000.0, 0.5)])
@pytest.mark.parametrize("size", [3, 1], ids=["direct", "product"])
def test_statistics_are_as_accurate_as_from_a_sweep(
    run: Any, size: int, mean: float, deviation: float
) -> None:
    """The result is the input; each image begins with numbers far from the others."""
    case = (32, 32, 16, 16, size, 1, False)
    ins = inputs_of(program(case, float32, host()), 3)
    x = ins["x"] * np.float32(deviation) + np.float32(mean)
    x[:, 0, :10] += np.float32(20 * deviation)
    ins["x"] = x
    ins["w"] = np.zeros_like(ins["w"])
    ins["w"][range(16), range(16), size // 2, size // 2] = 1
    y, moments = results(fused(program(case, float32, host()), host()), ins, 3, run, 0)
    assert (y == x).all()
    graph = Graph()
    types = [TensorType(float64, (Dim(len(moments) // 3), 2, 16)), TensorType(float32, (16,))]
    operands = [graph.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    last = graph.node(graph.add("batch_norm_statistics", *operands, rows=Dim(1024), eps=0.0)[0])
    kernel = select_kernel(last, graph, host())
    assert kernel is not None
    found = [np.zeros(16, np.float32) for _ in range(4)]
    run(kernel, found, [moments, np.ones(16, np.float32)], 3)
    wide = x.astype(np.float64).reshape(-1, 16)
    for value, right in zip(found, (wide.mean(0), wide.var(0), 1 / wide.std(0)), strict=False):
        np.testing.assert_allclose(value, right, rtol=4e-7, atol=1e-7 * deviation)


def test_what_is_not_finite_stays_in_its_channel_and_in_its_part(run: Any) -> None:
    graph = fused(program(CASES[6], float32, host()), host())
    ins = inputs_of(graph, 2)
    ins["b"][3] = np.inf
    ins["x"][1, -1, -1, 0] = np.nan  # a pixel of all channels
    _, moments = results(graph, ins, 2, run, 0)
    bad = ~np.isfinite(moments[:, 1])
    assert bad[:, 3].all() and bad[-1].all()
    assert not np.delete(bad[:-1], 3, axis=1).any()


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5]], ids=str)
def test_sums_stay_in_registers(asm_for: Any, target: Target, case: Any) -> None:
    node = fused(program(case, float32, target), target).node("conv")
    kernel = select_kernel(node, fused(program(case, float32, target), target), target)
    assert kernel is not None and len(node.types) == 2
    asm = asm_for(kernel, target)
    parts = [p for p in re.split(r"(?m)^(?=\w+:)", asm.text) if "_tile_" in p.split(":")[0]]
    assert parts
    for part in parts:
        assert replace(asm, text=part).inner_spills == 0
    wide = {64: "%zmm", 32: "%ymm", 16: r"\bv\d+\.4s"}[target.vector_bytes]
    assert asm.count(rf"(vsubps|fsub)\s.*{wide}") >= 2


def test_kernels_without_this_epilogue_are_left_out() -> None:
    graph = program((32, 32, 64, 64, 3, 1, False), float32, host(), winograd=True)
    assert graph.node("conv").op == "conv2d_winograd"
    assert moments_rows(graph.node("conv"), graph, host()) == 0
    prime = program((149, 149, 3, 32, 1, 1, False), float32, host())
    assert moments_rows(prime.node("conv"), prime, host()) == 0  # no part of an even share


def test_results_that_stay_in_a_cache_are_left_to_a_sweep() -> None:
    node = program((56, 56, 24, 144, 1, 1, False), float32, host()).node("conv")
    whole = 56 * 56 * 144 * 4
    assert is_faster(node, host(), -(-4 * host().l2 // whole))
    assert not is_faster(node, host(), 4 * host().l2 // whole)
