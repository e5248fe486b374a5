"""build_regions: bodies, order, and the refusal of cycles."""

from typing import Any

import pytest

from netwright.errors import NetwrightError
from netwright.ir.types import Dim
from netwright.passes.region import Group, build_regions

N = Dim(1)


def test_a_user_of_an_early_member_comes_after_the_region(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    a = net.op("exp", x)
    outside = net.op("softmax", a, dim=1)
    late = net.op("relu", net.input("y", N, 4))
    b = net.op("add", a, late)
    graph = net.done(out=net.op("mul", outside, b), outside=outside)
    after = build_regions(graph, [Group((a.node, b.node), "elementwise", b.node)])
    assert [n.op for n in after.nodes] == ["input", "input", "relu", "fused", "softmax", "mul"]
    assert_same(graph, after, 0.0)


def test_a_region_that_would_depend_on_itself_is_refused(new_net: Any) -> None:
    net = new_net()
    a = net.op("exp", net.input("x", N, 4))
    b = net.op("add", a, net.op("softmax", a, dim=1))
    net.done(out=b)
    with pytest.raises(NetwrightError, match="would depend on itself"):
        build_regions(net.graph, [Group((a.node, b.node), "elementwise", b.node)])


def test_two_regions_that_depend_on_each_other_are_refused(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    a, b = net.op("exp", x), net.op("neg", x)
    c, d = net.op("softmax", b, dim=1), net.op("softmax", a, dim=1)
    net.done(c=c, d=d)
    groups = [Group((a.node, c.node), "k", a.node), Group((b.node, d.node), "k", b.node)]
    with pytest.raises(NetwrightError, match="depend on itself"):
        build_regions(net.graph, groups)


def test_an_operand_used_twice_is_one_input(new_net: Any, assert_same: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    a = net.op("mul", x, x)
    b = net.op("sub", x, a)
    after = build_regions(net.done(out=b), [Group((a.node, b.node), "elementwise", b.node)])
    assert after.node(b.node).operands == (x,)
    assert_same(net.graph, after, 0.0)


def test_results_of_a_node_with_several_results_escape_one_by_one(
    new_net: Any, assert_same: Any
) -> None:
    net = new_net()
    y, mean, rstd = net.op("layer_norm", net.input("x", N, 4), ndim=1, eps=1e-5)
    z = net.op("relu", y)
    graph = net.done(out=z, rstd=rstd)
    after = build_regions(graph, [Group((y.node, z.node), "mixed", z.node)])
    assert len(after.node(z.node).types) == 2
    assert mean.node not in after
    assert_same(graph, after, 0.0)


def test_an_unused_region_vanishes(new_net: Any) -> None:
    net = new_net()
    x = net.input("x", N, 4)
    a = net.op("exp", x)
    b = net.op("neg", a)
    after = build_regions(net.done(out=x), [Group((a.node, b.node), "elementwise", b.node)])
    assert [n.op for n in after.nodes] == ["input"]


def test_no_groups_change_nothing(new_net: Any) -> None:
    net = new_net()
    graph = net.done(out=net.op("exp", net.input("x", N)))
    assert build_regions(graph, []) is graph
