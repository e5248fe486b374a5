"""eliminate_redundant_softmax: what is removed, what it changes, and what must stay."""

from typing import Any

import numpy as np
import pytest

from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, float64
from netwright.passes.eliminate_redundant_softmax import eliminate_redundant_softmax
from netwright.passes.rewriting import Ledger

N = Dim(1)


def codes(ledger: Ledger) -> list[str]:
    return [e.code for e in ledger.entries if e.done]


def test_softmax_before_cross_entropy_gives_the_loss_of_the_logits(new_net: Any, ops: Any) -> None:
    net = new_net(float64)
    logits, target = net.input("x", 1, 3), net.labels("target", 1)
    loss = net.cross_entropy(net.op("softmax", logits, dim=1, module="head"), target)
    ledger = Ledger()
    after = eliminate_redundant_softmax(net.done(out=loss), ledger)
    assert ops(after) == ["cross_entropy"]
    assert codes(ledger) == ["S001"] and ledger.changes_semantics
    values = {"x": np.array([[2.0, 1.0, 0.1]]), "target": np.array([0])}
    assert evaluate(net.graph, values)["out"] == pytest.approx(0.802, abs=1e-3)
    assert evaluate(after, values)["out"] == pytest.approx(0.417, abs=1e-3)


def test_the_entry_names_both_modules(new_net: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4), dim=1, module="head")
    ledger = Ledger()
    eliminate_redundant_softmax(net.done(out=net.cross_entropy(p, net.labels())), ledger)
    assert "head at model.py:1" in str(ledger.entries[0])
    assert "cross_entropy" in str(ledger.entries[0]) and "strict=True" in str(ledger.entries[0])


def test_log_softmax_before_cross_entropy_is_exact(
    new_net: Any, ops: Any, assert_same: Any
) -> None:
    net = new_net(float64)
    y = net.op("log_softmax", net.input("x", N, 4), dim=1)
    ledger = Ledger()
    graph = net.done(out=net.cross_entropy(y, net.labels()))
    after = eliminate_redundant_softmax(graph, ledger)
    assert ops(after) == ["cross_entropy"]
    assert codes(ledger) == ["S002"] and not ledger.changes_semantics
    assert_same(graph, after, 1e-14)


def test_a_repeated_log_softmax_is_exact(new_net: Any, ops: Any, assert_same: Any) -> None:
    net = new_net(float64)
    once = net.op("log_softmax", net.input("x", N, 4), dim=1)
    graph = net.done(out=net.op("log_softmax", once, dim=1))
    after = eliminate_redundant_softmax(graph)
    assert ops(after) == ["log_softmax"]
    assert_same(graph, after, 1e-14)


def test_log_of_softmax_is_exact_and_stable(new_net: Any, ops: Any, assert_same: Any) -> None:
    net = new_net(float64)
    x = net.input("x", N, 4)
    graph = net.done(out=net.op("log", net.op("softmax", x, dim=1), module="log"))
    ledger = Ledger()
    after = eliminate_redundant_softmax(graph, ledger)
    assert ops(after) == ["log_softmax"] and codes(ledger) == ["S003"]
    assert after.node(after.outputs["out"]).source.module == "log"
    assert_same(graph, after, 1e-13)
    assert np.isfinite(evaluate(after, {"x": np.array([[1000.0, 0, 0, 0]])})["out"]).all()


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_argmax_reads_the_logits(new_net: Any, ops: Any, assert_same: Any, op: str) -> None:
    net = new_net()
    p = net.op(op, net.input("x", N, 4), dim=1)
    graph = net.done(out=net.op("argmax", p, dim=1, keepdim=False))
    ledger = Ledger()
    after = eliminate_redundant_softmax(graph, ledger)
    assert ops(after) == ["argmax"] and codes(ledger) == ["S004"]
    assert_same(graph, after, 0.0)


def test_flatten_between_them_is_seen_through(new_net: Any, ops: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4, 1, 1), dim=1)
    graph = net.done(out=net.cross_entropy(net.flatten(p), net.labels()))
    after = eliminate_redundant_softmax(graph)
    assert ops(after) == ["reshape", "cross_entropy"]


def test_a_segmentation_loss_is_seen_through(new_net: Any, ops: Any) -> None:
    """(N, C, H, W) goes into the loss as (N, H, W, C) and then (NHW, C)."""
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4, 2, 3), dim=1)
    rows = net.op("reshape", net.op("permute", p, dims=(0, 2, 3, 1)), shape=(6 * N, 4))
    graph = net.done(out=net.cross_entropy(rows, net.labels("target", 6 * N)))
    after = eliminate_redundant_softmax(graph)
    assert ops(after) == ["permute", "reshape", "cross_entropy"]


def test_two_softmax_are_both_removed(new_net: Any, ops: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.op("softmax", net.input("x", N, 4), dim=1), dim=1)
    ledger = Ledger()
    after = eliminate_redundant_softmax(net.done(out=net.cross_entropy(p, net.labels())), ledger)
    assert ops(after) == ["cross_entropy"] and codes(ledger) == ["S001", "S001"]


def test_probabilities_that_are_a_result_stay_for_it(new_net: Any, ops: Any) -> None:
    net = new_net()
    logits = net.input("x", N, 4)
    p = net.op("softmax", logits, dim=1)
    graph = net.done(loss=net.cross_entropy(p, net.labels()), probabilities=p)
    after = eliminate_redundant_softmax(graph)
    assert ops(after) == ["softmax", "cross_entropy"]
    assert after.node("cross_entropy").operands[0] == logits


def test_probabilities_with_a_second_consumer_stay_for_it(new_net: Any, ops: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4), dim=1)
    graph = net.done(loss=net.cross_entropy(p, net.labels()), other=net.op("exp", p))
    assert ops(eliminate_redundant_softmax(graph)) == ["softmax", "cross_entropy", "exp"]


@pytest.mark.parametrize("user", ["cross_entropy", "argmax"])
def test_a_softmax_over_another_dimension_stays(new_net: Any, user: str) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4), dim=0)
    if user == "argmax":
        graph = net.done(out=net.op("argmax", p, dim=1, keepdim=False))
    else:
        graph = net.done(out=net.cross_entropy(p, net.labels()))
    assert eliminate_redundant_softmax(graph) == graph


def test_a_reshape_that_cuts_the_rows_stops_it(new_net: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 8), dim=1)
    rows = net.op("reshape", p, shape=(2 * N, 4))
    graph = net.done(out=net.cross_entropy(rows, net.labels("target", 2 * N)))
    assert eliminate_redundant_softmax(graph) == graph


def test_a_changed_value_in_between_stops_it(new_net: Any) -> None:
    net = new_net()
    p = net.op("mul", net.op("softmax", net.input("x", N, 4), dim=1), net.constant(2.0))
    graph = net.done(out=net.cross_entropy(p, net.labels()))
    assert eliminate_redundant_softmax(graph) == graph


def test_a_smallest_probability_is_left_alone(new_net: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4), dim=1)
    graph = net.done(out=net.op("argmin", p, dim=1, keepdim=False))
    assert eliminate_redundant_softmax(graph) == graph


def test_log_softmax_of_probabilities_is_left_as_written(new_net: Any) -> None:
    net = new_net()
    p = net.op("softmax", net.input("x", N, 4), dim=1)
    graph = net.done(out=net.op("log_softmax", p, dim=1))
    assert eliminate_redundant_softmax(graph) == graph
