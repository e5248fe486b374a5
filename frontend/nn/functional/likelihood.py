"""Losses that are negative log-likelihoods or divergences of distributions."""

from __future__ import annotations

import math
import warnings

from ....errors import ShapeError
from ... import dispatch
from ...dispatch import apply
from ...elementwise import where
from ...tensor import Tensor
from .checks import need_float, need_tensor, sizes
from .loss import reduced, reduction_of


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """t (log t - x), the divergence of probabilities t from those whose logarithms are x.

    log_target: the target has logarithms, too. 'batchmean' is the sum by the batch size, which is
    the divergence of its definition; 'mean' divides by the number of elements.
    """
    batchmean = reduction == "batchmean"
    reduction = reduction_of("sum" if batchmean else reduction, size_average, reduce)
    need_tensor("kl_div", "input", 1, input)
    need_tensor("kl_div", "target", 2, target)
    need_float("kl_div", input)
    if reduction == "mean":
        warnings.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support "
            "size. 'batchmean' divides only by the batch size, and aligns with the KL div math "
            "definition. 'mean' will be changed to behave the same as 'batchmean' in the next "
            "major release.",
            stacklevel=2,
        )
    if log_target:
        loss = target.exp() * (target - input)
    else:
        one = dispatch.constant(1.0, target.dtype)
        loss = target * where(target == 0, one, target).log() - target * input
    found = reduced(loss, reduction)
    return found / input.shape[0] if batchmean and input.ndim else found


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """exp(x) - t x of log rates x, or x - t log(x + eps) of rates; full adds Stirling's formula for
    log t!, where t > 1."""
    reduction = reduction_of(reduction, size_average, reduce)
    need_tensor("poisson_nll_loss", "input", 1, input)
    need_tensor("poisson_nll_loss", "log_input", 2, target)
    loss = input.exp() - target * input if log_input else input - target * (input + eps).log()
    if full:
        t = where(target > 1, target, dispatch.constant(1.0, target.dtype))
        stirling = t * t.log() - t + 0.5 * (2 * math.pi * t).log()
        loss = loss + where(target > 1, stirling, dispatch.constant(0.0, target.dtype))
    return reduced(loss, reduction)


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """(log v + (x - t)^2 / v) / 2 with v = max(var, eps), whose gradient ignores the limit; full
    adds log(2 pi) / 2. var: of the input's shape, without its last dimension, or with 1 there."""
    reduction = reduction_of(reduction, None, None)
    need_tensor("gaussian_nll_loss", "input", 1, input)
    need_tensor("gaussian_nll_loss", "target", 2, target)
    v = _variances(input, var)
    v = v + (v.clamp(min=eps) - v).detach()
    loss = 0.5 * (v.log() + (input - target) ** 2 / v)
    return reduced(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


def _variances(input: Tensor, var: Tensor | float) -> Tensor:
    """Variances that broadcast to the input; ValueError if one is negative (and known)."""
    if not isinstance(var, Tensor):
        found: Tensor = apply(
            "broadcast_to", dispatch.constant(var, input.dtype), shape=input.shape
        )
    elif tuple(input.shape[:-1]) == tuple(var.shape):
        found = var.unsqueeze(-1)
    elif var.shape == input.shape or tuple(var.shape) == (*input.shape[:-1], 1):
        found = var
    else:
        raise ShapeError(
            f"var is of incorrect size: {sizes(var.shape)} for an input of size "
            f"{sizes(input.shape)}; give it the input's size, or one value per row"
        )
    if dispatch.current.tracer is None and (found.detach().numpy() < 0).any():
        raise ValueError("var has negative entry/entries")
    return found
