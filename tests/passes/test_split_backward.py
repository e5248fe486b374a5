"""split_backward: two graphs that together are the joint one, with as little between them as is
needed."""

from typing import Any

import numpy as np
import pytest

from netwright.ir.graph import Graph
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float64
from netwright.ir.verify import verify
from netwright.passes.differentiate import GRAD, differentiate
from netwright.passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from netwright.passes.eliminate_dead_code import eliminate_dead_code
from netwright.passes.simplify import simplify
from netwright.passes.split_backward import SAVED, split_backward

N = Dim(1)


def saved(forward: Graph) -> dict[str, Any]:
    return {k: v for k, v in forward.outputs.items() if k.startswith(SAVED)}


def joint_of(graph: Graph) -> Graph:
    nodes = graph.sources("parameter") + graph.sources("input")
    wrt = {n.attrs["path"] for n in nodes if n.type.dtype.is_float}
    joint = simplify(differentiate(graph, wrt))
    return eliminate_dead_code(eliminate_common_subexpressions(joint))


def check_split(joint: Graph, values: dict[str, np.ndarray], n: int = 3) -> tuple[Graph, Graph]:
    """Forward and backward, evaluated one after the other, give exactly what the joint one does."""
    forward, backward = split_backward(joint)
    verify(forward)
    verify(backward)
    ahead = evaluate(forward, values, n)
    memory = {k: v for k, v in ahead.items() if k.startswith(SAVED)}
    inputs = {x.attrs["path"] for x in joint.sources("input")}
    after = {  # the forward has committed its updates before the backward runs
        **values, **{k[7:]: v for k, v in ahead.items() if k.startswith("update:")}, **memory,
    }  # fmt: skip
    behind = evaluate(backward, after, n)
    expected = evaluate(joint, values, n)
    found = {k: v for k, v in {**ahead, **behind}.items() if not k.startswith(SAVED)}
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert not any(k.startswith(GRAD) for k in forward.outputs)
    assert {x.attrs["path"] for x in backward.sources("input")} <= inputs | set(memory)
    return forward, backward


def two_layers(net: Any, activation: str = "relu") -> Graph:
    attrs = {"approximate": "none"} if activation == "gelu" else {}
    x = net.op(activation, net.linear(net.input("x", N, 5), 6, "fc1"), **attrs)
    return net.done(out=net.linear(x, 4, "fc2"))


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_two_layers_save_one_activation(new_net: Any, values_of: Any, activation: str) -> None:
    """Its output serves the activation's derivative and the next layer's weight gradient."""
    joint = joint_of(two_layers(new_net(float64), activation))
    forward, backward = check_split(joint, values_of(joint))
    assert [forward.node(v).op for v in saved(forward).values()] == [activation]
    assert "linear" not in [n.op for n in backward.nodes], "nothing of the forward runs again"


def test_an_activation_that_needs_its_input_saves_both(new_net: Any, values_of: Any) -> None:
    joint = joint_of(two_layers(new_net(float64), "gelu"))
    forward, _ = check_split(joint, values_of(joint))
    assert sorted(forward.node(v).op for v in saved(forward).values()) == ["gelu", "linear"]


def test_a_classifier(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    x = net.op("relu", net.linear(net.input("x", N, 5), 6, "fc1"))
    graph = net.done(loss=net.cross_entropy(net.linear(x, 4, "fc2"), net.labels()))
    forward, _ = check_split(joint_of(graph), values_of(joint_of(graph)))
    assert sorted(forward.node(v).op for v in saved(forward).values()) == ["linear", "relu"]


def test_a_convolutional_network(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    x = net.conv(net.input("x", N, 2, 6, 6), 4, "conv1")
    x = net.max_pool(net.op("relu", net.batch_norm(x, "bn", train=True)))
    graph = net.done(out=net.linear(net.flatten(x), 3, "fc"))
    joint = joint_of(graph)
    forward, backward = check_split(joint, values_of(joint))
    kept = saved(forward)
    assert sorted(map(str, kept.values())) == sorted(
        ["%conv2d", "%relu", "%batch_norm_train#1", "%batch_norm_train#3", "%max_pool2d"]
    ), "a flattened value is saved once, unflattened"
    assert "reshape" in [n.op for n in backward.nodes]


def test_inputs_and_parameters_are_not_saved(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    x, w = net.input("x", N, 4), net.parameter("w", 4)
    graph = net.done(out=net.op("mul", x, w))
    joint = joint_of(graph)
    forward, backward = check_split(joint, values_of(joint))
    assert not saved(forward)
    assert {n.name for n in backward.nodes} >= {"x", "w"}


def test_functions_of_parameters_are_made_again(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    w = net.op("exp", net.parameter("w", 4))
    graph = net.done(out=net.op("mul", net.input("x", N, 4), w))
    joint = joint_of(graph)
    forward, backward = check_split(joint, values_of(joint))
    assert not saved(forward) and "exp" in [n.op for n in backward.nodes]


def test_state_that_the_forward_updates_is_saved(new_net: Any, values_of: Any) -> None:
    """After the forward it holds the new value; the derivative is with the old one."""
    net = new_net(float64)
    x, scale = net.input("x", N, 4), net.buffer("scale", 4)
    net.graph.updates["scale"] = net.op("mul", scale, net.constant(0.5))
    graph = net.done(out=net.op("mul", x, scale))
    joint = joint_of(graph)
    forward, _ = check_split(joint, values_of(joint))
    assert list(saved(forward).values()) == [scale]


def test_a_gradient_that_is_its_seed(new_net: Any, values_of: Any) -> None:
    net = new_net(float64)
    joint = joint_of(net.done(out=net.op("add", net.input("x", N), net.input("y", N))))
    forward, backward = check_split(joint, values_of(joint))
    assert not saved(forward) and len(backward) == 1


def test_the_signature_of_the_forward_stays(new_net: Any) -> None:
    net = new_net()
    x, unused = net.input("x", N), net.input("unused", N)
    joint = differentiate(net.done(out=net.op("neg", x)), {"x"})
    forward, backward = split_backward(joint)
    assert [n.name for n in forward.sources("input")] == [x.node, unused.node]
    assert (forward.name, backward.name) == ("net", "net_backward")


def test_saved_values_keep_name_and_source(new_net: Any) -> None:
    joint = joint_of(two_layers(new_net()))
    forward, backward = split_backward(joint)
    node = next(n for n in backward.sources("input") if n.attrs["path"] == SAVED + "0")
    assert node.name == forward.outputs[SAVED + "0"].node
    assert node.source == forward.node(forward.outputs[SAVED + "0"]).source
