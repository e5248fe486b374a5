"""Operators along rows: softmax, log_softmax, cross_entropy, and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...errors import DTypeError, ShapeError, UnsupportedError
from ..types import TensorType, int64, shape_text
from .checks import require_dims, require_float, require_shape
from .record import GradContext, Op, Sample, register

REDUCTIONS = ("none", "mean", "sum")

# -- softmax, log_softmax -------------------------------------------------------------------------


def _softmax_infer(x: TensorType, *, dim: int) -> TensorType:
    require_float("softmax", input=x)
    require_dims("softmax", x, dim)
    return x


def _log_softmax_infer(x: TensorType, *, dim: int) -> TensorType:
    require_float("log_softmax", input=x)
    require_dims("log_softmax", x, dim)
    return x


def _grad_infer(op: str, g: TensorType, y: TensorType, dim: int) -> TensorType:
    require_float(op, gradient=g, output=y)
    require_shape(op, "the gradient", g, y.shape, "the output's shape")
    require_dims(op, y, dim)
    return y


def _softmax_grad_infer(g: TensorType, y: TensorType, *, dim: int) -> TensorType:
    return _grad_infer("softmax_grad", g, y, dim)


def _log_softmax_grad_infer(g: TensorType, y: TensorType, *, dim: int) -> TensorType:
    return _grad_infer("log_softmax_grad", g, y, dim)


def _shifted(x: np.ndarray, dim: int) -> np.ndarray:
    """``x - max(x)``, so that no exponential overflows; NaN in a row with +inf or only -inf."""
    return x - np.max(x, axis=dim, keepdims=True, initial=-np.inf)


def _softmax(x: np.ndarray, *, dim: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        y = _shifted(x, dim)
        np.exp(y, out=y)
        y /= y.sum(axis=dim, keepdims=True)
    return y


def _log_softmax(x: np.ndarray, *, dim: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        y = _shifted(x, dim)
        y -= np.log(np.exp(y).sum(axis=dim, keepdims=True))
    return y


def _softmax_grad(g: np.ndarray, y: np.ndarray, *, dim: int) -> np.ndarray:
    """``y (g - sum(g y))``."""
    with np.errstate(all="ignore"):
        return y * (g - (g * y).sum(axis=dim, keepdims=True))


def _log_softmax_grad(g: np.ndarray, y: np.ndarray, *, dim: int) -> np.ndarray:
    """``g - exp(y) sum(g)``."""
    with np.errstate(all="ignore"):
        return g - np.exp(y) * g.sum(axis=dim, keepdims=True)


def _softmax_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    return (b.op("softmax_grad", g, ctx.outputs[0], dim=ctx.attrs["dim"]),)


def _log_softmax_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    return (b.op("log_softmax_grad", g, ctx.outputs[0], dim=ctx.attrs["dim"]),)


def _row_sum(b: Any, value: Any, dim: int) -> Any:
    return b.op("sum", value, dims=(dim,), keepdim=True)


def _softmax_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    gradient, y = ctx.inputs
    dim = ctx.attrs["dim"]
    d_gradient = b.op("softmax_grad", g, y, dim=dim) if ctx.needs(0) else None
    dy = None
    if ctx.needs(1):
        inner = _row_sum(b, b.mul(gradient, y), dim)
        outer = _row_sum(b, b.mul(g, y), dim)
        dy = b.sub(b.mul(g, b.sub(gradient, inner)), b.mul(gradient, outer))
    return d_gradient, dy


def _log_softmax_grad_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    gradient, y = ctx.inputs
    dim = ctx.attrs["dim"]
    probabilities = b.exp(y)
    product = b.mul(g, probabilities)
    d_gradient = b.sub(g, _row_sum(b, product, dim)) if ctx.needs(0) else None
    dy = b.neg(b.mul(product, _row_sum(b, gradient, dim))) if ctx.needs(1) else None
    return d_gradient, dy


_ROW_CASES: list[tuple[tuple[int, ...], int]] = [
    ((4, 7), 1),
    ((3, 5), 0),
    ((2, 3, 4), 1),
    ((1,), 0),
    ((9,), 0),
    ((2, 3, 4, 5), 2),
    ((5, 33), 1),
    ((0, 4), 1),
]


def _softmax_samples(rng: np.random.Generator) -> list[Sample]:
    samples = [Sample((rng.normal(size=shape) * 3,), {"dim": dim}) for shape, dim in _ROW_CASES]
    special = rng.normal(size=(6, 5))
    special[0] = -np.inf
    special[1, 2], special[2, 3], special[3, 0] = -np.inf, np.inf, np.nan
    special[4] *= 1e4
    samples.append(Sample((special,), {"dim": 1}, differentiable=False))
    return samples


def _softmax_grad_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample((rng.normal(size=shape), _softmax(rng.normal(size=shape), dim=dim)), {"dim": dim})
        for shape, dim in _ROW_CASES
    ]


def _log_softmax_grad_samples(rng: np.random.Generator) -> list[Sample]:
    return [
        Sample(
            (rng.normal(size=shape), _log_softmax(rng.normal(size=shape), dim=dim)), {"dim": dim}
        )
        for shape, dim in _ROW_CASES
    ]


# -- cross_entropy --------------------------------------------------------------------------------


def _check_cross_entropy(
    op: str,
    logits: TensorType,
    target: TensorType,
    weight: TensorType | None,
    reduction: str,
    label_smoothing: float,
) -> None:
    require_float(op, logits=logits, weight=weight)
    if logits.rank != 2:
        raise ShapeError(
            f"{op}: logits are {logits}, expected (rows, classes); move the class dimension last "
            "and flatten the others"
        )
    if target.dtype != int64:
        raise DTypeError(
            f"{op}: class indices must be int64, got {target.dtype.name}; cast them with .long()"
        )
    if target.rank != 1 or target.shape[0] != logits.shape[0]:
        raise ShapeError(
            f"{op}: expected input batch_size ({logits.shape[0]}) to match target batch_size "
            f"({', '.join(str(d) for d in target.shape)}): one class index per row of the logits"
        )
    if weight is not None and weight.shape != logits.shape[1:]:
        raise ShapeError(
            f"{op}: weight tensor should be defined either for all {logits.shape[1]} classes or "
            f"no classes but got weight tensor of shape: {shape_text(weight.shape)}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{op}: {reduction!r} is not a valid value for reduction, "
            f"expected one of {', '.join(REDUCTIONS)}"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ShapeError(
            f"{op}: label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}"
        )


def _cross_entropy_infer(
    logits: TensorType,
    target: TensorType,
    weight: TensorType | None = None,
    *,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> TensorType:
    _check_cross_entropy("cross_entropy", logits, target, weight, reduction, label_smoothing)
    return TensorType(logits.dtype, target.shape if reduction == "none" else ())


def _cross_entropy_grad_infer(
    g: TensorType,
    logits: TensorType,
    target: TensorType,
    weight: TensorType | None = None,
    *,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> TensorType:
    op = "cross_entropy_grad"
    _check_cross_entropy(op, logits, target, weight, reduction, label_smoothing)
    require_float(op, gradient=g, logits=logits)
    expected = target.shape if reduction == "none" else ()
    require_shape(op, "the gradient", g, expected, f"reduction {reduction!r}")
    return logits


class _Targets(NamedTuple):
    """Checked class indices, and the weight of each row's class (0 where the row is ignored)."""

    classes: np.ndarray
    kept: np.ndarray
    weights: np.ndarray

    def divisor(self) -> np.floating[Any]:
        """What reduction 'mean' divides by."""
        return self.weights.sum(dtype=np.float64)


