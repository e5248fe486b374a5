"""Kernels of a convolution's gradient with respect to its weight, images channels last.

``dw[o][i][kh][kw]`` is a sum over all output pixels of the gradient times the input pixel under the
kernel element. The direct sum is in `grad_weight_writer`: every thread has some units of the result
(`grad_weight_units`) and goes over all images, or, where the result is small, has all units and
goes over a part of the images (`conv_grad_weight_parts`). Others are plain matrix products, one
channel per group (`depthwise_grad_weight`) or Winograd's algorithm (`winograd_grad_weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ir.graph import Graph, Node
from ..ir.types import TensorType, is_fixed, numel
from .conv_grad_weight_parts import PartsWriter
from .depthwise_grad_weight import depthwise_grad_weight
from .epilogue import TileEpilogue
from .gemm import gemm_kernel
from .gemm_blocking import Gemm
from .grad_weight_writer import GradWeightWriter
from .image import WeightGradient, forward_axis
from .kernel import Kernel
from .packing import choose_panel
from .target import Target
from .winograd_grad_weight import winograd_grad_weight

# What Winograd's form does not say, because it is always so.
_PLAIN = {"kernel_size": (3, 3), "stride": (1, 1), "dilation": (1, 1), "groups": 1}


def emit_conv_grad_weight(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of ``conv2d_grad_weight(g, x)``, of its parts or of Winograd's form of it.

    None for images that are not NHWC.
    """
    if node.attrs["layout"] != "NHWC":
        return None
    g, x = (graph.type(v) for v in node.operands)
    spec = _spec({**_PLAIN, **node.attrs}, g, x)
    if spec is None:
        return None
    if node.op == "conv2d_grad_weight_parts":
        return PartsWriter(spec, target, node.attrs["parts"]).kernel()
    if node.op == "conv2d_grad_weight_winograd":
        return winograd_grad_weight(spec, node.attrs["tile"], target)
    if _is_matrix_product(spec) and not _stays_in_cache(spec, target):
        return _matrix_product(spec, node.type, target)
    if spec.groups > 1 and spec.groups == spec.inputs == spec.outputs:
        return depthwise_grad_weight(spec, target)
    return GradWeightWriter(spec, target).kernel()


def _spec(attrs: Mapping[str, Any], g: TensorType, x: TensorType) -> WeightGradient | None:
    sizes = (*g.shape[1:], *x.shape[1:])
    if not is_fixed(sizes) or not g.dtype.is_float:
        return None
    oh, ow, outputs, height, width, inputs = sizes
    axes = [
        forward_axis(
            (height, width)[i],
            attrs["kernel_size"][i],
            attrs["stride"][i],
            attrs["padding"][i],
            attrs["dilation"][i],
        )
        for i in (0, 1)
    ]
    groups, kernel = attrs["groups"], tuple(attrs["kernel_size"])
    work = numel((g.shape[0], oh, ow, outputs, inputs // groups, *kernel))
    return WeightGradient(
        g.dtype, g.shape[0], axes[0], axes[1], (oh, ow), inputs, outputs, groups, kernel,
        tuple(attrs["dilation"]), work * 2,
    )  # fmt: skip


def _is_matrix_product(spec: WeightGradient) -> bool:
    """1 x 1 kernels without stride and padding."""
    return (
        spec.kernel == (1, 1)
        and spec.groups == 1
        and all(a.plain and a.advance == 1 for a in (spec.rows, spec.columns))
        and spec.out == (spec.rows.size, spec.columns.size)
    )


def _stays_in_cache(spec: WeightGradient, target: Target) -> bool:
    """Whether the sums of the whole gradient stay in the second level cache beside a block.

    Then they are better kept there while each block of pixels is read once: a plain matrix product
    copies the pixels for every panel of channels. `python benchmarks/decisions.py stays_in_cache`
    measures it: with many pixels that takes up to 1.3 times as long, while for larger gradients of
    few pixels it is faster.
    """
    return spec.outputs * spec.inputs * spec.dtype.itemsize <= target.l2 // 4


def _matrix_product(spec: WeightGradient, result: TensorType, target: Target) -> Kernel:
    pixels = numel((spec.batch, *spec.out))
    panel = choose_panel(spec.inputs, target, spec.dtype)
    gemm = Gemm(spec.dtype, spec.outputs, spec.inputs, pixels, 1, spec.outputs, "rows", panel)
    epilogue = TileEpilogue((result.dtype,))
    return gemm_kernel("conv2d_grad_weight", gemm, epilogue, ("%in0", "%in1"), 2, target)
