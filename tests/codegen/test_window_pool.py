"""Convolutions that pool: the bits of the two kernels that they replace, on every target."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.codegen.columns import accepts_columns
from netwright.codegen.packing import choose_panel
from netwright.codegen.select import select_kernel
from netwright.codegen.target import Target, host
from netwright.ir.graph import Graph, Node
from netwright.ir.types import Dim, DType, TensorType, float32, float64
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_pooling import fuse_pooling
from netwright.passes.pack_weights import pack_weights
from netwright.runtime import settings

N = Dim(1)


class Case(NamedTuple):
    """Height, width, channels in and out, height and width of the kernel, the pooling; ``tile`` is
    that of Winograd's algorithm, 0 the direct sum."""

    image: tuple[int, int, int]
    outputs: int
    kernel: tuple[int, int]
    pool: str = "max_pool2d"
    window: tuple[int, int] = (2, 2)
    tile: int = 0
    stride: int = 1
    padding: int = 1
    activation: str = "relu"


CASES = [
    Case((28, 28, 1), 16, (5, 5), padding=2),
    Case((9, 7, 3), 70, (3, 3)),  # the last row and column are in no window
    Case((12, 11, 5), 20, (4, 2), "avg_pool2d", stride=2),
    Case((8, 9, 3), 33, (3, 3), window=(1, 2)),
    Case((9, 8, 3), 33, (3, 3), "avg_pool2d", window=(2, 1)),
    Case((6, 6, 600), 40, (2, 2), padding=0),  # sums in blocks
    Case((12, 14, 16), 100, (3, 3), tile=2),
    Case((7, 5, 32), 20, (3, 3), "avg_pool2d", tile=2),
    Case((6, 9, 16), 16, (3, 3), window=(1, 2), tile=2),
    Case((9, 6, 16), 16, (3, 3), window=(2, 1), tile=2),
]


def program(case: Case, target: Target, dtype: DType = float32, batch: Any = N) -> Graph:
    """Convolution, bias, activation and pooling, with packed weights."""
    graph = Graph()
    *size, inputs = case.image
    x = graph.add("input", name="x", path="x", type=TensorType(dtype, (batch, *size, inputs)))
    weight = TensorType(dtype, (case.outputs, inputs, *case.kernel))
    w = graph.add("input", name="w", path="w", type=weight)
    b = graph.add("input", name="b", path="b", type=TensorType(dtype, (case.outputs,)))
    pads = ((case.padding, case.padding),) * 2
    y = graph.add(
        "conv2d", x, w, b, name="conv", stride=(case.stride,) * 2, padding=pads, dilation=(1, 1),
        groups=1, layout="NHWC",
    )  # fmt: skip
    y = graph.add(case.activation, y, name="act")
    attrs: dict[str, Any] = {"dilation": (1, 1)}
    if case.pool == "avg_pool2d":
        attrs = {"count_include_pad": True, "divisor_override": None}
    graph.outputs["out"] = graph.add(
        case.pool, y, name="pool", kernel_size=case.window, stride=case.window,
        padding=((0, 0), (0, 0)), ceil_mode=False, layout="NHWC", **attrs,
    )  # fmt: skip
    return graph


def packed(graph: Graph, case: Case, target: Target) -> Graph:
    return pack_weights(
        graph, lambda n, dtype: choose_panel(n, target, dtype), None, lambda *_: case.tile
    )


def pooling(case: Case, target: Target, dtype: DType = float32) -> tuple[Node, Graph]:
    """The node that does everything, and its graph."""
    graph = packed(fuse_pooling(fuse_conv_bn_relu(program(case, target, dtype))), case, target)
    return graph.node("conv"), graph


