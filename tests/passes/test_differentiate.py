"""differentiate: gradients against finite differences in float64, through the interpreter."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.errors import UnsupportedError
from netwright.ir.graph import Graph
from netwright.ir.interpreter import evaluate
from netwright.ir.text import parse
from netwright.ir.types import Dim, TensorType, float64, int64
from netwright.ir.verify import verify
from netwright.passes.differentiate import GRAD, differentiate
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.simplify import simplify

N = Dim(1)


def paths(graph: Graph) -> set[str]:
    """Paths of the inputs and parameters of floating-point type."""
    nodes = graph.sources("parameter") + graph.sources("input")
    return {n.attrs["path"] for n in nodes if n.type.dtype.is_float}


def check_gradients(
    graph: Graph, values: dict[str, np.ndarray], n: int = 3, rtol: float = 1e-6
) -> dict[str, np.ndarray]:
    """Compares the derivative along a random direction with a central difference, for each
    parameter and input, and returns the gradients. They must not all be zero."""
    wrt = paths(graph)
    joint = differentiate(graph, wrt)
    verify(joint)
    assert parse(str(joint)) == joint
    rng = np.random.default_rng(1)
    seeds = {
        GRAD + name: rng.normal(size=graph.type(v).at(n).shape)
        for name, v in graph.outputs.items()
        if graph.type(v).dtype.is_float
    }

    def weighted(point: dict[str, np.ndarray]) -> float:
        found = evaluate(graph, point, n)
        return sum(float((found[k[len(GRAD) :]] * s).sum()) for k, s in seeds.items())

    found = evaluate(joint, {**values, **seeds}, n)
    grads = {k[len(GRAD) :]: v for k, v in found.items() if k.startswith(GRAD)}
    assert any(np.abs(g).max(initial=0.0) > 1e-6 for g in grads.values())
    step = 1e-5
    for path in wrt:
        direction = rng.normal(size=values[path].shape)
        ahead, behind = (
            weighted({**values, path: values[path] + s * direction}) for s in (step, -step)
        )
        numeric = (ahead - behind) / (2 * step)
        exact = float((grads[path] * direction).sum()) if path in grads else 0.0
        assert exact == pytest.approx(numeric, rel=rtol, abs=1e-6 * (1 + abs(ahead))), path
    return grads


# -- small networks -------------------------------------------------------------------------------


def mlp(net: Any) -> Graph:
    x = net.op("relu", net.linear(net.input("x", N, 5), 6, "fc1"))
    return net.done(out=net.linear(x, 4, "fc2"))


def classifier(net: Any) -> Graph:
    x = net.op("gelu", net.linear(net.input("x", N, 5), 6, "fc1"), approximate="none")
    return net.done(loss=net.cross_entropy(net.linear(x, 4, "fc2"), net.labels()))


def cnn(net: Any) -> Graph:
    x = net.conv(net.input("x", N, 2, 6, 6), 4, "conv1")
    x = net.max_pool(net.op("relu", net.batch_norm(x, "bn", train=True)))
    y = net.conv(x, 4, "conv2")
    return net.done(out=net.linear(net.flatten(net.op("add", x, y)), 3, "fc"))


def frozen_norm(net: Any) -> Graph:
    x = net.batch_norm(net.conv(net.input("x", N, 2, 5, 5), 3, "conv"), "bn")
    return net.done(out=net.op("mean", x, dims=(2, 3), keepdim=False))


def normalised(net: Any) -> Graph:
    x = net.linear(net.input("x", N, 5), 6, "fc")
    scale = [net.parameter("norm_weight", 6), net.parameter("norm_bias", 6)]
    y, _, _ = net.op("layer_norm", x, *scale, ndim=1, eps=1e-5)
    return net.done(out=net.op("tanh", y))


def probabilities(net: Any) -> Graph:
    x = net.op("softmax", net.linear(net.input("x", N, 5), 4, "fc"), dim=1)
    return net.done(p=x, logp=net.op("log_softmax", x, dim=1))


def embedded(net: Any) -> Graph:
    idx = net.input("idx", N, 3, dtype=int64)
    x = net.op("embedding", idx, net.parameter("table", 5, 4), padding_idx=None)
    return net.done(out=net.linear(net.op("mean", x, dims=(1,), keepdim=False), 2, "fc"))


def shared(net: Any) -> Graph:
    """One parameter used by two layers, one value used three times."""
    w = net.parameter("w", 5, 5)
    x = net.op("tanh", net.op("linear", net.input("x", N, 5), w))
    y = net.op("linear", x, w)
    return net.done(a=net.op("mul", y, x), b=x)


def broadcast(net: Any) -> Graph:
    x, b = net.input("x", N, 3, 4), net.parameter("b", 3, 1)
    count = net.graph.add("extent", size=N, dtype="f64")
    y = net.op("div", net.op("sub", x, b), count)
    return net.done(out=net.op("mul", y, net.parameter("scale")))


NETS = (mlp, classifier, cnn, frozen_norm, normalised, probabilities, embedded, shared, broadcast)


@pytest.mark.parametrize("make", NETS, ids=lambda f: f.__name__)
def test_gradients_of_small_networks(new_net: Any, values_of: Any, make: Any) -> None:
    graph = make(new_net(float64))
    check_gradients(graph, values_of(graph, 3))


@pytest.mark.parametrize("make", NETS, ids=lambda f: f.__name__)
def test_gradients_stay_when_the_joint_graph_is_optimised(
    new_net: Any, assert_same: Any, make: Any
) -> None:
    joint = differentiate(make(net := new_net(float64)), paths(net.graph))
    assert_same(joint, fuse_elementwise(simplify(joint)), 1e-12)


def as_float64(graph: Graph) -> Graph:
    """The same program in float64."""
    new = Graph(graph.name)
    env: dict[Any, Any] = {}
    for node in graph.nodes:
        attrs = dict(node.attrs)
        if isinstance(attrs.get("type"), TensorType):
            attrs["type"] = TensorType(float64, attrs["type"].shape)
        if attrs.get("dtype") == "f32":
            attrs["dtype"] = "f64"
        if node.op == "constant":
            attrs["value"] = attrs["value"].astype(np.float64)
        result = new.add(node.op, *(env[v] for v in node.operands), name=node.name, **attrs)
        results = result if len(node.types) > 1 else (result,)
        env.update(zip(node.values, results, strict=True))
    new.outputs = {k: env[v] for k, v in graph.outputs.items()}
    return new


def test_gradients_of_random_graphs(random_graph: Callable[..., Graph], values_of: Any) -> None:
    checked = 0
    for seed in range(80):
        graph = as_float64(random_graph(seed, size=16))
        # Statistics have no gradient: they exist for layer_norm's own rule.
        statistics = any(v.index for n in graph.nodes for v in n.operands) or any(
            v.index for v in graph.outputs.values()
        )
        if statistics:
            continue
        check_gradients(graph, values_of(graph, 3, seed), rtol=1e-4)
        checked += 1
    assert checked >= 20


# -- what it promises -----------------------------------------------------------------------------


def test_a_loss_is_seeded_with_one(new_net: Any, values_of: Any) -> None:
    graph = classifier(new_net(float64))
    values = values_of(graph)
    free = evaluate(differentiate(graph, paths(graph)), {**values, GRAD + "loss": np.ones(())})
    seeded = evaluate(differentiate(graph, paths(graph), "loss"), values)
    assert list(seeded) == list(free)
    for name in seeded:
        np.testing.assert_array_equal(seeded[name], free[name])


def test_only_the_requested_gradients_are_made(new_net: Any) -> None:
    graph = mlp(new_net())
    joint = differentiate(graph, {"fc2_weight"})
    assert [k for k in joint.outputs if k.startswith(GRAD)] == [GRAD + "fc2_weight"]
    assert "matmul" not in [n.op for n in joint.nodes], "nothing flows through the last layer"


def test_a_path_without_influence_gets_no_gradient(new_net: Any) -> None:
    net = new_net()
    net.parameter("unused", 3)
    x = net.input("x", N, 4)
    index = net.op("argmax", net.linear(x, 3, "fc"), dim=1, keepdim=False)
    graph = net.done(index=index, out=net.op("neg", x))
    joint = differentiate(graph, {"unused", "fc_weight", "x"})
    assert [k for k in joint.outputs if k.startswith(GRAD)] == [GRAD + "x"]


def test_a_loss_without_influence_adds_nothing(new_net: Any) -> None:
    net = new_net()
    graph = net.done(loss=net.op("sum", net.input("x", N), dims=(0,), keepdim=False))
    assert differentiate(graph, {"w"}, "loss") == graph


def test_an_output_that_is_an_input_passes_its_seed_on(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    joint = differentiate(net.done(a=x, b=x), {"x"})
    found = evaluate(
        joint,
        {
            k: np.full(2, v)
            for k, v in (("x", np.float32(1)), ("grad:a", np.float32(3)), ("grad:b", np.float32(4)))
        },
    )
    np.testing.assert_array_equal(found["grad:x"], [7.0, 7.0])


def test_detach_stops_the_gradient_and_is_gone(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    graph = net.done(out=net.op("mul", x, net.op("detach", x)))
    joint = differentiate(graph, {"x"})
    assert "detach" not in [n.op for n in joint.nodes]
    values = {"x": np.float32([3.0]), "grad:out": np.float32([1.0])}
    assert evaluate(joint, values)["grad:x"] == 3.0


def test_casts_to_integers_stop_the_gradient(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    steps = net.op("cast", net.op("cast", x, dtype="i64"), dtype="f32")
    joint = differentiate(net.done(out=net.op("add", steps, x)), {"x"})
    values = {"x": np.float32([3.5]), "grad:out": np.float32([2.0])}
    assert evaluate(joint, values)["grad:x"] == 2.0


def test_a_missing_rule_is_an_error_that_names_the_node(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    body = Graph("elementwise")
    body.outputs["0"] = body.add("exp", body.add("input", path="0", type=net.graph.type(x)))
    graph = net.done(out=net.op("fused", x, kind="elementwise", body=body, module="head"))
    with pytest.raises(UnsupportedError, match=r"%fused = fused has no gradient rule \[head"):
        differentiate(graph, {"x"})


@pytest.mark.parametrize("name", ["out", "missing"])
def test_the_loss_must_be_a_scalar_output(new_net: Any, name: str) -> None:
    net = new_net()
    graph = net.done(out=net.op("neg", net.input("x", N)))
    with pytest.raises(UnsupportedError, match=r"scalar|no output 'missing'"):
        differentiate(graph, {"x"}, name)


def test_gradients_carry_the_source_of_the_layer(new_net: Any) -> None:
    graph = mlp(new_net())
    joint = differentiate(graph, {"fc1_weight"})
    node = joint.node(joint.outputs[GRAD + "fc1_weight"])
    assert node.op == "linear_grad_weight" and node.source.module == "fc1"
