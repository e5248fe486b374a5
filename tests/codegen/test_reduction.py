"""Kernels of reductions against their numpy records in float64."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from netwright.codegen.kernel import Kernel
from netwright.codegen.reduction import emit_reduction
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.ir.graph import Graph
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, TensorType, float32

N = Dim(1)
RNG = np.random.default_rng(7)


def f32(*shape: int | Dim) -> TensorType:
    return TensorType(float32, shape)


def draw(*shape: int, dtype: object = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


REDUCTIONS = ["sum", "mean", "amax", "amin", "argmax", "argmin", "all", "any"]


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_the_record_agree_for_every_vector_width(
    single: Callable, op: str, dtype: type, vector_bytes: int
) -> None:
    target = replace(host(), vector_bytes=vector_bytes)
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in sample.arrays]
        single(emit_reduction, op, arrays, target=target, **sample.attrs).check(*arrays)


SPACES = [
    ((5, 7), (1,)),
    ((5, 7), (0,)),
    ((3, 4, 37), (0, 2)),
    ((3, 37, 4), (1,)),
    ((2, 3, 5, 6), (0, 2)),
    ((2, 3, 5, 33), (1, 2)),
    ((1, 130), (0, 1)),
    ((4100,), (0,)),
    ((700, 3), (0,)),
    ((3, 1, 1, 70), (0,)),
    ((2, 3, 4), ()),
]


@pytest.mark.parametrize("shape,dims", SPACES)
@pytest.mark.parametrize("op", ["sum", "mean", "amax", "amin"])
def test_any_set_of_dimensions(single: Callable, op: str, shape: tuple, dims: tuple) -> None:
    x = draw(*shape)
    single(emit_reduction, op, [x], dims=dims, keepdim=False).check(x)


@pytest.mark.parametrize(
    "shape,dims,n",
    [
        ((N, 5), (0,), (0, 1, 3, 64, 67, 300)),
        ((N, 37), (1,), (0, 1, 5)),
        ((3, N), (1,), (0, 1, 15, 16, 17, 64, 700, 5000)),
        ((3, N), (0,), (0, 1, 7, 8, 9, 33)),
        ((4, 3, N), (1,), (1, 7, 20)),
        ((N, 6, 5), (0, 2), (0, 1, 9)),
        ((Dim(3), 7), (0, 1), (0, 1, 50)),
    ],
)
@pytest.mark.parametrize("op", ["sum", "mean", "amax"])
def test_one_kernel_serves_every_batch_size(
    single: Callable, op: str, shape: tuple, dims: tuple, n: tuple
) -> None:
    node = single(emit_reduction, op, [f32(*shape)], dims=dims, keepdim=True)
    for size in n:
        if size == 0 and op == "amax":
            continue
        x = draw(*(d.at(size) if isinstance(d, Dim) else d for d in shape))
        with np.errstate(all="ignore"):
            node.check(x, n=size, atol=1e-5)


@pytest.mark.parametrize("shape,dims", [((50_000, 16), (0,)), ((3, 400_000), (1,))])
def test_long_float32_sums_are_as_accurate_as_pairwise_ones(
    single: Callable, shape: tuple, dims: tuple
) -> None:
    x = RNG.uniform(0, 1, shape).astype(np.float32)
    (found,) = single(emit_reduction, "sum", [x], dims=dims, keepdim=False).outputs(x)
    exact = x.sum(axis=dims, dtype=np.float64)
    assert np.max(np.abs(found - exact) / exact) < 3e-7


@pytest.mark.parametrize("shape,dim", [((9, 10), 1), ((9, 10), 0), ((3, 70, 5), 1), ((2, 300), 1)])
@pytest.mark.parametrize("op", ["argmax", "argmin"])
def test_the_first_of_equal_elements_wins(
    single: Callable, op: str, shape: tuple, dim: int
) -> None:
    x = RNG.integers(0, 3, shape).astype(np.float32)
    single(emit_reduction, op, [x], dim=dim, keepdim=False).check(x)


@pytest.mark.parametrize("dim", [0, 1])
def test_the_first_nan_is_the_extremum_as_in_torch(single: Callable, dim: int) -> None:
    x = draw(40, 41)
    x[RNG.random(x.shape) < 0.05] = np.nan
    x[3], x[:, 5] = -np.inf, -np.inf
    x[7], x[:, 9] = np.inf, np.nan
    for op in ("argmax", "argmin"):
        single(emit_reduction, op, [x], dim=dim, keepdim=False).check(x)
    for op in ("amax", "amin"):
        single(emit_reduction, op, [x], dims=(dim,), keepdim=False).check(x)


def test_integers_are_reduced_in_their_own_dtype(single: Callable) -> None:
    x = RNG.integers(-5, 5, (6, 19))
    for op in ("sum", "amax", "amin"):
        single(emit_reduction, op, [x], dims=(1,), keepdim=False).check(x)
    single(emit_reduction, "argmax", [x], dim=1, keepdim=False).check(x)


def fused(types: list, build: Callable) -> tuple[Graph, object]:
    """A ``fused`` node of kind reduction whose body is what ``build`` adds."""
    body = Graph("body")
    values = [body.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    body.outputs["0"] = build(body, *values)
    graph = Graph()
    inputs = [graph.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    return graph, graph.node(graph.add("fused", *inputs, kind="reduction", body=body))


def squared_error(body: Graph, x: object, y: object) -> object:
    difference = body.add("sub", x, y)
    square = body.add("mul", difference, difference)
    return body.add("mean", square, dims=(0, 1), keepdim=False)


def test_a_mean_squared_error_is_one_kernel(single: Callable, run: Callable) -> None:
    graph, node = fused([f32(N, 37), f32(N, 37)], squared_error)
    kernel = emit_reduction(node, graph, host())
    assert kernel is not None
    for n in (1, 5, 200):
        x, y, out = draw(n, 37), draw(n, 37), np.zeros((), np.float32)
        run(kernel, [out], [x, y], n)
        np.testing.assert_allclose(out, np.mean((x.astype(np.float64) - y) ** 2), rtol=1e-6)


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 2), (1, 2), (0, 1, 2)])
def test_the_prologue_broadcasts_its_operands(run: Callable, dims: tuple) -> None:
    def build(body: Graph, x: object, y: object, z: object) -> object:
        total = body.add("add", body.add("mul", x, y), z)
        return body.add("sum", total, dims=dims, keepdim=False)

    types = [f32(3, 4, 21), f32(4, 1), f32(21)]
    graph, node = fused(types, build)
    kernel = emit_reduction(node, graph, host())
    assert kernel is not None
    arrays = [draw(*t.shape) for t in types]
    x, y, z = (a.astype(np.float64) for a in arrays)
    expected = (x * y + z).sum(axis=dims)
    out = np.zeros(expected.shape, np.float32)
    run(kernel, [out], arrays)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_masked_prologue_does_not_leak_into_the_unused_lanes(run: Callable) -> None:
    def build(body: Graph, x: object) -> object:
        one = body.add("constant", value=np.float32(1))
        return body.add("sum", body.add("div", one, x), dims=(0,), keepdim=False)

    graph, node = fused([f32(5)], build)
    out = np.zeros((), np.float32)
    run(emit_reduction(node, graph, host()), [out], [np.full(5, 2, np.float32)])
    assert out == 2.5


def test_a_body_with_another_operator_has_no_kernel() -> None:
    def build(body: Graph, x: object) -> object:
        return body.add("sum", body.add("softmax", x, dim=0), dims=(0,), keepdim=False)

    graph, node = fused([f32(5)], build)
    assert emit_reduction(node, graph, host()) is None


def kernel_of(op: str, types: list, target: Target, **attrs: object) -> Kernel:
    graph = Graph()
    inputs = [graph.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    kernel = emit_reduction(graph.node(graph.add(op, *inputs, **attrs)), graph, target)
    assert kernel is not None
    return kernel


@pytest.mark.parametrize("dims", [(0,), (1,)])
def test_hot_loops_are_vectors_without_calls_or_spills(
    asm_for: Callable, target: Target, dims: tuple
) -> None:
    asm = asm_for(kernel_of("sum", [f32(N, 256)], target, dims=dims, keepdim=False), target)
    adds = {AVX512: r"vaddps.*zmm", AVX2: r"vaddps.*ymm", NEON: r"fadd\s+v\d+\.4s"}[target]
    assert asm.count(adds) >= 4
    assert asm.calls == 0
    assert asm.spills == 0
