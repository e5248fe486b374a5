"""Max pooling with places, and regions around it, against their numpy records."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.codegen.pool_places import PLACES, emit_pool_places
from netwright.codegen.target import host
from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import run_node
from netwright.ir.ops.record import all_ops, infer_types
from netwright.ir.types import Dim, DType, TensorType, float32, float64, uint8

N = Dim(1)
RNG = np.random.default_rng(7)


@pytest.mark.parametrize("op", PLACES)
@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_samples_of_the_record_agree_for_every_vector_width(
    single: Callable, op: str, dtype: type, vector_bytes: int
) -> None:
    target = replace(host(), vector_bytes=vector_bytes)
    for sample in all_ops()[op].samples(np.random.default_rng(3)):
        arrays = [a if a.dtype == np.uint8 else a.astype(dtype) for a in sample.arrays]
        single(emit_pool_places, op, arrays, target=target, **sample.attrs).check(*arrays)


def test_a_window_that_is_not_unrolled_has_no_kernel() -> None:
    graph = Graph()
    x = graph.add("input", path="0", type=TensorType(float32, (N, 10, 10, 4)))
    y, _ = graph.add("max_pool2d_with_places", x, kernel_size=(5, 5))
    assert emit_pool_places(graph.node(y), graph, host()) is None


def forward_region(
    dtype: DType, size: tuple[int, int], channels: int, places: bool = True, first: bool = False
) -> Any:
    """relu((x - mean) * scale), its pooling, and what x is at the maxima; ``first``: maxima with
    the channels first."""
    image, per = TensorType(dtype, (N, *size, channels)), TensorType(dtype, (channels,))
    body = Graph("pooling")
    types = [image, per, per, TensorType(dtype, ())]
    x, mean, scale, least = (body.add("input", path=str(i), type=t) for i, t in enumerate(types))
    y = body.add("maximum", body.add("mul", body.add("sub", x, mean), scale), least)
    if not places:
        tiles: dict[str, Any] = {"kernel_size": (2, 2), "stride": (2, 2), "dilation": (1, 1)}
        tiles |= {"padding": ((0, 0), (0, 0)), "ceil_mode": False, "layout": "NHWC"}
        body.outputs["0"] = body.add("max_pool2d", y, **tiles)
        return types, body
    pooled, where = body.add("max_pool2d_with_places", y, kernel_size=(2, 2))
    body.outputs = {"0": pooled, "1": where}
    if first:
        body.outputs["0"] = body.add("permute", pooled, dims=(0, 3, 1, 2))
    body.outputs["2"] = body.add("max_pool2d_gather", x, where, kernel_size=(2, 2))
    return types, body


def backward_region(dtype: DType, size: tuple[int, int], channels: int) -> Any:
    """(scattered g - x * slope) * scale, and the square of x."""
    attrs: dict[str, Any] = {"kernel_size": (2, 2)}
    image, per = TensorType(dtype, (N, *size, channels)), TensorType(dtype, (channels,))
    small, where = infer_types("max_pool2d_with_places", [image], attrs)
    body = Graph("pooling")
    types = [small, where, image, per, per]
    g, places, x, slope, scale = (
        body.add("input", path=str(i), type=t) for i, t in enumerate(types)
    )
    scattered = body.add("max_pool2d_scatter", g, places, **attrs, size=size)
    y: Value = body.add("sub", scattered, body.add("mul", x, slope))
    body.outputs = {"0": body.add("mul", y, scale), "1": body.add("square", x)}
    return types, body


def draw(kind: TensorType, n: int) -> np.ndarray:
    shape = kind.at(n).shape
    if kind.dtype is uint8:
        return RNG.integers(0, 4, shape).astype(np.uint8)
    return RNG.integers(-3, 4, shape).astype(kind.dtype.np)  # many ties; sums are exact


def check(made: Any, arrays: list[np.ndarray], n: int) -> None:
    """The bits of the numpy records, for numbers whose products and sums are exact."""
    for found, wanted in zip(
        made.outputs(*arrays, n=n), run_node(made.node, arrays, n), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
@pytest.mark.parametrize(
    ("size", "channels"), [((8, 6), 16), ((7, 9), 19), ((7, 4), 3), ((2, 3), 40)]
)
def test_regions(single: Callable, dtype: DType, size: tuple, channels: int) -> None:
    regions = [forward_region(dtype, size, channels, places) for places in (True, False)]
    for types, body in (*regions, backward_region(dtype, size, channels)):
        made = single(emit_pool_places, "fused", types, kind="pooling", body=body)
        for n in (0, 1, 3):
            check(made, [draw(t, n) for t in types], n)


@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
@pytest.mark.parametrize(
    ("size", "channels"), [((4, 28), 16), ((5, 32), 20), ((7, 4), 16), ((2, 19), 3)]
)
def test_maxima_may_be_written_with_the_channels_first(
    single: Callable, dtype: DType, size: tuple, channels: int
) -> None:
    types, body = forward_region(dtype, size, channels, first=True)
    made = single(emit_pool_places, "fused", types, kind="pooling", body=body)
    for n in (1, 3):
        check(made, [draw(t, n) for t in types], n)


def test_the_last_nan_of_a_window_is_its_maximum(single: Callable) -> None:
    types, body = forward_region(float32, (6, 8), 20)
    x, *others = (draw(t, 2) for t in types)
    x[RNG.random(x.shape) < 0.3] = np.nan
    x[RNG.random(x.shape) < 0.2] = -np.inf
    made = single(emit_pool_places, "fused", types, kind="pooling", body=body)
    check(made, [x, *others], 2)
    assert 0.3 < np.isnan(made.outputs(x, *others, n=2)[0]).mean() < 1


def test_a_region_may_write_over_the_image_that_it_reads(run: Callable, single: Callable) -> None:
    types, body = backward_region(float32, (7, 6), 19)
    del body.outputs["1"]
    made = single(emit_pool_places, "fused", types, kind="pooling", body=body)
    arrays = [draw(t, 3) for t in types]
    (expected,) = made.outputs(*arrays, n=3)
    run(made.kernel, [arrays[2]], arrays, 3, splits=(2, 5))
    np.testing.assert_array_equal(arrays[2], expected)
