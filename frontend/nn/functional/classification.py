"""cross_entropy and nll_loss."""

from __future__ import annotations

from ....errors import DTypeError, ShapeError
from ....ir.types import int64, uint8
from ... import dispatch
from ...dispatch import apply, cast
from ...tensor import Tensor
from .checks import need_float, need_tensor, sizes
from .loss import reduced, reduction_of


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log likelihood of log_softmax(input) over the class dimension.

    input: logits (C,), (N, C) or (N, C, d1, ...). target: class indices (), (N,) or
    (N, d1, ...) of int64, or class probabilities of the input's shape. weight (C,). 'mean'
    divides by the sum of the weights of the targets; rows with ``ignore_index`` count nothing.
    """
    name = "cross_entropy"
    reduction = reduction_of(reduction, size_average, reduce)
    need_tensor(name, "input", 1, input)
    need_tensor(name, "target", 2, target)
    need_float(name, input)
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if input.shape == target.shape:
        return _soft_targets(input, target, weight, ignore_index, reduction, label_smoothing)
    _check_classes(name, input, target, weight)
    logits, labels = _rows(input, target)
    loss = apply(
        "cross_entropy",
        *((logits, labels) if weight is None else (logits, labels, weight)),
        reduction=reduction,
        ignore_index=int(ignore_index),
        label_smoothing=float(label_smoothing),
    )
    return loss if reduction != "none" else _as_target(loss, input, target)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-weight[target] * input[target] of log probabilities; shapes and 'mean' as cross_entropy."""
    reduction = reduction_of(reduction, size_average, reduce)
    need_tensor("nll_loss", "input", 1, input)
    need_tensor("nll_loss", "target", 2, target)
    need_float("nll_loss", input)
    _check_classes("nll_loss", input, target, weight)
    rows, labels = _rows(input, target)
    _check_labels(labels, rows.shape[1], ignore_index)
    kept = labels != ignore_index
    safe = apply("where", kept, labels, 0)
    picked = apply("gather", rows, safe.unsqueeze(1), dim=1).squeeze(1)
    if weight is None:
        weights = cast(kept, input.dtype)
    else:
        weights = apply("where", kept, apply("gather", weight, safe, dim=0), 0.0)
    loss = apply("where", kept, -picked * weights, 0.0)
    if reduction == "mean":
        return loss.sum() / weights.sum()
    return loss.sum() if reduction == "sum" else _as_target(loss, input, target)


def _check_classes(name: str, input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    """The shapes and dtypes of logits (or log probabilities), class indices and weight."""
    if input.ndim == 0:
        raise ShapeError(f"{name}(): input has no class dimension; expected (C,), (N, C) or more")
    classes = input.shape[0 if input.ndim == 1 else 1]
    if input.ndim > 1 and target.ndim > 0 and input.shape[0] != target.shape[0]:
        raise ShapeError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size "
            f"({target.shape[0]})."
        )
    if input.ndim <= 2 and target.ndim > 1:
        raise ShapeError(
            "0D or 1D target tensor expected, multi-target not supported: input has size "
            f"{sizes(input.shape)}, target {sizes(target.shape)}. Class indices have one number "
            "per row (target.squeeze(1)), class probabilities the input's size and a float dtype"
        )
    if target.dtype not in (int64, uint8):
        raise DTypeError(
            f"{name}(): expected target dtype to be Long or Byte, but got {target.dtype}; convert "
            "class indices with .long()"
        )
    shape = input.shape[:1] if input.ndim > 1 else ()
    expected = (*shape, *input.shape[2:])
    if target.shape != expected and not (input.ndim == 1 and target.shape == (1,)):
        raise ShapeError(
            f"Expected target size {sizes(expected)}, got {sizes(target.shape)} "
            f"(size mismatch: input has size {sizes(input.shape)})"
        )
    _check_weight(name, input, weight, classes)


def _check_weight(name: str, input: Tensor, weight: Tensor | None, classes: int) -> None:
    if weight is None:
        return
    if weight.shape != (classes,):
        raise ShapeError(
            f"{name}(): weight tensor should be defined either for all {classes} classes or no "
            f"classes but got weight tensor of shape: {sizes(weight.shape)}"
        )
    if weight.dtype is not input.dtype:
        raise DTypeError(
            f"{name}(): expected weight of dtype {input.dtype} like the input, but found "
            f"{weight.dtype}"
        )


def _check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    if dispatch.current.tracer is not None:
        return  # the values are not known yet; the gather checks them in each run
    values = labels.detach().numpy()
    wrong = values[((values < 0) | (values >= classes)) & (values != ignore_index)]
    if wrong.size:
        raise IndexError(
            f"Target {wrong[0]} is out of bounds; labels go from 0 to {classes - 1} "
            f"(or are ignore_index = {ignore_index})"
        )


def _rows(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits as (rows, classes) and labels as (rows,) of int64."""
    labels = cast(target, int64)
    if input.ndim == 1:
        return input.reshape(1, -1), labels.reshape(1)
    if input.ndim == 2:
        return input, labels
    last = input.permute(0, *range(2, input.ndim), 1)
    return last.reshape(-1, input.shape[1]), labels.reshape(-1)


def _as_target(loss: Tensor, input: Tensor, target: Tensor) -> Tensor:
    shape = () if input.ndim == 1 else tuple(target.shape)
    return loss if loss.shape == shape else loss.reshape(shape)


def _soft_targets(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """-sum over classes of weight * target * log_softmax(input); 'mean' over the rows."""
    if not target.dtype.is_float:
        raise DTypeError(
            "Expected floating point type for target with class probabilities, got "
            f"{target.dtype}; class indices have one number per row, not the input's size "
            f"{sizes(input.shape)}"
        )
    if ignore_index >= 0:
        raise RuntimeError(
            f"ignore_index is not supported for floating point target, got {ignore_index}"
        )
    dim = 0 if input.ndim == 1 else 1
    classes = input.shape[dim]
    _check_weight("cross_entropy", input, weight, classes)
    if label_smoothing > 0.0:
        target = target * (1.0 - label_smoothing) + label_smoothing / classes
    terms = apply("log_softmax", input, dim=dim) * target
    if weight is not None:
        terms = terms * weight.reshape(-1, *(1,) * (input.ndim - dim - 1))
    return reduced(-terms.sum(dim), reduction)
