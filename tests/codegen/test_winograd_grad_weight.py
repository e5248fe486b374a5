"""The weight's gradient by Winograd's algorithm: numbers, bits, assembly, and when it is chosen."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.convolution import emit_convolution
from netwright.codegen.kernel import Kernel
from netwright.codegen.target import AVX512, NEON, Target, host
from netwright.codegen.winograd_grad_weight import is_faster
from netwright.ir.graph import Graph
from netwright.ir.ops.record import get
from netwright.ir.types import Dim, TensorType, float32, float64

N = Dim(1)
TILES = (2, 4)
SAME = ((1, 1), (1, 1))
# (height, width, inputs, outputs), padding
CASES = [
    ((8, 8, 16, 16), SAME),
    ((5, 7, 32, 20), SAME),
    ((3, 3, 16, 5), ((0, 0), (0, 0))),
    ((4, 9, 48, 70), ((2, 0), (0, 1))),
    ((2, 2, 16, 64), SAME),
    ((6, 5, 160, 8), ((3, 2), (0, 4))),
]


def kernel_of(
    case: Any, tile: int, target: Target | None = None, dtype: Any = float32
) -> tuple[Kernel | None, tuple[int, int]]:
    """The kernel, and the height and width of the gradient's images."""
    (h, w, inputs, outputs), padding = case
    out = (h + sum(padding[0]) - 2, w + sum(padding[1]) - 2)
    graph = Graph()
    g = graph.add("input", path="g", type=TensorType(dtype, (N, *out, outputs)))
    x = graph.add("input", path="x", type=TensorType(dtype, (N, h, w, inputs)))
    attrs = {"tile": tile, "padding": padding, "layout": "NHWC"}
    graph.add("conv2d_grad_weight_winograd", g, x, **attrs)
    return emit_convolution(graph.nodes[-1], graph, target or host()), out


def direct(g: np.ndarray, x: np.ndarray, padding: Any) -> np.ndarray:
    attrs = {
        "kernel_size": (3, 3), "stride": (1, 1), "padding": padding, "dilation": (1, 1),
        "groups": 1, "layout": "NHWC",
    }  # fmt: skip
    return get("conv2d_grad_weight").numpy(g, x, **attrs)


def operands(case: Any, out: tuple[int, int], n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    h, w, inputs, outputs = case[0]
    shapes = (n, *out, outputs), (n, h, w, inputs)
    g, x = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return g, x


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_gradient_however_tasks_are_split(run: Any, case: Any, tile: int) -> None:
    kernel, out = kernel_of(case, tile)
    assert kernel is not None
    for n in (0, 1, 21):
        g, x = operands(case, out, n)
        exact = direct(g.astype(np.float64), x.astype(np.float64), case[1])
        found = []
        for splits in ((), range(1, kernel.tasks.at(n), 3)):
            found.append(np.full(exact.shape, np.nan, np.float32))
            run(kernel, [found[-1]], [g, x], n, splits)
        assert found[0].tobytes() == found[1].tobytes()
        error = np.abs(found[0] - exact).max()
        assert error <= (4e-6 if tile == 2 else 5e-5) * max(float(exact.std()), 1e-30) or n == 0
        assert n or not found[0].any()


def test_its_error_is_at_most_twice_that_of_eager_execution(run: Any) -> None:
    case = ((12, 12, 64, 32), SAME)
    kernel, out = kernel_of(case, 2)
    assert kernel is not None
    g, x = operands(case, out, 8)
    x = np.maximum(x, 0)  # what follows a ReLU: sums that do not cancel
    exact = direct(g.astype(np.float64), x.astype(np.float64), SAME)
    found = np.empty(exact.shape, np.float32)
    run(kernel, [found], [g, x], 8)
    errors = [np.sqrt(np.mean((y - exact) ** 2)) for y in (found, direct(g, x, SAME))]
    assert errors[0] <= 2 * errors[1]


@pytest.mark.parametrize("tile", TILES)
def test_its_loops_use_whole_vectors_and_do_not_spill(
    asm_for: Any, target: Target, tile: int
) -> None:
    kernel, _ = kernel_of(((13, 13, 64, 96), SAME), tile, target)
    assert kernel is not None
    asm = asm_for(kernel, target)
    parts = [p for p in re.split(r"(?m)^(?=\w+:)", asm.text) if p.startswith(kernel.symbol + "_")]
    names = {p.split(":")[0].removeprefix(kernel.symbol + "_").rstrip("0123456789_") for p in parts}
    assert names == {"inputs", "gradients", "weights", "write", "tile"}
    for part in parts:
        name, found = part.split(":")[0], replace(asm, text=part)
        # Rows that are left of a square are transposed in a straight line, which may spill.
        assert found.inner_spills == 0 and (found.spills == 0 or "_write" in name), name
        assert max(found.widths) >= 2, name
        assert found.calls == 0, name


def test_nan_stays_with_its_input_channel(run: Any) -> None:
    case = ((8, 8, 32, 16), SAME)
    kernel, out = kernel_of(case, 2)
    assert kernel is not None
    g, x = operands(case, out, 2)
    x[1, 3, 4, 5] = np.nan
    found = np.zeros((16, 32, 3, 3), np.float32)
    run(kernel, [found], [g, x], 2)
    others = np.arange(32) != 5
    assert np.isnan(found[:, 5]).all() and np.isfinite(found[:, others]).all()


def test_channels_that_are_no_whole_vectors_are_declined() -> None:
    assert kernel_of(((8, 8, 24, 16), SAME), 2, AVX512)[0] is None
    assert kernel_of(((8, 8, 24, 16), SAME), 2, NEON)[0] is not None


def test_where_it_is_chosen() -> None:
    assert is_faster(64, 64, (56, 56), float32, AVX512)
    assert is_faster(512, 512, (2, 2), float32, AVX512)
    assert not is_faster(512, 512, (2, 2), float32, AVX512, tile=4)
    assert not is_faster(64, 64, (1, 8), float32, AVX512)
    assert not is_faster(3, 64, (32, 32), float32, AVX512)
    assert not is_faster(64, 8, (32, 32), float32, AVX512)
    assert not is_faster(64, 64, (32, 32), float64, AVX512)
    # All of it would be the work of one thread.
    assert not is_faster(16, 64, (32, 32), float32, AVX512)
