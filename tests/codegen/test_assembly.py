"""Every kernel family, on every target: full vectors in its loops, nothing spilled, no library.

Accuracy and edge cases are tested next to each family; this file reads assembly alone, so it says
the same on any machine. ``Assembly`` in ``conftest.py`` says what counts as a spill.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import netwright as nw
from netwright import optim
from netwright.codegen.kernel import Kernel
from netwright.codegen.packing import choose_panel
from netwright.codegen.select import select_kernel
from netwright.codegen.target import Target
from netwright.ir.builder import GraphBuilder
from netwright.ir.graph import Graph, Value
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, DType, TensorType, bool_, float32, float64, int64, uint8

N = Dim(1)


class Case(NamedTuple):
    """One node: its operator, the shapes of its operands (or types) and its attributes."""

    op: str
    operands: tuple[Any, ...]
    attrs: dict[str, Any] = {}  # noqa: RUF012
    note: str = ""

    def __str__(self) -> str:
        return "-".join(x for x in (self.op, self.note) if x)


def indices(*shape: Any) -> TensorType:
    return TensorType(int64, shape)


def image(layout: str, size: int) -> tuple[Any, ...]:
    return (N, size, size, 64) if layout == "NHWC" else (N, 64, size, size)


def elementwise() -> Iterator[Case]:
    """Every elementwise operator, with the operands and attributes of its first sample."""
    rng = np.random.default_rng(0)
    for name, op in sorted(all_ops().items()):
        if name == "uniform":
            yield Case(name, (indices(2),), {"shape": (N, 64), "stream": 1})
        elif op.kind == "elementwise":
            sample = op.samples(rng)[0]
            kinds = [
                TensorType(bool_, (N, 64)) if a.dtype == bool else (N, 64) for a in sample.arrays
            ]
            yield Case(name, tuple(kinds), sample.attrs)


def rows() -> Iterator[Case]:
    """Softmax and its relatives: rows in registers, rows in memory, and rows across lanes."""
    for shape in ((N, 10), (N, 64), (N, 1000), (N, 10, 64)):
        note = "x".join(map(str, shape))
        for op in ("softmax", "log_softmax"):
            yield Case(op, (shape,), {"dim": 1}, note)
            yield Case(f"{op}_grad", (shape,) * 2, {"dim": 1}, note)
    for classes in (10, 64, 1000):
        for smoothing in (0.0, 0.1):
            attrs = {"reduction": "mean", "ignore_index": -100, "label_smoothing": smoothing}
            note = f"{classes}-{smoothing}"
            pair = ((N, classes), indices(N))
            yield Case("cross_entropy", pair, attrs, note)
            yield Case("cross_entropy_grad", ((), *pair), attrs, note)
            yield Case("cross_entropy_rows", ((), *pair), attrs, note)


def norms() -> Iterator[Case]:
    for shape, dim in (((N, 64), 1), (image("NCHW", 8), 1), (image("NHWC", 8), 3)):
        note, attrs, per = f"{len(shape)}-{dim}", {"channel_dim": dim}, ((64,),)
        yield Case("batch_norm", (shape, *per * 4), {**attrs, "eps": 1e-5}, note)
        yield Case("batch_norm_train", (shape, *per * 2), {**attrs, "eps": 1e-5}, note)
        yield Case("batch_norm_grad", (shape, shape, *per * 3), attrs, note)
    x, per = image("NHWC", 8), (64,)
    sums = TensorType(float64, (32, 2, 64))
    rows = {"rows": Dim(64)}
    yield Case("batch_norm_moments", (x,), {"parts": 32})
    yield Case("batch_norm_grad_sums", (x, x, per), {"parts": 32})
    yield Case("batch_norm_statistics", (sums, per), {**rows, "eps": 1e-5})
    yield Case("batch_norm_grad_factors", (sums, per, per), rows)
    for width in (64, 1000):
        x, w = (N, width), (width,)
        yield Case("layer_norm", (x, w, w), {"ndim": 1, "eps": 1e-5}, str(width))
        yield Case("layer_norm_grad", (x, x, (N,), (N,), w), {"ndim": 1}, str(width))


def pools() -> Iterator[Case]:
    window = {"kernel_size": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))}
    most = {**window, "dilation": (1, 1), "ceil_mode": False}
    mean = {**window, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    adaptive = {"output_size": (7, 7)}
    size = {"size": (28, 28)}
    # In compiled programs images are channels-last; the other layout is one pixel at a time.
    x, half, quarter = (image("NHWC", s) for s in (28, 14, 7))
    where = {"layout": "NHWC"}
    yield Case("max_pool2d", (x,), {**most, **where})
    yield Case("max_pool2d_grad", (half, x), {**most, **where})
    tiles = {"kernel_size": (2, 2)}
    places = TensorType(uint8, half)
    yield Case("max_pool2d_with_places", (x,), tiles)
    yield Case("max_pool2d_gather", (x, places), tiles)
    yield Case("max_pool2d_scatter", (half, places), {**tiles, **size})
    yield Case("avg_pool2d", (x,), {**mean, **where})
    yield Case("avg_pool2d_grad", (half,), {**mean, **size, **where})
    yield Case("adaptive_avg_pool2d", (x,), {**adaptive, **where})
    yield Case("adaptive_avg_pool2d_grad", (quarter,), {**adaptive, **size, **where})


def reductions() -> Iterator[Case]:
    for dims in ((0,), (1,), (0, 1)):
        for op in ("sum", "mean", "amax", "amin"):
            yield Case(op, ((N, 256),), {"dims": dims, "keepdim": False}, f"over{dims}")
    for dim in (0, 1):
        for op in ("argmax", "argmin"):
            yield Case(op, ((N, 256),), {"dim": dim, "keepdim": False}, f"over{dim}")
        for op in ("all", "any"):
            mask = TensorType(bool_, (N, 256))
            yield Case(op, (mask,), {"dims": (dim,), "keepdim": False}, f"over{dim}")


def moves() -> Iterator[Case]:
    for shape, dims in (
        (image("NCHW", 28), (0, 2, 3, 1)),
        (image("NHWC", 28), (0, 3, 1, 2)),
        ((512, 512), (1, 0)),
        ((N, 8, 16, 64), (0, 2, 1, 3)),
    ):
        yield Case("permute", (shape,), {"dims": dims}, "".join(map(str, dims)))
    yield Case("cat", ((N, 64), (N, 80)), {"dim": 1})
    yield Case("slice", ((N, 100),), {"dim": 1, "start": 3, "stop": 90, "step": 1})
    yield Case("slice_grad", ((N, 90),), {"dim": 1, "start": 3, "step": 1, "size": 100})
    yield Case("pad", ((N, 60, 70),), {"low": (0, 1, 2), "high": (0, 0, 3), "value": -1.0})
    yield Case("embedding", (indices(N, 3), (100, 64)), {"padding_idx": None})
    yield Case("embedding_grad", ((N, 3, 64), indices(N, 3)), {"num": 100, "padding_idx": None})


def contractions() -> Iterator[Case]:
    plain = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "layout": "NHWC"}
    x = image("NHWC", 14)
    for groups, note in ((1, "dense"), (64, "depthwise")):
        attrs = {**plain, "groups": groups}
        w = (64, 64 // groups, 3, 3)
        yield Case("conv2d", (x, w), attrs, note)
        yield Case("conv2d_grad_input", (x, w), {**attrs, "size": (14, 14)}, note)
        yield Case("conv2d_grad_weight", (x, x), {**attrs, "kernel_size": (3, 3)}, note)
    pixels = {**plain, "padding": ((0, 0), (0, 0)), "groups": 1, "kernel_size": (1, 1)}
    yield Case("conv2d_grad_weight", (x, x), pixels, "1x1")
    first = {**plain, "groups": 1, "kernel_size": (3, 3), "parts": 8}
    yield Case("conv2d_grad_weight_parts", (x, (N, 14, 14, 3)), first)
    yield Case("linear", ((N, 300), (96, 300), (96,)))
    for depth in (300, 3000):  # panels of the widest tile, and of two vectors
        yield Case("linear_transposed", ((N, depth), (107, depth), (107,)), note=str(depth))
    yield Case("linear_grad_weight", ((N, 96), (N, 300)))
    yield Case("matmul", ((N, 32, 64), (N, 64, 48)))
    for transpose in (False, True):
        attrs = {"transpose": transpose, "panel": None}
        yield Case("pack_matrix", ((256, 300),), attrs, "transposed" if transpose else "copied")
    for flip in (False, True):
        attrs = {"flip": flip, "panel": None}
        yield Case("pack_conv", ((64, 64, 3, 3),), attrs, "flipped" if flip else "plain")


CASES = [
    (case, dtype)
    for family in (elementwise, rows, norms, pools, reductions, moves, contractions)
    for case in family()
    for dtype in ((float32,) if family in (moves, contractions) else (float32, float64))
]

# The most spills outside of innermost loops, for what has some. What stands on the stack:
AROUND = {
    # Totals in float64 of many columns, while the next chunk of rows is summed.
    "batch_norm_train": 53,
    "batch_norm_grad": 20,
    "layer_norm_grad": 20,
    # The rows that are left of a panel, transposed in a straight line of shuffles.
    **dict.fromkeys(("pack_matrix", "pack_conv", "conv2d", "conv2d_grad_input", "linear"), 48),
    "linear_transposed": 48,
    # One vector of constants, or of a row, over a loop that needs all registers.
    **dict.fromkeys(("argmax", "argmin", "max_pool2d_grad", "cross_entropy_grad"), 2),
    # The largest logit and the label, which the loss needs behind the exponentials, too.
    "cross_entropy_rows": 4,
}

# Half of a register or less: bytes in as many lanes as float32 has; blocks of 8 x 8 elements.
NARROW = ("all", "any", "permute")


def kernel_of(case: Case, dtype: DType, target: Target) -> Kernel:
    attrs = dict(case.attrs)
    if "panel" in attrs:
        attrs["panel"] = choose_panel(256 if case.op == "pack_matrix" else 64, target, dtype)
    types = [o if isinstance(o, TensorType) else TensorType(dtype, o) for o in case.operands]
    return kernel_for(case.op, types, target, **attrs)


def kernel_for(op: str, types: list[TensorType], target: Target, **attrs: Any) -> Kernel:
    graph = Graph()
    inputs = [graph.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    result = graph.add(op, *inputs, **attrs)
    node = graph.node(result if isinstance(result, Value) else result[0])
    kernel = select_kernel(node, graph, target)
    assert kernel is not None
    return kernel


def calls_of(code: Any) -> set[str]:
    """What is called that the module does not define."""
    called = set(re.findall(r"(?m)^\s+(?:callq?|bl)\s+(\w+)", code.text))
    return called - set(re.findall(r"(?m)^(\w+):", code.text))


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=str)
def test_loops_are_full_vectors_that_stay_in_registers(
    case: Case, dtype: DType, target: Target, asm_for: Callable[..., Any]
) -> None:
    code = asm_for(kernel_of(case, dtype, target), target)
    if case.op in NARROW:
        assert code.count(r"\w+\s.*(%[xyz]mm\d|\bv\d+\.\d|\bq\d)") >= 2
    else:
        assert max(code.widths) >= 2
    assert code.inner_spills == 0
    assert code.spills <= AROUND.get(case.op, 0)
    assert calls_of(code) <= {"memset", "memcpy"}


@pytest.mark.parametrize("channels", [16, 64, 100])
def test_sums_of_a_masked_gradient_are_full_vectors_that_stay_in_registers(
    asm_for: Any, target: Target, channels: int
) -> None:
    """The first sweep of the gradient of BatchNorm and ReLU (``passes/split_batch_norm.py``)."""
    image, per = (TensorType(float32, s) for s in ((N, 8, 8, channels), (channels,)))
    types = [image, image, per, per, per]
    body = Graph("reduction")
    g, x, mean, scale, beta = (body.add("input", path=str(i), type=t) for i, t in enumerate(types))
    y = body.add("add", body.add("mul", body.add("sub", x, mean), scale), beta)
    zero = body.add("constant", value=np.float32(0))
    masked = body.add("where", body.add("le", y, zero), zero, g)
    body.outputs["0"] = body.add("batch_norm_grad_sums", masked, x, mean, parts=32)
    code = asm_for(kernel_for("fused", types, target, kind="reduction", body=body), target)
    assert code.inner_spills == 0
    assert calls_of(code) <= {"memset"}
    assert max(code.widths) >= 10


@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_normalisation_of_short_rows_keeps_what_repeats_in_registers(
    asm_for: Any, target: Target, vectors: int
) -> None:
    """(x - mean) scale + beta and ReLU, as ``passes/split_batch_norm.py`` writes it."""
    channels = vectors * target.lanes(float32)
    image, per = (TensorType(float32, s) for s in ((N, 8, 8, channels), (channels,)))
    types = [image, per, per, per]
    body = Graph("elementwise")
    x, mean, scale, beta = (body.add("input", path=str(i), type=t) for i, t in enumerate(types))
    y = body.add("add", body.add("mul", body.add("sub", x, mean), scale), beta)
    body.outputs["0"] = body.add("relu", y)
    code = asm_for(kernel_for("fused", types, target, kind="elementwise", body=body), target)
    assert code.spills == 0
    assert max(code.widths) >= 5
    assert calls_of(code) == set()


@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
def test_pooling_of_a_normalised_image_stays_in_registers(
    asm_for: Any, target: Target, channels: int, dtype: DType
) -> None:
    """What the pass makes of BatchNorm, ReLU and pooling, and of the gradient."""
    image, per = (TensorType(dtype, s) for s in ((N, 28, 28, channels), (channels,)))
    window = {"kernel_size": (2, 2)}
    forward = Graph("pooling")
    x, mean, scale, beta = (
        forward.add("input", path=str(i), type=t) for i, t in enumerate([image, per, per, per])
    )
    y = forward.add("add", forward.add("mul", forward.add("sub", x, mean), scale), beta)
    y, places = forward.add("max_pool2d_with_places", forward.add("relu", y), **window)
    at = forward.add("max_pool2d_gather", x, places, **window)
    flat = forward.add("permute", y, dims=(0, 3, 1, 2))
    forward.outputs = {"0": flat, "1": places, "2": at}

    backward = Graph("pooling")
    small = [TensorType(t, (N, 14, 14, channels)) for t in (dtype, uint8)]
    types = [*small, image, per, per, per, per]
    g, places, x, mean, slope, offset, scale = (
        backward.add("input", path=str(i), type=t) for i, t in enumerate(types)
    )
    dr = backward.add("max_pool2d_scatter", g, places, **window, size=(28, 28))
    along = backward.add("mul", backward.add("sub", x, mean), slope)
    dx = backward.add("sub", backward.add("sub", dr, along), offset)
    backward.outputs["0"] = backward.add("mul", dx, scale)

    for operands, body in (([image, per, per, per], forward), (types, backward)):
        code = asm_for(kernel_for("fused", operands, target, kind="pooling", body=body), target)
        assert code.spills == 0
        assert max(code.widths) >= 16
        assert calls_of(code) == set()


def optimizers() -> list[Any]:
    parameter = nw.zeros(4, requires_grad=True)
    return [
        optim.SGD([parameter], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        optim.Adam([parameter], amsgrad=True, weight_decay=0.1),
        optim.AdamW([parameter]),
    ]


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
@pytest.mark.parametrize("optimizer", optimizers(), ids=lambda o: type(o).__name__)
def test_optimizer_updates_are_full_vectors_that_stay_in_registers(
    optimizer: Any, dtype: DType, target: Target, asm_for: Callable[..., Any]
) -> None:
    (parameter,) = optimizer.param_groups[0]["params"]
    states, numbers = optimizer.state_names(0), optimizer.hyper(0, parameter)
    weights, scalar = TensorType(dtype, (1000,)), TensorType(dtype, ())
    types = [weights] * (2 + len(states)) + [scalar] * len(numbers)
    body = Graph("body")
    ins = [body.add("input", path=str(k), type=t) for k, t in enumerate(types)]
    state = dict(zip(states, ins[2:], strict=False))
    hyper = dict(zip(numbers, ins[2 + len(states) :], strict=True))
    value, following = optimizer.update_rule(0)(GraphBuilder(body), ins[0], ins[1], state, hyper)
    body.outputs = {str(k): v for k, v in enumerate([value, *following.values()])}
    code = asm_for(kernel_for("fused", types, target, kind="elementwise", body=body), target)
    assert max(code.widths) >= 2 * len(types[: 2 + len(states)])
    assert code.spills == 0
    assert code.calls == 0


def test_dropout_keeps_its_random_numbers_in_registers(
    target: Target, asm_for: Callable[..., Any]
) -> None:
    types = [TensorType(float32, (N, 64)), TensorType(int64, (2,))]
    body = Graph("body")
    x, key = (body.add("input", path=str(k), type=t) for k, t in enumerate(types))
    uniform = body.add("uniform", key, shape=(N, 64), stream=1)
    kept = body.add("ge", uniform, body.add("constant", value=np.float32(0.1)))
    zero = body.add("constant", value=np.float32(0))
    body.outputs["0"] = body.add("where", kept, x, zero)
    code = asm_for(kernel_for("fused", types, target, kind="elementwise", body=body), target)
    multiply = {64: r"vpmuludq\s.*%zmm", 32: r"vpmuludq\s.*%ymm", 16: r"umull2?\s+v\d+\.2d"}
    # Two products of even and of odd lanes in ten rounds; the last needs one, constants none.
    assert code.count(multiply[target.vector_bytes]) >= 36
    assert code.spills == 0
    assert code.calls == 0
