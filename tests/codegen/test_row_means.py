"""Depthwise convolutions that average their rows: the same image, averages as near as before."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright.codegen.packing import choose_panel
from netwright.codegen.select import select_kernel
from netwright.codegen.target import Target, host
from netwright.ir.graph import Graph
from netwright.ir.types import Dim, DType, TensorType, float32, float64
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_row_means import fuse_row_means
from netwright.passes.pack_weights import pack_weights
from netwright.vision.ops import SqueezeExcitation

N = Dim(1)
# Height, width, channels, size of the kernel, stride, activation.
CASES = [
    (9, 30, 40, 3, 1, "silu"),  # the body in a loop over the rows of a tile
    (8, 7, 96, 5, 2, "hardswish"),
    (5, 6, 3, 3, 1, "relu"),
    (4, 2, 100, 3, 1, None),
]


def program(case: Any, dtype: DType, target: Target, fused: bool) -> Graph:
    """An image by a depthwise convolution, and its average."""
    h, w, c, k, stride, activation = case
    graph = Graph()
    x = graph.add("input", name="x", path="x", type=TensorType(dtype, (N, h, w, c)))
    weight = graph.add("input", name="w", path="w", type=TensorType(dtype, (c, 1, k, k)))
    bias = graph.add("input", name="b", path="b", type=TensorType(dtype, (c,)))
    y = graph.add(
        "conv2d", x, weight, bias, name="conv", stride=(stride,) * 2, groups=c, layout="NHWC",
        padding=((k // 2, k // 2),) * 2, dilation=(1, 1),
    )  # fmt: skip
    if activation:
        y = graph.add(activation, y)
    graph.outputs["image"] = y
    graph.outputs["mean"] = graph.add("adaptive_avg_pool2d", y, output_size=(1, 1), layout="NHWC")
    graph = fuse_conv_bn_relu(graph)
    if fused:
        graph = fuse_row_means(graph)
        assert len(graph.node("conv").types) == 2
    return pack_weights(graph, lambda n, dtype: choose_panel(n, target, dtype))


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
    return [values[v] for v in graph.outputs.values()]


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_image_has_the_same_bits_and_the_average_is_as_near(
    run: Any, case: Any, dtype: DType
) -> None:
    apart, together = (program(case, dtype, host(), fused) for fused in (False, True))
    rng = np.random.default_rng(0)
    for n in (0, 1, 3):
        ins = {
            s.name: rng.standard_normal(s.type.at(n).shape).astype(dtype.np)
            for s in apart.sources("input")
        }
        image, mean = results(apart, ins, n, run, 0)
        exact = image.astype(np.float64).mean((1, 2), keepdims=True)
        first = results(together, ins, n, run, 0)
        assert first[0].tobytes() == image.tobytes()
        for cut in (1, 7):
            again = results(together, ins, n, run, cut)
            assert [a.tobytes() for a in again] == [f.tobytes() for f in first]
        scale = np.abs(image).max(initial=1.0) * np.finfo(dtype.np).eps
        assert np.abs(first[1] - exact).max(initial=0.0) <= scale
        assert np.abs(mean - exact).max(initial=0.0) <= scale


def test_rows_of_a_large_image_add_no_error(run: Any) -> None:
    """The mean of 112 x 112 numbers far from zero, within two roundings."""
    case = (112, 112, 16, 3, 1, None)
    ins = {
        "x": np.random.default_rng(0).uniform(1, 2, (1, 112, 112, 16)).astype(np.float32),
        "w": np.zeros((16, 1, 3, 3), np.float32),
        "b": np.zeros(16, np.float32),
    }
    ins["w"][:, :, 1, 1] = 1
    image, mean = results(program(case, float32, host(), True), ins, 1, run, 0)
    assert (image == ins["x"]).all()
    exact = ins["x"].astype(np.float64).mean((1, 2), keepdims=True)
    assert np.abs(mean / exact - 1).max() < 2.5e-7


def test_a_nan_reaches_the_average_of_its_channel(run: Any) -> None:
    graph = program(CASES[0], float32, host(), True)
    ins = {s.name: np.ones(s.type.at(2).shape, np.float32) for s in graph.sources("input")}
    ins["x"][1, 4, 20, 33] = np.nan
    _, mean = results(graph, ins, 2, run, 0)
    assert np.argwhere(np.isnan(mean)).tolist() == [[1, 0, 0, 33]]


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_averages_stay_in_registers(asm_for: Any, target: Target, case: Any) -> None:
    graph = program(case, float32, target, True)
    kernel = select_kernel(graph.node("conv"), graph, target)
    assert kernel is not None
    asm = asm_for(kernel, target)
    parts = [p for p in re.split(r"(?m)^(?=\w+:)", asm.text) if "_tile_" in p.split(":")[0]]
    assert parts
    for part in parts:
        assert replace(asm, text=part).inner_spills == 0
    wide = {64: "%zmm", 32: "%ymm", 16: r"\bv\d+\.4s"}[target.vector_bytes]
    assert asm.count(rf"(vaddps|fadd)\s.*{wide}") >= 2


def test_a_block_of_squeeze_and_excitation_reads_averages_of_rows() -> None:
    nw.manual_seed(0)

    class Block(nw.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nw.nn.Conv2d(24, 24, 3, padding=1, groups=24)
            self.gate = SqueezeExcitation(24, 8)

        def forward(self, x: Any) -> Any:
            return self.gate(nw.nn.functional.silu(self.conv(x)))

    block = Block().eval()
    fast, x = nw.compile(block), nw.randn(2, 24, 12, 12)
    with nw.no_grad():
        np.testing.assert_allclose(fast(x).numpy(), block(x).numpy(), rtol=1e-5, atol=1e-6)
    assert fast.fallbacks == 0
    (pool,) = (n for n in fast.graph().nodes if n.op == "adaptive_avg_pool2d")
    assert fast.graph().type(pool.operands[0]).shape == (N, 12, 1, 24)
