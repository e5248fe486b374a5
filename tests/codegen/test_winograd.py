"""Winograd convolution: numbers, bits, assembly, and when it is chosen."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.convolution import emit_convolution
from netwright.codegen.packing import choose_panel
from netwright.codegen.target import AVX512, Target, host
from netwright.codegen.winograd import is_faster, pack_winograd
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.ops.record import get
from netwright.ir.types import Dim, TensorType, float32, float64

N = Dim(1)
TILES = (2, 4)
# (height, width, inputs, outputs), padding
CASES = [
    ((8, 8, 16, 16), ((1, 1), (1, 1))),
    ((5, 7, 32, 20), ((1, 1), (1, 1))),
    ((3, 3, 16, 5), ((0, 0), (0, 0))),
    ((4, 9, 16, 70), ((2, 0), (0, 1))),
    ((7, 6, 528, 8), ((1, 1), (1, 1))),
]


def winograd(
    case: Any, tile: int, target: Target, batch: Any = N, epilogue: bool = False
) -> tuple[Node, Graph]:
    (h, w, inputs, outputs), padding = case
    panel = choose_panel(outputs, target, float32)
    weight = TensorType(float32, (outputs, inputs, 3, 3))
    packed = get("pack_winograd").infer(weight, tile=tile, panel=panel)
    x, bias = TensorType(float32, (batch, h, w, inputs)), TensorType(float32, (outputs,))
    attrs = {
        "out_channels": outputs, "tile": tile, "panel": panel, "padding": padding,
        "layout": "NHWC",
    }  # fmt: skip
    types = [x, packed, bias]
    graph = Graph()
    if not epilogue:
        values = [graph.add("input", path=str(k), type=t) for k, t in enumerate(types)]
        graph.add("conv2d_winograd", *values, **attrs)
        return graph.nodes[-1], graph
    body = Graph("body")
    inner = [body.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    y = body.add("conv2d_winograd", *inner, **attrs)
    types.append(body.type(y))
    residual = body.add("input", path="3", type=types[3])
    body.outputs["0"] = body.add("silu", body.add("add", y, residual))
    values = [graph.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    graph.add("fused", *values, kind="contraction", body=body)
    return graph.nodes[-1], graph


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference in units of the typical result."""
    return float(np.abs(found - exact).max() / max(exact.std(), 1e-30)) if exact.size else 0.0


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_convolution(run: Any, case: Any, tile: int) -> None:
    (h, w, inputs, outputs), padding = case
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    node, graph = winograd(case, tile, host())
    panel = node.attrs["panel"]
    pack = pack_winograd(TensorType(float32, weight.shape), tile, panel, False, host())
    kernel = emit_convolution(node, graph, host())
    assert pack is not None and kernel is not None
    packed = np.full(graph.type(node.operands[1]).shape, np.nan, np.float32)
    run(pack, [packed], [weight], 1, range(1, pack.tasks.at(1)))
    for n in (0, 1, 3):
        x = rng.standard_normal((n, h, w, inputs)).astype(np.float32)
        geometry = {
            "stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1,
            "layout": "NHWC",
        }  # fmt: skip
        wide = (a.astype(np.float64) for a in (x, weight, bias))
        exact = get("conv2d").numpy(*wide, **geometry)
        found = []
        for splits in ((), range(1, kernel.tasks.at(n), 13)):
            found.append(np.full(exact.shape, np.nan, np.float32))
            run(kernel, [found[-1]], [x, packed, bias], n, splits)
        assert found[0].tobytes() == found[1].tobytes()
        assert error(found[0], exact) < (3e-6 if tile == 2 else 3e-5)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", [(32, 16), (20, 48), (5, 3)])
def test_flipped_weights_are_those_of_the_record(
    run: Any, shape: tuple[int, int], tile: int
) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((*shape, 3, 3)).astype(np.float32)
    panel = choose_panel(shape[1], host(), float32)
    kernel = pack_winograd(TensorType(float32, weight.shape), tile, panel, True, host())
    expected = get("pack_winograd").numpy(weight, tile=tile, panel=panel, flip=True)
    assert kernel is not None
    packed = np.full(expected.shape, np.nan, np.float32)
    run(kernel, [packed], [weight], 1)
    np.testing.assert_allclose(packed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", TILES)
def test_the_epilogue_sees_the_pixels_that_it_should(run: Any, tile: int) -> None:
    node, graph = winograd(((7, 9, 16, 40), ((1, 1), (1, 1))), tile, host(), epilogue=True)
    rng = np.random.default_rng(1)
    types = [graph.type(v).at(2) for v in node.operands]
    ins = [rng.standard_normal(t.shape).astype(np.float32) for t in types]
    kernel = emit_convolution(node, graph, host())
    assert kernel is not None
    out = np.full(node.type.at(2).shape, np.nan, np.float32)
    run(kernel, [out], ins, 2)
    assert error(out, run_node(node, ins, 2)[0].astype(np.float64)) < 1e-4


@pytest.mark.parametrize("tile", TILES)
def test_its_loops_use_whole_vectors_and_do_not_spill(
    asm_for: Any, target: Target, tile: int
) -> None:
    node, graph = winograd(((13, 13, 64, 96), ((1, 1), (1, 1))), tile, target)
    kernel = emit_convolution(node, graph, target)
    assert kernel is not None
    asm = asm_for(kernel, target)
    parts = [p for p in re.split(r"(?m)^(?=\w+:)", asm.text) if p.startswith(kernel.symbol + "_")]
    names = {part.split(":")[0].removeprefix(kernel.symbol).split("_")[1] for part in parts}
    assert {name.rstrip("0123456789") for name in names} == {"inputs", "outputs", "tile"}
    for part in parts:
        name, found = part.split(":")[0], replace(asm, text=part)
        assert found.spills == 0, name
        products = re.search(rf"define [^\n]*@{name}\(.*?\n}}", kernel.text, re.DOTALL)
        assert products is not None
        wanted = len(re.findall(r"call <.*@llvm\.fma", products[0]))
        # LLVM finds sums that two rows of a transform share.
        assert found.count(r"(vfn?m|fmla)") == wanted or ("tile" not in name and tile == 4), name
        assert found.count(r"v\w+ss\s.*xmm") <= found.count(r"vbroadcastss"), name


def test_nan_and_infinity_stay_in_their_tiles(run: Any) -> None:
    node, graph = winograd(((8, 8, 16, 16), ((1, 1), (1, 1))), 2, host())
    rng = np.random.default_rng(2)
    ins = [rng.standard_normal(graph.type(v).at(1).shape).astype(np.float32) for v in node.operands]
    ins[0][0, 0, 0, 3] = np.nan
    kernel = emit_convolution(node, graph, host())
    assert kernel is not None
    out = np.zeros(node.type.at(1).shape, np.float32)
    run(kernel, [out], ins, 1)
    assert np.isnan(out[0, :2, :2]).any() and np.isfinite(out[0, 2:]).all()


def test_where_it_is_chosen() -> None:
    assert is_faster(64, 64, (56, 56), float32, AVX512)
    assert not is_faster(64, 64, (2, 2), float32, AVX512)
    assert not is_faster(3, 64, (56, 56), float32, AVX512)
    assert not is_faster(64, 64, (56, 56), float64, AVX512)
