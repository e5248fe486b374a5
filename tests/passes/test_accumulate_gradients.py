"""accumulate_gradients, and the graph that reads what it leaves."""

from typing import Any

import numpy as np

from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, TensorType, float64
from netwright.ir.verify import verify
from netwright.passes.accumulate_gradients import accumulate_gradients, gradients_from_buffers
from netwright.passes.differentiate import differentiate


def joint_of(new_net: Any, scale: str | None = None) -> Any:
    net = new_net(float64)
    x = net.linear(net.input("x", Dim(1), 3), 2, "fc")
    graph = net.done(out=net.op("mean", net.op("mul", x, x), dims=(0, 1), keepdim=False))
    return differentiate(graph, {"fc_weight", "fc_bias"}, "out", scale)


def test_gradients_replace_those_in_the_buffers_or_are_added(new_net: Any, values_of: Any) -> None:
    joint = joint_of(new_net)
    replaced, added = (accumulate_gradients(joint, add) for add in (False, True))
    for graph in (replaced, added):
        verify(graph)
        assert list(graph.outputs) == ["out"]
        assert list(graph.updates) == ["grad:fc_weight", "grad:fc_bias"]
    assert [n.attrs["path"] for n in replaced.sources("buffer")] == []
    values = values_of(added)
    grads = evaluate(joint, values)
    for path in ("grad:fc_weight", "grad:fc_bias"):
        np.testing.assert_array_equal(evaluate(replaced, values)["update:" + path], grads[path])
        np.testing.assert_array_equal(
            evaluate(added, values)["update:" + path], values[path] + grads[path]
        )


def test_the_scale_is_a_number_of_the_losss_dtype(new_net: Any, values_of: Any) -> None:
    plain, scaled = joint_of(new_net), joint_of(new_net, "opt.scale")
    values = values_of(scaled)
    values["opt.scale.f64"] = np.array(0.25)
    one, other = evaluate(plain, values), evaluate(scaled, values)
    assert one["out"] == other["out"]
    np.testing.assert_allclose(other["grad:fc_weight"], 0.25 * one["grad:fc_weight"])


def test_a_graph_that_begins_at_the_buffers() -> None:
    kinds = {"fc.weight": TensorType(float64, (2, 3)), "fc.bias": TensorType(float64, (2,))}
    graph = gradients_from_buffers(kinds, "model_update")
    verify(graph)
    assert {n.attrs["path"]: n.type for n in graph.sources("parameter")} == kinds
    assert graph.node("fc_weight").source.module == "fc"
    values = {f"grad:{p}": np.ones(kind.shape) for p, kind in kinds.items()}  # type: ignore
    values |= {p: np.zeros(kind.shape) for p, kind in kinds.items()}  # type: ignore
    found = evaluate(graph, values)
    assert (found["grad:fc.weight"] == 1).all()
