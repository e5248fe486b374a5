"""absorb_flatten."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.ir.graph import Graph, Value
from netwright.ir.types import Dim, float64
from netwright.passes.absorb_flatten import MOST_FEATURES, absorb_flatten
from netwright.passes.plan_memory import plan_memory
from netwright.passes.rewriting import Ledger

N = Dim(1)


def flattened(net: Any) -> tuple[Value, Value]:
    """The permuted and the flattened image."""
    image = net.op("exp", net.input("x", N, 3, 4, 5))
    permuted = net.op("permute", image, dims=(0, 3, 1, 2))
    return permuted, net.op("reshape", permuted, shape=(N, 60))


def test_the_weight_takes_the_order_of_the_image(new_net: Any, ops: Any, assert_same: Any) -> None:
    net = new_net(float64)
    graph = net.done(out=net.linear(flattened(net)[1], 7, "head"))
    ledger = Ledger()
    after = absorb_flatten(graph, ledger)
    assert [e.code for e in ledger.entries] == ["Y301"]
    assert_same(graph, after, 1e-12)
    plan = plan_memory(after, hoist=True)
    assert [s.node.op for s in plan.steps if s.node] == ["exp", "linear"]
    assert [s.node.op for s in plan.prepare if s.node] == ["permute"]


def test_any_permutation_that_leaves_the_samples(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    turned = net.op("permute", net.input("x", N, 3, 4), dims=(0, 2, 1))
    graph = net.done(out=net.linear(net.op("reshape", turned, shape=(N, 12)), 2, "head"))
    after = absorb_flatten(graph)
    assert_same(graph, after, 1e-12)
    assert "permute" not in [s.node.op for s in plan_memory(after, hoist=True).steps if s.node]


def unchanged(graph: Graph) -> bool:
    ledger = Ledger()
    return absorb_flatten(graph, ledger) == graph and not ledger.entries


def test_not_if_something_else_reads_the_image(new_net: Any) -> None:
    net = new_net()
    permuted, flat = flattened(net)
    assert unchanged(net.done(out=net.linear(flat, 7, "head"), other=net.op("neg", permuted)))


def test_not_if_something_else_reads_the_flattened_image(new_net: Any) -> None:
    net = new_net()
    _, flat = flattened(net)
    assert unchanged(net.done(out=net.linear(flat, 7, "head"), other=net.op("neg", flat)))


@pytest.mark.parametrize("which", [0, 1])
def test_not_if_it_is_a_result(new_net: Any, which: int) -> None:
    net = new_net()
    values = flattened(net)
    assert unchanged(net.done(out=net.linear(values[1], 7, "head"), kept=values[which]))


def test_not_if_the_weight_is_an_input(new_net: Any) -> None:
    net = new_net()
    _, flat = flattened(net)
    assert unchanged(net.done(out=net.op("linear", flat, net.input("w", 7, 60))))


def test_not_if_the_graph_updates_the_weight(new_net: Any) -> None:
    net = new_net()
    _, flat = flattened(net)
    w = net.parameter("w", 7, 60)
    graph = net.done(out=net.op("linear", flat, w))
    graph.updates["w"] = graph.add("neg", w)
    assert unchanged(graph)


def test_not_if_the_layer_is_wide(new_net: Any) -> None:
    net = new_net()
    assert unchanged(net.done(out=net.linear(flattened(net)[1], MOST_FEATURES + 1, "head")))


def test_not_if_samples_are_mixed(new_net: Any) -> None:
    net = new_net()
    turned = net.op("permute", net.input("x", 3, 4, 5), dims=(1, 0, 2))
    assert unchanged(net.done(out=net.linear(net.op("reshape", turned, shape=(4, 15)), 2, "head")))


def test_compiled_models_follow_their_weights_and_train_as_before() -> None:
    """The permuted weight is made again after an update; training leaves the image as it is."""
    nw.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    fast = nw.compile(model)
    x = nw.randn(3, 1, 8, 8)
    for _ in range(2):
        model.eval()
        with nw.no_grad():
            found, expected = fast(x).numpy(), model(x).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        model.train()
        fast(x).sum().backward()
        with nw.no_grad():
            for p in model.parameters():
                p.sub_(p.grad * 0.1)
    moved = {
        mode: [n.name for n in fast.graph(mode=mode).nodes if n.op == "permute"]
        for mode in ("eval", "train")
    }
    assert [name.endswith("_order") for name in moved["eval"]] == [True]
    assert not any(name.endswith("_order") for name in moved["train"])
