import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.gemm_blocking import Blocking, Gemm
from netwright.codegen.matmul import emit_matmul
from netwright.codegen.packing import choose_panel, pack_matrix
from netwright.codegen.target import AVX512, Target, host
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.ops.packing import pack_columns
from netwright.ir.types import Dim, Extent, TensorType, float32, float64, int64

N = Dim(1)


def f32(*shape: Any) -> TensorType:
    return TensorType(float32, shape)


Run = Callable[..., np.ndarray]


def build(op: str, *types: TensorType, **attrs: Any) -> tuple[Node, Graph]:
    graph = Graph()
    values = [graph.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    graph.add(op, *values, **attrs)
    return graph.nodes[-1], graph


def check(run: Run, node: Node, graph: Graph, n: int = 1, splits: Sequence[int] = ()) -> np.ndarray:
    """Runs the node's kernel on random numbers and compares with numpy in float64."""
    rng = np.random.default_rng(0)
    types = [graph.type(v).at(n) for v in node.operands]
    ins = [np.asarray(rng.standard_normal(t.shape), t.dtype.np) for t in types]
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    outs = [np.full(t.at(n).shape, np.nan, t.dtype.np) for t in node.types]
    run(kernel, outs, ins, n, splits)
    # The body of a fused node has a dtype of its own.
    wide = ins if node.op == "fused" else [a.astype(np.float64) for a in ins]
    for out, exact in zip(outs, run_node(node, wide, n), strict=True):
        scale = 2e-4 if out.dtype == np.float32 else 2e-12
        assert out.dtype == exact.dtype or node.op != "fused"
        np.testing.assert_allclose(out, exact, rtol=0, atol=scale)
    return outs[0]


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize(("features", "k"), [(1, 1), (10, 7), (17, 64), (40, 1300), (24, 33)])
def test_linear_of_any_size_matches_numpy(run: Run, features: int, k: int, dtype: Any) -> None:
    x, w, b = (TensorType(dtype, s) for s in ((N, k), (features, k), (features,)))
    node, graph = build("linear", x, w, b)
    for n in (0, 1, 13, 33):
        check(run, node, graph, n)


@pytest.mark.parametrize("rows", [1, 2, 7, 14, 50])
def test_static_rows_are_split_evenly_and_all_done(run: Run, rows: int) -> None:
    node, graph = build("linear", f32(rows, 19), f32(37, 19))
    check(run, node, graph)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((N, 9), (9, 21)),
        ((3, 9), (9, 21)),
        ((N, 5, 9), (9, 21)),
        ((N, 5, 9), (N, 9, 21)),
        ((4, N, 5, 9), (4, N, 9, 8)),
        ((4, 1, 5, 9), (N, 9, 17)),
        ((5, 9), (N, 9, 17)),
        ((2, 3, 1, 4), (2, 1, 4, 6)),
        ((N, 1500), (1500, 20)),
        ((2, 0), (0, 3)),
    ],
)
def test_matmul_broadcasts_the_batch(run: Run, a: Any, b: Any) -> None:
    node, graph = build("matmul", f32(*a), f32(*b))
    for n in (0, 1, 7):
        check(run, node, graph, n)


@pytest.mark.parametrize("leading", [(N,), (N, 7), (5,), (0,)])
@pytest.mark.parametrize(("out", "k"), [(1, 1), (10, 33), (17, 24), (40, 8), (50, 150)])
def test_weight_gradient_sums_over_any_number_of_rows(
    run: Run, leading: Any, out: int, k: int
) -> None:
    node, graph = build("linear_grad_weight", f32(*leading, out), f32(*leading, k))
    for n in (0, 1, 33, 300):
        check(run, node, graph, n)


