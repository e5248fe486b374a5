"""Reports: the numbers of the summary, counted by hand, and the shape of the tables."""

from collections.abc import Callable

import numpy as np
import pytest

from netwright.ir.graph import Graph, Source, Value
from netwright.ir.ops.record import all_ops
from netwright.ir.parser import parse
from netwright.ir.report import flops, layers, summary, table
from netwright.ir.types import Dim, TensorType, float32

N = Dim(1)
CONV = 'dilation=(1,1), groups=1, layout="NCHW", padding=((1,1),(1,1)), stride=(1,1)'

NET = f"""graph net {{
  %x: f32[N,3,8,8] = input {{path="x"}}
  %w: f32[16,3,3,3] = parameter {{path="features.0.weight"}} @ "features.0"
  %b: f32[16] = parameter {{path="features.0.bias"}} @ "features.0"
  %c: f32[N,16,8,8] = conv2d(%x, %w, %b) {{{CONV}}} @ "features.0" "net.py":5
  %r: f32[N,16,8,8] = relu(%c) @ "features.1" "net.py":6
  %f: f32[N,1024] = reshape(%r) {{shape=(N,1024)}} @ "" "net.py":9
  %v: f32[10,1024] = parameter {{path="head.weight"}} @ "head"
  %y: f32[N,10] = linear(%f, %v) @ "head" "net.py":7
  output "out" = %y
}}"""
CONV_FLOPS = 2 * 16 * 8 * 8 * 3 * 3 * 3
LINEAR_FLOPS = 2 * 10 * 1024


def test_flops_of_a_small_net_counted_by_hand() -> None:
    graph = parse(NET)
    assert flops(graph) == CONV_FLOPS + LINEAR_FLOPS
    assert flops(graph, n=32) == 32 * (CONV_FLOPS + LINEAR_FLOPS)
    assert flops(graph, n=0) == 0


def test_layers_of_a_small_net_counted_by_hand() -> None:
    first, relu, model, head = layers(parse(NET), n=2)
    assert (first.path, first.ops, first.shape) == ("features.0", ["conv2d"], (2, 16, 8, 8))
    assert (first.parameters, first.flops) == (16 * 27 + 16, 2 * CONV_FLOPS)
    assert (relu.path, relu.parameters, relu.flops) == ("features.1", 0, 0)
    assert (model.path, model.ops, model.shape) == ("", ["reshape"], (2, 1024))
    assert (head.path, head.parameters, head.flops) == ("head", 10240, 2 * LINEAR_FLOPS)


def test_summary_is_a_table_with_totals() -> None:
    assert summary(parse(NET), n=2) == (
        "net, batch size 2\n"
        "layer       operators  output shape  parameters    FLOPs\n"
        "--------------------------------------------------------\n"
        "features.0  conv2d     [2,16,8,8]           448  110,592\n"
        "features.1  relu       [2,16,8,8]             -        -\n"
        "(model)     reshape    [2,1024]               -        -\n"
        "head        linear     [2,10]            10,240   40,960\n"
        "--------------------------------------------------------\n"
        "parameters: 10,688 (0.04 MiB)\n"
        "FLOPs: 151,552 (151.55 kFLOP)"
    )


def test_a_graph_without_a_symbolic_batch_has_no_batch_size_in_its_summary() -> None:
    text = 'graph g { %x: f64[2] = parameter {path="w"} %y: f64[2] = relu(%x) output "o" = %y }'
    assert summary(parse(text)).split("\n")[0] == "g"
    assert "parameters: 2 (0.00 MiB)" in summary(parse(text))


def test_an_empty_graph_has_reports() -> None:
    assert "FLOPs: 0 (0 FLOP)" in summary(Graph("empty"))
    assert table(Graph("empty")).split() == [
        "name", "op", "type", "operands", "attributes", "source",
    ]  # fmt: skip


