"""Elementwise losses and how losses are reduced."""

from __future__ import annotations

import warnings

from ....errors import DTypeError, ShapeError
from ... import dispatch
from ...dispatch import apply
from ...tensor import Tensor
from .checks import need_float, need_tensor, sizes, torch_cast

REDUCTIONS = ("none", "mean", "sum")


def reduction_of(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction; the arguments that PyTorch deprecated override it, with a warning."""
    if size_average is not None or reduce is not None:
        average = True if size_average is None else size_average
        whole = True if reduce is None else reduce
        reduction = ("mean" if average else "sum") if whole else "none"
        warnings.warn(
            "size_average and reduce args will be deprecated, please use "
            f"reduction='{reduction}' instead.",
            stacklevel=4,
        )
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{reduction} is not a valid value for reduction; use one of {', '.join(REDUCTIONS)}"
        )
    return reduction


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """The losses themselves, their mean or their sum."""
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """(input - target)^2. With ``weight`` the mean is weighted."""
    reduction = reduction_of(reduction, size_average, reduce)
    _check_regression("mse_loss", input, target, weight)
    return _weighted(apply("square", input - target), weight, reduction)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """|input - target|. With ``weight`` the mean is weighted."""
    reduction = reduction_of(reduction, size_average, reduce)
    _check_regression("l1_loss", input, target, weight)
    return _weighted(abs(input - target), weight, reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """d^2 / (2 beta) where d = |input - target| < beta, else d - beta / 2. Girshick 2015."""
    reduction = reduction_of(reduction, size_average, reduce)
    if beta < 0:
        raise RuntimeError(
            f"smooth_l1_loss does not support negative values for beta, got beta={beta}"
        )
    _check_regression("smooth_l1_loss", input, target, None)
    return reduced(apply("smooth_l1", input, target, beta=float(beta)), reduction)


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """d^2 / 2 where d = |input - target| < delta, else delta (d - delta / 2). Huber 1964."""
    reduction = reduction_of(reduction, None, None)
    if delta <= 0:
        raise RuntimeError("huber_loss does not support non-positive values for delta.")
    _check_regression("huber_loss", input, target, weight)
    loss = apply("smooth_l1", input, target, beta=float(delta)) * float(delta)
    return _weighted(loss, weight, reduction)


def _check_regression(name: str, input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    need_tensor(name, "input", 1, input)
    need_tensor(name, "target", 2, target)
    if input.shape != target.shape:
        warnings.warn(
            f"Using a target size ({sizes(target.shape)}) that is different to the input size "
            f"({sizes(input.shape)}). This will likely lead to incorrect results due to "
            "broadcasting. Please ensure they have the same size.",
            stacklevel=3,
        )
    if not (input.dtype.is_float or target.dtype.is_float):
        raise DTypeError(
            f"{name}(): input or target must be floating, but got {input.dtype} and "
            f"{target.dtype}; convert them with .float()"
        )
    if weight is not None and weight.shape != input.shape:
        raise ShapeError(
            f"Weights and input must have the same size: got {sizes(weight.shape)} and "
            f"{sizes(input.shape)}"
        )


def _weighted(loss: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is None:
        return reduced(loss, reduction)
    loss = loss * weight
    return loss.sum() / weight.sum() if reduction == "mean" else reduced(loss, reduction)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-(t log x + (1 - t) log(1 - x)) of probabilities x; logarithms are at least -100."""
    reduction = reduction_of(reduction, size_average, reduce)
    need_tensor("binary_cross_entropy", "input", 1, input)
    need_tensor("binary_cross_entropy", "target", 2, target)
    if input.shape != target.shape:
        raise ShapeError(
            f"Using a target size ({sizes(target.shape)}) that is different to the input size "
            f"({sizes(input.shape)}) is deprecated. Please ensure they have the same size."
        )
    need_float("binary_cross_entropy", input)
    if target.dtype is not input.dtype:
        raise DTypeError(
            f"binary_cross_entropy(): target has {target.dtype}, expected {input.dtype} like the "
            f"input; convert it with .{torch_cast(input.dtype)}"
        )
    _check_unit_interval("input", input)
    _check_unit_interval("target", target)
    loss = apply("binary_cross_entropy", input, target)
    return reduced(_times(loss, weight), reduction)


def _check_unit_interval(name: str, tensor: Tensor) -> None:
    if dispatch.current.tracer is not None:
        return  # the values are not known yet
    values = tensor.detach().numpy()
    if not ((values >= 0) & (values <= 1)).all():  # NaN is not in the interval either
        hint = "; apply a sigmoid, or use binary_cross_entropy_with_logits"
        raise RuntimeError(
            f"all elements of {name} should be between 0 and 1" + hint * (name == "input")
        )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy of sigmoid(x), without overflow.

    (1 - t) x + (1 + (pos_weight - 1) t) softplus(-x), which is
    -(pos_weight t log sigmoid(x) + (1 - t) log(1 - sigmoid(x))).
    """
    name = "binary_cross_entropy_with_logits"
    reduction = reduction_of(reduction, size_average, reduce)
    need_tensor(name, "input", 1, input)
    need_tensor(name, "target", 2, target)
    if input.shape != target.shape:
        raise ShapeError(
            f"Target size ({sizes(target.shape)}) must be the same as input size "
            f"({sizes(input.shape)})"
        )
    need_float(name, input)
    if not target.dtype.is_float:
        raise DTypeError(
            f"{name}(): target has {target.dtype}, expected a floating tensor; convert it with "
            f".{torch_cast(input.dtype)}"
        )
    # Beyond 40, exp(-x) is lost against x even in float64: softplus(x) is x.
    loss = apply("softplus", -input, beta=1.0, threshold=40.0)
    if pos_weight is not None:
        loss = loss * ((pos_weight - 1.0) * target + 1.0)
    loss = loss + (1.0 - target) * input
    return reduced(_times(loss, weight), reduction)


def _times(loss: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return loss
    product = loss * weight
    if product.shape != loss.shape:
        raise ShapeError(
            f"weight of size {sizes(weight.shape)} is not broadcastable to the loss of size "
            f"{sizes(loss.shape)}"
        )
    return product
