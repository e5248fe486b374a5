"""The graph: the four verbs, order, equality, copies."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from netwright.errors import DTypeError, NetwrightError, ShapeError, UnsupportedError, VerifyError
from netwright.ir.graph import Attrs, Graph, Node, Source, Value
from netwright.ir.parser import parse
from netwright.ir.types import Dim, TensorType, float32, float64

KIND = TensorType(float32, (Dim(1), 4))


def _chain() -> Graph:
    """x -> a -> b -> out, where c uses a as well."""
    return parse(
        """graph g {
          %x: f32[N,4] = input {path="x"}
          %a: f32[N,4] = relu(%x)
          %b: f32[N,4] = neg(%a)
          %c: f32[N,4] = add(%a, %a)
          output "out" = %b
        }"""
    )


# -- add --------------------------------------------------------------------------------------


def test_add_returns_a_value_or_a_tuple_for_several_results() -> None:
    graph = Graph()
    x = graph.add("input", path="x", type=KIND)
    assert x == Value("input")
    results = graph.add("layer_norm", x, name="n", ndim=1, eps=1e-5)
    assert results == (Value("n"), Value("n", 1), Value("n", 2))
    assert str(results[0]) == "%n" and str(results[2]) == "%n#2"
    assert graph.type(results[1]) == TensorType(float32, (Dim(1),))


def test_names_are_made_unique_and_valid() -> None:
    graph = Graph()
    x = graph.add("input", name="x", path="x", type=KIND)
    names = [graph.add("relu", x, name=n).node for n in ("x", "x", "features.0", "0", None, None)]
    assert names == ["x_1", "x_2", "features_0", "_0", "relu", "relu_1"]


def test_a_free_name_is_found_beside_parsed_names() -> None:
    graph = parse('graph g { %relu: f32[4] = input {path="x"} %relu_1: f32[4] = relu(%relu) }')
    assert graph.add("relu", Value("relu")) == Value("relu_2")


def test_operands_of_another_graph_are_refused() -> None:
    with pytest.raises(NetwrightError, match="relu: operand %x is not a value of this graph"):
        Graph().add("relu", Value("x"))


def test_a_shape_error_names_the_users_line_and_keeps_its_class() -> None:
    graph = Graph()
    x = graph.add("input", path="x", type=KIND)
    y = graph.add("input", path="y", type=TensorType(float32, (3,)))
    d = graph.add("input", path="d", type=TensorType(float64, (4,)))
    source = Source("head", "model.py", 7)
    with pytest.raises(ShapeError, match=r"broadcast.*\(head at model.py:7\)"):
        graph.add("add", x, y, source=source)
    with pytest.raises(DTypeError, match=r"\(head at model.py:7\)"):
        graph.add("add", x, d, source=source)
    assert len(graph) == 3


def test_an_unknown_operator_is_an_error_with_the_list() -> None:
    with pytest.raises(UnsupportedError, match="no operator named 'rely'; the IR has:"):
        Graph().add("rely")


def test_an_operand_that_is_used_twice_stays_two_operands() -> None:
    graph = _chain()
    assert graph.node("c").operands == (Value("a"), Value("a"))
    assert graph.use_count(Value("a")) == 3
    assert [u.name for u in graph.users(Value("a"))] == ["b", "c"]


def test_the_order_of_operands_is_kept() -> None:
    graph = Graph()
    a, b = (graph.add("input", name=n, path=n, type=KIND) for n in "ab")
    assert graph.node(graph.add("sub", b, a)).operands == (b, a)
    graph.add("neg", a, name="later")
    assert graph.node("sub").operands == (b, a)


# -- replace_uses, erase, users ---------------------------------------------------------------


def test_replace_uses_changes_every_user_and_the_results() -> None:
    graph = _chain()
    graph.updates["state"] = Value("a")
    new = graph.add("abs", Value("x"), name="new")
    graph.replace_uses(Value("a"), new)
    assert graph.node("b").operands == (new,)
    assert graph.node("c").operands == (new, new)
    assert graph.updates == {"state": new}
    assert not graph.users("a") and [u.name for u in graph.users("new")] == ["b", "c"]


def test_replace_uses_keeps_the_order_topological() -> None:
    graph = _chain()
    new = graph.add("abs", Value("x"), name="new")
    graph.replace_uses(Value("a"), new)
    names = [n.name for n in graph.nodes]
    assert names.index("new") < names.index("b") and names[:2] == ["x", "a"]


def test_a_replacement_may_use_what_it_replaces() -> None:
    graph = _chain()
    wrapped = graph.add("tanh", Value("a"), name="wrapped")
    graph.replace_uses(Value("a"), wrapped)
    assert graph.node("wrapped").operands == (Value("a"),)
    assert graph.node("b").operands == (wrapped,)


def test_replace_uses_refuses_another_type() -> None:
    graph = _chain()
    other = graph.add("sum", Value("x"), dims=(1,), keepdim=False)
    with pytest.raises(VerifyError, match=r"cannot replace %a: f32\[N,4\] by %sum: f32\[N\]"):
        graph.replace_uses(Value("a"), other)


def test_replacing_one_result_leaves_the_others() -> None:
    graph = Graph()
    x = graph.add("input", path="x", type=KIND)
    _, mean, rstd = graph.add("layer_norm", x, ndim=1, eps=1e-5)
    difference = graph.add("sub", mean, rstd)
    new = graph.add("neg", rstd)
    graph.replace_uses(mean, new)
    assert graph.node(difference).operands == (new, rstd)


def test_erase_refuses_what_is_used() -> None:
    graph = _chain()
    with pytest.raises(VerifyError, match="cannot erase %a: used by b, c"):
        graph.erase("a")
    with pytest.raises(VerifyError, match="cannot erase %b: used by out"):
        graph.erase("b")
    graph.erase("c")
    assert "c" not in graph and len(graph) == 3
    assert [u.name for u in graph.users("a")] == ["b"]


def test_users_of_a_value_are_not_those_of_its_nodes_other_results() -> None:
    graph = Graph()
    x = graph.add("input", path="x", type=KIND)
    y, mean, _ = graph.add("layer_norm", x, name="n", ndim=1, eps=1e-5)
    graph.add("neg", mean, name="user")
    assert [u.name for u in graph.users(mean)] == ["user"]
    assert graph.users(y) == ()
    assert [u.name for u in graph.users("n")] == ["user"]


def test_is_result_sees_outputs_and_updates() -> None:
    graph = _chain()
    graph.updates["state"] = Value("c")
    assert graph.is_result("b") and graph.is_result(Value("c")) and not graph.is_result("a")


# -- reading ----------------------------------------------------------------------------------


def test_sources_are_found_by_kind() -> None:
    graph = _chain()
    graph.add("parameter", name="w", path="w", type=KIND)
    assert [n.name for n in graph.sources("input")] == ["x"]
    assert [n.name for n in graph.sources("parameter")] == ["w"]
    assert graph.sources("buffer") == []


def test_a_missing_node_is_an_error_with_the_graphs_name() -> None:
    with pytest.raises(NetwrightError, match="graph 'g' has no node %gone"):
        _chain().node("gone")


def test_insert_refuses_a_second_definition_and_unknown_operands() -> None:
    graph = _chain()
    with pytest.raises(NetwrightError, match="%a is defined twice"):
        graph.insert(graph.node("a"))
    node = Node("z", "relu", (Value("gone"),), Attrs(), (KIND,))
    with pytest.raises(NetwrightError, match="%z uses %gone before its definition"):
        graph.insert(node)


def test_source_text_leaves_out_what_is_unknown() -> None:
    assert str(Source("a", "m.py", 3)) == "a at m.py:3"
    assert str(Source("a")) == "a" and str(Source("", "m.py", 3)) == "m.py:3" and not str(Source())


# -- equality and copies ----------------------------------------------------------------------


def test_a_copy_is_equal_and_independent() -> None:
    graph = _chain()
    other = graph.copy()
    assert other == graph
    other.erase("c")
    other.outputs["more"] = Value("a")
    assert "c" in graph and list(graph.outputs) == ["out"] and other != graph


def test_a_copy_goes_on_with_the_same_names() -> None:
    graph = Graph()
    x = graph.add("input", name="x", path="x", type=KIND)
    for _ in range(3):
        graph.add("relu", x)
    assert graph.copy().add("relu", x) == graph.add("relu", x)


@pytest.mark.parametrize("seed", range(5))
def test_building_twice_gives_equal_graphs(random_graph: Callable[..., Graph], seed: int) -> None:
    assert random_graph(seed) == random_graph(seed)
    assert str(random_graph(seed)) == str(random_graph(seed))


def test_graphs_differ_in_name_order_of_outputs_attributes_and_operands() -> None:
    graph = _chain()
    for old, new in (
        ("graph g", "graph h"),
        ("%c: f32[N,4] = add", "%c: f32[N,4] = mul"),
        ("add(%a, %a)", "add(%a, %x)"),
        ('output "out" = %b', 'output "out" = %c'),
        ('path="x"', 'path="y"'),
    ):
        assert parse(str(graph).replace(old, new)) != graph
    assert graph != "a graph" and graph != Graph("g")


def test_the_source_does_not_count_for_equality() -> None:
    graph = _chain()
    assert parse(str(graph).replace("relu(%x)", 'relu(%x) @ "a"')) == graph


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (float("nan"), float("nan")),
        ((float("nan"), 1), (float("nan"), 1)),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0])),
        (("a", (1, Dim(2))), ("a", (1, Dim(2)))),
    ],
)
def test_equal_attributes(a: object, b: object) -> None:
    assert Attrs({"v": a}) == Attrs({"v": b})
    assert hash(Attrs({"v": a})) == hash(Attrs({"v": b}))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ((1,), (True,)),
        ((0.0,), (-0.0,)),
        ((1,), (1, 1)),
        (Dim(1), 1),
        (None, 0),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), np.zeros(2, np.float32)),
        (np.array(0.0), np.array(-0.0)),
        (np.array(1), 1),
    ],
)
def test_different_attributes(a: object, b: object) -> None:
    assert Attrs({"v": a}) != Attrs({"v": b})


def test_the_order_of_attributes_does_not_count() -> None:
    assert Attrs({"a": 1, "b": 2}) == Attrs({"b": 2, "a": 1}) == {"a": 1, "b": 2}
    assert Attrs({"a": 1}) != Attrs({"b": 1}) and Attrs() != 3


def test_nodes_can_be_kept_in_sets() -> None:
    assert len(set(_chain().nodes) | set(_chain().nodes)) == 4


# -- the package ------------------------------------------------------------------------------


def test_graphs_are_built_and_read_without_loading_networkx() -> None:
    """It takes longer to import than many models to compile."""
    code = (
        "import sys, netwright.ir as ir\n"
        "graph = ir.Graph(); x = graph.add('constant', value=__import__('numpy').zeros(3))\n"
        "graph.add('relu', x); graph.copy().erase('relu'); assert graph.users(x); graph.nodes\n"
        "assert 'networkx' not in sys.modules; graph.digraph(); assert 'networkx' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_of_the_package_exists() -> None:
    from netwright import ir

    for name in ir.__all__:
        assert callable(getattr(ir, name)), name
        assert name in dir(ir)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ir.nothing  # noqa: B018
