"""Weights in the memory order of the matrix kernels, and contractions with such weights.

A packed matrix of K rows and N columns is a flat array ``[ceil(N / panel)][K][panel]``, its last
panel filled up with zeros: a kernel that computes ``panel`` columns reads it from front to end. A
packed convolution weight is ``[groups][ceil(O / panel)][KH][KW][I][panel]`` for O and I channels
per group. A depthwise weight (one channel per group on both sides) is packed as one group of C
columns, ``[ceil(C / panel)][KH][KW][panel]``. ``flip`` is the form for the gradient of the input:
the kernel turned by 180 degrees and the roles of O and I exchanged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType
from .checks import fixed_extent, require_float, require_shape
from .record import SUMMED, Op, Sample, get, register
from .spatial import Padding, Pair


def packed_matrix_size(rows: int, columns: int, panel: int) -> int:
    """Elements of a packed matrix."""
    return -(-columns // panel) * panel * rows


def pack_columns(matrix: np.ndarray, panel: int) -> np.ndarray:
    """(..., K, N) to flat ``[...][ceil(N / panel)][K][panel]``."""
    *leading, rows, columns = matrix.shape
    panels = -(-columns // panel)
    padded = np.zeros((*leading, rows, panels * panel), matrix.dtype)
    padded[..., :columns] = matrix
    split = padded.reshape(*leading, rows, panels, panel)
    return np.ascontiguousarray(np.swapaxes(split, -3, -2)).reshape(-1)


def unpack_columns(
    packed: np.ndarray, leading: tuple[int, ...], rows: int, columns: int, panel: int
) -> np.ndarray:
    """The inverse of ``pack_columns``: (*leading, rows, columns)."""
    panels = -(-columns // panel)
    split = packed.reshape(*leading, panels, rows, panel)
    return np.swapaxes(split, -3, -2).reshape(*leading, rows, panels * panel)[..., :columns]


def _require_panel(op: str, panel: int) -> None:
    if panel < 1:
        raise ShapeError(f"{op}: the panel must have at least one column, got {panel}")


# -- matrices -------------------------------------------------------------------------------------


def _pack_matrix_infer(b: TensorType, *, transpose: bool, panel: int) -> TensorType:
    require_float("pack_matrix", matrix=b)
    _require_panel("pack_matrix", panel)
    if b.rank != 2:
        raise ShapeError(f"pack_matrix: expected a matrix, got {b}")
    rows, columns = (fixed_extent("pack_matrix", "a dimension", d) for d in b.shape)
    if transpose:
        rows, columns = columns, rows
    return TensorType(b.dtype, (packed_matrix_size(rows, columns, panel),))


def _pack_matrix(b: np.ndarray, *, transpose: bool, panel: int) -> np.ndarray:
    return pack_columns(b.T if transpose else b, panel)


def _product_infer(
    op: str, x: TensorType, packed: TensorType, bias: TensorType | None, features: int, panel: int
) -> TensorType:
    require_float(op, input=x, weight=packed, bias=bias)
    _require_panel(op, panel)
    if x.rank < 1:
        raise ShapeError(f"{op}: input is {x}, expected at least one dimension")
    rows = fixed_extent(op, "the last dimension of the input", x.shape[-1])
    size = packed_matrix_size(rows, features, panel)
    require_shape(op, "the packed weight", packed, (size,), f"{rows} x {features} features")
    require_shape(op, "bias", bias, (features,), "one per output feature")
    return TensorType(x.dtype, (*x.shape[:-1], features))


def _linear_packed_infer(
    x: TensorType,
    packed: TensorType,
    bias: TensorType | None = None,
    *,
    out_features: int,
    panel: int,
) -> TensorType:
    return _product_infer("linear_packed", x, packed, bias, out_features, panel)


def _linear_packed(
    x: np.ndarray,
    packed: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    out_features: int,
    panel: int,
) -> np.ndarray:
    w = unpack_columns(packed, (), x.shape[-1], out_features, panel).T
    return get("linear").numpy(x, w, *(() if bias is None else (bias,)))


def _matmul_packed_infer(
    a: TensorType, packed: TensorType, *, out_features: int, panel: int
) -> TensorType:
    return _product_infer("matmul_packed", a, packed, None, out_features, panel)


def _matmul_packed(
    a: np.ndarray, packed: np.ndarray, *, out_features: int, panel: int
) -> np.ndarray:
    return get("matmul").numpy(a, unpack_columns(packed, (), a.shape[-1], out_features, panel))


# -- convolutions ---------------------------------------------------------------------------------


def _is_depthwise(out_channels: int, in_channels: int, groups: int) -> bool:
    return groups > 1 and out_channels == groups == in_channels


def _conv_blocks(
    out_channels: int, in_channels: int, groups: int, flip: bool
) -> tuple[int, int, int]:
    """(groups, rows per kernel element, columns per group) of a packed convolution weight."""
    if _is_depthwise(out_channels, in_channels, groups):
        return 1, 1, out_channels
    o, i = out_channels // groups, in_channels // groups
    return (groups, o, i) if flip else (groups, i, o)


def packed_conv_size(
    out_channels: int, in_channels: int, kernel: Pair, groups: int, panel: int, flip: bool
) -> int:
    """Elements of a packed convolution weight."""
    blocks, rows, columns = _conv_blocks(out_channels, in_channels, groups, flip)
    return blocks * packed_matrix_size(rows * math.prod(kernel), columns, panel)


def _pack_conv_infer(w: TensorType, *, panel: int, flip: bool, groups: int = 1) -> TensorType:
    require_float("pack_conv", weight=w)
    _require_panel("pack_conv", panel)
    if w.rank != 4 or groups < 1:
        raise ShapeError(f"pack_conv: expected 4 dimensions and groups > 0, got {w}, {groups}")
    o, i, kh, kw = (fixed_extent("pack_conv", "a dimension of the weight", d) for d in w.shape)
    if o % groups:
        raise ShapeError(f"pack_conv: {o} output channels cannot be divided into {groups} groups")
    return TensorType(w.dtype, (packed_conv_size(o, i * groups, (kh, kw), groups, panel, flip),))


def _pack_conv(w: np.ndarray, *, panel: int, flip: bool, groups: int = 1) -> np.ndarray:
    o, i, kh, kw = w.shape
    if _is_depthwise(o, i * groups, groups):
        grouped = w.reshape(1, o, 1, kh, kw)
    elif flip:
        grouped = w.reshape(groups, o // groups, i, kh, kw).swapaxes(1, 2)
    else:
        grouped = w.reshape(groups, o // groups, i, kh, kw)
    if flip:
        grouped = grouped[..., ::-1, ::-1]
    matrix = grouped.transpose(0, 3, 4, 2, 1)  # (groups, KH, KW, rows, columns)
    blocks, _, _, rows, columns = matrix.shape
    return pack_columns(matrix.reshape(blocks, kh * kw * rows, columns), panel)


def unpack_conv(
    packed: np.ndarray,
    *,
    out_channels: int,
    in_channels: int,
    kernel_size: Pair,
    groups: int,
    panel: int,
    flip: bool,
) -> np.ndarray:
    """The OIHW weight that ``pack_conv`` packed."""
    kh, kw = kernel_size
    blocks, rows, columns = _conv_blocks(out_channels, in_channels, groups, flip)
    matrix = unpack_columns(packed, (blocks,), kh * kw * rows, columns, panel)
    grouped = matrix.reshape(blocks, kh, kw, rows, columns).transpose(0, 4, 3, 1, 2)
    if flip:
        grouped = grouped[..., ::-1, ::-1]
        if not _is_depthwise(out_channels, in_channels, groups):
            grouped = grouped.swapaxes(1, 2)
    return np.ascontiguousarray(grouped).reshape(out_channels, in_channels // groups, kh, kw)


def _channels(x: TensorType, layout: str) -> int:
    return fixed_extent("conv2d_packed", "the number of channels", x.shape[_axis(x, layout)])


def _axis(x: TensorType, layout: str) -> int:
    if x.rank != 4 or layout not in ("NHWC", "NCHW"):
        raise ShapeError(f"conv2d_packed: expected 4 dimensions as NHWC or NCHW, got {x}, {layout}")
    return 3 if layout == "NHWC" else 1


def _conv2d_packed_infer(
    x: TensorType,
    packed: TensorType,
    bias: TensorType | None = None,
    *,
    out_channels: int,
    kernel_size: Pair,
    panel: int,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> TensorType:
    require_float("conv2d_packed", input=x, weight=packed, bias=bias)
    _require_panel("conv2d_packed", panel)
    channels = _channels(x, layout)
    size = packed_conv_size(out_channels, channels, kernel_size, groups, panel, False)
    require_shape("conv2d_packed", "the packed weight", packed, (size,))
    require_shape("conv2d_packed", "bias", bias, (out_channels,), "one per output channel")
    w = TensorType(x.dtype, (out_channels, channels // groups, *kernel_size))
    geometry = _geometry(stride, padding, dilation, groups, layout)
    return get("conv2d").infer(x, w, **geometry)


def _geometry(
    stride: Pair, padding: Padding, dilation: Pair, groups: int, layout: str
) -> dict[str, Any]:
    return {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "layout": layout,
    }


def _conv2d_packed(
    x: np.ndarray,
    packed: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    out_channels: int,
    kernel_size: Pair,
    panel: int,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> np.ndarray:
    w = unpack_conv(
        packed,
        out_channels=out_channels,
        in_channels=x.shape[3 if layout == "NHWC" else 1],
        kernel_size=kernel_size,
        groups=groups,
        panel=panel,
        flip=False,
    )
    geometry = _geometry(stride, padding, dilation, groups, layout)
    return get("conv2d").numpy(x, w, *(() if bias is None else (bias,)), **geometry)


def _conv2d_grad_input_packed_infer(
    g: TensorType,
    packed: TensorType,
    *,
    in_channels: int,
    kernel_size: Pair,
    panel: int,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> TensorType:
    op = "conv2d_grad_input_packed"
    require_float(op, gradient=g, weight=packed)
    _require_panel(op, panel)
    channels = _channels(g, layout)
    wanted = packed_conv_size(channels, in_channels, kernel_size, groups, panel, True)
    require_shape(op, "the packed weight", packed, (wanted,))
    w = TensorType(g.dtype, (channels, in_channels // groups, *kernel_size))
    geometry = _geometry(stride, padding, dilation, groups, layout)
    return get("conv2d_grad_input").infer(g, w, size=size, **geometry)


def _conv2d_grad_input_packed(
    g: np.ndarray,
    packed: np.ndarray,
    *,
    in_channels: int,
    kernel_size: Pair,
    panel: int,
    size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    layout: str,
) -> np.ndarray:
    w = unpack_conv(
        packed,
        out_channels=g.shape[3 if layout == "NHWC" else 1],
        in_channels=in_channels,
        kernel_size=kernel_size,
        groups=groups,
        panel=panel,
        flip=True,
    )
    geometry = _geometry(stride, padding, dilation, groups, layout)
    return get("conv2d_grad_input").numpy(g, w, size=size, **geometry)


# -- samples --------------------------------------------------------------------------------------

_ONCE = {"differentiable": False}


def _pack_matrix_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((rng.normal(size=shape),), {"transpose": t, "panel": panel}, **_ONCE)
        for shape, panel in (((5, 7), 4), ((1, 1), 8), ((19, 33), 16), ((8, 16), 8))
        for t in (False, True)
    ]


def _product_samples(rng: np.random.Generator, biases: tuple[bool, ...]) -> list[Sample]:
    samples = []
    for shape, features, panel in (((4, 7), 5, 4), ((2, 3, 6), 17, 8), ((0, 3), 4, 16)):
        matrix = pack_columns(rng.normal(size=(shape[-1], features)), panel)
        for bias in biases:
            extra = (rng.normal(size=features),) if bias else ()
            attrs = {"out_features": features, "panel": panel}
            samples.append(Sample((rng.normal(size=shape), matrix, *extra), attrs, **_ONCE))
    return samples


# (O, I / groups, KH, KW), groups, panel
_WEIGHTS = [((5, 3, 3, 2), 1, 4), ((4, 1, 3, 3), 4, 8), ((6, 2, 1, 2), 3, 8), ((16, 4, 1, 1), 1, 8)]


def _pack_conv_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((rng.normal(size=s),), {"panel": panel, "flip": flip, "groups": groups}, **_ONCE)
        for s, groups, panel in _WEIGHTS
        for flip in (False, True)
    ]


def _conv_samples(rng: np.random.Generator, flip: bool) -> list[Sample]:
    samples = []
    for shape, groups, panel in _WEIGHTS:
        w = rng.normal(size=shape)
        o, i, kernel = shape[0], shape[1] * groups, shape[2:]
        geometry = _geometry((1, 2), ((1, 0), (1, 1)), (1, 1), groups, "NHWC")
        x = rng.normal(size=(2, 5, 6, i))
        attrs = {"kernel_size": kernel, "panel": panel, **geometry}
        packed = _pack_conv(w, panel=panel, flip=flip, groups=groups)
        if flip:
            g = rng.normal(size=get("conv2d").numpy(x, w, **geometry).shape)
            attrs |= {"in_channels": i, "size": (5, 6)}
            samples.append(Sample((g, packed), attrs, **_ONCE))
        else:
            attrs |= {"out_channels": o}
            samples.append(Sample((x, packed, rng.normal(size=o)), attrs, **_ONCE))
    return samples


register(
    Op("pack_matrix", "contraction", _pack_matrix_infer, _pack_matrix, samples=_pack_matrix_samples)
)
register(Op("pack_conv", "contraction", _pack_conv_infer, _pack_conv, samples=_pack_conv_samples))
register(
    Op(
        "linear_packed",
        "contraction",
        _linear_packed_infer,
        _linear_packed,
        samples=lambda rng: _product_samples(rng, (False, True)),
        **SUMMED,
    )
)
register(
    Op(
        "matmul_packed",
        "contraction",
        _matmul_packed_infer,
        _matmul_packed,
        samples=lambda rng: _product_samples(rng, (False,)),
        **SUMMED,
    )
)
register(
    Op(
        "conv2d_packed",
        "contraction",
        _conv2d_packed_infer,
        _conv2d_packed,
        samples=lambda rng: _conv_samples(rng, False),
        **SUMMED,
    )
)
register(
    Op(
        "conv2d_grad_input_packed",
        "contraction",
        _conv2d_grad_input_packed_infer,
        _conv2d_grad_input_packed,
        samples=lambda rng: _conv_samples(rng, True),
        **SUMMED,
    )
)
