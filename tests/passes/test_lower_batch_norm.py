"""lower_batch_norm."""

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn
from netwright.ir.graph import Graph
from netwright.ir.types import Dim, float64
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.lower_batch_norm import lower_batch_norm
from netwright.passes.plan_memory import plan_memory
from netwright.passes.rewriting import Ledger

N = Dim(1)


@pytest.mark.parametrize(("shape", "dim"), [((N, 6), 1), ((N, 4, 5, 6), 3), ((N, 6, 4, 5), 1)])
def test_it_becomes_one_loop_with_what_follows(
    new_net: Any, ops: Any, assert_same: Any, shape: Any, dim: int
) -> None:
    net = new_net(float64)
    graph = net.done(out=net.op("relu", net.batch_norm(net.input("x", *shape), "bn", dim)))
    ledger = Ledger()
    after = lower_batch_norm(graph, ledger)
    assert [e.code for e in ledger.entries] == ["N101"]
    assert_same(graph, after, 1e-12)
    steps = plan_memory(fuse_elementwise(after), hoist=True).steps
    assert [s.node.op for s in steps if s.node] == ["fused"]
    body = steps[0].node.attrs["body"]  # type: ignore[union-attr]
    assert [n.op for n in body.nodes if n.op != "input"] == ["sub", "mul", "add", "relu"]


def unchanged(graph: Graph) -> bool:
    ledger = Ledger()
    return lower_batch_norm(graph, ledger) == graph and not ledger.entries


def test_not_in_training_mode(new_net: Any) -> None:
    net = new_net()
    assert unchanged(net.done(out=net.batch_norm(net.input("x", N, 6), "bn", train=True)))


def test_not_where_a_statistic_is_computed_from_the_input(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 6)
    weight, bias, var = (net.parameter(name, 6) for name in ("w", "b", "v"))
    mean = net.op("mean", x, dims=(0,), keepdim=False)
    attrs = {"channel_dim": 1, "eps": 1e-5}
    assert unchanged(net.done(out=net.op("batch_norm", x, weight, bias, mean, var, **attrs)))


def test_not_where_the_graph_updates_a_parameter(new_net: Any) -> None:
    net = new_net()
    normalised = net.batch_norm(net.input("x", N, 6), "bn")
    gamma = net.graph.node(normalised).operands[1]
    graph = net.done(out=normalised)
    graph.updates[graph.node(gamma).attrs["path"]] = graph.add("neg", gamma)
    assert unchanged(graph)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """As in the operator, the mean is subtracted before anything is scaled."""
    norm = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()).eval()
    rng = np.random.default_rng(0)
    with nw.no_grad():
        norm[0].running_mean.copy_(nw.tensor(np.full(8, 5e4, np.float32)))
        norm[0].running_var.copy_(nw.tensor(np.full(8, 1e-2, np.float32)))
    x = (5e4 + rng.standard_normal((64, 8))).astype(np.float32)
    with nw.no_grad():
        found = nw.compile(norm)(x).numpy()
    root = np.sqrt(np.float64(np.float32(1e-2)) + 1e-5)
    exact = np.maximum((x.astype(np.float64) - 5e4) / root, 0)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)
