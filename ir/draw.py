"""Drawings of a graph: Graphviz text, and SVG that needs no other program.

Parameters, buffers, constants and counts are written into the boxes of their users, so that the
drawing shows the flow of the data. A box names the operator, the results and their types, the
module and line of the user's program; the box of a fused kernel lists the operators inside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

import numpy as np

from .graph import Graph, Node, Value
from .layered_layout import layered
from .ops.record import all_ops
from .text import format_node, quote

_QUIET = ("parameter", "buffer", "constant", "extent")
_MAX_LINE = 46
_MAX_INNER = 16
_MAX_TITLE = 4000

_FILLS = {
    "input": "#d5f0dc",
    "result": "#f0f0f0",
    "state": "#e6f4ea",
    "contraction": "#cfe2ff",
    "spatial": "#cfe2ff",
    "elementwise": "#fff3cd",
    "reduction": "#ffe0c2",
    "norm": "#ffe0c2",
    "row": "#ffe0c2",
    "index": "#ffe0c2",
    "shape": "#e9ecef",
    "region": "#e4d7f5",
}

_LINE = 15.0
_CHARACTER = 6.7
_PAD = 9.0
_MARGIN = 16.0
_STYLE = (
    "text{font:11px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#1f2328}"
    ".op{font-weight:bold;font-size:12px}.small{fill:#57606a}"
    ".box{stroke:#57606a;stroke-width:1}.edge{fill:none;stroke:#57606a;stroke-width:1.2}"
)


@dataclass
class _Box:
    """Lines of (style, text), the kind that decides the colour, and the full text."""

    kind: str
    lines: list[tuple[str, str]]
    title: str
    round: bool = False


@dataclass
class _Edge:
    """A use of a value: the boxes; where on their sides it leaves and arrives, as a fraction of the
    width from the middle, so that results and operands keep their order."""

    start: int
    end: int
    value: Value
    leaves: float = 0.0
    arrives: float = 0.0


@dataclass
class _Drawing:
    boxes: list[_Box] = field(default_factory=list)
    edges: list[_Edge] = field(default_factory=list)
    late: set[int] = field(default_factory=set)


def to_dot(graph: Graph) -> str:
    """The graph in the language of Graphviz (``dot -Tsvg``)."""
    drawing = _drawing(graph)
    lines = [
        f"digraph {_dot_string(graph.name)} {{",
        '  node [shape=box, style=filled, fontname="monospace", fontsize=10];',
        '  edge [fontname="monospace", fontsize=9];',
    ]
    for i, box in enumerate(drawing.boxes):
        label = _dot_string("\n".join(text for _, text in box.lines))
        style = ', style="filled,rounded"' if box.round else ""
        lines.append(f'  n{i} [label={label}, fillcolor="{_FILLS[box.kind]}"{style}];')
    for edge in drawing.edges:
        label = f' [label="#{edge.value.index}"]' if edge.value.index else ""
        lines.append(f"  n{edge.start} -> n{edge.end}{label};")
    return "\n".join([*lines, "}", ""])


def _dot_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def to_svg(graph: Graph) -> str:
    """The graph as an SVG document; pointing at a box shows the node's text."""
    drawing = _drawing(graph)
    sizes = [_size(box) for box in drawing.boxes]
    layout = layered(sizes, [(e.start, e.end) for e in drawing.edges], drawing.late)
    width, height = layout.width + 2 * _MARGIN, layout.height + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{-_MARGIN:.0f} {-_MARGIN:.0f} {width:.0f} {height:.0f}">',
        f"<title>{_xml(graph.name)}</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,1 L7,4 L0,7 z" fill="#57606a"/>'
        "</marker></defs>",
        f'<rect x="{-_MARGIN:.0f}" y="{-_MARGIN:.0f}" width="{width:.0f}" height="{height:.0f}" '
        'fill="white"/>',
    ]
    for edge, path in zip(drawing.edges, layout.paths, strict=True):
        (x, top, bottom), (end, *rest) = path[0], path[-1]
        path[0] = (x + edge.leaves * sizes[edge.start][0], top, bottom)
        path[-1] = (end + edge.arrives * sizes[edge.end][0], rest[0], rest[1])
        parts += _edge_parts(edge.value.index, path)
    for box, size, corner in zip(drawing.boxes, sizes, layout.corners, strict=True):
        parts += _box_parts(box, size, corner)
    return "\n".join([*parts, "</svg>", ""])


def _size(box: _Box) -> tuple[float, float]:
    longest = max(len(text) for _, text in box.lines)
    return longest * _CHARACTER + 2 * _PAD, len(box.lines) * _LINE + 2 * _PAD - 4


