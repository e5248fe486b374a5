"""fold_constants."""

from typing import Any

import numpy as np
import pytest

from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float64, int64
from netwright.passes import fold_constants as module
from netwright.passes.fold_constants import fold_constants
from netwright.passes.rewriting import Ledger

N = Dim(1)


def test_a_constant_expression_becomes_a_constant_of_the_same_name(new_net: Any) -> None:
    net = new_net()
    half = net.op("reciprocal", net.constant(2.0))
    graph = net.done(out=net.op("mul", net.input("x", N), half))
    ledger = Ledger()
    after = fold_constants(graph, ledger)
    node = after.node(half)
    assert node.op == "constant" and node.attrs["value"] == 0.5
    assert node.source == graph.node(half).source
    assert [e.code for e in ledger.entries] == ["D301"]


@pytest.mark.parametrize("dtype", [float64, int64])
def test_the_dtype_stays(new_net: Any, dtype: Any, assert_same: Any) -> None:
    net = new_net(dtype)
    value = net.op("add", net.constant([1, 2]), net.constant(3))
    graph = net.done(out=net.op("mul", value, net.input("x", N, 2)))
    after = fold_constants(graph)
    assert after.node(value).type == graph.type(value)
    assert_same(graph, after, 0.0)


def test_operators_of_several_results_fold(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    y, mean, rstd = net.op("layer_norm", net.constant([[1.0, 2.0], [3.0, 5.0]]), ndim=1, eps=1e-5)
    graph = net.done(y=y, mean=mean, rstd=rstd)
    after = fold_constants(graph)
    assert {n.op for n in after.nodes} == {"constant"}
    assert_same(graph, after)


def test_nan_and_infinity_fold_without_a_warning(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("log", net.constant([-1.0, 0.0])))
    value = fold_constants(graph).sources("constant")[-1].attrs["value"]
    assert np.isnan(value[0]) and value[1] == -np.inf


def test_an_extent_without_the_batch_is_a_constant(new_net: Any) -> None:
    net = new_net()
    graph = net.done(
        fixed=net.graph.add("extent", size=6, dtype="f32"),
        batch=net.graph.add("extent", size=N, dtype="f32"),
    )
    after = fold_constants(graph)
    assert [n.op for n in after.nodes] == ["extent", "constant"] or [n.op for n in after.nodes] == [
        "constant",
        "extent",
    ]
    assert evaluate(after, {}, 7) == {"fixed": 6.0, "batch": 7.0}


def test_what_depends_on_the_batch_stays(new_net: Any) -> None:
    net = new_net()
    wide = net.op("broadcast_to", net.constant([1.0, 2.0]), shape=(N, 2))
    graph = net.done(out=net.op("sum", wide, dims=(0,), keepdim=False))
    assert fold_constants(graph) == graph


def test_a_broadcast_stays(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("broadcast_to", net.constant(1.0), shape=(8,)))
    assert fold_constants(graph) == graph


def test_results_that_grow_stay(new_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = new_net()
    column, row = net.constant(np.ones((8, 1))), net.constant(np.ones((1, 8)))
    graph = net.done(out=net.op("add", column, row))
    assert len(fold_constants(graph).nodes) == 3
    assert fold_constants(graph).node(graph.outputs["out"]).op == "constant"
    monkeypatch.setattr(module, "MAX_GROWTH", 4)
    assert fold_constants(graph) == graph


def test_large_results_stay(new_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ELEMENTS", 4)
    net = new_net()
    graph = net.done(out=net.op("exp", net.constant(np.ones(8))))
    assert fold_constants(graph) == graph


def test_a_bad_index_fails_when_the_program_runs(new_net: Any) -> None:
    net = new_net()
    idx, table = net.constant([5], int64), net.constant([[1.0], [2.0]])
    graph = net.done(out=net.op("embedding", idx, table, padding_idx=None))
    after = fold_constants(graph)
    with pytest.raises(IndexError):
        evaluate(after, {})


def test_state_and_inputs_are_no_constants(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("neg", net.parameter("w", 2)), inp=net.op("neg", net.input("x", 2)))
    assert fold_constants(graph) == graph
