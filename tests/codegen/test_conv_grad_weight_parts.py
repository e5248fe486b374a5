from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.conv_grad_weight import emit_conv_grad_weight
from netwright.codegen.conv_grad_weight_parts import parts_for
from netwright.codegen.target import Target, host
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.ops.record import infer_types
from netwright.ir.types import Dim, DType, TensorType, float32, float64

Run = Callable[..., np.ndarray]


def build(
    shape: tuple[int, int, int],
    kernel: tuple[int, int, int],
    parts: int,
    stride: tuple[int, int] = (1, 1),
    padding: int = 0,
    dilation: tuple[int, int] = (1, 1),
    dtype: DType = float32,
) -> tuple[Node, Graph]:
    """``conv2d_grad_weight_parts`` for images (height, width, channels), kernel (out, kh, kw)."""
    geometry: dict[str, Any] = {
        "stride": stride,
        "padding": ((padding, padding),) * 2,
        "dilation": dilation,
        "groups": 1,
        "layout": "NHWC",
    }
    graph = Graph()
    x = TensorType(dtype, (Dim(1), *shape))
    w = TensorType(dtype, (kernel[0], shape[2], *kernel[1:]))
    (y,) = infer_types("conv2d", [x, w], geometry)
    values = [graph.add("input", path=str(k), type=t) for k, t in enumerate((y, x))]
    size = kernel[1:]
    graph.add("conv2d_grad_weight_parts", *values, parts=parts, kernel_size=size, **geometry)
    return graph.nodes[-1], graph


def results(run: Run, node: Node, graph: Graph, n: int, *cuts: list[int]) -> list[np.ndarray]:
    """The kernel's results for the same random numbers, the tasks cut in each of these ways; the
    first is compared with numpy in float64."""
    rng = np.random.default_rng(n)
    types = [graph.type(v).at(n) for v in node.operands]
    ins = [np.asarray(rng.standard_normal(t.shape), t.dtype.np) for t in types]
    kernel = emit_conv_grad_weight(node, graph, host())
    assert kernel is not None
    found = []
    for cut in cuts:
        out = np.full(node.type.at(n).shape, np.nan, node.type.dtype.np)
        run(kernel, [out], ins, n, cut)
        found.append(out)
    exact = run_node(node, [a.astype(np.float64) for a in ins], n)[0]
    atol = 1e-4 if node.type.dtype is float32 else 1e-12
    np.testing.assert_allclose(found[0], exact, rtol=0, atol=atol)
    return found


GEOMETRIES: list[tuple[tuple[int, int, int], tuple[int, int, int], dict[str, Any]]] = [
    ((28, 28, 1), (16, 5, 5), {"padding": 2}),
    ((7, 33, 3), (10, 3, 3), {"padding": 1}),
    ((11, 1, 2), (5, 2, 1), {}),
    ((9, 7, 1), (32, 3, 3), {"stride": (2, 2), "padding": 2}),
    ((17, 28, 3), (70, 7, 7), {"stride": (2, 2), "padding": 3}),
    ((12, 10, 2), (20, 3, 2), {"dilation": (2, 3)}),
    ((8, 33, 3), (64, 3, 3), {"stride": (1, 2), "padding": 0}),
]


@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_any_geometry_matches_numpy_and_any_split_gives_the_same_bits(run: Run, case: Any) -> None:
    shape, kernel, options = case
    node, graph = build(shape, kernel, 6, **options)
    # Parts begin within images, hold several or, with no image, nothing.
    for n in (1, 4, 0):
        whole, cut = results(run, node, graph, n, [], [1, 4, 5])
        assert np.array_equal(whole, cut)


def test_double_precision(run: Run) -> None:
    results(run, *build((9, 12, 3), (20, 3, 3), 5, padding=1, dtype=float64), 3, [])


def test_more_parts_than_image_rows_leave_some_of_them_zero(run: Run) -> None:
    (found,) = results(run, *build((5, 6, 1), (16, 3, 3), 8), 1, [])
    rows = 3
    filled = [rows * (k + 1) // 8 > rows * k // 8 for k in range(8)]
    assert [bool(part.any()) for part in found] == filled


def test_few_channels_are_summed_in_parts_unless_images_are_small() -> None:
    assert parts_for(1, 16, (5, 5), (28, 28)) == 8
    assert parts_for(3, 32, (3, 3), (112, 112)) == 16
    assert parts_for(3, 64, (7, 7), (112, 112)) == 8  # a large result
    assert parts_for(16, 16, (3, 3), (28, 28)) == 0
    assert parts_for(3, 16, (1, 1), (28, 28)) == 0
    assert parts_for(1, 16, (3, 3), (8, 8)) == 0


@pytest.mark.parametrize("case", [GEOMETRIES[0], GEOMETRIES[1], GEOMETRIES[6]], ids=str)
def test_inner_loops_do_not_spill_and_ask_for_gradients_ahead(
    asm_for: Any, target: Target, case: Any
) -> None:
    shape, kernel, options = case
    node, graph = build(shape, kernel, 8, **options)
    made = emit_conv_grad_weight(node, graph, target)
    assert made is not None
    asm = asm_for(made, target)
    assert asm.inner_spills == 0
    # Rows that are no whole vectors are packed, which looks ahead by itself.
    whole = kernel[0] % target.lanes(float32) == 0
    assert (", i32 0, i32 2, i32 1)" in made.text) == whole
