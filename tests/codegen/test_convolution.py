import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.contraction import contraction_of
from netwright.codegen.conv_blocking import Blocking
from netwright.codegen.conv_grad_weight import emit_conv_grad_weight
from netwright.codegen.convolution import convolution_of, emit_convolution
from netwright.codegen.packing import choose_panel, pack_conv
from netwright.codegen.target import AVX512, Target, host
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.types import Dim, TensorType, float32, float64

N = Dim(1)
Run = Callable[..., np.ndarray]


def geometry(
    stride: Any = (1, 1), padding: Any = ((0, 0), (0, 0)), dilation: Any = (1, 1), groups: int = 1
) -> dict[str, Any]:
    return {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "layout": "NHWC",
    }


def build(op: str, *types: TensorType, **attrs: Any) -> tuple[Node, Graph]:
    graph = Graph()
    values = [graph.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    graph.add(op, *values, **attrs)
    return graph.nodes[-1], graph


def check(
    run: Run, emit: Any, node: Node, graph: Graph, n: int = 1, splits: Sequence[int] = ()
) -> np.ndarray:
    """Runs the node's kernel on random numbers and compares with numpy in float64."""
    rng = np.random.default_rng(0)
    types = [graph.type(v).at(n) for v in node.operands]
    ins = [np.asarray(rng.standard_normal(t.shape), t.dtype.np) for t in types]
    kernel = emit(node, graph, host())
    assert kernel is not None
    out = np.full(node.type.at(n).shape, np.nan, node.type.dtype.np)
    run(kernel, [out], ins, n, splits)
    wide = ins if node.op == "fused" else [a.astype(np.float64) for a in ins]
    exact = run_node(node, wide, n)[0]
    atol = 1e-4 if out.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(out, exact, rtol=0, atol=atol)
    return out


# (height, width, channels), (out channels, kernel height, kernel width), geometry
SHAPES: list[tuple[Any, Any, dict[str, Any]]] = [
    ((5, 6, 3), (4, 3, 3), geometry(padding=((1, 1), (1, 1)))),
    ((1, 1, 1), (1, 1, 1), geometry()),
    ((13, 7, 17), (18, 3, 3), geometry(padding=((1, 1), (1, 1)))),
    ((8, 8, 16), (24, 1, 1), geometry()),
    ((28, 28, 1), (16, 5, 5), geometry(padding=((2, 2), (2, 2)))),
    ((9, 7, 3), (40, 3, 2), geometry((2, 3), ((0, 1), (2, 0)))),
    ((9, 11, 5), (8, 3, 3), geometry((1, 2), ((2, 2), (1, 1)), (2, 2))),
    ((6, 6, 8), (8, 1, 1), geometry((2, 2))),
    ((8, 9, 4), (16, 3, 3), geometry((3, 3), ((1, 1), (1, 1)))),
    ((4, 5, 2), (3, 6, 7), geometry(padding=((2, 1), (3, 2)))),
    ((7, 7, 8), (16, 3, 3), geometry(padding=((1, 1), (1, 1)))),
    ((5, 5, 2), (4, 2, 2), geometry(padding=((3, 4), (3, 3)))),
    ((7, 6, 6), (9, 3, 3), geometry((2, 1), ((1, 1), (1, 0)), (1, 2), 3)),
    ((6, 7, 4), (40, 3, 3), geometry((1, 1), ((1, 1), (1, 1)), (1, 1), 2)),
    ((7, 9, 5), (5, 3, 3), geometry((1, 1), ((1, 1), (1, 1)), (1, 1), 5)),
    ((9, 8, 20), (20, 5, 3), geometry((2, 1), ((2, 1), (1, 1)), (1, 2), 20)),
    ((9, 8, 32), (20, 3, 3), geometry((2, 2), ((1, 1), (1, 1)))),
    ((9, 7, 16), (70, 1, 1), geometry((3, 2))),
    ((8, 6, 3), (64, 5, 7), geometry((2, 2), ((2, 2), (3, 3)))),
    # Too large for the first level cache: copied block by block.
    ((26, 33, 9), (10, 3, 2), geometry((2, 1), ((1, 1), (0, 1)))),
]


def forward(shape: Any, kernel: Any, attrs: dict[str, Any], dtype: Any = float32) -> Any:
    o, *size = kernel
    weight = (o, shape[2] // attrs["groups"], *size)
    return build(
        "conv2d",
        TensorType(dtype, (N, *shape)),
        TensorType(dtype, weight),
        TensorType(dtype, (o,)),
        **attrs,
    )


def gradient(shape: Any, kernel: Any, attrs: dict[str, Any], dtype: Any = float32) -> Any:
    node, graph = forward(shape, kernel, attrs, dtype)
    return build(
        "conv2d_grad_input", node.type, graph.type(node.operands[1]), size=shape[:2], **attrs
    )


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_any_geometry_matches_numpy(run: Run, case: Any, make: Any) -> None:
    node, graph = make(*case)
    for n in (3, 0):
        check(run, emit_convolution, node, graph, n)


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("case", SHAPES[5:7], ids=str)
def test_double_precision(run: Run, case: Any, make: Any) -> None:
    check(run, emit_convolution, *make(*case, float64), n=2)


def weight_gradient(shape: Any, kernel: Any, attrs: dict[str, Any], dtype: Any = float32) -> Any:
    node, graph = forward(shape, kernel, attrs, dtype)
    x = graph.type(node.operands[0])
    return build("conv2d_grad_weight", node.type, x, kernel_size=kernel[1:], **attrs)


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_weight_gradient_of_any_geometry_matches_numpy(run: Run, case: Any) -> None:
    node, graph = weight_gradient(*case)
    for n in (3, 0):
        check(run, emit_conv_grad_weight, node, graph, n)


def test_weight_gradient_over_several_blocks_of_images(run: Run) -> None:
    node, graph = weight_gradient((4, 4, 16), (32, 3, 3), geometry(padding=((1, 1), (1, 1))))
    whole = check(run, emit_conv_grad_weight, node, graph, 29)
    assert np.array_equal(check(run, emit_conv_grad_weight, node, graph, 29, [1]), whole)


@pytest.mark.parametrize("l2", [1 << 20, 1 << 13])
@pytest.mark.parametrize(
    "shape,out", [((15, 14, 9), 33), ((7, 7, 40), 70), ((2, 300, 16), 96), ((1, 1, 33), 35)]
)
def test_weight_gradient_of_1x1_is_summed_in_cache_or_as_a_product(
    run: Run, shape: Any, out: int, l2: int
) -> None:
    """Both have the same bits for any cut of the tasks."""
    node, graph = weight_gradient(shape, (out, 1, 1), geometry())
    target = replace(host(), l2=l2)

    def emit(node: Any, graph: Any, _: Any) -> Any:
        return emit_conv_grad_weight(node, graph, target)

    kernel = emit(node, graph, None)
    large = out * shape[2] * 4 > l2 // 4
    assert ("_origins" in kernel.text) != large
    for n in (3, 1, 0):
        check(run, emit, node, graph, n)
    count = kernel.tasks.at(3)
    splits = sorted({count // 3, count // 2, count - 1} - {0})
    assert np.array_equal(
        check(run, emit, node, graph, 3, splits), check(run, emit, node, graph, 3)
    )


def padded(height: int, channels: int, out: int, groups: int = 1) -> tuple[Any, Any, Any]:
    """A 3 x 3 convolution that keeps the size of square images."""
    attrs = geometry(padding=((1, 1), (1, 1)), groups=groups)
    return (height, height, channels), (out, 3, 3), attrs


PLACES = [padded(9, 4, 20), padded(14, 16, 8), padded(6, 12, 12, 12)]


@pytest.mark.parametrize("make", [forward, gradient, weight_gradient])
@pytest.mark.parametrize("case", PLACES, ids=str)
def test_any_split_of_the_tasks_gives_the_same_bits(run: Run, case: Any, make: Any) -> None:
    node, graph = make(*case)
    kernel = emit_convolution(node, graph, host())
    assert kernel is not None
    count = kernel.tasks.at(5)
    whole = check(run, emit_convolution, node, graph, 5)
    splits = sorted({count // 3, count // 2, count - 1})
    assert np.array_equal(check(run, emit_convolution, node, graph, 5, splits), whole)


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("case", [*PLACES[:2], SHAPES[16], SHAPES[18]], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_panels_larger_than_the_cache_are_summed_by_kernel_rows(
    run: Run, case: Any, make: Any, residual: bool
) -> None:
    node, graph = make(*case)
    if residual:
        types = [*(graph.type(v) for v in node.operands), node.type]
        body = Graph("body")
        values = [body.add("input", path=str(k), type=t) for k, t in enumerate(types)]
        y = body.add("add", body.add(node.op, *values[:-1], **node.attrs), values[-1])
        body.outputs["0"] = body.add("relu", y)
        node, graph = build("fused", *types, kind="contraction", body=body)
    target = replace(host(), l2=1 << 12)

    def emit(node: Any, graph: Any, _: Any) -> Any:
        return emit_convolution(node, graph, target)

    phases = case[2]["stride"] if make is gradient else (1, 1)
    kernel = emit(node, graph, None)
    assert ("%keep" in kernel.text) == (phases[0] == 1)
    whole = check(run, emit, node, graph, 2)
    count = kernel.tasks.at(2)
    splits = sorted({count // 3, count // 2, count - 1})
    assert np.array_equal(check(run, emit, node, graph, 2, splits), whole)


@pytest.mark.parametrize(
    "case",
    [
        ((27, 27, 64), (192, 5, 5), geometry(padding=((2, 2), (2, 2)))),
        ((56, 56, 256), (512, 1, 1), geometry((2, 2))),
        ((14, 14, 1024), (2048, 1, 1), geometry((2, 2))),
        ((224, 224, 3), (64, 11, 11), geometry((4, 4), ((2, 2), (2, 2)))),
        ((28, 28, 256), (256, 3, 3), geometry((2, 2), ((1, 1), (1, 1)))),
    ],
    ids=str,
)
def test_two_threads_have_equally_many_rows_of_one_image(case: Any) -> None:
    node, graph = forward(*case)
    target = replace(AVX512, l2=1 << 20)
    found = contraction_of(node, [graph.type(v) for v in node.operands])
    assert found is not None
    spec = convolution_of(found, target)
    assert spec is not None
    height, rows = node.type.shape[1], Blocking(spec, found.epilogue, target).block_rows
    blocks = [min(rows, height - at) for at in range(0, height, rows)]
    units = [n for n in blocks for _ in range(spec.panels)]
    halves = sum(units[: len(units) // 2]), sum(units[len(units) // 2 :])
    assert max(halves) <= 1.1 * min(halves)


@pytest.mark.parametrize("make", [forward, gradient])
@pytest.mark.parametrize("case", PLACES, ids=str)
def test_an_image_has_the_same_bits_at_any_place_of_any_batch(
    run: Run, case: Any, make: Any
) -> None:
    node, graph = make(*case)
    kernel = emit_convolution(node, graph, host())
    assert kernel is not None
    rng = np.random.default_rng(3)
    types = [graph.type(v).at(7) for v in node.operands]
    x, *rest = (rng.standard_normal(t.shape).astype(np.float32) for t in types)

    def some(images: slice) -> np.ndarray:
        n = len(x[images])
        out = np.empty(node.type.at(n).shape, np.float32)
        run(kernel, [out], [x[images], *rest], n)
        return out

    for images in (slice(0, 1), slice(6, 7), slice(2, 5)):
        assert np.array_equal(some(images), some(slice(0, 7))[images])


@pytest.mark.parametrize("case", [*PLACES, SHAPES[3], SHAPES[12], SHAPES[15]], ids=str)
@pytest.mark.parametrize("flip", [False, True])
def test_packed_weights_give_the_bits_of_plain_ones(run: Run, case: Any, flip: bool) -> None:
    node, graph = (gradient if flip else forward)(*case)
    rng = np.random.default_rng(4)
    types = [graph.type(v).at(2) for v in node.operands]
    x, w, *bias = (rng.standard_normal(t.shape).astype(np.float32) for t in types)
    attrs = dict(node.attrs)
    groups, (o, i) = attrs["groups"], w.shape[:2]
    columns = o if i == 1 and groups > 1 else i if flip else o // groups
    panel = choose_panel(columns, host(), float32)
    pack, pack_graph = build(
        "pack_conv", graph.type(node.operands[1]), panel=panel, flip=flip, groups=groups
    )
    packer = pack_conv(pack_graph.type(pack.operands[0]), panel, flip, groups, host())
    assert packer is not None
    packed = np.full(pack.type.shape, np.nan, np.float32)  # type: ignore[arg-type]
    run(packer, [packed], [w], 2, [packer.tasks.at(2) // 2])
    assert np.array_equal(packed, run_node(pack, [w], 2)[0])
    channels = {"in_channels": i * groups} if flip else {"out_channels": o}
    other = build(
        f"{node.op}_packed",
        graph.type(node.operands[0]),
        pack.type,
        *(graph.type(v) for v in node.operands[2:]),
        kernel_size=w.shape[2:],
        panel=panel,
        **channels,
        **attrs,
    )
    results = []
    for case_node, weight in (((node, graph), w), (other, packed)):
        kernel = emit_convolution(*case_node, host())
        assert kernel is not None
        results.append(np.empty(node.type.at(2).shape, np.float32))
        run(kernel, [results[-1]], [x, weight, *bias], 2)
    assert np.array_equal(*results)


@pytest.mark.parametrize("case", [*PLACES, SHAPES[3]], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_residual_and_activation_are_applied(run: Run, case: Any, long: bool) -> None:
    node, graph = forward(*case)
    types = [*(graph.type(v) for v in node.operands), node.type]
    types.append(TensorType(float32, (node.type.shape[-1],)))
    body = Graph("body")
    x, w, b, residual, scale = (body.add("input", path=str(k), type=t) for k, t in enumerate(types))
    y = body.add("mul", body.add("conv2d", x, w, b, **node.attrs), scale)
    y = body.add("add", y, residual)
    body.outputs["0"] = body.add("gelu", y, approximate="none") if long else body.add("relu", y)
    check(run, emit_convolution, *build("fused", *types, kind="contraction", body=body), n=2)


def test_channels_first_images_are_declined() -> None:
    attrs = {**geometry(), "layout": "NCHW"}
    x, w = (TensorType(float32, s) for s in ((N, 3, 5, 5), (4, 3, 1, 1)))
    assert emit_convolution(*build("conv2d", x, w, **attrs), host()) is None


@pytest.mark.parametrize("make", [forward, gradient, weight_gradient])
@pytest.mark.parametrize(
    "case",
    [
        padded(28, 64, 64),
        padded(14, 16, 32),
        padded(7, 256, 256),
        SHAPES[4],
        ((8, 8, 128), (64, 3, 3), geometry((2, 2), ((1, 1), (1, 1)))),
        padded(14, 64, 64, 64),
    ],
    ids=str,
)
def test_inner_loops_do_not_spill(asm_for: Any, target: Target, case: Any, make: Any) -> None:
    kernel = emit_convolution(*make(*case), target)
    assert kernel is not None
    asm = asm_for(kernel, target)
    multiplies = asm.count(r"(vfn?m|fmla)")
    assert multiplies == len(re.findall(r"call <.*@llvm\.fma", kernel.text)) <= 700
    tiles = re.split(r"(?m)^(?=\w+:)", asm.text)
    for tile in tiles:
        # Packing kernels may spill: they transpose, and are not inner loops.
        assert "_tile_" not in tile.split(":")[0] or replace(asm, text=tile).spills == 0
