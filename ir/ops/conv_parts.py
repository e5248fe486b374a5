"""The gradient of a convolution's weight in parts: sums over parts of the batch, still to be added.

``conv2d_grad_weight_parts(g, x)`` has the operands and attributes of ``conv2d_grad_weight``, which
is the sum of its result over the first dimension. The rows of all images of ``g``, one image after
the other, are cut into ``parts`` runs as equal as can be; a run is the work of one thread. How they
are cut depends on nothing but the shape, so results do not depend on threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType
from .record import SUMMED, Op, Sample, get, register


def _infer(g: TensorType, x: TensorType, *, parts: int, layout: str, **geometry: Any) -> TensorType:
    op = "conv2d_grad_weight_parts"
    if layout != "NHWC":
        raise ShapeError(f"{op}: expected NHWC images, got {x} as {layout}")
    if parts < 1:
        raise ShapeError(f"{op}: cannot cut {g} into {parts} parts, expected at least 1")
    weight = get("conv2d_grad_weight").infer(g, x, layout=layout, **geometry)
    return TensorType(weight.dtype, (parts, *weight.shape))


def _numpy(g: np.ndarray, x: np.ndarray, *, parts: int, layout: str, **geometry: Any) -> np.ndarray:
    height = g.shape[1]
    rows = len(g) * height
    found = []
    for k in range(parts):
        low, high = rows * k // parts, rows * (k + 1) // parts
        first, last = low // height, -(-high // height)
        part = np.zeros_like(g[first:last])
        inside = slice(low - first * height, high - first * height)
        flat = (-1, *g.shape[2:])
        part.reshape(flat)[inside] = g[first:last].reshape(flat)[inside]
        whole = get("conv2d_grad_weight").numpy
        found.append(whole(part, x[first:last], layout=layout, **geometry))
    return np.stack(found)


def _samples(rng: np.random.Generator) -> list[Sample]:
    plain = [s for s in get("conv2d_grad_weight").samples(rng) if s.attrs["layout"] == "NHWC"]
    return [Sample(s.arrays, {**s.attrs, "parts": 1 + k % 4}, False) for k, s in enumerate(plain)]


register(Op("conv2d_grad_weight_parts", "spatial", _infer, _numpy, samples=_samples, **SUMMED))
