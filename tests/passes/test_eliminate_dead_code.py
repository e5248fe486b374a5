"""eliminate_dead_code."""

from typing import Any

from netwright.ir.types import Dim
from netwright.passes.eliminate_dead_code import eliminate_dead_code
from netwright.passes.rewriting import Ledger

N = Dim(1)


def test_whole_chains_vanish_with_their_state(new_net: Any, ops: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    net.op("exp", net.linear(x, 3, "unused"))
    graph = net.done(out=net.op("relu", x))
    ledger = Ledger()
    after = eliminate_dead_code(graph, ledger)
    assert ops(after) == ["relu"]
    assert not after.sources("parameter")
    assert [e.node for e in ledger.entries] == ["exp", "linear"]
    assert {e.code for e in ledger.entries} == {"D101"}


def test_inputs_are_the_signature_and_stay(new_net: Any) -> None:
    net = new_net()
    x, y = net.input("x", N), net.input("y", N)
    after = eliminate_dead_code(net.done(out=net.op("neg", x)))
    assert y.node in after


def test_what_an_update_needs_stays(new_net: Any, ops: Any) -> None:
    net = new_net()
    x, state = net.input("x", 4), net.buffer("total", 4)
    net.graph.updates["total"] = net.op("add", state, x)
    graph = net.done(out=net.op("neg", x))
    assert eliminate_dead_code(graph) == graph


def test_one_used_result_keeps_the_node(new_net: Any) -> None:
    net = new_net()
    results = net.op("layer_norm", net.input("x", N, 4), ndim=1, eps=1e-5)
    graph = net.done(rstd=results[2])
    assert eliminate_dead_code(graph) == graph


def test_a_source_that_is_a_result_stays(new_net: Any) -> None:
    net = new_net()
    graph = net.done(w=net.parameter("w", 2), c=net.constant(1.0))
    assert eliminate_dead_code(graph) == graph
