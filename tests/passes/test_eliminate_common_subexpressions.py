"""eliminate_common_subexpressions."""

from typing import Any

import numpy as np

from netwright.ir.graph import Graph
from netwright.ir.types import Dim, int64
from netwright.passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from netwright.passes.rewriting import Ledger

N = Dim(1)


def test_equal_expressions_are_computed_once(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    chains = [net.op("neg", net.op("exp", x)) for _ in range(3)]
    graph = net.done(out=net.op("mul", net.op("add", *chains[:2]), chains[2]))
    ledger = Ledger()
    after = eliminate_common_subexpressions(graph, ledger)
    assert ops(after) == ["exp", "neg", "add", "mul"]
    assert [e.code for e in ledger.entries] == ["D201"] * 4
    assert_same(graph, after, 0.0)


def test_all_results_of_a_node_are_shared(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    first = net.op("layer_norm", x, ndim=1, eps=1e-5)
    second = net.op("layer_norm", x, ndim=1, eps=1e-5)
    graph = net.done(a=first[0], b=second[1], c=second[2])
    after = eliminate_common_subexpressions(graph)
    assert ops(after) == ["layer_norm"]
    assert_same(graph, after, 0.0)


def test_equal_random_draws_are_equal_values(new_net: Any, ops: Any) -> None:
    net = new_net()
    key = net.input("rng", 2, dtype=int64)
    draws = [net.op("uniform", key, shape=(N, 4), stream=s) for s in (0, 0, 1)]
    after = eliminate_common_subexpressions(net.done(a=draws[0], b=draws[1], c=draws[2]))
    assert ops(after) == ["uniform", "uniform"]
    assert after.outputs["a"] == after.outputs["b"] != after.outputs["c"]


def test_other_attributes_are_other_values(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    graph = net.done(
        a=net.op("leaky_relu", x, slope=0.1),
        b=net.op("leaky_relu", x, slope=0.2),
        c=net.op("sum", x, dims=(0,), keepdim=False),
        d=net.op("sum", x, dims=(0,), keepdim=True),
    )
    assert eliminate_common_subexpressions(graph) == graph


def test_the_signs_of_zero_and_dtypes_of_constants_differ(new_net: Any) -> None:
    net = new_net()
    values = [np.float32(0.0), np.float32(-0.0), np.float64(0.0), np.int64(0), np.float32(0.0)]
    made = [net.graph.add("constant", value=np.array(v)) for v in values]
    graph = net.done(**{f"o{i}": v for i, v in enumerate(made)})
    after = eliminate_common_subexpressions(graph)
    assert len(after) == 4
    assert after.outputs["o0"] == after.outputs["o4"]


def test_the_order_of_operands_counts(new_net: Any) -> None:
    net = new_net()
    x, y = net.input("x", N), net.input("y", N)
    graph = net.done(a=net.op("sub", x, y), b=net.op("sub", y, x))
    assert eliminate_common_subexpressions(graph) == graph


def test_inputs_and_state_are_kept(new_net: Any) -> None:
    net = new_net()
    net.done(a=net.input("x", 2), b=net.input("y", 2), c=net.parameter("w", 2))
    assert eliminate_common_subexpressions(net.graph) == net.graph


def test_regions_are_kept(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    body = Graph("elementwise")
    body.outputs["0"] = body.add("exp", body.add("input", path="0", type=net.graph.type(x)))
    regions = [net.op("fused", x, kind="elementwise", body=body) for _ in range(2)]
    graph = net.done(a=regions[0], b=regions[1])
    assert eliminate_common_subexpressions(graph) == graph
