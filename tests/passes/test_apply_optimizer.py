"""apply_optimizer."""

from typing import Any

import numpy as np

from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float32, float64
from netwright.ir.verify import verify
from netwright.passes.apply_optimizer import Update, apply_optimizer, hyper_path, state_path
from netwright.passes.differentiate import differentiate

N = Dim(1)


def momentum(b: Any, param: Any, grad: Any, state: Any, hyper: Any) -> Any:
    velocity = b.add(b.mul(state["velocity"], 0.5), grad)
    return b.sub(param, b.mul(velocity, hyper["lr"])), {"velocity": velocity}


def update(path: str, group: int = 0) -> Update:
    return Update(path, group, momentum, ["velocity"], ["lr"])


def step_of(new_net: Any, dtype: Any, updates: list[Update]) -> Any:
    net = new_net(dtype)
    x = net.linear(net.input("x", N, 3), 2, "fc")
    net.parameter("unused", 4)
    graph = net.done(out=net.op("mean", x, dims=(0, 1), keepdim=False))
    joint = differentiate(graph, {u.path for u in updates}, "out")
    return joint, apply_optimizer(joint, updates)


def test_parameters_and_state_follow_the_rule(new_net: Any, values_of: Any) -> None:
    joint, step = step_of(new_net, float64, [update("fc_weight")])
    verify(step)
    values = values_of(step)
    values[hyper_path(0, "lr") + ".f64"] = np.array(0.25)
    found = evaluate(step, values)
    grad = evaluate(joint, values)["grad:fc_weight"]
    velocity = values[state_path("fc_weight", "velocity")] * 0.5 + grad
    np.testing.assert_allclose(found["update:opt.fc_weight.velocity"], velocity)
    np.testing.assert_allclose(found["update:fc_weight"], values["fc_weight"] - 0.25 * velocity)
    assert list(step.outputs) == ["out"], "gradients are no results any more"


def test_one_number_serves_a_group(new_net: Any) -> None:
    _, step = step_of(new_net, float32, [update("fc_weight"), update("fc_bias", 1)])
    paths = [n.attrs["path"] for n in step.sources("input")]
    assert paths == ["x", "opt.0.lr", "opt.1.lr"]
    _, step = step_of(new_net, float32, [update("fc_weight"), update("fc_bias")])
    assert [n.attrs["path"] for n in step.sources("input")] == ["x", "opt.0.lr"]


def test_a_parameter_without_a_gradient_is_not_touched(new_net: Any) -> None:
    _, step = step_of(new_net, float32, [update("fc_weight"), update("unused")])
    assert list(step.updates) == ["fc_weight", "opt.fc_weight.velocity"]


def test_the_nodes_of_an_update_carry_the_parameters_source(new_net: Any) -> None:
    joint, step = step_of(new_net, float32, [update("fc_weight")])
    added = [n for n in step.nodes if n.name not in joint and n.operands]
    source = step.node("fc_weight").source
    assert added and all(n.source == source for n in added)