@pytest.mark.parametrize("out", [2048, 4096])
def test_columns_that_share_cache_sets_are_copied(run: Run, out: int) -> None:
    node, graph = build("linear_grad_weight", f32(N, out), f32(N, 3))
    few_sets = replace(host(), l2=256 << 10)
    copying, plain = emit_matmul(node, graph, few_sets), emit_matmul(node, graph, host())
    assert copying is not None
    assert plain is not None
    assert "llvm.memcpy" in copying.text
    rng = np.random.default_rng(4)
    ins = [rng.standard_normal((300, k)).astype(np.float32) for k in (out, 3)]
    found = []
    for kernel in (copying, plain):
        found.append(np.empty((out, 3), np.float32))
        run(kernel, [found[-1]], ins, 300, [kernel.tasks.at(300) // 3])
    assert np.array_equal(*found)


def test_columns_that_spread_over_the_cache_are_read_in_place() -> None:
    node, graph = build("linear_grad_weight", f32(N, 392), f32(N, 784))
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    assert "llvm.memcpy" not in kernel.text


def test_tiles_ask_for_their_part_of_the_result_before_long_reductions() -> None:
    long = emit_matmul(*build("linear_grad_weight", f32(N, 392), f32(N, 784)), AVX512)
    short = emit_matmul(*build("linear_packed", f32(N, 9), f32(9 * 128), out_features=128,
                               panel=64), AVX512)  # fmt: skip
    assert long is not None
    assert short is not None
    ask = r"call void @llvm\.prefetch\.p0\(ptr %\w+, i32 1,"
    assert re.search(ask, long.text)
    assert not re.search(ask, short.text)


def test_long_sums_are_as_accurate_as_numpys(run: Run) -> None:
    rng = np.random.default_rng(1)
    node, graph = build("linear_grad_weight", f32(N, 6), f32(N, 16))
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    ins = [rng.random((40000, k), np.float32) for k in (6, 16)]
    out = np.empty((6, 16), np.float32)
    run(kernel, [out], ins, 40000)
    exact = ins[0].T.astype(np.float64) @ ins[1].astype(np.float64)
    ours, theirs = (np.abs(y / exact - 1).max() for y in (out, ins[0].T @ ins[1]))
    assert ours <= 2 * theirs + 1e-6


@pytest.mark.parametrize("rows", [1, 2, 13])
@pytest.mark.parametrize("features", [5, 16, 40, 200])
@pytest.mark.parametrize("op", ["linear_packed", "matmul_packed"])
def test_packed_weights_give_the_bits_of_plain_ones(
    run: Run, op: str, features: int, rows: int
) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((rows, 33)).astype(np.float32)
    w = rng.standard_normal((features, 33)).astype(np.float32)
    plain, results = emit_matmul(*build("linear", f32(N, 33), f32(features, 33)), host()), []
    panel = choose_panel(features, host(), float32)
    packed = pack_columns(w.T, panel)
    attrs = {"out_features": features, "panel": panel}
    other = emit_matmul(*build(op, f32(N, 33), f32(packed.size), **attrs), host())
    assert plain is not None
    assert other is not None
    for kernel, weight in ((plain, w), (other, packed)):
        results.append(np.empty((rows, features), np.float32))
        run(kernel, [results[-1]], [x, weight], rows, [kernel.tasks.at(rows) // 3])
    assert np.array_equal(*results)


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("shape", "panel"), [((5, 7), 8), ((33, 19), 16), ((1, 1), 24), ((200, 210), 64), ((0, 3), 16)]
)
def test_packing_a_matrix(
    run: Run, shape: tuple[int, int], panel: int, transpose: bool, dtype: Any
) -> None:
    matrix = np.random.default_rng(5).standard_normal(shape).astype(dtype.np)
    kernel = pack_matrix(TensorType(dtype, shape), panel, transpose, host())
    assert kernel is not None
    expected = pack_columns(matrix.T if transpose else matrix, panel)
    out = np.full(expected.shape, np.nan, dtype.np)
    run(kernel, [out], [matrix], 1, [kernel.tasks.at(1) // 2])
    assert np.array_equal(out, expected)


def test_few_panels_are_cut_into_pieces_for_threads_to_share_evenly() -> None:
    tasks = [
        pack_matrix(f32(columns, 784), 64, True, host()).tasks.at(1)  # type: ignore[union-attr]
        for columns in (10, 196, 392, 512)
    ]
    assert tasks == [7, 8, 14, 8]  # of 1, 4, 7 and 8 panels


def test_panels_are_no_wider_than_needed(target: Target) -> None:
    for columns in range(1, 300):
        panel = choose_panel(columns, target, float32)
        assert panel % target.lanes(float32) == 0
        assert panel < columns + target.lanes(float32)


PANEL = choose_panel(96, host(), float32)
PACKED = -(-96 // PANEL) * PANEL * 600  # whole panels: 96 columns may not fill the last
CASES = [
    build("linear", f32(N, 70), f32(40, 70), f32(40)),
    build("linear", f32(N, 1100), f32(20, 1100)),
    build("matmul", f32(N, 9, 30), f32(N, 30, 20)),
    build("matmul", f32(N, 70), f32(70, 160)),
    build("matmul", f32(N, 600), f32(600, 150)),
    build("linear_packed", f32(N, 600), f32(PACKED), out_features=96, panel=PANEL),
    build("linear_grad_weight", f32(N, 300), f32(N, 20)),
    build("linear_grad_weight", f32(N, 4096), f32(N, 20)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0].op))
def test_any_split_of_the_tasks_gives_the_same_bits(run: Run, case: Any) -> None:
    kernel = emit_matmul(*case, host())
    assert kernel is not None
    count = kernel.tasks.at(29)
    whole = check(run, *case, n=29)
    for splits in ((1, count // 2), (count // 3, count // 3 + 1, count - 1)):
        assert np.array_equal(check(run, *case, n=29, splits=splits), whole)


@pytest.mark.parametrize("case", CASES[:6], ids=lambda c: str(c[0].op))
def test_a_row_has_the_same_bits_at_any_place_of_any_batch(run: Run, case: Any) -> None:
    node, graph = case
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    rng = np.random.default_rng(3)
    types = [graph.type(v) for v in node.operands]
    whole = [rng.standard_normal(t.at(23).shape).astype(np.float32) for t in types]

    def some(rows: slice) -> np.ndarray:
        ins = [w[rows] if N in t.shape else w for w, t in zip(whole, types, strict=True)]
        n = len(ins[0])
        out = np.empty(node.type.at(n).shape, np.float32)
        run(kernel, [out], [np.ascontiguousarray(i) for i in ins], n)
        return out

    expected = some(slice(0, 23))
    for start, stop in ((0, 1), (22, 23), (3, 5), (5, 12), (1, 23)):
        assert np.array_equal(some(slice(start, stop)), expected[start:stop])


# -- epilogues ------------------------------------------------------------------------------------


def fused(
    op: str, types: Sequence[TensorType], count: int, finish: Any, **attrs: Any
) -> tuple[Node, Graph]:
    """A fused node: ``op`` on the first ``count`` operands, then ``finish(add, result, *rest)``."""
    body = Graph("body")
    values = [body.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    result = body.add(op, *values[:count], **attrs)
    outputs = finish(body.add, result, *values[count:])
    for k, value in enumerate(outputs if isinstance(outputs, list) else [outputs]):
        body.outputs[str(k)] = value
    return build("fused", *types, kind="contraction", body=body)


def test_residual_channel_vectors_and_scalars_are_applied(run: Run) -> None:
    types = [f32(N, 30), f32(21, 30), f32(21), f32(N, 21), f32(21), f32(1, 21), f32(), f32(N, 1)]

    def finish(add: Any, y: Any, same: Any, c1: Any, c2: Any, scalar: Any, row: Any) -> Any:
        y = add("add", add("mul", y, c1), c2)
        y = add("mul", add("add", y, same), scalar)
        return add("relu", add("add", y, row))

    node, graph = fused("linear", types, 3, finish)
    for n in (1, 13):
        check(run, node, graph, n)


@pytest.mark.parametrize("k", [30, 1100])
def test_long_bodies_are_not_repeated_for_every_register(run: Run, k: int) -> None:
    types = [f32(N, k), f32(21, k), f32(21), f32(N, 21)]

    def finish(add: Any, y: Any, same: Any) -> Any:
        return add("tanh", add("add", add("gelu", y, approximate="none"), same))

    node, graph = fused("linear", types, 3, finish)
    for n in (1, 13):
        check(run, node, graph, n)
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    assert kernel.text.count("@llvm.fma") < 1500


def test_several_results_of_several_dtypes(run: Run) -> None:
    types = [f32(N, 12), f32(21, 12), f32()]

    def finish(add: Any, y: Any, zero: Any) -> Any:
        return [add("relu", y), add("gt", y, zero), y]

    node, graph = fused("linear", types, 2, finish)
    check(run, node, graph, 9)


def test_random_numbers_are_those_of_the_elements_linear_index(run: Run) -> None:
    key = TensorType(int64, (2,))
    types = [f32(N, 12), f32(21, 12), key]

    def finish(add: Any, y: Any, key: Any) -> Any:
        return add("mul", y, add("uniform", key, shape=(N, 21), stream=3))

    node, graph = fused("linear", types, 2, finish)
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    rng = np.random.default_rng(0)
    ins = [rng.standard_normal(t.at(9).shape).astype(t.dtype.np) for t in types[:2]]
    ins.append(np.array([12345678901, 77]))
    out = np.empty((9, 21), np.float32)
    run(kernel, [out], ins, 9)
    np.testing.assert_allclose(out, run_node(node, ins, 9)[0], atol=1e-5)


def test_unsupported_bodies_are_declined() -> None:
    other_shape = fused(
        "linear", [f32(N, 4), f32(5, 4), f32(2, 1, 5)], 2, lambda add, y, z: add("add", y, z)
    )
    assert emit_matmul(*other_shape, host()) is None
    reduced = fused(
        "linear", [f32(N, 4), f32(5, 4)], 2, lambda add, y: add("sum", y, dims=(0,), keepdim=False)
    )
    assert emit_matmul(*reduced, host()) is None
    integers = build("matmul", TensorType(int64, (2, 3)), TensorType(int64, (3, 2)))
    assert emit_matmul(*integers, host()) is None


@pytest.mark.parametrize("k", [0, 1, 7, 70, 600, 1024, 1100])
def test_a_panel_is_packed_by_its_first_tile_or_before_it(run: Run, k: int) -> None:
    """Rows below the height of a tile, as many, one tile and a rest, several; whole panels and a
    part of one; above 1024 steps, all panels are packed before their tiles."""
    panel = choose_panel(1000, host(), float32)
    node, graph = build("matmul", f32(N, k), f32(k, 2 * panel + 3))
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    for n in (0, 1, 5, 6, 12, 13, 40):
        check(run, node, graph, n=n)


def test_tiles_pack_whole_panels_only() -> None:
    """A tile of a narrower panel would read behind the matrix, or need masks."""
    panel = choose_panel(1000, host(), float32)
    shapes = f32(N, 70), f32(70, 2 * panel)
    kernel = emit_matmul(*build("matmul", *shapes), host())
    partial = emit_matmul(*build("matmul", shapes[0], f32(70, panel - 1)), host())
    assert kernel is not None
    assert partial is not None
    assert "ptr noalias %copy" in kernel.text
    assert "ptr noalias %copy" not in partial.text


# -- code quality ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(512, 784), (10, 128), (24, 100)])
def test_inner_loops_do_not_spill(asm_for: Any, target: Target, shape: tuple[int, int]) -> None:
    features, k = shape
    panel = choose_panel(features, target, float32)
    packed = f32(-(-features // panel) * panel * k)
    attrs = {"out_features": features, "panel": panel}
    node, graph = build("linear_packed", f32(N, k), packed, f32(features), **attrs)
    kernel = emit_matmul(node, graph, target)
    assert kernel is not None
    asm = asm_for(kernel, target)
    assert asm.count(r"(vfn?m|fmla)") == len(re.findall(r"call <.*@llvm\.fma", kernel.text)) <= 400
    assert asm.spills == 0


@pytest.mark.parametrize("cpu", ["cascadelake", "sapphirerapids", "znver4"])
@pytest.mark.parametrize("rows", [N, 256])
def test_no_scheduler_spills_the_largest_tile(asm_for: Any, cpu: str, rows: Any) -> None:
    """znver4's moved two rows of B in front of their multiply-adds."""
    target = replace(AVX512, name=cpu, cpu=cpu)
    node, graph = build("linear_grad_weight", f32(rows, 392), f32(rows, 784))
    kernel = emit_matmul(node, graph, target)
    assert kernel is not None
    assert asm_for(kernel, target).inner_spills == 0


@pytest.mark.parametrize(
    ("rows", "depth", "heights"),
    [
        (Dim(3136), 64, {262, 261}),  # not 341 and 182: each reads all of B
        (Dim(197), 768, {33}),  # not 28 and 5: a little more than half of the cache
        (Dim(784), 256, {66, 65}),
        (196, 1024, {17, 16}),
    ],
    ids=str,
)
def test_blocks_of_rows_are_equally_high(rows: Extent, depth: int, heights: set[int]) -> None:
    target = replace(AVX512, l2=1 << 20)
    cut = Blocking(Gemm(float32, rows, 256, depth, depth, 1, "packed", 64), target)
    units = -(-rows.at(1) // cut.unit) if isinstance(rows, Dim) else -(-rows // cut.unit)
    found = {min(cut.row_block, units - at) for at in range(0, units, cut.row_block)}
    assert found <= heights


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        (
            "avg_pool2d",
            {
                "kernel_size": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0)),
                "ceil_mode": False, "count_include_pad": True, "divisor_override": None,
            },
        ),
        ("adaptive_avg_pool2d", {"output_size": (4, 1)}),
    ],
    ids=["windows", "rows"],
)  # fmt: skip
def test_a_product_does_not_pool(op: str, attrs: dict[str, Any]) -> None:
    """Epilogues of convolutions do; the tiles of a product know no windows of pixels."""
    body, types = Graph("body"), [f32(N, 4, 4, 8), f32(16, 8)]
    product = body.add(
        "linear", *(body.add("input", path=str(i), type=t) for i, t in enumerate(types))
    )
    pooled = body.add(op, product, layout="NHWC", **attrs)
    results = [pooled] if op == "avg_pool2d" else [product, pooled]
    body.outputs |= {str(i): v for i, v in enumerate(results)}
    node, graph = build("fused", *types, kind="contraction", body=body)
    assert emit_matmul(node, graph, host()) is None
