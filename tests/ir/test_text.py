"""The text form: parse(str(g)) == g, and errors that point at the mistake."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from netwright.errors import ParseError
from netwright.ir.graph import Attrs, Graph, Node, Source
from netwright.ir.parser import parse
from netwright.ir.text import MAX_DENSE, format_attr, format_graph, format_node
from netwright.ir.types import Dim, TensorType, float32, int64
from netwright.ir.verify import verify

N = Dim(1)
X = '%x: f32[N,4] = input {path="x"}'


def _same(a: Graph, b: Graph) -> bool:
    """Equality including sources, which Node's own equality leaves out."""
    return a == b and [n.source for n in a.nodes] == [n.source for n in b.nodes]


def _round_trip(graph: Graph) -> Graph:
    text = str(graph)
    again = parse(text)
    assert _same(again, graph)
    assert str(again) == text
    return again


def _bits(number: int, dtype: type = np.float32) -> np.ndarray:
    unsigned = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    return np.array(number, unsigned).view(dtype)


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_round_trip(random_graph: Callable[..., Graph], seed: int) -> None:
    graph = random_graph(seed, size=10 + seed, regions=True)
    verify(graph)
    verify(_round_trip(graph))


def test_the_text_is_what_the_documentation_shows() -> None:
    text = """graph tiny {
  %x: f32[N,4] = input {path="x"}
  %w: f32[2,4] = parameter {path="0.weight"}
  %y: f32[N,2] = linear(%x, %w) @ "0" "model.py":12
  %n: (f32[N,2], f32[N], f32[N]) = layer_norm(%y) {eps=1e-05, ndim=1}
  %half: f32[] = constant {value=0.5}
  %f: f32[N] = fused(%n#1, %half) {kind="elementwise", body=graph elementwise {
    %a: f32[N] = input {path="0"}
    %b: f32[] = input {path="1"}
    %c: f32[N] = mul(%a, %b)
    output "0" = %c
  }} @ "1"
  output "out" = %n
  output "scaled" = %f
  update "1.state" = %n#2
}"""
    graph = parse(text)
    verify(graph)
    assert format_graph(graph) == text
    assert graph.node("f").attrs["body"].node("c").type == TensorType(float32, (N,))


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5, np.float32),
        np.array([0.1, -0.0, 0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4028235e38], np.float32),
        np.array([0.1, -0.0, np.inf, -np.inf, np.nan, 5e-324, 1.7976931348623157e308]),
        _bits(0x7FC00001),
        _bits(0xFFC00000),
        _bits(0x7F800001),
        _bits(0x7FF0000000000001, np.float64),
        np.array([[-128, 127], [0, 1]], np.int8),
        np.array([0, 255], np.uint8),
        np.array([-(2**15), 2**15 - 1], np.int16),
        np.array([-(2**31), 2**31 - 1], np.int32),
        np.array([-(2**63), 2**63 - 1], np.int64),
        np.array(True),
        np.array([[True, False, True]]),
        np.zeros((0,), np.float64),
        np.zeros((0, 3), np.int16),
        np.zeros((3, 0, 2), np.bool_),
        np.arange(MAX_DENSE, dtype=np.int64),
        np.arange(MAX_DENSE + 1, dtype=np.int64),
        np.arange(100) % 3 == 0,
        np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32).T,
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_arrays_round_trip_to_the_bit(array: np.ndarray) -> None:
    graph = Graph("g")
    graph.add("constant", value=array)
    value = _round_trip(graph).nodes[0].attrs["value"]
    assert value.dtype == array.dtype and value.shape == array.shape
    assert value.tobytes() == array.tobytes()
    assert value.flags.writeable and value.flags.c_contiguous


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_of_float32_round_trips_to_the_bit(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, MAX_DENSE, np.uint64).astype(np.uint32)
    graph = Graph("g")
    graph.add("constant", value=bits.view(np.float32))
    assert _round_trip(graph).nodes[0].attrs["value"].tobytes() == bits.tobytes()


def _with_attr(value: object) -> Graph:
    """A graph with a node that carries any attribute: a region takes no part in its kind."""
    graph, body = Graph("g"), Graph("body")
    node = Node("f", "fused", (), Attrs({"kind": value, "body": body}), ())
    graph.insert(node)
    return graph


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -7, 2**80, 0.0, -0.0, 1.0, -2.5, 1e300, 1e-05, 5e-324, float("inf"),
        float("-inf"), float("nan"), "", "text", 'quote " backslash \\ tab \t newline \n', "größe",
        "\x00\x1f\u2028\x85", "\ud800 alone", "// no comment", "%x", (), (1,), (1, 2), ((1, 1), ()),
        (float("nan"), -0.0, ("a", None, True)), N, Dim(3), Dim(-2), Dim(0), (N, 3, Dim(2)),
        TensorType(float32, (N, 16)), TensorType(int64, ()), (TensorType(int64, (0,)),),
        np.array(2.5), np.array([1, 2], np.int8), np.zeros((2, 0)), (np.array(True), 1),
    ],
    ids=repr,
)  # fmt: skip
def test_attributes_of_every_kind_round_trip(value: object) -> None:
    read = _round_trip(_with_attr(value)).node("f").attrs["kind"]
    assert type(read) is type(value)
    assert repr(read) == repr(value)  # tells -0.0 from 0.0


