"""Drawings: well-formed, complete, deterministic; boxes do not overlap."""

import re
from collections.abc import Callable
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from netwright.ir.draw import to_dot, to_svg
from netwright.ir.graph import Graph, Source
from netwright.ir.layered_layout import GAP_X, layered
from netwright.ir.parser import parse
from netwright.ir.types import TensorType, float32

SVG = "{http://www.w3.org/2000/svg}"
KIND = TensorType(float32, (4,))


def _net() -> Graph:
    return parse(
        """graph net {
          %x: f32[N,8] = input {path="x"}
          %w: f32[4,8] = parameter {path="0.weight"}
          %half: f32[] = constant {value=0.1}
          %f: (f32[N,4], f32[N,4]) = fused(%x, %w, %half) {kind="contraction", body=graph c {
            %p: f32[N,8] = input {path="0"}
            %q: f32[4,8] = input {path="1"}
            %h: f32[] = input {path="2"}
            %l: f32[N,4] = linear(%p, %q) @ "0"
            %m: f32[N,4] = mul(%l, %h) @ "1"
            output "0" = %m
            output "1" = %l
          }} @ "1" "dir/model.py":12
          %s: f32[N,4] = sub(%f#1, %f) @ "2"
          output "out" = %s
          update "2.state" = %f#1
        }"""
    )


