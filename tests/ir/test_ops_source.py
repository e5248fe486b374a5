from __future__ import annotations

import numpy as np
import pytest

from netwright.errors import NetwrightError, ShapeError
from netwright.ir.graph import Graph
from netwright.ir.interpreter import evaluate
from netwright.ir.ops.record import get
from netwright.ir.types import Dim, TensorType, float32

N = Dim(1)
BATCH = TensorType(float32, (N, 3))


@pytest.mark.parametrize("kind", ["input", "parameter", "buffer"])
def test_named_source_has_no_value_of_its_own(kind: str) -> None:
    assert get(kind).infer(path="w", type=BATCH) == BATCH
    with pytest.raises(NetwrightError, match=f"{kind} 'w' .* has no value of its own"):
        get(kind).numpy(path="w", type=BATCH)


def test_constant_has_the_type_of_its_value() -> None:
    value = np.ones((2, 1), np.float32)
    assert get("constant").infer(value=value) == TensorType(float32, (2, 1))
    assert get("constant").numpy(value=value) is value


def test_extent_is_the_batch_dependent_count() -> None:
    graph = Graph()
    graph.add("input", path="x", type=BATCH)
    graph.outputs["count"] = graph.add("extent", size=3 * N, dtype="f32")
    result = evaluate(graph, {"x": np.zeros((5, 3), np.float32)})["count"]
    assert (result.dtype, result.shape, float(result)) == (np.float32, (), 15.0)


def _region() -> Graph:
    """0, 1 -> relu(0 + 1), 0 * 1."""
    body = Graph("body")
    x, y = (body.add("input", path=str(i), type=BATCH) for i in range(2))
    body.outputs["0"] = body.add("relu", body.add("add", x, y))
    body.outputs["1"] = body.add("mul", x, y)
    return body


def test_fused_region_has_the_outputs_of_its_body() -> None:
    body = _region()
    assert get("fused").infer(BATCH, BATCH, kind="loop", body=body) == (BATCH, BATCH)
    x, y = np.float32([[1, -2, 3]]), np.float32([[4, 1, -6]])
    total, product = get("fused").numpy(x, y, kind="loop", body=body)
    np.testing.assert_array_equal(total, [[5, 0, 0]])
    np.testing.assert_array_equal(product, [[4, -2, -18]])


def test_fused_region_refuses_operands_of_other_types() -> None:
    with pytest.raises(ShapeError, match=r"takes \(0: f32\[N,3\], 1: f32\[N,3\]\)"):
        get("fused").infer(BATCH, kind="loop", body=_region())
