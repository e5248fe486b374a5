from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
import netwright.ir.ops.contraction  # noqa: F401
import netwright.ir.ops.packing  # noqa: F401
from netwright.codegen.matmul import emit_matmul
from netwright.codegen.target import AVX2, AVX512, NEON, host
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.types import Dim, TensorType, float32, float64

N = Dim(1)
Run = Callable[..., np.ndarray]


def build(op: str, *types: TensorType, **attrs: Any) -> tuple[Node, Graph]:
    graph = Graph()
    values = [graph.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    result = graph.add(op, *values, **attrs)
    graph.outputs["y"] = result
    return graph.node(result), graph


def check(run: Run, node: Node, graph: Graph, n: int = 1, splits: Sequence[int] = ()) -> np.ndarray:
    """Runs the node's kernel on random numbers and compares with numpy in float64."""
    rng = np.random.default_rng(0)
    types = [graph.type(v).at(n) for v in node.operands]
    ins = [np.ascontiguousarray(rng.standard_normal(t.shape), t.dtype.np) for t in types]
    kernel = emit_matmul(node, graph, host())
    assert kernel is not None
    outs = [np.full(t.at(n).shape, np.nan, t.dtype.np) for t in node.types]
    run(kernel, outs, ins, n, splits)
    wide = [a.astype(np.float64) for a in ins]
    for out, exact in zip(outs, run_node(node, wide, n), strict=True):
        scale = 1e-6 if out.dtype == np.float32 else 1e-14
        np.testing.assert_allclose(out, exact, rtol=0, atol=scale * 200)
    return outs[0]


@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("k", [1, 7, 64, 1300])
@pytest.mark.parametrize("features", [1, 10, 17, 40])
def test_linear_of_any_size_matches_numpy(run: Run, features: int, k: int, dtype: Any) -> None:
    x, w, b = (TensorType(dtype, s) for s in ((N, k), (features, k), (features,)))
    node, graph = build("linear", x, w, b)
    for n in (0, 1, 5, 13, 33):
        check(run, node, graph, n)