def arrays(graph: Graph, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {}
    for node in graph.sources("input"):
        kind = node.type.at(n)
        found[node.name] = rng.standard_normal(kind.shape).astype(kind.dtype.np)
    return found


def results(graph: Graph, values: dict[str, np.ndarray], n: int, run: Any, cut: int) -> np.ndarray:
    """Runs the kernels of a graph one by one, their tasks cut in two or more ranges."""
    values = dict(values)
    for node in graph.nodes:
        if node.op == "input":
            continue
        kernel = select_kernel(node, graph, host())
        assert kernel is not None, node.op
        out = np.full(node.type.at(n).shape, np.nan, node.type.dtype.np)
        splits = range(cut, kernel.tasks.at(n), cut) if cut else ()
        assert not run(kernel, [out], [values[v.node] for v in node.operands], n, splits).any()
        values[node.name] = out
    return values[graph.outputs["out"].node]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_have_the_bits_of_two_kernels(run: Any, case: Case) -> None:
    apart = packed(fuse_conv_bn_relu(program(case, host())), case, host())
    node, together = pooling(case, host())
    assert [n.op for n in node.attrs["body"].nodes][-1] == case.pool
    for n in (0, 1, 3):
        values = arrays(apart, n)
        if n:
            values["x"][0, 0, 0, 0] = np.nan
        expected = results(apart, values, n, run, 0)
        for cut in (0, 13):
            found = results(together, values, n, run, cut)
            assert found.tobytes() == expected.tobytes()
        assert not n or 0 < np.isnan(expected).sum() < expected.size


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("size", [(12, 12), (7, 10)])
def test_both_of_winograds_tiles_pool(run: Any, tile: int, size: tuple[int, int]) -> None:
    case = Case((*size, 16), 40, (3, 3), tile=tile)
    _, together = pooling(case, host())
    direct = program(case, host())
    values = arrays(direct, 2)
    expected = results(direct, values, 2, run, 0)
    found = results(together, values, 2, run, 7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4 if tile == 4 else 5e-5)


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_double_precision(run: Any, case: Case) -> None:
    apart = program(case, host(), float64)
    _, together = pooling(case, host(), float64)
    values = arrays(apart, 2)
    expected = results(apart, values, 2, run, 0)
    np.testing.assert_allclose(results(together, values, 2, run, 5), expected, atol=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        CASES[0],
        Case((28, 28, 3), 64, (3, 3)),
        Case((28, 28, 3), 64, (3, 3), "avg_pool2d", activation="hardswish"),
        Case((13, 13, 64), 96, (3, 3), tile=2),
    ],
    ids=str,
)
def test_windows_stay_in_registers(asm_for: Any, target: Target, case: Case) -> None:
    kernel = select_kernel(*pooling(case, target), target)
    assert kernel is not None
    asm = asm_for(kernel, target)
    parts = [p for p in re.split(r"(?m)^(?=\w+:)", asm.text) if p.startswith(kernel.symbol + "_")]
    assert parts
    for part in parts:
        assert replace(asm, text=part).spills == 0, part.split(":")[0]
    wide = {64: "%zmm", 32: "%ymm", 16: r"\bv\d+\.4s"}[target.vector_bytes]
    if case.pool == "max_pool2d":
        assert asm.count(rf"(vmaxps|vcmp\w*ps|fcmgt|fmaxnm)\s.*{wide}") >= 3
    assert asm.count(rf"(vfmadd|fmla).*{wide}") >= 16


def test_rows_of_the_result_may_be_apart(run: Any) -> None:
    """The planner may place the result in a concatenation of channels."""
    node, graph = pooling(CASES[1], host())
    assert accepts_columns(node, graph).results == {0}
    kernel = select_kernel(node, graph, host(), (0,) * len(node.operands) + (100,))
    dense = select_kernel(node, graph, host())
    assert kernel is not None and dense is not None
    pack = graph.node("conv_packed")
    values = arrays(graph, 2)
    weights = np.empty(pack.type.shape, np.float32)
    run(select_kernel(pack, graph, host()), [weights], [values["w"]], 1)
    ins = [values["x"], weights, values["b"]]
    shape = node.type.at(2).shape
    expected, wide = np.empty(shape, np.float32), np.full((*shape[:-1], 100), 7, np.float32)
    run(dense, [expected], ins, 2)
    run(kernel, [wide], ins, 2)
    assert (wide[..., :70] == expected).all() and (wide[..., 70:] == 7).all()


class Small(nn.Module):
    """The beginning of VGG: a direct convolution and one by Winograd's algorithm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        return self.features(x)


@pytest.fixture
def default_threads() -> Iterator[None]:
    yield
    settings.set_num_threads(None)


def test_compiled_models_pool_and_need_less_memory(default_threads: None) -> None:
    nw.manual_seed(0)
    model = Small().eval()
    x = nw.randn(3, 3, 22, 22)
    together, apart = nw.compile(model), nw.compile(model, passes={"fuse_pooling": False})
    with nw.no_grad():
        expected = apart(x).numpy()
        for threads in (1, 2, 3):
            settings.set_num_threads(threads)
            assert together(x).numpy().tobytes() == expected.tobytes()
    assert together.fallbacks == 0
    kernels = [n for n in together.graph().nodes if n.op == "fused"]
    assert ["max_pool2d" in str(n.attrs["body"]) for n in kernels] == [True, True]
    assert not any(n.op == "max_pool2d" for n in together.graph().nodes)
    assert "F601" in str(together.explain())
    # The two images before pooling are not made: 22 x 22 x 16 and 11 x 11 x 32 numbers.
    sizes = [f.memory(3).batch for f in (together, apart)]
    assert sizes[0] < sizes[1] / 2
