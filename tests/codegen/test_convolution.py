from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.conv_grad_weight import emit_conv_grad_weight
from netwright.codegen.convolution import emit_convolution
from netwright.codegen.target import Target, host
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.types import Dim, TensorType, float32, float64

N = Dim(1)
Run = Callable[..., np.ndarray]


def geometry(
    stride: Any = (1, 1), padding: Any = ((0, 0), (0, 0)), dilation: Any = (1, 1), groups: int = 1
) -> dict[str, Any]:
    return {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "layout": "NHWC",
    }


def build(op: str, *types: TensorType, **attrs: Any) -> tuple[Node, Graph]:
    graph = Graph()
    values = [graph.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    graph.add(op, *values, **attrs)
    return graph.nodes[-1], graph


def check(
    run: Run, emit: Any, node: Node, graph: Graph, n: int = 1, splits: Sequence[int] = ()
) -> np.ndarray:
    """Runs the node's kernel on random numbers and compares with numpy in float64."""
    rng = np.random.default_rng(0)
    types = [graph.type(v).at(n) for v in node.operands]
    ins = [np.asarray(rng.standard_normal(t.shape), t.dtype.np) for t in types]
    kernel = emit(node, graph, host())
    assert kernel is not None
    out = np.full(node.type.at(n).shape, np.nan, node.type.dtype.np)
    run(kernel, [out], ins, n, splits)
    wide = ins if node.op == "fused" else [a.astype(np.float64) for a in ins]
    exact = run_node(node, wide, n)[0]
    atol = 1e-4 if out.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(out, exact, rtol=0, atol=atol)
    return out


# (height, width, channels), (out channels, kernel height, kernel width), geometry
SHAPES: list[tuple[Any, Any, dict[str, Any]]] = [
    ((5, 6, 3), (4, 3, 3), geometry(padding=((1, 1), (1, 1)))),
    ((1, 1, 1), (1, 1, 1), geometry()),
    ((13, 7, 17), (18, 3, 3), geometry(padding=((1, 1), (1, 1)))),
    ((8, 8, 16), (24, 1, 1), geometry()),
    ((28, 28, 1), (16, 5, 5), geometry(padding=((2, 2), (2, 2)))),
    ((9, 7, 3), (40, 3, 2), geometry((2, 3), ((0, 1), (2, 0)))),
    ((9, 11, 5), (8, 3, 3), geometry((1, 2), ((2, 2), (1, 1)), (2, 2))),
    ((6, 6, 8), (8, 1, 1), geometry((2, 2))),
    ((8, 9, 4), (16, 3, 3), geometry((3, 3), ((1, 1), (1, 1)))),
    ((4, 5, 2), (3, 6, 7), geometry(padding=((2, 1), (3, 2)))),
    ((7, 7, 8), (16, 3, 3), geometry(padding=((1, 1), (1, 1)))),
    ((5, 5, 2), (4, 2, 2), geometry(padding=((3, 4), (3, 3)))),
    ((7, 6, 6), (9, 3, 3), geometry((2, 1), ((1, 1), (1, 0)), (1, 2), 3)),
    ((6, 7, 4), (40, 3, 3), geometry((1, 1), ((1, 1), (1, 1)), (1, 1), 2)),
    ((7, 9, 5), (5, 3, 3), geometry((1, 1), ((1, 1), (1, 1)), (1, 1), 5)),
    ((9, 8, 20), (20, 5, 3), geometry((2, 1), ((2, 1), (1, 1)), (1, 2), 20)),
]


def forward(shape: Any, kernel: Any, attrs: dict[str, Any], dtype: Any = float32) -> Any:
    o, *size = kernel
    weight = (o, shape[2] // attrs["groups"], *size)
    return build(
        "conv2d",
        TensorType(dtype, (N, *shape)),
        TensorType(dtype, weight),
        TensorType(dtype, (o,)),
        **attrs,
    )


def gradient(shape: Any, kernel: Any, attrs: dict[str, Any], dtype: Any = float32) -> Any:
    node, graph = forward(shape, kernel, attrs, dtype)
    return build(
        "conv2d_grad_input", node.type, graph.type(node.operands[1]), size=shape[:2], **attrs
    )


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_any_geometry_matches_numpy(run: Run, case: Any, make: Any) -> None:
    node, graph = make(*case)
    for n in (3, 0):
        check(run, emit_convolution, node, graph, n)


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("case", SHAPES[5:7], ids=str)
def test_double_precision(run: Run, case: Any, make: Any) -> None:
    check(run, emit_convolution, *make(*case, float64), n=2)


def weight_gradient(shape: Any, kernel: Any, attrs: dict[str, Any], dtype: Any = float32) -> Any:
    node, graph = forward(shape, kernel, attrs, dtype)
    x = graph.type(node.operands[0])
    return build("conv2d_grad_weight", node.type, x, kernel_size=kernel[1:], **attrs)


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_weight_gradient_of_any_geometry_matches_numpy(run: Run, case: Any) -> None:
    node, graph = weight_gradient(*case)
    for n in (3, 0):
        check(run, emit_conv_grad_weight, node, graph, n)
