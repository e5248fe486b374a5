"""The verifier: every invariant has a graph that breaks it, and the error names it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.errors import VerifyError
from netwright.ir.graph import Attrs, Graph, Node, Source, Value
from netwright.ir.types import Dim, TensorType, float32, float64, int64
from netwright.ir.verify import checked_types, is_plain, verify

KIND = TensorType(float32, (Dim(1), 4))
VECTOR = TensorType(float32, (4,))


def _graph() -> Graph:
    """%x, %w -> %m = mul, %y = relu, with an output, a buffer and its update."""
    graph = Graph("g")
    x = graph.add("input", name="x", path="x", type=KIND)
    w = graph.add("parameter", name="w", path="w", type=VECTOR)
    old = graph.add("buffer", name="old", path="mean", type=VECTOR)
    m = graph.add("mul", x, w, name="m", source=Source("features.0", "model.py", 12))
    graph.outputs["out"] = graph.add("relu", m, name="y")
    graph.updates["mean"] = graph.add("add", old, w, name="new")
    return graph


def _set(graph: Graph, name: str, /, **changes: Any) -> Graph:
    """Damages a node behind the graph's back."""
    graph._nodes[name] = replace(graph._nodes[name], **changes)
    return graph


def _fails(graph: Graph, invariant: str, *parts: str) -> None:
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    text = str(caught.value)
    assert f"breaks '{invariant}'" in text, text
    for part in parts:
        assert part in text


def test_a_valid_graph_passes() -> None:
    verify(_graph())


@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_are_valid(random_graph: Callable[..., Graph], seed: int) -> None:
    verify(random_graph(seed, regions=True))


def test_the_error_names_graph_node_and_the_users_line() -> None:
    _fails(
        _set(_graph(), "m", types=(VECTOR,)),
        "types",
        "graph 'g'",
        "%m = mul",
        "features.0",
        "model.py:12",
    )


def test_name_must_be_a_word() -> None:
    graph = _graph()
    graph.insert(Node("two words", "relu", (Value("x"),), Attrs(), (KIND,)))
    _fails(graph, "name", "two words")


def test_name_must_be_the_key_of_the_node() -> None:
    _fails(_set(_graph(), "y", name="z"), "name", "keeps another node")


def test_operand_must_exist() -> None:
    _fails(_set(_graph(), "y", operands=(Value("gone"),)), "defined", "%gone")


def test_operand_must_be_an_existing_result() -> None:
    _fails(_set(_graph(), "y", operands=(Value("m", 1),)), "defined", "%m#1")


def test_operand_must_come_earlier() -> None:
    graph = _graph()
    node = graph._nodes.pop("m")
    graph._nodes["m"] = node
    _fails(graph, "defined", "%y = relu", "%m")


def test_a_cycle_is_named() -> None:
    graph = Graph("g")
    x = graph.add("input", name="x", path="x", type=KIND)
    a = graph.add("relu", x, name="a")
    b = graph.add("neg", a, name="b")
    graph.outputs["out"] = graph.add("exp", b, name="c")
    graph.replace_uses(x, graph.outputs["out"])
    with pytest.raises(VerifyError, match="graph 'g' has a cycle: %a -> %b -> %c"):
        verify(graph)


def test_users_must_agree_with_operands() -> None:
    _fails(_set(_graph(), "y", operands=(Value("x"),)), "users", "%y = relu", "%x")


def test_operator_must_have_a_record() -> None:
    _fails(_set(_graph(), "y", op="rely"), "operator", "%y = rely")


@pytest.mark.parametrize(
    "value",
    [
        [1], {"a": 1}, np.float32(1), np.int64(1), np.bool_(True), float32, (1, [2]), object(),
        np.zeros(2, ">f4"), np.zeros(2, np.complex64), np.zeros(2, np.float16), 1j, {1},
        TensorType(float32, (-1,)), TensorType(float32, (True,)), TensorType(float32, (Dim(-1),)),
    ],
    # Without the address of the object: processes that share the tests must agree on the names.
    ids=lambda v: f"{type(v).__name__} {v}".partition(" object at")[0],
)  # fmt: skip
def test_attributes_must_be_plain_values(value: object) -> None:
    assert not is_plain(value)
    _fails(_set(_graph(), "y", attrs=Attrs({"a": value})), "attributes", "a=")


def test_a_subclass_of_a_plain_value_is_not_plain() -> None:
    class Traced(Dim):
        """As the tracer has one; it must not leak into a graph."""

    assert is_plain(Dim(2)) and not is_plain(Traced(2))
    assert not is_plain(TensorType(float32, (Traced(2),)))


@pytest.mark.parametrize("operands", [(), ("x",), ("x", "x", "x")])
def test_signature_must_fit_the_number_of_operands(operands: tuple[str, ...]) -> None:
    graph = _graph()
    graph.insert(Node("z", "mul", tuple(Value(n) for n in operands), Attrs(), (KIND,)))
    _fails(graph, "signature", "%z = mul")


def test_signature_must_fit_the_attributes() -> None:
    _fails(_set(_graph(), "y", attrs=Attrs({"slope": 1.0})), "signature", "slope")


