"""Cross entropy with its gradient in one sweep, and the reduction of the losses of rows.

``cross_entropy`` and ``cross_entropy_grad`` both take the exponentials of all logits. Where the
gradient of the loss is known before the loss, ``passes/merge_cross_entropy.py`` writes these
operators in their place; none has a gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType
from .checks import require_float
from .record import SUMMED, Op, Sample, get, register


def _rows_infer(
    g: TensorType,
    logits: TensorType,
    target: TensorType,
    weight: TensorType | None = None,
    **attrs: Any,
) -> tuple[TensorType, TensorType]:
    operands = (logits, target) if weight is None else (logits, target, weight)
    dx = get("cross_entropy_grad").infer(g, *operands, **attrs)
    assert isinstance(dx, TensorType)
    return TensorType(logits.dtype, target.shape), dx


def _rows(g: np.ndarray, *operands: np.ndarray, **attrs: Any) -> tuple[np.ndarray, np.ndarray]:
    """(the loss of every row before the reduction, the gradient for the logits)."""
    losses = get("cross_entropy").numpy(*operands, **{**attrs, "reduction": "none"})
    return losses, get("cross_entropy_grad").numpy(g, *operands, **attrs)


def _total_infer(
    losses: TensorType,
    target: TensorType,
    weight: TensorType | None = None,
    *,
    reduction: str,
    ignore_index: int,
    classes: int,
) -> TensorType:
    op = "cross_entropy_total"
    require_float(op, losses=losses)
    if losses.rank != 1 or target.shape != losses.shape:
        raise ShapeError(f"{op}: expected one loss per target, got {losses} and {target}")
    if weight is not None and weight.shape != (classes,):
        raise ShapeError(f"{op}: expected a weight for each of {classes} classes, got {weight}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{op}: expected the reduction 'mean' or 'sum', got {reduction!r}")
    return TensorType(losses.dtype, ())


def _total(
    losses: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    reduction: str,
    ignore_index: int,
    classes: int,
) -> np.ndarray:
    """The sum of the losses; for 'mean' over that of the weights of the rows that count."""
    total = losses.sum(dtype=np.float64)
    if reduction == "mean":
        kept = (target != ignore_index) & (target >= 0) & (target < classes)
        weights = kept if weight is None else np.where(kept, weight[np.where(kept, target, 0)], 0)
        with np.errstate(all="ignore"):
            total = total / weights.sum(dtype=np.float64)
    return np.asarray(total, losses.dtype)


def _rows_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(s.arrays, s.attrs, differentiable=False)
        for s in get("cross_entropy_grad").samples(rng)
    ]


def _total_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _rows_samples(rng):
        _, logits, target, *weight = s.arrays
        if s.attrs["reduction"] != "none":
            attrs = {name: s.attrs[name] for name in ("reduction", "ignore_index")}
            attrs["classes"] = logits.shape[1]
            losses = rng.normal(size=len(target))
            samples.append(Sample((losses, target, *weight), attrs, differentiable=False))
    return samples


register(Op("cross_entropy_rows", "row", _rows_infer, _rows, samples=_rows_samples, **SUMMED))
register(Op("cross_entropy_total", "row", _total_infer, _total, samples=_total_samples, **SUMMED))