# Attributes and operand shapes; multiply-adds at batch size 1, counted by hand.
GEOMETRY = {
    "stride": (2, 1),
    "padding": ((1, 1), (0, 2)),
    "dilation": (1, 2),
    "groups": 2,
}
IMAGE, WEIGHT, RESULT = (9, 8), (6, 2, 3, 3), (5, 6)  # (9 + 2 - 3) // 2 + 1, 8 + 2 - 5 + 1
WORK = 6 * 5 * 6 * 2 * 3 * 3
ATTENTION = {
    "heads": 3, "head_dim": 4, "value_dim": 2, "starts": (0, 12, 18), "scale": 0.5, "causal": False,
    "merged": True,
}  # fmt: skip
CASES = [
    ("linear", [(5, 7), (3, 7)], {}, 5 * 3 * 7),
    ("linear", [(2, 5, 7), (3, 7), (3,)], {}, 2 * 5 * 3 * 7),
    ("linear", [(7,), (3, 7)], {}, 3 * 7),
    ("matmul", [(5, 7), (7, 3)], {}, 5 * 7 * 3),
    ("matmul", [(4, 1, 5, 7), (2, 7, 3)], {}, 4 * 2 * 5 * 7 * 3),
    ("linear_grad_weight", [(2, 5, 3), (2, 5, 7)], {}, 2 * 5 * 3 * 7),
    ("linear_packed", [(5, 7), (7 * 8,)], {"out_features": 3, "panel": 8}, 5 * 3 * 7),
    ("matmul_packed", [(5, 7), (7 * 8,)], {"out_features": 3, "panel": 8}, 5 * 3 * 7),
    ("conv2d", [(1, 4, *IMAGE), WEIGHT], {**GEOMETRY, "layout": "NCHW"}, WORK),
    ("conv2d", [(1, *IMAGE, 4), WEIGHT, (6,)], {**GEOMETRY, "layout": "NHWC"}, WORK),
    (
        "conv2d_grad_input",
        [(1, 6, *RESULT), WEIGHT],
        {**GEOMETRY, "layout": "NCHW", "size": IMAGE},
        WORK,
    ),
    (
        "conv2d_grad_weight",
        [(1, *RESULT, 6), (1, *IMAGE, 4)],
        {**GEOMETRY, "layout": "NHWC", "kernel_size": (3, 3)},
        WORK,
    ),
    (
        "conv2d_grad_weight_parts",
        [(1, *RESULT, 6), (1, *IMAGE, 4)],
        {**GEOMETRY, "layout": "NHWC", "kernel_size": (3, 3), "parts": 4},
        WORK,
    ),
    (
        "conv2d_grad_weight_winograd",
        [(1, *IMAGE, 6), (1, *IMAGE, 4)],
        {"tile": 2, "padding": ((1, 1), (1, 1)), "layout": "NHWC"},
        9 * 8 * 6 * 4 * 9,
    ),
    ("attention", [(2, 5, 24), (2, 7, 24), (2, 7, 24)], ATTENTION, 2 * 3 * 5 * 7 * (4 + 2)),
    (
        "attention_weights",
        [(2, 3, 5, 4), (2, 3, 7, 4)],
        {"heads": 3, "head_dim": 4, "starts": (0, 0), "scale": 0.5, "causal": True},
        2 * 3 * 5 * 7 * 4,
    ),
    (
        "attention_grad",
        [(2, 5, 6), (2, 5, 30), (2, 5, 30), (2, 5, 30)],
        {**ATTENTION, "starts": (0, 12, 24), "together": True},
        2 * 3 * 5 * 5 * (3 * 4 + 2 * 2),
    ),
    ("relu", [(5, 7)], {}, 0),
    ("softmax", [(5, 7)], {"dim": 1}, 0),
]


