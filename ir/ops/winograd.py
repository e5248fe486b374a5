"""3x3 convolution of stride 1 by Winograd's minimal filtering F(m x m, 3 x 3).

Tiles of m x m outputs are computed from a x a inputs, a = m + 2, with a * a instead of 9 * m * m
products per pair of channels: 2.25 times fewer for m = 2, 4 times for m = 4 (Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", arXiv:1509.09308). In one dimension

    y = A^T [(G g) * (B^T d)]        for a kernel g of 3 and inputs d of a elements;

in two, every transform is applied to the rows and to the columns. ``G g G^T`` is a function of the
weight alone and is packed as ``[ceil(O / panel)][a * a][I][panel]``: a matrix of I rows for every
element of the transformed kernel. ``flip`` is the form for the gradient of the input, which is a
convolution with the kernel turned by 180 degrees and the roles of O and I exchanged.

The algorithm is bilinear in kernel and inputs, so the gradient of the kernel is its transpose
(``conv2d_grad_weight_winograd``): with the gradients h of the m outputs, in one dimension

    dg = G^T [sum over tiles of (A h) * (B^T d)]

The error against float64 of m = 2 is about that of the direct sum; that of m = 4 is some ten
times larger, because its transforms multiply by up to 8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType
from .checks import fixed_extent, require_float, require_shape
from .packing import pack_columns, unpack_columns
from .record import SUMMED, Op, Sample, get, register
from .spatial import Padding

KERNEL = 3

INPUT = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
    ),
}  # fmt: skip
"""B^T by m: the transform of inputs."""

WEIGHT = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
    ),
}  # fmt: skip
"""G by m: the transform of kernels."""

OUTPUT = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: (
        (1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1),
    ),
}  # fmt: skip
"""A^T by m: the transform of products."""


def winograd_size(out_channels: int, in_channels: int, tile: int, panel: int) -> int:
    """Elements of a packed weight."""
    return -(-out_channels // panel) * panel * in_channels * (tile + KERNEL - 1) ** 2


def _require_tile(op: str, tile: int) -> None:
    if tile not in INPUT:
        raise ShapeError(f"{op}: tiles are of {' or '.join(map(str, INPUT))} outputs, got {tile}")


def _pack_infer(w: TensorType, *, tile: int, panel: int, flip: bool = False) -> TensorType:
    require_float("pack_winograd", weight=w)
    _require_tile("pack_winograd", tile)
    if w.rank != 4 or panel < 1:
        raise ShapeError(f"pack_winograd: expected 4 dimensions and a panel, got {w}, {panel}")
    o, i, kh, kw = (fixed_extent("pack_winograd", "a dimension of the weight", d) for d in w.shape)
    if (kh, kw) != (KERNEL, KERNEL):
        raise ShapeError(f"pack_winograd: the kernel is {kh} x {kw}, expected 3 x 3")
    size = winograd_size(i, o, tile, panel) if flip else winograd_size(o, i, tile, panel)
    return TensorType(w.dtype, (size,))


def _pack(w: np.ndarray, *, tile: int, panel: int, flip: bool = False) -> np.ndarray:
    g = np.asarray(WEIGHT[tile], w.dtype)
    if flip:
        w = w.swapaxes(0, 1)[..., ::-1, ::-1]
    o, i = w.shape[:2]
    u = (g @ w @ g.T).reshape(o, i, -1).transpose(2, 1, 0)  # (a * a, I, O)
    points = u.shape[0]
    panels = -(-o // panel)
    packed = pack_columns(u, panel).reshape(points, panels, i, panel)
    return np.ascontiguousarray(packed.swapaxes(0, 1)).reshape(-1)


def _infer(
    x: TensorType,
    packed: TensorType,
    bias: TensorType | None = None,
    *,
    out_channels: int,
    tile: int,
    panel: int,
    padding: Padding,
    layout: str,
) -> TensorType:
    require_float("conv2d_winograd", input=x, weight=packed, bias=bias)
    _require_tile("conv2d_winograd", tile)
    if x.rank != 4 or layout != "NHWC":
        raise ShapeError(f"conv2d_winograd: expected NHWC images, got {x} as {layout}")
    channels = fixed_extent("conv2d_winograd", "the number of channels", x.shape[3])
    size = winograd_size(out_channels, channels, tile, panel)
    require_shape("conv2d_winograd", "the packed weight", packed, (size,))
    require_shape("conv2d_winograd", "bias", bias, (out_channels,), "one per output channel")
    w = TensorType(x.dtype, (out_channels, channels, KERNEL, KERNEL))
    return get("conv2d").infer(x, w, **_geometry(padding))


def _geometry(padding: Padding) -> dict[str, Any]:
    return {
        "stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1, "layout": "NHWC",
    }  # fmt: skip


def _numpy(
    x: np.ndarray,
    packed: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    out_channels: int,
    tile: int,
    panel: int,
    padding: Padding,
    layout: str,
) -> np.ndarray:
    size = tile + KERNEL - 1
    channels = x.shape[3]
    panels = -(-out_channels // panel)
    blocks = packed.reshape(panels, size * size, channels, panel).swapaxes(0, 1)
    u = unpack_columns(blocks.reshape(-1), (size * size,), channels, out_channels, panel)
    (top, bottom), (left, right) = padding
    height, width = x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2
    d = _tiles(x, (height, width), tile, padding)  # (N, down, across, C, a, a)
    down, across = d.shape[1:3]
    b, a = np.asarray(INPUT[tile], x.dtype), np.asarray(OUTPUT[tile], x.dtype)
    v = (b @ d @ b.T).reshape(*d.shape[:4], size * size)
    products = np.moveaxis(v, -1, 0) @ u[:, None, None]  # (a * a, N, down, across, O)
    products = np.moveaxis(products, 0, -1).reshape(*d.shape[:3], out_channels, size, size)
    y = (a @ products @ a.T).transpose(0, 1, 4, 2, 5, 3)
    y = y.reshape(x.shape[0], down * tile, across * tile, out_channels)[:, :height, :width]
    return np.ascontiguousarray(y if bias is None else y + bias)


def _tiles(x: np.ndarray, out: tuple[int, ...], tile: int, padding: Padding) -> np.ndarray:
    """(N, H, W, C) -> (N, down, across, C, a, a): the inputs of every tile of ``out`` outputs."""
    (top, bottom), (left, right) = padding
    spare = -out[0] % tile, -out[1] % tile
    x = np.pad(x, ((0, 0), (top, bottom + spare[0]), (left, right + spare[1]), (0, 0)))
    size = tile + KERNEL - 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return windows[:, ::tile, ::tile]


def _grad_weight_infer(
    g: TensorType, x: TensorType, *, tile: int, padding: Padding, layout: str
) -> TensorType:
    _require_tile("conv2d_grad_weight_winograd", tile)
    if layout != "NHWC":
        raise ShapeError(f"conv2d_grad_weight_winograd: expected NHWC images, got {x} as {layout}")
    kernel_size = (KERNEL, KERNEL)
    return get("conv2d_grad_weight").infer(g, x, kernel_size=kernel_size, **_geometry(padding))


def _grad_weight(
    g: np.ndarray, x: np.ndarray, *, tile: int, padding: Padding, layout: str
) -> np.ndarray:
    d = _tiles(x, g.shape[1:3], tile, padding)  # (N, down, across, C, a, a)
    spare = [(0, -n % tile) for n in g.shape[1:3]]
    h = np.pad(g, ((0, 0), *spare, (0, 0)))
    h = np.lib.stride_tricks.sliding_window_view(h, (tile, tile), axis=(1, 2))[:, ::tile, ::tile]
    b, a, k = (np.asarray(m[tile], x.dtype) for m in (INPUT, OUTPUT, WEIGHT))
    with np.errstate(all="ignore"):
        v, u = b @ d @ b.T, a.T @ h @ a  # (N, down, across, C or O, a, a)
        points = np.einsum("nyxcpq,nyxopq->ocpq", v, u, optimize=True)
        return np.ascontiguousarray(k.T @ points @ k)


# -- samples --------------------------------------------------------------------------------------

_WEIGHTS = [((5, 3), 4), ((1, 1), 8), ((18, 7), 16)]


def _pack_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((rng.normal(size=(*s, 3, 3)),), {"tile": t, "panel": panel, "flip": flip}, False)
        for s, panel in _WEIGHTS
        for t in INPUT
        for flip in (False, True)
    ]


def _samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for (o, i), panel in _WEIGHTS:
        for tile, shape, padding in (
            (2, (2, 5, 6), ((1, 1), (1, 1))),
            (4, (1, 7, 4), ((0, 2), (1, 0))),
            (2, (0, 4, 4), ((0, 0), (0, 0))),
        ):
            w = _pack(rng.normal(size=(o, i, 3, 3)), tile=tile, panel=panel)
            attrs = {
                "out_channels": o, "tile": tile, "panel": panel, "padding": padding,
                "layout": "NHWC",
            }  # fmt: skip
            arrays = (rng.normal(size=(*shape, i)), w, rng.normal(size=o))
            samples.append(Sample(arrays, attrs, False))
    return samples


def _grad_weight_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for tile, (n, h, w), (o, i), padding in (
        (2, (2, 5, 6), (5, 3), ((1, 1), (1, 1))),
        (4, (1, 7, 4), (3, 18), ((0, 2), (1, 0))),
        (2, (0, 4, 4), (4, 2), ((0, 0), (0, 0))),
    ):
        out = (h + sum(padding[0]) - 2, w + sum(padding[1]) - 2)
        arrays = (rng.normal(size=(n, *out, o)), rng.normal(size=(n, h, w, i)))
        attrs = {"tile": tile, "padding": padding, "layout": "NHWC"}
        samples.append(Sample(arrays, attrs, False))
    return samples


register(Op("pack_winograd", "contraction", _pack_infer, _pack, samples=_pack_samples, **SUMMED))
register(
    Op("conv2d_winograd", "contraction", _infer, _numpy, samples=_samples, rtol=1e-4, atol=1e-4)
)
register(
    Op(
        "conv2d_grad_weight_winograd", "contraction", _grad_weight_infer, _grad_weight,
        samples=_grad_weight_samples, rtol=1e-4, atol=1e-4,
    )
)  # fmt: skip
