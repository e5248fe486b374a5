"""Nodes without operands: inputs, parameters, buffers, constants and batch-dependent counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import NetwrightError
from ..types import Extent, TensorType, dtype_of
from .record import Op, register


def _named(kind: str) -> Callable[..., Any]:
    def infer(*, path: str, type: TensorType) -> TensorType:
        return type

    def numpy(*, path: str, type: TensorType) -> np.ndarray:
        raise NetwrightError(
            f"{kind} {path!r} ({type}) has no value of its own; pass its array to "
            "interpreter.evaluate under this path"
        )

    return register(Op(kind, "source", infer, numpy)).infer


def _infer_constant(*, value: np.ndarray) -> TensorType:
    return TensorType(dtype_of(value.dtype), tuple(value.shape))


def _infer_extent(*, size: Extent, dtype: str) -> TensorType:
    return TensorType(dtype_of(dtype), ())


for _kind in ("input", "parameter", "buffer"):
    _named(_kind)
register(Op("constant", "source", _infer_constant, lambda *, value: value))
register(
    Op(
        "extent",
        "source",
        _infer_extent,
        lambda *, size, dtype: np.array(size, dtype_of(dtype).np),
    )
)