def test_a_graph_is_an_attribute_at_any_depth() -> None:
    outer = Graph("outer")
    inner = Graph("inner")
    inner.insert(Node("f", "fused", (), Attrs({"kind": "a", "body": Graph("empty")}), ()))
    outer.insert(Node("f", "fused", (), Attrs({"kind": (Graph("in tuple"),), "body": inner}), ()))
    _round_trip(outer)


@pytest.mark.parametrize("name", ["N", "inf", "nan", "None", "graph", "two words", "0", "", "ü"])
def test_a_graph_may_have_any_name(name: str) -> None:
    assert _round_trip(Graph(name)).name == name


@pytest.mark.parametrize("name", ["x", "N", "inf", "output", "f32", "größe", "a b", 'a"#1', "0"])
def test_a_node_may_have_any_name(name: str) -> None:
    graph = Graph("g")
    kind = TensorType(float32, (2,))
    graph.insert(Node(name, "input", (), Attrs({"path": "x", "type": kind}), (kind,)))
    node = graph.node(name)
    results = graph.add("layer_norm", node.value, name=name + "_1", ndim=1, eps=0.5)
    graph.outputs["out"] = results[1]
    _round_trip(graph)


@pytest.mark.parametrize(
    "source",
    [
        Source(),
        Source("features.0"),
        Source("", "model.py", 12),
        Source("a", 'dir with "quotes"\\model.py', 0),
        Source("a", "", 3),
    ],
)
def test_sources_round_trip(source: Source) -> None:
    graph = Graph("g")
    x = graph.add("input", path="x", type=TensorType(float32, (2,)))
    graph.add("relu", x, source=source)
    _round_trip(graph)


def test_the_order_of_operands_and_outputs_is_kept() -> None:
    graph = Graph("g")
    kind = TensorType(float32, (2,))
    a, b = (graph.add("input", name=n, path=n, type=kind) for n in "ab")
    graph.outputs = {"z": graph.add("sub", b, a), "a": graph.add("add", a, a)}
    again = _round_trip(graph)
    assert again.node("sub").operands == (b, a) and again.node("add").operands == (a, a)
    assert list(again.outputs) == ["z", "a"]


def test_comments_and_white_space_mean_nothing() -> None:
    text = f'// first\ngraph g{{{X} // the input\n%y:f32[ N , 4 ]=relu( %x , ) output\n"o"=%y}}//'
    assert parse(text).outputs == {"o": parse(text).node("y").value}


def test_an_integer_stands_for_a_float_in_an_array() -> None:
    graph = parse("graph g { %c: f32[2] = constant {value=[1, -2]} }")
    assert graph.node("c").attrs["value"].tolist() == [1.0, -2.0]