def test_types_must_be_those_of_the_shape_rule() -> None:
    wrong = TensorType(float64, KIND.shape)
    _fails(_set(_graph(), "m", types=(wrong,)), "types", "f64[N,4]", "the rule gives (f32[N,4])")


def test_types_must_be_as_many_as_the_operator_has_results() -> None:
    _fails(_set(_graph(), "y", types=(KIND, KIND)), "types", "(f32[N,4], f32[N,4])")


def test_operands_must_satisfy_the_shape_rule() -> None:
    graph = _graph()
    _set(
        graph,
        "w",
        attrs=Attrs({"path": "w", "type": TensorType(float32, (3,))}),
        types=(TensorType(float32, (3,)),),
    )
    _fails(graph, "types", "cannot be broadcast")


def test_nonsense_attributes_break_types_instead_of_crashing() -> None:
    graph = _graph()
    attrs = Attrs({"dims": 1.5, "keepdim": False})
    graph.insert(Node("s", "sum", (Value("x"),), attrs, (VECTOR,)))
    _fails(graph, "types", "attributes do not fit")


@pytest.mark.parametrize("key", ["path", "type"])
@pytest.mark.parametrize("name", ["x", "w", "old"])
def test_sources_must_have_path_and_type(name: str, key: str) -> None:
    graph = _graph()
    attrs = {k: v for k, v in graph.node(name).attrs.items() if k != key}
    _fails(_set(graph, name, attrs=Attrs(attrs)), "sources", f"{key} is None")


def test_a_constant_must_have_an_array() -> None:
    graph = Graph("g")
    graph.insert(Node("c", "constant", (), Attrs({"value": 1.0}), (TensorType(float32, ()),)))
    _fails(graph, "sources", "value is 1.0", "ndarray")


@pytest.mark.parametrize(
    ("kind", "path"), [("input", "x"), ("parameter", "w"), ("buffer", "mean"), ("buffer", "w")]
)
def test_paths_must_be_unique(kind: str, path: str) -> None:
    graph = _graph()
    graph.add(kind, path=path, type=VECTOR)
    _fails(graph, "paths", repr(path))


def test_an_input_may_share_the_path_of_a_parameter() -> None:
    graph = _graph()
    graph.add("input", path="w", type=VECTOR)
    verify(graph)


@pytest.mark.parametrize("value", [Value("gone"), Value("y", 1)], ids=str)
def test_results_must_exist(value: Value) -> None:
    graph = _graph()
    graph.outputs["lost"] = value
    _fails(graph, "results", "output 'lost'", str(value))
    graph = _graph()
    graph.updates["lost"] = value
    _fails(graph, "results", "update 'lost'")


def test_an_update_must_have_the_type_of_its_state() -> None:
    graph = _graph()
    graph.updates["w"] = graph.outputs["out"]
    _fails(graph, "updates", "%w = parameter", "f32[4]", "%y is f32[N,4]")


def test_an_update_of_state_that_the_graph_does_not_read_is_valid() -> None:
    graph = _graph()
    graph.updates["elsewhere"] = graph.outputs["out"]
    verify(graph)


def _body() -> Graph:
    body = Graph("body")
    arg = body.add("input", name="arg0", path="0", type=KIND)
    body.outputs["0"] = body.add("neg", arg, name="n")
    return body


def _region(body: Any) -> Graph:
    graph = _graph()
    attrs = Attrs({"kind": "elementwise", "body": body})
    graph.insert(Node("f", "fused", (Value("x"),), attrs, (KIND,)))
    return graph


def test_a_valid_region_passes() -> None:
    verify(_region(_body()))


def test_a_region_must_have_a_body() -> None:
    _fails(_region(None), "regions", "no body")


def test_a_body_must_be_valid() -> None:
    _fails(_region(_set(_body(), "n", op="rely")), "regions", "body is invalid", "%n = rely")


def test_a_bodys_inputs_must_match_the_operands() -> None:
    for path, kind in (("1", KIND), ("0", VECTOR)):
        body = Graph("body")
        body.outputs["0"] = body.add("input", path=path, type=kind)
        _fails(_region(body), "regions", f"({path}: {kind})", "(0: f32[N,4])")


def test_a_bodys_outputs_must_be_numbered() -> None:
    body = _body()
    body.outputs = {"out": body.outputs["0"]}
    _fails(_region(body), "regions", "['out']")


def test_a_body_must_not_have_state() -> None:
    body = _body()
    body.add("parameter", name="p", path="p", type=VECTOR)
    _fails(_region(body), "regions", "%p")
    body = _body()
    body.updates["p"] = body.outputs["0"]
    _fails(_region(body), "regions", "update 'p'")


def test_a_region_has_the_types_of_its_bodys_outputs() -> None:
    _fails(_set(_region(_body()), "f", types=(VECTOR,)), "types", "%f = fused", "f32[N,4]")


def test_checked_types_are_those_of_the_rule() -> None:
    attrs = {"dim": 1, "keepdim": False}
    assert checked_types("argmax", [KIND], attrs) == (TensorType(int64, (Dim(1),)),)
