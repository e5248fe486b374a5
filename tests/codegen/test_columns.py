"""Kernels whose operands and results are columns of wider tensors: the bits of dense ones."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from netwright.codegen.columns import accepts_columns
from netwright.codegen.kernel import Kernel
from netwright.codegen.packing import choose_panel
from netwright.codegen.program import emit_program
from netwright.codegen.select import select_kernel
from netwright.codegen.target import Target, host
from netwright.ir.graph import Graph, Node, Value
from netwright.ir.interpreter import run_node
from netwright.ir.plan import Columns
from netwright.ir.types import Dim, TensorType, float32, float64, int32, int64
from netwright.passes.plan_memory import plan_memory

N = Dim(1)
GARBAGE = 0x7B
_window = {"kernel_size": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1)), "layout": "NHWC"}


class Case(NamedTuple):
    note: str
    make: Callable[[Graph, Target], Value]
    exact: bool = True
    """Whether the order of additions does not depend on the distance of rows."""

    def __str__(self) -> str:
        return self.note


def tensor(g: Graph, *shape: Any, dtype: Any = float32) -> Value:
    return g.add("input", path=f"x{len(g)}", type=TensorType(dtype, shape))


def convolution(
    op: str, channels: int, out: int, kernel: int = 3, stride: int = 1, padding: int = 1,
    groups: int = 1, dilation: int = 1, relu: bool = False,
) -> Callable[[Graph, Target], Value]:  # fmt: skip
    """A convolution of 9 x 7 images, packed or not, alone or with an epilogue."""

    def make(g: Graph, target: Target) -> Value:
        w = (out, channels // groups, kernel, kernel)
        attrs: dict[str, Any] = {"padding": ((padding, padding),) * 2, "layout": "NHWC"}
        if op != "conv2d_winograd":
            attrs |= {"stride": (stride,) * 2, "dilation": (dilation,) * 2, "groups": groups}
        kinds = [(N, 9, 7, channels), w]
        if op != "conv2d":
            panel = choose_panel(out if groups in (1, out) else out // groups, target, float32)
            how: dict[str, Any] = {"panel": panel, "flip": False}
            if op == "conv2d_winograd":
                how["tile"] = 2
                attrs |= {"panel": panel, "tile": 2, "out_channels": out}
            else:
                how["groups"] = groups
                attrs |= {"panel": panel, "out_channels": out, "kernel_size": (kernel,) * 2}
            packed = Graph()
            pack = packed.add(
                op.replace("conv2d", "pack").replace("packed", "conv"), tensor(packed, *w), **how
            )
            kinds[1] = packed.type(pack).shape
        kinds.append((out,))
        if not relu:
            return g.add(op, *(tensor(g, *k) for k in kinds), **attrs)
        body = Graph("body")
        inner = [
            body.add("input", path=str(i), type=TensorType(float32, k)) for i, k in enumerate(kinds)
        ]
        body.outputs["0"] = body.add("relu", body.add(op, *inner, **attrs))
        outer = [tensor(g, *k) for k in kinds]
        return g.add("fused", *outer, kind="contraction", body=body)

    return make


def linear(
    rows: Any, features: int, out: int, op: str = "linear"
) -> Callable[[Graph, Target], Value]:
    return lambda g, _: g.add(
        op, tensor(g, *rows, features), tensor(g, out, features), tensor(g, out)
    )


def normalise(channels: int) -> Callable[[Graph, Target], Value]:
    """A fused loop with operands per channel, as BatchNorm becomes."""

    def make(g: Graph, _: Target) -> Value:
        kinds = [TensorType(float32, s) for s in ((N, 5, 3, channels), (channels,), (channels,))]
        body = Graph("body")
        x, mean, scale = (body.add("input", path=str(i), type=t) for i, t in enumerate(kinds))
        body.outputs["0"] = body.add("relu", body.add("mul", body.add("sub", x, mean), scale))
        outer = [g.add("input", path=str(i), type=t) for i, t in enumerate(kinds)]
        return g.add("fused", *outer, kind="elementwise", body=body)

    return make


def cases() -> Iterator[Case]:
    yield Case("direct", convolution("conv2d_packed", 20, 35))
    yield Case("direct-relu", convolution("conv2d_packed", 20, 70, relu=True))
    yield Case("direct-unpadded", convolution("conv2d_packed", 20, 35, padding=0), exact=False)
    yield Case("direct-strided", convolution("conv2d_packed", 18, 35, stride=2))
    yield Case("direct-grouped", convolution("conv2d_packed", 24, 32, groups=2))
    yield Case("direct-1x1-strided", convolution("conv2d_packed", 20, 35, 1, 2, 0))
    yield Case("direct-dilated", convolution("conv2d_packed", 20, 35, 3, 1, 0, dilation=2))
    yield Case("weight-not-packed", convolution("conv2d", 20, 35))
    yield Case("pixels-as-rows", convolution("conv2d_packed", 20, 70, 1, padding=0))
    yield Case("pixels-as-rows-blocked", convolution("conv2d_packed", 1040, 19, 1, padding=0))
    yield Case("winograd", convolution("conv2d_winograd", 64, 35))
    yield Case("winograd-relu", convolution("conv2d_winograd", 64, 64, relu=True))
    yield Case("depthwise", convolution("conv2d_packed", 37, 37, groups=37))
    yield Case("depthwise-strided", convolution("conv2d_packed", 37, 37, 5, 2, 2, groups=37))
    yield Case("linear", linear((N,), 40, 70))
    yield Case("linear-3d", linear((N, 5), 40, 33))
    yield Case("linear-blocked", linear((N, 20), 1100, 33))
    yield Case("linear-transposed", linear((N, 20), 40, 33, "linear_transposed"))
    pool = {**_window, "dilation": (1, 1), "ceil_mode": False}
    yield Case("max-pool", lambda g, _: g.add("max_pool2d", tensor(g, N, 9, 7, 37), **pool))
    mean = {**_window, "ceil_mode": False, "count_include_pad": False, "divisor_override": None}
    yield Case("avg-pool", lambda g, _: g.add("avg_pool2d", tensor(g, N, 9, 7, 37), **mean))
    size = {"output_size": (2, 3), "layout": "NHWC"}
    adaptive = "adaptive_avg_pool2d"
    yield Case("adaptive", lambda g, _: g.add(adaptive, tensor(g, N, 9, 7, 37), **size))
    yield Case("add", lambda g, _: g.add("add", tensor(g, N, 5, 37), tensor(g, N, 5, 37)))
    yield Case("add-row", lambda g, _: g.add("add", tensor(g, N, 5, 37), tensor(g, N, 1, 37)))
    yield Case("one-column", lambda g, _: g.add("add", tensor(g, N, 5, 1), tensor(g, N, 5, 1)))
    yield Case("normalise", normalise(37))
    # Dense rows of few whole vectors are one loop, with what repeats in registers.
    yield Case("normalise-whole-vectors", normalise(32))
    wide = {"dtype": float64}
    yield Case("exp-f64", lambda g, _: g.add("exp", tensor(g, N, 37, **wide)))
    yield Case("masks", lambda g, _: g.add("gt", tensor(g, N, 37), tensor(g, N, 37)))
    yield Case("integers", lambda g, _: g.add("neg", tensor(g, N, 37, dtype=int32)))
    yield Case(
        "cat",
        lambda g, _: g.add(
            "cat", tensor(g, N, 5, 3), tensor(g, N, 5, 37), tensor(g, N, 5, 20), dim=2
        ),
    )
    yield Case(
        "slice", lambda g, _: g.add("slice", tensor(g, N, 5, 37), dim=2, start=3, stop=30, step=1)
    )
    yield Case(
        "slice-of-rows",
        lambda g, _: g.add("slice", tensor(g, N, 5, 37), dim=1, start=1, stop=4, step=2),
    )


class Placed:
    """A node with some of its values in wider tensors."""

    def __init__(self, case: Case, target: Target, operands: bool, results: bool) -> None:
        self.graph = Graph()
        self.node: Node = self.graph.node(case.make(self.graph, target))
        accepted = accepts_columns(self.node, self.graph)
        kinds = [self.graph.type(v) for v in self.node.operands]
        self.operands = {i: kinds[i].shape[-1] + 27 for i in accepted.operands if operands}
        self.results = {
            i: t.shape[-1] + 5
            for i, t in enumerate(self.node.types)
            if results and i in accepted.results
        }
        self.widths = (
            *(self.operands.get(i, 0) for i in range(len(kinds))),
            *(self.results.get(i, 0) for i in range(len(self.node.types))),
        )

    def kernel(self, target: Target, dense: bool = False) -> Kernel:
        widths = () if dense or not any(self.widths) else self.widths
        kernel = select_kernel(self.node, self.graph, target, widths)
        assert kernel is not None
        return kernel


def values_of(kind: TensorType, n: int, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(kind.at(n).shape)
    if kind.dtype is int32:
        return rng.integers(-9, 9, shape).astype(np.int32)
    return rng.standard_normal(shape).astype(kind.dtype.np)


def wide(array: np.ndarray, width: int, at: int) -> tuple[np.ndarray, np.ndarray]:
    """A tensor of ``width`` columns around the values of an array, and a view of these."""
    raw = np.full((*array.shape[:-1], width * array.itemsize), GARBAGE, np.uint8)
    whole = raw.view(array.dtype)
    part = whole[..., at : at + array.shape[-1]]
    part[...] = array
    return whole, part


ONE_SIDED = ("direct", "winograd", "add", "cat", "normalise-whole-vectors")


@pytest.mark.parametrize(
    ("case", "operands", "results"),
    [
        *((c, True, True) for c in cases()),
        *((c, side, not side) for c in cases() for side in (True, False) if c.note in ONE_SIDED),
    ],
    ids=str,
)
def test_columns_have_the_bits_of_dense_tensors(
    case: Case, operands: bool, results: bool, run: Callable[..., Any]
) -> None:
    placed = Placed(case, host(), operands, results)
    assert any(placed.widths)
    rng, n = np.random.default_rng(0), 2
    node, graph = placed.node, placed.graph
    arrays = [values_of(graph.type(v), n, rng) for v in node.operands]
    kernel = placed.kernel(host())
    dense = [np.zeros(t.at(n).shape, t.dtype.np) for t in node.types]
    run(placed.kernel(host(), dense=True), dense, arrays, n)
    tasks = kernel.tasks.at(n)
    for splits in ((), range(1, tasks, max(1, tasks // 5))):
        ins = [Wide(a, placed.operands.get(i), 11) for i, a in enumerate(arrays)]
        outs = [Wide(np.zeros_like(d), placed.results.get(i), 3) for i, d in enumerate(dense)]
        run(kernel, [o.at for o in outs], [i.at for i in ins], n, splits)
        for out, wanted in zip(outs, dense, strict=True):
            if case.exact:
                assert out.values().tobytes() == wanted.tobytes()
            else:
                np.testing.assert_allclose(out.values(), wanted, rtol=1e-5, atol=1e-5)
            assert out.untouched(), "wrote beside its columns"


class Wide:
    """An array, or columns of a wider one from column ``first`` on if ``width`` is given."""

    def __init__(self, array: np.ndarray, width: int | None, first: int) -> None:
        self.first = 0 if width is None else first
        self.whole, self.part = wide(array, width or array.shape[-1], self.first)

    @property
    def at(self) -> np.ndarray:
        """What starts where the columns start, as kernels get it."""
        return self.whole.reshape(-1)[self.first :]

    def values(self) -> np.ndarray:
        return np.ascontiguousarray(self.part)

    def untouched(self) -> bool:
        rest = self.whole.copy()
        last = self.first + self.part.shape[-1]
        sides = (rest[..., : self.first], rest[..., last:])
        return all((np.ascontiguousarray(s).view(np.uint8) == GARBAGE).all() for s in sides)


def test_the_values_are_those_of_numpy(run: Callable[..., Any]) -> None:
    """For one kernel; dense kernels, with which this file compares, have tests of their own."""
    placed = Placed(Case("linear", linear((N, 5), 40, 33)), host(), True, True)
    rng = np.random.default_rng(0)
    arrays = [values_of(placed.graph.type(v), 2, rng) for v in placed.node.operands]
    (expected,) = run_node(placed.node, arrays, 2)
    x, out = Wide(arrays[0], 67, 11), Wide(np.zeros_like(expected), 38, 3)
    run(placed.kernel(host()), [out.at], [x.at, *arrays[1:]], 2)
    np.testing.assert_allclose(out.values(), expected, rtol=1e-4, atol=1e-5)


LOOPS = (
    "direct-unpadded", "pixels-as-rows", "winograd-relu", "depthwise", "max-pool", "normalise",
)  # fmt: skip


@pytest.mark.parametrize("case", [c for c in cases() if c.note in LOOPS], ids=str)
def test_loops_over_columns_are_full_vectors_that_stay_in_registers(
    case: Case, target: Target, asm_for: Callable[..., Any]
) -> None:
    code = asm_for(Placed(case, target, True, True).kernel(target), target)
    # A depthwise tile has no loop: all its vectors stand in a line.
    assert code.spills == 0 if case.note == "depthwise" else max(code.widths) >= 2
    assert code.inner_spills == 0


def test_a_plan_that_a_kernel_does_not_support_is_an_error() -> None:
    graph = Graph()
    node = graph.node(graph.add("softmax", tensor(graph, N, 10), dim=1))
    with pytest.raises(ValueError, match=r"operand 0 is planned as columns of a tensor of 30"):
        select_kernel(node, graph, host(), (30, 0))


def test_equal_kernels_in_different_tensors_are_different_kernels() -> None:
    graph = Graph()
    node = graph.node(graph.add("exp", tensor(graph, N, 40)))
    symbols = [select_kernel(node, graph, host(), w) for w in ((), (50, 0), (60, 0), (50, 0))]
    assert len({k.symbol for k in symbols if k}) == 3 and symbols[1] is symbols[3]


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("uniform", {"shape": (N, 4), "stream": 1}),
        ("softmax", {"dim": 1}),
        ("sum", {"dims": (1,), "keepdim": False}),
        ("permute", {"dims": (1, 0)}),
    ],
)
def test_other_operators_take_dense_tensors(op: str, attrs: dict[str, Any]) -> None:
    graph = Graph()
    x = tensor(graph, 2, dtype=int64) if op == "uniform" else tensor(graph, N, 4)
    assert accepts_columns(graph.node(graph.add(op, x, **attrs)), graph) == Columns()


def test_a_residual_is_read_where_the_result_is_written() -> None:
    """An epilogue that adds an operand of the result's size steps through both alike."""
    graph, body = Graph(), Graph("body")
    kinds = [TensorType(float32, s) for s in ((N, 4, 4, 8), (16, 8, 1, 1), (N, 4, 4, 16))]
    x, w, y = (body.add("input", path=str(i), type=k) for i, k in enumerate(kinds))
    attrs = {"stride": (1, 1), "padding": ((0, 0),) * 2, "dilation": (1, 1), "groups": 1}
    body.outputs["0"] = body.add("add", body.add("conv2d", x, w, layout="NHWC", **attrs), y)
    outer = [graph.add("input", path=str(i), type=k) for i, k in enumerate(kinds)]
    node = graph.node(graph.add("fused", *outer, kind="contraction", body=body))
    assert accepts_columns(node, graph) == Columns(frozenset({0}))


def waits(accepts: Any) -> int:
    """Waits in the program of two layers whose results are concatenated."""
    graph = Graph()
    x = tensor(graph, N, 64)
    a, b = (graph.add("linear", x, tensor(graph, 64, 64)) for _ in range(2))
    graph.outputs["out"] = graph.add("exp", graph.add("cat", a, b, dim=1))
    text = emit_program(graph, plan_memory(graph, accepts=accepts), host()).text
    return text.split("void @run0(")[1].split("\n}")[0].count("@nw_arrive")


def test_kernels_that_write_different_columns_do_not_wait_for_each_other() -> None:
    assert (waits(None), waits(accepts_columns)) == (2, 1)