def _edge_parts(index: int, path: list[tuple[float, float, float]]) -> Iterator[str]:
    x, top, bottom = path[0]
    commands = [f"M{x:.1f},{top:.1f} L{x:.1f},{bottom:.1f}"]
    for next_x, next_top, next_bottom in path[1:]:
        middle = (bottom + next_top) / 2
        commands.append(
            f"C{x:.1f},{middle:.1f} {next_x:.1f},{middle:.1f} {next_x:.1f},{next_top:.1f}"
        )
        if next_bottom > next_top:
            commands.append(f"L{next_x:.1f},{next_bottom:.1f}")
        x, bottom = next_x, next_bottom
    yield f'<path class="edge" d="{" ".join(commands)}" marker-end="url(#arrow)"/>'
    if index:
        x, y = path[0][0] + 3, path[0][1] + 11
        yield f'<text class="small" x="{x:.1f}" y="{y:.1f}">#{index}</text>'


def _box_parts(box: _Box, size: tuple[float, float], corner: tuple[float, float]) -> Iterator[str]:
    (width, height), (x, y) = size, corner
    yield f"<g><title>{_xml(box.title)}</title>"
    yield (
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="{height / 2 if box.round else 4:.1f}" fill="{_FILLS[box.kind]}"/>'
    )
    for i, (style, text) in enumerate(box.lines):
        line_y = y + _PAD + 9 + i * _LINE
        middle = x + width / 2
        yield (
            f'<text class="{style}" x="{middle:.1f}" y="{line_y:.1f}" text-anchor="middle" '
            f'xml:space="preserve">{_xml(text)}</text>'
        )
    yield "</g>"


def _xml(text: str) -> str:
    """Text for XML, which has no place for most control characters."""
    return escape(re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


# -- what is drawn --------------------------------------------------------------------------------


def _drawing(graph: Graph) -> _Drawing:
    drawing = _Drawing()
    box_of: dict[str, int] = {}
    fed: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or any(v.node in fed for v in node.operands):
            fed.add(node.name)
        if node.op in _QUIET and graph.users(node.name) and not graph.is_result(node.name):
            continue
        quiet = [graph.node(v) for v in dict.fromkeys(node.operands) if v.node not in box_of]
        at = box_of[node.name] = len(drawing.boxes)
        drawing.boxes.append(_node_box(node, quiet))
        if node.name not in fed:
            drawing.late.add(at)
        drawn = [v for v in node.operands if v.node in box_of]
        for port, value in enumerate(drawn):
            leaves = _fraction(value.index, len(graph.node(value).types))
            arrives = _fraction(port, len(drawn))
            drawing.edges.append(_Edge(box_of[value.node], at, value, leaves, arrives))
    for what, results in (("output", graph.outputs), ("update", graph.updates)):
        for name, value in results.items():
            lines = [("small", what), ("", _cut(name))]
            drawing.boxes.append(_Box("result", lines, f"{what} {quote(name)} = {value}", True))
            leaves = _fraction(value.index, len(graph.node(value).types))
            start, end = box_of[value.node], len(drawing.boxes) - 1
            drawing.edges.append(_Edge(start, end, value, leaves))
    return drawing


def _fraction(index: int, count: int) -> float:
    """Place of one of ``count`` equally spaced points, from -0.5 to 0.5."""
    return (index + 1) / (count + 1) - 0.5


def _node_box(node: Node, quiet: list[Node]) -> _Box:
    record = all_ops().get(node.op)
    kind = "shape" if record is None else record.kind
    if kind == "source":
        kind = "input" if node.op == "input" else "state"
    lines = [("op", _cut(_headline(node)))]
    for value, result in zip(node.values, node.types, strict=True):
        lines.append(("", _cut(f"{value}: {result}")))
    for state in quiet:
        name = str(state.attrs.get("path", _constant_text(state)))
        lines.append(("small", _cut(f"{name}: {state.type}")))
    inner = [_inner_line(n) for n in _inner_nodes(node)]
    if len(inner) > _MAX_INNER:
        rest = len(inner) - _MAX_INNER + 1
        inner = [*inner[: _MAX_INNER - 1], f"... and {rest} more"]
    width = max((len(line) for line in inner), default=0)
    lines += [("", _cut(line.ljust(width))) for line in inner]
    if str(node.source):
        file = re.split(r"[/\\]", node.source.file)[-1]
        place = f"{file}:{node.source.line}" if file else ""
        lines.append(("small", _cut(" ".join(p for p in (node.source.module, place) if p))))
    return _Box(kind, lines, _shortened(format_node(node)), node.op == "input")


def _headline(node: Node) -> str:
    if node.op == "fused":
        return f"fused {node.attrs.get('kind', '')}".strip()
    if "path" in node.attrs:
        return f"{node.op} {node.attrs['path']}"
    return node.op


def _constant_text(node: Node) -> str:
    value = node.attrs.get("value", node.attrs.get("size"))
    if isinstance(value, np.ndarray):
        return str(value.reshape(-1)[0]) if value.size == 1 else "constant"
    return str(value)


def _inner_nodes(node: Node) -> list[Node]:
    body = node.attrs.get("body")
    return [n for n in body.nodes if n.operands] if isinstance(body, Graph) else []


def _inner_line(node: Node) -> str:
    module = f"  [{node.source.module}]" if node.source.module else ""
    return f"- {node.op}{module}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 3] + "..."


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TITLE else text[:_MAX_TITLE] + "..."
