"""simplify: every rule fires, is exact on special values, and stays away where it would not be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, bool_, float32, float64, int64
from netwright.passes.rewriting import Ledger
from netwright.passes.simplify import simplify

N = Dim(1)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.0, 1e-45], np.float32)


@pytest.mark.parametrize(
    ("op", "number", "swap"),
    [("mul", 1.0, False), ("mul", 1.0, True), ("div", 1.0, False), ("add", -0.0, False),
     ("add", -0.0, True), ("sub", 0.0, False), ("pow", 1.0, False)],
)  # fmt: skip
def test_identity_elements_vanish_bitwise(new_net: Any, op: str, number: float, swap: bool) -> None:
    net = new_net()
    x = net.input("x", 8)
    operands = [x, net.constant(number)]
    graph = net.done(out=net.op(op, *(operands[::-1] if swap else operands)))
    after = simplify(graph)
    assert after.outputs["out"] == x
    with np.errstate(all="ignore"):
        old, new = (evaluate(g, {"x": SPECIAL})["out"] for g in (graph, after))
    np.testing.assert_array_equal(old.view(np.int32), new.view(np.int32))


@pytest.mark.parametrize(
    ("op", "number", "swap"),
    [("add", 0.0, False), ("sub", -0.0, False), ("mul", 0.0, False), ("sub", 0.0, True),
     ("div", 1.0, True), ("pow", 1.0, True), ("pow", 0.0, False)],
)  # fmt: skip
def test_what_would_change_special_values_stays(
    new_net: Any, op: str, number: float, swap: bool
) -> None:
    net = new_net()
    operands = [net.input("x", 8), net.constant(number)]
    graph = net.done(out=net.op(op, *(operands[::-1] if swap else operands)))
    assert simplify(graph) == graph


def test_x_minus_x_stays_because_of_nan(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", 8)
    graph = net.done(out=net.op("sub", x, x))
    assert simplify(graph) == graph


def test_integers_have_one_zero(new_net: Any) -> None:
    net = new_net(int64)
    x = net.input("x", 3)
    graph = net.done(out=net.op("add", net.op("sub", x, net.constant(0)), net.constant(0)))
    assert simplify(graph).outputs["out"] == x


def test_an_identity_that_broadcasts_stays(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("mul", net.input("x", 3), net.constant([[1.0], [1.0]])))
    assert simplify(graph) == graph
    net = new_net()
    graph = net.done(out=net.op("mul", net.input("x", 3), net.constant([[1.0]])))
    assert simplify(graph) == graph, "the result has one more dimension"


def test_a_square_is_not_a_power(new_net: Any, assert_same: Any) -> None:
    net = new_net(float64)
    graph = net.done(out=net.op("pow", net.input("x", N, 4), net.constant(2.0)))
    after = simplify(graph)
    assert after.node(after.outputs["out"]).op == "square"
    assert_same(graph, after, 1e-15)


@pytest.mark.parametrize(("op", "left"), [("neg", 0), ("relu", 1), ("abs", 1)])
def test_repeated_operators(new_net: Any, assert_same: Any, op: str, left: int) -> None:
    net = new_net()
    graph = net.done(out=net.op(op, net.op(op, net.input("x", N, 4))))
    after = simplify(graph)
    assert len(after) == 1 + left
    assert_same(graph, after, 0.0)


def test_casts_to_the_own_dtype_vanish_and_others_stay(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N)
    same, other = net.op("cast", x, dtype="f32"), net.op("cast", x, dtype="i64")
    back = net.op("cast", other, dtype="f32")
    after = simplify(net.done(same=same, back=back))
    assert after.outputs["same"] == x
    assert after.node(after.outputs["back"]).op == "cast"


def test_reshapes_and_permutes_compose(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net()
    x = net.input("x", N, 2, 6)
    flat = net.op("reshape", net.op("reshape", x, shape=(N, 12)), shape=(N, 3, 4))
    there = net.op("permute", x, dims=(2, 0, 1))
    back = net.op("permute", there, dims=(1, 2, 0))
    twice = net.op("permute", there, dims=(2, 1, 0))
    graph = net.done(flat=flat, back=back, twice=twice)
    after = simplify(graph)
    assert after.outputs["back"] == x
    assert sorted(ops(after)) == ["permute", "reshape"]
    assert after.node(after.outputs["twice"]).attrs["dims"] == (1, 0, 2)
    assert_same(graph, after, 0.0)


def test_a_permute_of_single_extents_is_a_reshape(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("permute", net.input("x", N, 1, 4, 5), dims=(0, 2, 3, 1)))
    after = simplify(graph)
    assert ops(after) == ["reshape"]
    assert_same(graph, after, 0.0)


def test_a_permute_of_the_batch_is_no_reshape(new_net: Any, ops: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("permute", net.input("x", N, 4), dims=(1, 0)))
    assert ops(simplify(graph)) == ["permute"]


@pytest.mark.parametrize("op", ["sum", "mean", "amax", "amin"])
def test_reductions_over_one_element_only_reshape(
    new_net: Any, assert_same: Any, ops: Any, op: str
) -> None:
    net = new_net()
    x = net.input("x", N, 1, 4)
    graph = net.done(
        dropped=net.op(op, x, dims=(1,), keepdim=False),
        kept=net.op(op, x, dims=(1,), keepdim=True),
        none=net.op(op, x, dims=(), keepdim=False),
        real=net.op(op, x, dims=(0, 1), keepdim=False),
    )
    after = simplify(graph)
    assert ops(after) == ["reshape", op]
    assert after.outputs["kept"] == after.outputs["none"] == x
    assert_same(graph, after, 0.0)


def test_quantifiers_over_one_element_only_reshape(new_net: Any, ops: Any) -> None:
    net = new_net()
    x = net.input("x", N, 1, dtype=bool_)
    assert ops(simplify(net.done(out=net.op("all", x, dims=(1,), keepdim=False)))) == ["reshape"]


def test_moving_nothing_vanishes(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    graph = net.done(
        cut=net.op("slice", x, dim=1, start=0, stop=4, step=1),
        padded=net.op("pad", x, low=(0, 0), high=(0, 0), value=1.0),
        joined=net.op("cat", x, dim=1),
        same=net.op("reshape", x, shape=(N, 4)),
        order=net.op("permute", x, dims=(0, 1)),
        wide=net.op("broadcast_to", x, shape=(N, 4)),
    )
    assert set(simplify(graph).outputs.values()) == {x}


def test_moving_something_stays(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    graph = net.done(
        cut=net.op("slice", x, dim=1, start=1, stop=4, step=1),
        step=net.op("slice", x, dim=1, start=0, stop=4, step=2),
        padded=net.op("pad", x, low=(0, 1), high=(0, 0), value=1.0),
        joined=net.op("cat", x, x, dim=1),
    )
    assert simplify(graph) == graph


def test_a_broadcast_operand_is_read_unbroadcast(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net()
    x, b = net.input("x", N, 4), net.input("b", 4)
    wide = net.op("broadcast_to", net.op("broadcast_to", b, shape=(1, 4)), shape=(N, 4))
    graph = net.done(out=net.op("add", x, wide))
    after = simplify(graph)
    assert ops(after) == ["add"]
    assert_same(graph, after, 0.0)


def test_a_broadcast_that_shapes_the_result_stays(new_net: Any, assert_same: Any, ops: Any) -> None:
    net = new_net()
    a, b = net.input("a", 4), net.input("b", 4)
    wide = [net.op("broadcast_to", v, shape=(3, 4)) for v in (a, b)]
    graph = net.done(out=net.op("add", *wide), alone=net.op("exp", wide[0]))
    after = simplify(graph)
    assert ops(after).count("broadcast_to") >= 1
    assert_same(graph, after, 0.0)


def test_the_key_of_random_numbers_is_not_unbroadcast(new_net: Any, ops: Any) -> None:
    net = new_net()
    key = net.op("broadcast_to", net.input("rng", 1, dtype=int64), shape=(2,))
    graph = net.done(out=net.op("uniform", key, shape=(2,), stream=0))
    assert ops(simplify(graph)) == ["broadcast_to", "uniform"]


def test_a_long_chain_settles(new_net: Any) -> None:
    net = new_net()
    value = x = net.input("x", N, 2, 3)
    for _ in range(500):
        value = net.op("permute", net.op("neg", value), dims=(0, 2, 1))
        value = net.op("mul", net.op("permute", value, dims=(0, 2, 1)), net.constant(1.0))
    after = simplify(net.done(out=value))
    assert after.outputs["out"] == x


def test_a_rewritten_node_keeps_name_and_source(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 2, 6)
    inner = net.op("reshape", x, shape=(N, 12), module="flatten")
    outer = net.op("reshape", inner, shape=(N, 3, 4), module="unflatten")
    before = net.graph.node(outer)
    ledger = Ledger()
    after = simplify(net.done(out=outer), ledger)
    node = after.node(after.outputs["out"])
    assert (node.name, node.source) == (before.name, before.source)
    assert {e.code for e in ledger.entries} == {"D401"}
    assert "unflatten at model.py:2" in str(ledger.entries[0])


@pytest.mark.parametrize("dtype", [float32, float64, int64])
def test_rules_respect_the_dtype(new_net: Callable[..., Any], assert_same: Any, dtype: Any) -> None:
    net = new_net(dtype)
    x = net.input("x", N, 3)
    value = net.op("mul", net.op("neg", net.op("neg", x)), net.constant(1))
    graph = net.done(out=net.op("add", value, x))
    after = simplify(graph)
    assert len(after) == 2
    assert_same(graph, after, 0.0)
