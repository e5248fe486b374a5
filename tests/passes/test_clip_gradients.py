"""clip_gradients."""

from typing import Any

import numpy as np
import pytest

from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float32, float64
from netwright.ir.verify import verify
from netwright.passes.clip_gradients import clip_gradients
from netwright.passes.differentiate import differentiate


def joint_of(new_net: Any, dtype: Any = float64) -> Any:
    net = new_net(dtype)
    x = net.linear(net.input("x", Dim(1), 3), 2, "fc")
    graph = net.done(out=net.op("mean", net.op("mul", x, x), dims=(0, 1), keepdim=False))
    return differentiate(graph, {"fc_weight", "fc_bias"}, "out")


def gradients(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v for k, v in found.items() if k.startswith("grad:")}


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_the_norm_of_all_gradients_is_limited(new_net: Any, values_of: Any, factor: float) -> None:
    joint = joint_of(new_net)
    clipped = clip_gradients(joint, norm=True, value=False)
    verify(clipped)
    values = values_of(clipped)
    plain = gradients(evaluate(joint, values))
    norm = np.sqrt(sum(np.square(g).sum() for g in plain.values()))
    values["opt.clip_norm.f64"] = np.array(norm * factor)
    found = evaluate(clipped, values)
    assert found["grad_norm"] == pytest.approx(norm)
    for name, grad in gradients(found).items():
        expected = plain[name] * min(norm * factor / (norm + 1e-6), 1.0)
        np.testing.assert_allclose(grad, expected, rtol=1e-12)


def test_elements_are_limited_on_both_sides_and_nan_stays(new_net: Any, values_of: Any) -> None:
    joint = joint_of(new_net)
    clipped = clip_gradients(joint, norm=False, value=True)
    verify(clipped)
    assert list(clipped.outputs) == list(joint.outputs)
    values = values_of(clipped)
    values["opt.clip_value.f64"] = np.array(0.1)
    values["fc_bias"][0] = np.nan
    plain, found = (gradients(evaluate(g, values)) for g in (joint, clipped))
    assert any(np.isnan(g).any() and not np.isnan(g).all() for g in plain.values())
    for name, grad in found.items():
        np.testing.assert_array_equal(grad, np.clip(plain[name], -0.1, 0.1))


def test_the_limit_is_an_input_of_the_gradients_dtype(new_net: Any) -> None:
    for dtype, paths in (
        (float32, ["x", "opt.clip_norm", "opt.clip_value"]),
        (float64, ["x", "opt.clip_norm.f64", "opt.clip_value.f64"]),
    ):
        clipped = clip_gradients(joint_of(new_net, dtype), norm=True, value=True)
        assert [n.attrs["path"] for n in clipped.sources("input")] == paths


def test_a_graph_without_gradients_stays(new_net: Any) -> None:
    net = new_net(float32)
    graph = net.done(out=net.linear(net.input("x", Dim(1), 3), 2, "fc"))
    assert clip_gradients(graph, norm=True, value=True) == graph
