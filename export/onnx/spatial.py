"""Convolution and pooling of NCHW images."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...ir.graph import Node
from ...ir.ops.adaptive_pooling import adaptive_windows
from ...ir.ops.spatial import Padding, pool_extent
from .builder import OnnxBuilder
from .rules import rule

Pair = tuple[int, int]


def _pads(padding: Padding) -> list[int]:
    """((top, bottom), (left, right)) in ONNX's order: all lows, then all highs."""
    return [low for low, _ in padding] + [high for _, high in padding]


def _image_size(b: OnnxBuilder, node: Node) -> Pair:
    """Height and width of the first operand."""
    if node.attrs["layout"] != "NCHW":
        raise UnsupportedError(
            f"{node.op} in layout {node.attrs['layout']}; ONNX has NCHW only, so export the "
            "graph before the pass assign_layout"
        )
    _, _, height, width = b.type(node).shape
    if not (isinstance(height, int) and isinstance(width, int)):
        raise UnsupportedError(f"{node.op}: an image of symbolic size")
    return height, width


@rule("conv2d")
def _conv2d(b: OnnxBuilder, node: Node, x: str, w: str, *bias: str) -> str:
    _image_size(b, node)
    attrs = node.attrs
    return b.add(
        "Conv",
        x,
        w,
        *bias,
        kernel_shape=b.type(node, 1).shape[2:],
        strides=attrs["stride"],
        pads=_pads(attrs["padding"]),
        dilations=attrs["dilation"],
        group=attrs["groups"],
    )


def _reaching_padding(node: Node, size: Pair) -> Padding:
    """The padding with which whole windows alone give the same count as with ceil_mode.

    Runtimes disagree about the last, partial windows of ceil_mode; none has to ask this way.
    """
    attrs = node.attrs
    dilation = attrs.get("dilation", (1, 1))
    found = []
    for axis in (0, 1):
        kernel, stride, step = attrs["kernel_size"][axis], attrs["stride"][axis], dilation[axis]
        low, high = attrs["padding"][axis]
        count = pool_extent(size[axis], kernel, stride, (low, high), step, attrs["ceil_mode"])
        reach = (count - 1) * stride + step * (kernel - 1) + 1
        found.append((low, max(high, reach - size[axis] - low)))
    return found[0], found[1]


@rule("max_pool2d")
def _max_pool2d(b: OnnxBuilder, node: Node, x: str) -> str:
    padding = _reaching_padding(node, _image_size(b, node))
    return b.add(
        "MaxPool",
        x,
        kernel_shape=node.attrs["kernel_size"],
        strides=node.attrs["stride"],
        pads=_pads(padding),
        dilations=node.attrs["dilation"],
    )


@rule("avg_pool2d")
def _avg_pool2d(b: OnnxBuilder, node: Node, x: str) -> str:
    attrs = node.attrs
    padding, reaching = attrs["padding"], _reaching_padding(node, _image_size(b, node))
    divisor = attrs["divisor_override"]
    window: dict[str, Any] = {
        "kernel_shape": attrs["kernel_size"],
        "strides": attrs["stride"],
    }
    if divisor is not None:
        mean = b.add("AveragePool", x, pads=_pads(reaching), count_include_pad=1, **window)
        height, width = attrs["kernel_size"]
        return b.add("Mul", mean, b.scalar(height * width / divisor, b.type(node).dtype))
    if attrs["count_include_pad"] and reaching != padding:
        # The padding counts, what lies beyond it does not.
        lows, highs = [low for low, _ in padding], [high for _, high in padding]
        x = b.add("Pad", x, b.ints(0, 0, *lows, 0, 0, *highs))
        rest = [far - high for (_, far), high in zip(reaching, highs, strict=True)]
        return b.add("AveragePool", x, pads=[0, 0, *rest], count_include_pad=0, **window)
    include = int(attrs["count_include_pad"] and any(map(any, padding)))
    return b.add("AveragePool", x, pads=_pads(reaching), count_include_pad=include, **window)


@rule("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(b: OnnxBuilder, node: Node, x: str) -> str:
    size, out = _image_size(b, node), node.attrs["output_size"]
    if tuple(out) == size:
        return b.add("Identity", x)
    if tuple(out) == (1, 1):
        return b.add("GlobalAveragePool", x)
    if all(s % o == 0 for s, o in zip(size, out, strict=True)):
        step = [s // o for s, o in zip(size, out, strict=True)]
        return b.add("AveragePool", x, kernel_shape=step, strides=step)
    # Windows of several sizes: averages of rows and of columns are matrix products.
    dtype = b.type(node).dtype.np
    columns = b.add("MatMul", x, b.array(_averages(size[1], out[1]).T.astype(dtype)))
    return b.add("MatMul", b.array(_averages(size[0], out[0]).astype(dtype)), columns)


def _averages(size: int, out: int) -> np.ndarray:
    """(out, size): row i averages the i-th window."""
    found = np.zeros((out, size))
    for i, window in enumerate(adaptive_windows(size, out)):
        found[i, window] = 1 / (window.stop - window.start)
    return found