@pytest.mark.parametrize(("op", "shapes", "attrs", "work"), CASES)
def test_flops_are_two_per_multiply_add(op: str, shapes: list, attrs: dict, work: int) -> None:
    graph = Graph()
    operands = [
        graph.add("input", path=str(i), type=TensorType(float32, s)) for i, s in enumerate(shapes)
    ]
    graph.outputs["out"] = graph.add(op, *operands, **attrs)
    assert flops(graph) == 2 * work


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_packed_convolutions_do_the_work_of_plain_ones(groups: int, layout: str) -> None:
    geometry = {**GEOMETRY, "groups": groups, "layout": layout}
    graph = Graph()
    shape = (N, 4, *IMAGE) if layout == "NCHW" else (N, *IMAGE, 4)
    x = graph.add("input", path="x", type=TensorType(float32, shape))
    kind = TensorType(float32, (4, 4 // groups, 3, 3))
    w = graph.add("parameter", path="w", type=kind)
    y = graph.add("conv2d", x, w, **geometry)
    plain = flops(graph, 3)
    packed = {"panel": 8, "kernel_size": (3, 3)}
    weight = graph.add("pack_conv", w, panel=8, flip=False, groups=groups)
    graph.add("conv2d_packed", x, weight, out_channels=4, **packed, **geometry)
    assert flops(graph, 3) == 2 * plain
    flipped = graph.add("pack_conv", w, panel=8, flip=True, groups=groups)
    graph.add(
        "conv2d_grad_input_packed", y, flipped, in_channels=4, size=IMAGE, **packed, **geometry
    )
    assert flops(graph, 3) == 3 * plain


def test_winograd_counts_as_the_convolution_that_it_is() -> None:
    graph = Graph()
    x = graph.add("input", path="x", type=TensorType(float32, (N, 6, 5, 4)))
    w = graph.add("parameter", path="w", type=TensorType(float32, (8, 4, 3, 3)))
    packed = graph.add("pack_winograd", w, tile=2, panel=8)
    graph.add(
        "conv2d_winograd", x, packed, out_channels=8, tile=2, panel=8,
        padding=((1, 1), (1, 1)), layout="NHWC",
    )  # fmt: skip
    assert flops(graph, 3) == 2 * (3 * 6 * 5) * 8 * 4 * 9


def test_every_contraction_has_its_flops_counted() -> None:
    from netwright.ir.report import _MULTIPLY_ADDS

    packs = {"pack_matrix", "pack_conv", "pack_winograd"}
    names = {
        n
        for n, op in all_ops().items()
        if op.kind == "contraction" or (op.kind == "spatial" and "conv" in n)
    }
    assert names - packs == set(_MULTIPLY_ADDS)


def _fused() -> Graph:
    return parse(
        """graph g {
          %x: f32[N,8] = input {path="x"}
          %w: f32[4,8] = parameter {path="a.weight"}
          %s: f32[4,8] = mul(%w, %w) @ "norm"
          %f: f32[N,4] = fused(%x, %s) {kind="contraction", body=graph contraction {
            %p: f32[N,8] = input {path="0"}
            %q: f32[4,8] = input {path="1"}
            %l: f32[N,4] = linear(%p, %q) @ "a" "m.py":1
            %r: f32[N,4] = relu(%l) @ "b" "m.py":2
            output "0" = %r
          }} @ "b" "m.py":2
          output "out" = %f
        }"""
    )


def test_operators_inside_regions_count_for_their_own_modules() -> None:
    a, b, norm = layers(_fused(), n=3)
    assert (a.path, a.ops, a.flops, a.parameters) == ("a", ["linear"], 2 * 3 * 4 * 8, 32)
    assert (b.path, b.ops, b.flops, b.shape) == ("b", ["relu"], 0, (3, 4))
    assert (norm.path, norm.shape) == ("norm", (4, 8))  # prepares weights: after the forward pass
    assert flops(_fused(), n=3) == 2 * 3 * 4 * 8


def test_a_modules_shape_is_not_that_of_its_gradients() -> None:
    graph = parse(NET)
    g = graph.add("input", name="seed", path="grad:out", type=graph.type(Value("y")))
    dw = graph.add("linear_grad_weight", g, Value("f"), source=Source("head"))
    graph.outputs["grad:head.weight"] = dw
    head = layers(graph)[-1]
    assert head.shape == (1, 10) and head.ops == ["linear", "linear_grad_weight"]
    assert head.flops == 2 * LINEAR_FLOPS


def test_a_shared_parameter_counts_once() -> None:
    graph = parse(NET.replace("output", '%z: f32[N,10] = linear(%f, %v) @ "again"\n  output'))
    assert sum(layer.parameters for layer in layers(graph)) == 10688
    assert flops(graph) == CONV_FLOPS + 2 * LINEAR_FLOPS


@pytest.mark.parametrize("seed", range(10))
def test_totals_of_random_graphs_are_the_sums_of_the_layers(
    random_graph: Callable[..., Graph], seed: int
) -> None:
    graph = random_graph(seed, regions=True)
    found = layers(graph, n=5)
    assert sum(layer.flops for layer in found) == flops(graph, n=5)
    held = sum(np.prod(p.type.shape) for p in graph.sources("parameter"))
    assert sum(layer.parameters for layer in found) == held
    assert summary(graph, n=5) and len(table(graph).split("\n")) > len(graph)


def test_table_has_a_line_per_node_in_columns() -> None:
    lines = table(parse(NET)).split("\n")
    assert len(lines) == 1 + 8 + 1
    column = lines[0].index("type")
    assert [line[column:].split()[0] for line in lines[1:]] == [
        "f32[N,3,8,8]", "f32[16,3,3,3]", "f32[16]", "f32[N,16,8,8]", "f32[N,16,8,8]",
        "f32[N,1024]", "f32[10,1024]", "f32[N,10]", "f32[N,10]",
    ]  # fmt: skip
    assert lines[4].startswith("%c ") and "%x, %w, %b" in lines[4]
    assert lines[4].endswith("features.0 at net.py:5")
    assert lines[-1].split() == ["out", "output", "f32[N,10]", "%y"]
    assert all(line == line.rstrip() for line in lines)


def test_table_indents_the_bodies_of_regions() -> None:
    lines = table(_fused()).split("\n")
    assert [line.split()[0] for line in lines if line.startswith("  %")] == ["%p", "%q", "%l", "%r"]


def test_table_cuts_long_attributes() -> None:
    graph = Graph()
    graph.add("constant", value=np.arange(1000.0))
    assert len(table(graph).split("\n")[1]) < 100
