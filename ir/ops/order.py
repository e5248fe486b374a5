"""argsort: an order of the elements along a dimension."""

from __future__ import annotations

import numpy as np

from ..types import TensorType, int64
from .checks import require_dims
from .record import Op, Sample, register


def _infer(x: TensorType, *, dim: int, descending: bool) -> TensorType:
    require_dims("argsort", x, dim)
    return TensorType(int64, x.shape)


def _argsort(x: np.ndarray, *, dim: int, descending: bool) -> np.ndarray:
    """Indices that sort, stable; NaN is the largest."""
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    # Reversed twice, so that equal values keep their order.
    order = np.flip(np.argsort(np.flip(x, dim), axis=dim, kind="stable"), dim)
    return np.ascontiguousarray(x.shape[dim] - 1 - order)


def _samples(rng: np.random.Generator) -> list[Sample]:
    cases = [((3, 5), 1, False), ((3, 5), 1, True), ((4, 2, 3), 0, True), ((0, 2), 1, False)]
    ties = rng.integers(0, 3, (2, 9))
    return [
        *(
            Sample((rng.normal(size=shape),), {"dim": dim, "descending": descending})
            for shape, dim, descending in cases
        ),
        Sample((ties,), {"dim": 1, "descending": False}),
        Sample((ties,), {"dim": 1, "descending": True}),
        Sample((np.array([1.0, np.nan, -np.inf, 2.0]),), {"dim": 0, "descending": True}),
    ]


register(Op("argsort", "index", _infer, _argsort, samples=_samples))
