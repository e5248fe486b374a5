"""Elementwise kernels against the numpy meaning of their operators."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401  (registers the records)
from netwright.codegen.elementwise import emit_elementwise
from netwright.codegen.emitter import VectorEmitter
from netwright.codegen.iteration import Axis, iteration_space
from netwright.codegen.kernel import Kernel, TaskCount
from netwright.codegen.philox import philox
from netwright.codegen.strided_loop import CHUNK
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.codegen.text import Function
from netwright.ir.graph import Graph, Node, Value
from netwright.ir.interpreter import run_node
from netwright.ir.ops.record import all_ops
from netwright.ir.types import (
    Dim,
    Shape,
    TensorType,
    bool_,
    dtype_of,
    float32,
    float64,
    int32,
    int64,
)

N = Dim(1)
RECORDS = sorted(n for n, op in all_ops().items() if op.kind == "elementwise")
SIZES = (0, 1, 7, 8, 9, 31, 1000, CHUNK + 3)


def graph_of(*types: TensorType) -> tuple[Graph, list[Value]]:
    """A graph with inputs '0', '1', .. of the types."""
    g = Graph()
    return g, [g.add("input", path=str(i), type=t) for i, t in enumerate(types)]


def fuse(
    types: Sequence[TensorType], build: Callable[..., Any], kind: str = "elementwise"
) -> tuple[Node, Graph]:
    """A ``fused`` node whose body is ``build(graph, *inputs)``; it returns one value or several."""
    body, values = graph_of(*types)
    results = build(body, *values)
    results = [results] if isinstance(results, Value) else list(results)
    body.outputs = {str(i): v for i, v in enumerate(results)}
    g, operands = graph_of(*types)
    out = g.add("fused", *operands, kind=kind, body=body)
    return g.node(out if isinstance(out, Value) else out[0]), g


@pytest.fixture
def check(run: Callable[..., Any]) -> Callable[..., list[np.ndarray]]:
    """Compiles a node, runs it on arrays, compares with numpy, and returns its results."""

    def go(
        node: Node,
        g: Graph,
        arrays: Sequence[np.ndarray],
        n: int = 1,
        splits: Sequence[int] = (),
        target: Target | None = None,
        rtol: float = 4e-6,
        atol: float = 4e-6,
    ) -> list[np.ndarray]:
        kernel = emit_elementwise(node, g, target or host())
        assert kernel is not None
        outs = [np.full(t.at(n).shape, 77, t.dtype.np) for t in node.types]
        run(kernel, outs, arrays, n, splits, target)
        for got, expected in zip(outs, run_node(node, list(arrays), n), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)
        return outs

    return go


def _typed(arrays: Sequence[np.ndarray], to: Any) -> list[np.ndarray]:
    return [np.ascontiguousarray(a.astype(to) if a.dtype.kind == "f" else a) for a in arrays]


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
@pytest.mark.parametrize("name", RECORDS)
def test_every_record_computes_what_numpy_computes(
    name: str, dtype: Any, check: Callable[..., Any]
) -> None:
    op = all_ops()[name]
    for sample in op.samples(np.random.default_rng(1)):
        arrays = _typed(sample.arrays, dtype.np)
        arrays = [a.reshape(np.shape(b)) for a, b in zip(arrays, sample.arrays, strict=True)]
        g, values = graph_of(*(TensorType(dtype_of(a.dtype), a.shape) for a in arrays))
        node = g.node(g.add(name, *values, **sample.attrs))
        # Out of range float to int differs between machines: only finite samples are compared.
        tight = 1e-12 if dtype is float64 and sample.attrs.get("dtype") != "f32" else 1.0
        rtol, atol = max(op.rtol, 4e-6) * tight, max(op.atol, 4e-6) * tight
        with np.errstate(all="ignore"):
            check(node, g, arrays, rtol=max(rtol, 1e-13), atol=max(atol, 1e-13))


@pytest.mark.parametrize("size", SIZES)
def test_odd_sizes_and_splits_give_the_same_bits(size: int, check: Callable[..., Any]) -> None:
    node, g = fuse(
        [TensorType(float32, (N,))] * 2,
        lambda b, x, y: b.add("tanh", b.add("add", b.add("exp", x), y)),
    )
    rng = np.random.default_rng(size)
    arrays = [rng.normal(size=size).astype(np.float32) for _ in range(2)]
    (whole,) = check(node, g, arrays, size)
    cuts = range(1, -(-size // CHUNK))
    (split,) = check(node, g, arrays, size, list(cuts))
    np.testing.assert_array_equal(split, whole)


SHAPES = [
    [(N, 10), (10,)],
    [(N, 3), (N, 1)],
    [(N, 5, 7, 9), (5, 1, 1)],
    [(N, 5, 7, 9), (1, 5, 7, 9), ()],
    [(N, 1, 33), (4, 1)],
    [(2, N, 6), (2, 1, 6)],
    [(3, N), (3, 1)],
    [(1, 1), (N, 4)],
    [(2, 20000), (2, 1)],
    [(1,), ()],
    [(2, 1, 3, 1, 5), (1, 4, 1, 2, 1)],
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_broadcast_operands_follow_numpy(
    shapes: list[Any], n: int, check: Callable[..., Any]
) -> None:
    types = [TensorType(float32, s) for s in shapes]

    def build(b: Graph, *xs: Value) -> Value:
        total = xs[0]
        for x in xs[1:]:
            total = b.add("sub", total, b.add("sqrt", b.add("abs", x)))
        return total

    node, g = fuse(types, build)
    rng = np.random.default_rng(0)
    check(node, g, [rng.normal(size=t.at(n).shape).astype(np.float32) for t in types], n)


@pytest.mark.parametrize("vectors", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [0, 1, 3, 300])
def test_operands_that_repeat_in_short_rows_stay_in_registers(
    vectors: int, rows: int, check: Callable[..., Any]
) -> None:
    """Rows of up to four vectors are one long loop; per-channel values come out of each right."""
    width = vectors * host().lanes(float32)
    rng = np.random.default_rng(4)
    types = [
        TensorType(float32, shape)
        for shape in ((N, 5, width), (width,), (N, 5, width), (1, 1, width), ())
    ]

    def build(body: Graph, x: Value, a: Value, y: Value, b: Value, c: Value) -> list[Value]:
        per_channel = body.add("mul", a, body.add("add", b, c))
        z = body.add("add", body.add("mul", x, per_channel), y)
        return [body.add("relu", body.add("sub", z, a)), body.add("le", z, b)]

    node, g = fuse(types, build)
    arrays = [rng.normal(size=t.at(rows).shape).astype(np.float32) for t in types]
    tasks = range(1, -(-rows * 5 * width // CHUNK))
    whole = check(node, g, arrays, n=rows)
    cut = check(node, g, arrays, n=rows, splits=tasks)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, cut, strict=True))


def test_mixed_dtypes_share_one_loop(check: Callable[..., Any]) -> None:
    types = [
        TensorType(float32, (N, 11)),
        TensorType(bool_, (N, 11)),
        TensorType(int64, (N, 1)),
        TensorType(dtype_of("u8"), (11,)),
    ]

    def build(b: Graph, x: Value, keep: Value, label: Value, byte: Value) -> list[Value]:
        hit = b.add("eq", b.add("cast", byte, dtype="i64"), label)
        kept = b.add("where", b.add("logical_and", keep, hit), x, b.add("neg", x))
        return [kept, b.add("logical_not", hit), b.add("cast", kept, dtype="i32")]

    node, g = fuse(types, build)
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(5, 11)).astype(np.float32),
        rng.random((5, 11)) < 0.5,
        rng.integers(0, 3, (5, 1)),
        rng.integers(0, 3, 11).astype(np.uint8),
    ]
    check(node, g, arrays, 5)


def test_extent_and_constant_nodes_become_scalars_of_the_loop(check: Callable[..., Any]) -> None:
    def build(b: Graph, x: Value) -> Value:
        count = b.add("extent", size=Dim(6), dtype="f32")
        half = b.add("constant", value=np.float32(0.5).reshape(()))
        return b.add("mul", b.add("div", x, count), half)

    node, g = fuse([TensorType(float32, (N, 2, 3))], build)
    check(node, g, [np.arange(24, dtype=np.float32).reshape(4, 2, 3)], 4)


def test_uniform_depends_on_the_index_alone(check: Callable[..., Any]) -> None:
    types = [TensorType(float32, (N, 3)), TensorType(int64, (2,))]

    def dropout(b: Graph, x: Value, key: Value) -> Value:
        u = b.add("uniform", key, shape=(N, 3), stream=5)
        keep = b.add("ge", u, b.add("constant", value=np.float32(0.25).reshape(())))
        return b.add("where", keep, x, b.add("constant", value=np.float32(0).reshape(())))

    node, g = fuse(types, dropout)
    x = np.ones((3000, 3), np.float32)
    key = np.array([-(2**50) + 3, 2**33 + 1])
    (kept,) = check(node, g, [x, key], 3000, splits=[1, 2], rtol=0, atol=0)
    assert 0.7 < kept.mean() < 0.8


def test_philox_matches_the_published_known_answers(run: Callable[..., Any]) -> None:
    # kat_vectors of the Random123 library, philox4x32 10 rounds: counter, key, result.
    known = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    params = [("ptr", p) for p in ("out0", "in0", "scratch", "status")]
    fn = Function("kat", [*params, *[("i64", p) for p in ("N", "begin", "end")]])
    e = VectorEmitter(fn, 1)
    words = [e.load(fn.element("%in0", "i32", k), int32) for k in range(6)]
    results = philox(e, (words[0], words[1], words[2], words[3]), (words[4], words[5]))
    for k, v in enumerate(results):
        e.store(v, fn.element("%out0", "i32", k))
    kernel = Kernel("kat", fn.render(), frozenset(fn.declarations), TaskCount(1))
    for counter, key, expected in known:
        out = np.zeros(4, np.uint32)
        run(kernel, [out], [np.array([*counter, *key], np.uint32)])
        np.testing.assert_array_equal(out, np.array(expected, np.uint32))


def test_result_may_overwrite_an_operand(run: Callable[..., Any]) -> None:
    node, g = fuse(
        [TensorType(float32, (N, 19)), TensorType(float32, (19,))],
        lambda b, x, y: b.add("mul", b.add("relu", x), y),
    )
    kernel = emit_elementwise(node, g, host())
    assert kernel is not None
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 19)).astype(np.float32), rng.normal(size=19).astype(np.float32)
    expected = np.maximum(x, 0) * y
    run(kernel, [x], [x, y], 50)
    np.testing.assert_array_equal(x, expected)


def test_unsupported_cases_fall_back() -> None:
    g, (x,) = graph_of(TensorType(float32, (N, 4)))
    total = g.add("sum", x, dims=(1,), keepdim=True)
    assert emit_elementwise(g.node(total), g, host()) is None
    node, g = fuse(
        [TensorType(float32, (N, 4))], lambda b, x: b.add("sum", x, dims=(1,), keepdim=True)
    )
    assert emit_elementwise(node, g, host()) is None
    node, g = fuse(
        [TensorType(float32, (N, 4)), TensorType(float32, (4,))],
        lambda b, x, y: [b.add("relu", x), b.add("relu", y)],
    )
    assert emit_elementwise(node, g, host()) is None


def space(shape: Shape, *operands: Shape) -> list[Axis]:
    types = [TensorType(float32, s) for s in (shape, *operands)]
    return iteration_space(types[:1], types[1:])


def test_dimensions_merge_where_every_operand_allows_it() -> None:
    (flat,) = space((N, 4, 5), (N, 4, 5), ())
    assert (flat.extent, flat.strides) == (Dim(20), (1, 0))
    outer, inner = space((N, 4, 5), (N, 4, 5), (4, 5))
    assert (outer.extent, inner.extent) == (N, 20)
    assert (outer.strides, inner.strides) == ((20, 0), (1, 1))
    assert len(space((2, 3, 4), (2, 3, 4), (3, 1))) == 3


def test_equal_kernels_have_one_symbol_and_different_ones_do_not() -> None:
    def kernel(op: str, width: int) -> Kernel:
        g, (x,) = graph_of(TensorType(float32, (N, width)))
        found = emit_elementwise(g.node(g.add(op, x)), g, host())
        assert found is not None
        return found

    assert kernel("relu", 4) == kernel("relu", 4)
    assert kernel("relu", 4).symbol != kernel("exp", 4).symbol
    assert kernel("relu", 4).symbol != kernel("relu", 5).symbol


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, -1.0, 0.5, 0.0])
def test_constant_exponents_follow_numpy(exponent: float, check: Callable[..., Any]) -> None:
    def build(b: Graph, x: Value) -> Value:
        return b.add("pow", x, b.add("constant", value=np.float32(exponent).reshape(())))

    node, g = fuse([TensorType(float32, (11,))], build)
    check(node, g, [np.linspace(-3, 3, 11, dtype=np.float32)], rtol=2e-7, atol=0)


def test_short_chain_is_a_packed_loop_without_spills(
    target: Target, asm_for: Callable[..., Any]
) -> None:
    node, g = fuse(
        [TensorType(float32, (N, 64))] * 3,
        lambda b, x, y, z: b.add("relu", b.add("add", b.add("mul", x, y), z)),
    )
    kernel = emit_elementwise(node, g, target)
    assert kernel is not None
    code = asm_for(kernel, target)
    packed = {
        AVX512: r"vmaxps\s.*%zmm",
        AVX2: r"vmaxps\s.*%ymm",
        NEON: r"fmaxn?m?\s+v\d+\.4s|fcmg[te]\s+v\d+\.4s|fcml[te]\s+v\d+\.4s",
    }
    assert code.count(packed[target]) >= 4
    assert code.calls == 0
    assert code.spills == 0


@pytest.mark.parametrize("op", ["exp", "tanh", "sigmoid", "gelu", "silu", "elu"])
def test_activations_are_packed_loops_without_calls_or_spills(
    op: str, target: Target, asm_for: Callable[..., Any]
) -> None:
    attrs: dict[str, Any] = {"elu": {"alpha": 1.0}}
    node, g = fuse([TensorType(float32, (N, 64))], lambda b, x: b.add(op, x, **attrs.get(op, {})))
    kernel = emit_elementwise(node, g, target)
    assert kernel is not None
    code = asm_for(kernel, target)
    assert code.calls == 0
    assert code.spills == 0