def _targets(
    target: np.ndarray, classes: int, weight: np.ndarray | None, ignore_index: int, dtype: Any
) -> _Targets:
    kept = target != ignore_index
    outside = kept & ((target < 0) | (target >= classes))
    if outside.any():
        row = int(np.argmax(outside))
        raise IndexError(
            f"Target {target[row]} is out of bounds. It is in row {row}; the logits have "
            f"{classes} classes, so a label must be 0 to {classes - 1}, or {ignore_index} "
            "(ignore_index)"
        )
    safe = np.where(kept, target, 0)
    if weight is None or not classes:
        weights = kept.astype(dtype)
    else:
        weights = np.where(kept, weight[safe], dtype.type(0))
    return _Targets(safe, kept, weights)


def _cross_entropy(
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> np.ndarray:
    """``-(1 - s) w[t] logp[t] - s / C sum_c w[c] logp[c]`` per row, 0 for ignored rows.

    'mean' divides the sum over the rows by the sum of ``w[t]`` over the rows that count (NaN if
    there is none). Same as torch.nn.functional.cross_entropy with class indices.
    """
    classes = logits.shape[1]
    targets = _targets(target, classes, weight, ignore_index, logits.dtype)
    with np.errstate(all="ignore"):
        log_p = _log_softmax(logits, dim=1)
        picked = np.take_along_axis(log_p, targets.classes[:, None], axis=1)[:, 0]
        loss = -picked * targets.weights
        if label_smoothing > 0:
            smooth = -(log_p if weight is None else log_p * weight).sum(axis=1)
            loss = (1 - label_smoothing) * loss + (label_smoothing / classes) * smooth
        loss = np.where(targets.kept, loss, logits.dtype.type(0))
        if reduction == "none":
            return loss
        total = loss.sum(dtype=np.float64)
        if reduction == "mean":
            total = total / targets.divisor()
    return np.asarray(total, logits.dtype)


def _cross_entropy_grad(
    g: np.ndarray,
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> np.ndarray:
    """Gradient for the logits: ``g ((1 - s) w[t] (p - onehot) + s / C (p sum(w) - w))``."""
    rows, classes = logits.shape
    targets = _targets(target, classes, weight, ignore_index, logits.dtype)
    with np.errstate(all="ignore"):
        scale = g / targets.divisor().astype(g.dtype) if reduction == "mean" else g
        direct = scale * targets.weights * (1 - label_smoothing)
        smooth = scale * (label_smoothing / classes) if label_smoothing > 0 else None
        dx = _softmax(logits, dim=1)
        if smooth is None:
            dx *= direct[:, None]
        else:
            total = classes if weight is None else weight.sum()
            dx *= (direct + smooth * total)[:, None]
            dx -= np.multiply.outer(smooth, np.ones(classes, g.dtype) if weight is None else weight)
        dx[np.arange(rows), targets.classes] -= direct
    dx[~targets.kept] = 0
    return dx


def _cross_entropy_rule(b: Any, ctx: GradContext, g: Any) -> tuple[Any, ...]:
    if ctx.needs(2):
        raise UnsupportedError(
            "cross_entropy: no gradient for the class weight; detach() it or clear requires_grad"
        )
    dx = b.op("cross_entropy_grad", g, *ctx.inputs, **ctx.attrs)
    return (dx, *(None,) * (len(ctx.inputs) - 1))


def _cross_entropy_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for rows, classes in ((5, 7), (1, 1), (6, 33)):
        logits = rng.normal(size=(rows, classes)) * 3
        target = rng.integers(0, classes, rows)
        weight = rng.uniform(0.5, 2.0, classes)
        for reduction in REDUCTIONS:
            for smoothing in (0.0, 0.1):
                attrs = {
                    "reduction": reduction,
                    "ignore_index": -100 if rows == 1 else int(target[0]),
                    "label_smoothing": smoothing,
                }
                samples.append(Sample((logits, target), attrs))
                # The class weight has no gradient rule, so finite differences do not apply.
                samples.append(Sample((logits, target, weight), attrs, differentiable=False))
    return samples


def _cross_entropy_grad_samples(rng: np.random.Generator) -> list[Sample]:
    samples = []
    for s in _cross_entropy_samples(rng):
        g = np.asarray(rng.normal(size=s.arrays[1].shape if s.attrs["reduction"] == "none" else ()))
        samples.append(Sample((g, *s.arrays), s.attrs, differentiable=False))
    return samples


register(
    Op("softmax", "row", _softmax_infer, _softmax, grad=_softmax_rule, samples=_softmax_samples)
)
register(
    Op(
        "log_softmax",
        "row",
        _log_softmax_infer,
        _log_softmax,
        grad=_log_softmax_rule,
        samples=_softmax_samples,
    )
)
register(
    Op(
        "softmax_grad",
        "row",
        _softmax_grad_infer,
        _softmax_grad,
        grad=_softmax_grad_rule,
        samples=_softmax_grad_samples,
    )
)
register(
    Op(
        "log_softmax_grad",
        "row",
        _log_softmax_grad_infer,
        _log_softmax_grad,
        grad=_log_softmax_grad_rule,
        samples=_log_softmax_grad_samples,
    )
)
register(
    Op(
        "cross_entropy",
        "row",
        _cross_entropy_infer,
        _cross_entropy,
        grad=_cross_entropy_rule,
        samples=_cross_entropy_samples,
    )
)
register(
    Op(
        "cross_entropy_grad",
        "row",
        _cross_entropy_grad_infer,
        _cross_entropy_grad,
        samples=_cross_entropy_grad_samples,
    )
)