def _texts(svg: str) -> list[str]:
    return [t.text or "" for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_box_shows_operator_type_module_and_line() -> None:
    texts = _texts(to_svg(_net()))
    for text in (
        "input x",
        "%x: f32[N,8]",
        "fused contraction",
        "%f#1: f32[N,4]",
        "1 model.py:12",
        "sub",
        "%s: f32[N,4]",
        "2",
        "out",
        "2.state",
    ):
        assert text in texts


def test_a_fused_box_lists_the_operators_inside() -> None:
    lines = [t.strip() for t in _texts(to_svg(_net()))]
    at = lines.index("- linear  [0]")
    assert lines[at + 1] == "- mul  [1]"


def test_a_long_fused_box_is_cut() -> None:
    body = Graph("long")
    value = body.add("input", path="0", type=KIND)
    for _ in range(50):
        value = body.add("neg", value)
    body.outputs["0"] = value
    graph = Graph("g")
    x = graph.add("input", path="x", type=KIND)
    graph.outputs["out"] = graph.add("fused", x, kind="elementwise", body=body)
    lines = [t.strip() for t in _texts(to_svg(graph))]
    assert lines.count("- neg") == 15 and "... and 35 more" in lines


def test_state_is_written_into_the_boxes_of_its_users() -> None:
    texts = _texts(to_svg(_net()))
    assert "0.weight: f32[4,8]" in texts and "0.1: f32[]" in texts
    assert not any(t.startswith("%w") or t == "parameter 0.weight" for t in texts)


def test_state_that_is_a_result_has_its_own_box() -> None:
    graph = parse('graph g { %w: f32[4] = parameter {path="w"} output "w" = %w }')
    assert "parameter w" in _texts(to_svg(graph))


def test_a_box_has_the_text_of_its_node_as_title() -> None:
    titles = [t.text for t in ElementTree.fromstring(to_svg(_net())).iter(f"{SVG}title")]
    assert titles[0] == "net"
    assert '%s: f32[N,4] = sub(%f#1, %f) @ "2"' in titles
    assert any(t and "%l: f32[N,4] = linear(%p, %q)" in t for t in titles)


def test_edges_say_which_result_they_carry() -> None:
    assert _texts(to_svg(_net())).count("#1") == 2
    assert to_dot(_net()).count('[label="#1"]') == 2


def test_special_characters_are_escaped() -> None:
    graph = Graph('<&"> \x00\x1b')
    x = graph.add("input", name="x", path='a<b>&"c"\x01\\', type=KIND)
    y = graph.add("relu", x, source=Source("<module> & 'quotes'", 'C:\\dir "x"\\m<>.py', 3))
    graph.outputs["]]>"] = y
    texts = _texts(to_svg(graph))
    assert 'input a<b>&"c"\ufffd\\' in texts and "]]>" in texts
    assert "<module> & 'quotes' m<>.py:3" in texts
    labels = re.findall(r'label="((?:[^"\\]|\\.)*)"', to_dot(graph))
    assert len(labels) == 3


@pytest.mark.parametrize("seed", range(8))
def test_drawings_of_random_graphs_are_well_formed_and_deterministic(
    random_graph: Callable[..., Graph], seed: int
) -> None:
    graph = random_graph(seed, size=10 * (seed + 1), regions=True)
    svg, dot = to_svg(graph), to_dot(graph)
    ElementTree.fromstring(svg)
    again = parse(str(graph))
    assert to_svg(again) == svg and to_dot(again) == dot
    assert len(re.findall("^  n[0-9]+ ->", dot, re.MULTILINE)) == svg.count('class="edge"')


@pytest.mark.parametrize("seed", range(8))
def test_boxes_of_random_graphs_lie_inside_the_picture_and_do_not_overlap(
    random_graph: Callable[..., Graph], seed: int
) -> None:
    root = ElementTree.fromstring(to_svg(random_graph(seed, size=40)))
    left, top, width, height = map(float, root.get("viewBox", "").split())
    boxes = [
        tuple(float(r.get(k, "0")) for k in ("x", "y", "width", "height"))
        for r in root.iter(f"{SVG}rect")
        if r.get("class") == "box"
    ]
    assert len(boxes) > 10
    for i, (x, y, w, h) in enumerate(boxes):
        assert left <= x and x + w <= left + width and top <= y and y + h <= top + height
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_an_empty_graph_can_be_drawn() -> None:
    ElementTree.fromstring(to_svg(Graph("empty")))
    assert to_dot(Graph("empty")).startswith('digraph "empty" {')


def test_dot_has_a_node_per_box_and_an_edge_per_use() -> None:
    graph = Graph("g")
    x = graph.add("input", name="x", path="x", type=KIND)
    graph.outputs["out"] = graph.add("add", x, x)
    dot = to_dot(graph)
    assert dot.count("fillcolor") == 3
    assert dot.count("n0 -> n1") == 2 and dot.count("n1 -> n2") == 1
    assert 'label="add\\n%add: f32[4]"' in dot


# -- layout -----------------------------------------------------------------------------------


def _random_edges(seed: int, count: int) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    ends = [b for b in range(1, count) for _ in range(rng.integers(1, 3))]
    return [(int(rng.integers(0, b)), b) for b in ends]


def test_a_chain_is_a_straight_column() -> None:
    layout = layered([(100, 20), (40, 20), (80, 20)], [(0, 1), (1, 2)])
    centres = [x + w / 2 for (x, _), w in zip(layout.corners, (100, 40, 80), strict=True)]
    assert centres == [50, 50, 50]
    assert [y for _, y in layout.corners] == sorted({y for _, y in layout.corners})


def test_crossings_that_can_be_avoided_are_avoided() -> None:
    edges = [(0, 4), (1, 3), (2, 5)]
    layout = layered([(10, 10)] * 6, edges)
    by_x = sorted(edges, key=lambda e: layout.corners[e[0]])
    assert [layout.corners[b] for _, b in by_x] == sorted(layout.corners[b] for _, b in by_x)


def test_late_boxes_are_just_above_their_first_user() -> None:
    edges = [(0, 1), (1, 2), (3, 4), (2, 4)]
    early = layered([(10, 10)] * 5, edges)
    late = layered([(10, 10)] * 5, edges, late={3})
    assert early.corners[3][1] == early.corners[0][1]
    assert late.corners[3][1] == late.corners[2][1] < late.corners[4][1]


@pytest.mark.parametrize("seed", range(10))
def test_edges_lead_down_and_end_at_their_boxes(seed: int) -> None:
    count = 30
    edges = _random_edges(seed, count)
    rng = np.random.default_rng(seed)
    sizes = [(float(rng.integers(20, 90)), float(rng.integers(10, 50))) for _ in range(count)]
    layout = layered(sizes, edges)
    for (a, b), path in zip(edges, layout.paths, strict=True):
        (ax, ay), (bx, by) = layout.corners[a], layout.corners[b]
        assert path[0][:2] == (ax + sizes[a][0] / 2, ay + sizes[a][1])
        assert path[-1] == (bx + sizes[b][0] / 2, by, by)
        assert all(upper[2] < lower[1] for upper, lower in pairwise(path))
        assert all(0 <= x <= layout.width for x, _, _ in path)


@pytest.mark.parametrize("seed", range(10))
def test_boxes_of_a_layer_keep_their_distance(seed: int) -> None:
    sizes = [(50.0, 20.0)] * 40
    layout = layered(sizes, _random_edges(seed, 40))
    rows: dict[float, list[float]] = {}
    for x, y in layout.corners:
        rows.setdefault(y, []).append(x)
    for row in rows.values():
        assert all(b - a >= 50 + GAP_X - 1e-6 for a, b in pairwise(sorted(row)))