def test_the_type_of_a_constant_may_be_repeated() -> None:
    assert parse("graph g { %c: i8[] = constant {value=i8[] 3} }").node("c").attrs["value"] == 3


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        ("%y: f32[N,4] = relu(%z)", (3, 23), "%z is not defined before this line"),
        ("%y: f32[N,4] = relu(%x#1)", (3, 23), "%x has 1 result, there is no %x#1"),
        ("%x: f32[N,4] = relu(%x)", (3, 3), "%x is defined twice"),
        ("%y#1: f32[N,4] = relu(%x)", (3, 3), "a node is defined by its name: %y"),
        ("%y: f32[N,5] = relu(%x)", (3, 7), "%y is written as f32[N,5], but relu gives f32[N,4]"),
        ("%y: f32[N,4] = rely(%x)", (3, 18), "no operator named 'rely'"),
        ("%y: f32[N,4] = relu()", (3, 18), "missing a required argument: 'x'"),
        ("%y: f32[N,4] = relu(%x, %x)", (3, 18), "too many operands (2)"),
        ("%y: f32[N,4] = relu(%x) {slope=1}", (3, 18), "relu: "),
        ("%y: f32[N] = sum(%x) {dims=1.5, keepdim=False}", (3, 16), "attributes do not fit"),
        ("%y: f32[N] = sum(%x) {dims=(7,), keepdim=False}", (3, 16), "sum"),
        ("%y: f32[N,4 = relu(%x)", (3, 15), "expected ',' or ']', found ="),
        ("%y: f31[N,4] = relu(%x)", (3, 7), "expected a type such as f32[N,16]"),
        ("%y: f32[-1] = relu(%x)", (3, 11), "expected an extent (16, N or 3N), found -1"),
        ("%y: f32[1.5] = relu(%x)", (3, 11), "expected an extent (16, N or 3N), found 1.5"),
        ("%y = relu(%x)", (3, 6), "expected ':', found ="),
        ("%y: f32[N,4] = relu(%x", (4, 1), "expected ',' or ')', found }"),
        ("%y: f32[N,4] = relu(x)", (3, 23), "expected a value (%name), found x"),
        ("%y: f32[N,4] = relu(%x) {a=}", (3, 30), "expected an attribute's value"),
        ("%y: f32[N,4] = relu(%x) {a=0x10}", (3, 30), "bits (0x..) stand in arrays only"),
        ("%y: f32[N,4] = relu(%x) {a=1, a=2}", (3, 33), "attribute a is given twice"),
        ('%y: f32[N,4] = relu(%x) {a="\\q"}', (3, 30), "bad string"),
        ("%y: f32[N,4] = relu(%x) @ a", (3, 29), "expected the module's path, a string, found a"),
        ('%y: f32[N,4] = relu(%x) @ "a" "b"', (4, 1), "expected ':', found }"),
        ('%y: f32[N,4] = relu(%x) @ "a" "b":1.5', (3, 37), "expected a line number, found 1.5"),
        ("%c: f32[2] = constant {value=[1.0]}", (3, 36), "expected ',' and element 2 of 2"),
        ("%c: f32[1] = constant {value=[1.0, 2.0]}", (3, 36), "expected ']' after 1 elements"),
        ("%c: f32[1] = constant {value=1.0}", (3, 32), "expected '[' and a list of 1"),
        ("%c: f32[0] = constant {value=[1.0]}", (3, 33), "f32[0] has no elements"),
        ("%c: f32[N] = constant {value=[1.0]}", (3, 32), "its shape must be numbers"),
        ("%c: f32[] = constant {value=True}", (3, 31), "expected a number (float32), found True"),
        ("%c: f32[] = constant {value=1e39}", (3, 31), "1e39 does not fit float32"),
        ("%c: f32[] = constant {value=0x7f}", (3, 31), "the bits of a float32 are 8 hex digits"),
        ("%c: i8[] = constant {value=128}", (3, 30), "128 does not fit int8"),
        ("%c: i8[] = constant {value=1.0}", (3, 30), "expected an integer (int8), found 1.0"),
        ("%c: bool[] = constant {value=1}", (3, 32), "expected True or False, found 1"),
        ('%c: f32[2] = constant {value=base64 "AAAA"}', (3, 39), "3 bytes, its type 8"),
        ('%c: f32[2] = constant {value=base64 "?"}', (3, 39), "bad base64"),
        ("output out = %x", (3, 10), "expected the output's name, a string, found out"),
        ('output "o" = %x output "o" = %x', (3, 26), "output 'o' is given twice"),
        ('update "o" = %z', (3, 16), "%z is not defined"),
        ("relu(%x)", (3, 3), "expected a node (%name), 'output', 'update' or '}', found relu"),
        ("$", (3, 3), "this is no part of the language"),
        ('"open', (3, 3), "this is no part of the language"),
        ("} %x", (3, 5), "expected the end of the text, found %x"),
    ],
)
def test_an_error_names_the_place_and_what_was_expected(
    body: str, place: tuple[int, int], message: str
) -> None:
    text = f"graph g {{\n  {X}\n  {body}\n}}"
    with pytest.raises(ParseError) as caught:
        parse(text)
    first, shown, caret = str(caught.value).split("\n")
    assert first.startswith(f"line {place[0]}, column {place[1]}: ")
    assert message in first
    assert shown.strip() == text.split("\n")[place[0] - 1].strip()
    assert caret.index("^") == place[1] + 1  # two columns of indentation


def test_a_long_line_is_cut_around_the_mistake() -> None:
    with pytest.raises(ParseError) as caught:
        parse('graph g { %c: f32[] = constant {value="' + "a" * 10000 + '"} }')
    assert max(len(line) for line in str(caught.value).split("\n")) < 120


@pytest.mark.parametrize("text", ["", "graph", "graph g", "graph g {", "module m {}"])
def test_a_text_that_is_no_graph_is_an_error(text: str) -> None:
    with pytest.raises(ParseError, match=r"line 1, column \d+: expected"):
        parse(text)


def test_nesting_without_end_is_an_error_and_not_a_crash() -> None:
    deep = "graph g { %f: () = fused {kind=" + "(" * 5000
    with pytest.raises(ParseError, match="levels of nesting"):
        parse(deep)


def test_damaged_texts_raise_parse_error_or_give_a_graph_that_round_trips(
    random_graph: Callable[..., Graph],
) -> None:
    rng = random.Random(1)
    text = str(random_graph(7, regions=True))
    for _ in range(400):
        letters = list(text)
        at = rng.randrange(len(letters))
        letters[at : at + rng.randint(0, 6)] = rng.choice(['"', "", "%", "N", "-", "(", "]", "0."])
        try:
            graph = parse("".join(letters))
        except ParseError:
            continue
        _round_trip(graph)


def test_what_is_no_ir_value_is_printed_but_does_not_parse() -> None:
    assert format_attr([1, 2]) == "<[1, 2]>"
    with pytest.raises(ParseError):
        parse(format_graph(_with_attr([1, 2])))


def test_one_node_is_printed_without_indentation() -> None:
    graph = parse(f"graph g {{ {X} %y: f32[N,4] = relu(%x) }}")
    assert format_node(graph.node("y")) == "%y: f32[N,4] = relu(%x)"
