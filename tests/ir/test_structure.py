"""Keys of computations: equal up to names, different in everything that has a meaning."""

from dataclasses import replace

import numpy as np
import pytest

from netwright.ir.graph import Attrs, Graph, Node
from netwright.ir.parser import parse
from netwright.ir.structure import attrs_key, graph_key, isolated, node_key
from netwright.ir.verify import verify


def _program(**text: str) -> Graph:
    """A graph with a fused node; the words given take the place of the usual ones."""
    words = {"x": "x", "v": "v", "half": "0.5", "kind": "f32[N,4]", "op": "add", "last": "%h"}
    words |= text
    w = words
    return parse(
        f"""graph g {{
          %{w["x"]}: {w["kind"]} = input {{path="{w["x"]}"}}
          %h: f32[] = constant {{value={w["half"]}}}
          %y: {w["kind"]} = fused(%{w["x"]}, {w["last"]}) {{kind="elementwise", body=graph b {{
            %{w["v"]}: {w["kind"]} = input {{path="0"}}
            %b: f32[] = input {{path="1"}}
            %c: {w["kind"]} = {w["op"]}(%{w["v"]}, %b)
            output "0" = %c
          }}}}
          output "out" = %y
        }}"""
    )


def _fused(graph: Graph) -> tuple[Node, Graph]:
    return graph.node("y"), graph


BASE = node_key(*_fused(_program()))


def test_names_do_not_count() -> None:
    assert node_key(*_fused(_program(x="features_0", v="w"))) == BASE


@pytest.mark.parametrize(
    "change", [{"half": "0.25"}, {"kind": "f32[N,5]"}, {"kind": "f32[4,4]"}, {"op": "mul"}]
)
def test_constants_types_and_bodies_count(change: dict[str, str]) -> None:
    assert node_key(*_fused(_program(**change))) != BASE


def test_it_counts_which_operands_are_the_same_value() -> None:
    graph = parse(
        """graph g { %x: f32[4] = input {path="x"} %y: f32[4] = input {path="y"}
        %a: f32[4] = add(%x, %x) %b: f32[4] = add(%x, %y) %c: f32[4] = add(%y, %x) }"""
    )
    a, b, c = (node_key(graph.node(n), graph) for n in "abc")
    assert a != b and b == c


@pytest.mark.parametrize(
    ("a", "b"),
    [(0.0, -0.0), (1, True), (1, 1.0), ((1,), (1.0,)), ("1", 1), (np.zeros(2), np.zeros((1, 2))),
     (np.zeros(2, np.float32), np.zeros(2, np.int32))],
)  # fmt: skip
def test_attributes_that_differ_have_different_keys(a: object, b: object) -> None:
    assert attrs_key({"k": a}) != attrs_key({"k": b})
    assert attrs_key({"k": a}) == attrs_key({"k": a})


def test_nan_has_the_key_of_nan_and_the_order_of_attributes_does_not_count() -> None:
    assert attrs_key({"a": float("nan"), "b": 1}) == attrs_key({"b": 1, "a": float("nan")})


def test_a_graphs_results_and_its_own_name_count() -> None:
    graph, other = _program(), _program()
    assert graph_key(graph) == graph_key(other) and hash(graph_key(graph)) == hash(graph_key(other))
    other.outputs["second"] = other.outputs["out"]
    assert graph_key(graph) != graph_key(other)
    other = _program()
    other.name = "h"
    assert graph_key(graph) != graph_key(other)


def test_the_isolated_node_has_the_key_of_the_original_and_nothing_of_its_surroundings() -> None:
    graph = _program(x="features_0", v="w")
    node, alone = isolated(*_fused(graph))
    verify(alone)
    assert node_key(node, alone) == BASE
    assert [n.op for n in alone.nodes] == ["input", "constant", "fused"]
    assert "features" not in str(alone) and "%w" not in str(alone) and not alone.outputs
    same, _ = isolated(*_fused(_program()))
    assert node == same
    body = replace(graph.node("y"), attrs=Attrs({"kind": "elementwise"}))
    assert node_key(body, graph) != BASE
