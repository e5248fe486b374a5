"""Batch and layer normalisation, and scaling vectors to norm 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ....errors import ShapeError, UnsupportedError
from ....ir.types import Extent, numel
from ... import dispatch
from ...dispatch import apply, cast
from ...grad_mode import no_grad
from ...tensor import Tensor
from .checks import need_float, need_same_dtype, need_tensor, sizes, unsupported


def update_buffer(buffer: Tensor, value: Tensor) -> None:
    """Writes ``value`` into a module's buffer: in place, or as an update of the traced graph."""
    if dispatch.current.tracer is not None:
        dispatch.current.tracer.update_buffer(buffer, cast(value, buffer.dtype))
        return
    with no_grad():
        buffer.copy_(value.detach())


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias per channel (dimension 1).

    In training mean and (biased) variance are the batch's, and the running statistics move
    towards them by ``momentum``, the variance in its unbiased form. Ioffe, Szegedy 2015.
    """
    need_tensor("batch_norm", "input", 1, input)
    need_float("batch_norm", input)
    given = {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    need_same_dtype("batch_norm", input, **given)
    if input.ndim < 2:
        raise ShapeError(
            f"batch_norm: expected an input of at least 2 dimensions (N, C, ...), got size "
            f"{sizes(input.shape)}"
        )
    channels = input.shape[1]
    for name, tensor in reversed(given.items()):
        if tensor is not None and tensor.shape != (channels,):
            raise ShapeError(
                f"{name} should contain {channels} elements not {numel(tensor.shape)}: the input "
                f"of size {sizes(input.shape)} has {channels} channels"
            )
    gamma = _filled(input, (channels,), 1.0) if weight is None else weight
    beta = _filled(input, (channels,), 0.0) if bias is None else bias
    if not training:
        if running_mean is None or running_var is None:
            missing = "running_mean" if running_mean is None else "running_var"
            raise RuntimeError(f"{missing} must be defined in evaluation mode")
        operands = (input, gamma, beta, running_mean, running_var)
        return apply("batch_norm", *operands, eps=float(eps), channel_dim=1)
    count = numel((input.shape[0], *input.shape[2:]))
    if count == 1:
        raise ShapeError(
            "Expected more than 1 value per channel when training, got input size "
            f"{sizes(input.shape)}; a last batch of one sample can be left out with "
            "DataLoader(..., drop_last=True)"
        )
    y, mean, var, _ = apply("batch_norm_train", input, gamma, beta, eps=float(eps), channel_dim=1)
    with no_grad():
        if running_mean is not None:
            update_buffer(running_mean, running_mean * (1.0 - momentum) + mean * momentum)
        if running_var is not None:
            unbiased = var * _bessel(count, input)
            update_buffer(running_var, running_var * (1.0 - momentum) + unbiased * momentum)
    return y


def _bessel(count: Extent, like: Tensor) -> Any:
    """count / (count - 1), the factor of the unbiased variance; 1 for an empty batch."""
    if isinstance(count, int):
        return count / (count - 1) if count > 1 else 1.0
    total = apply("extent", size=count, dtype=like.dtype.short)
    return total / (total - 1.0)


def _filled(like: Tensor, shape: Sequence[Extent], value: float) -> Tensor:
    """A constant of the input's dtype."""
    return apply("broadcast_to", dispatch.constant(value, like.dtype), shape=tuple(shape))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimensions. Ba et al. 2016."""
    need_tensor("layer_norm", "input", 1, input)
    need_float("layer_norm", input)
    need_same_dtype("layer_norm", input, weight=weight, bias=bias)
    if isinstance(normalized_shape, int):
        raise TypeError(
            "layer_norm(): argument 'normalized_shape' (position 2) must be tuple of ints, not int"
        )
    shape = tuple(normalized_shape)
    if not shape:
        raise ShapeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least "
            "one element, but got normalized_shape = []"
        )
    if input.shape[-len(shape) :] != shape:
        stars = ", ".join(["*", *(str(d) for d in shape)])
        raise ShapeError(
            f"Given normalized_shape={list(shape)}, expected input with shape [{stars}], but got "
            f"input of size{sizes(input.shape)}"
        )
    operands = [input]
    if weight is not None or bias is not None:
        operands.append(_filled(input, shape, 1.0) if weight is None else weight)
        operands.append(_filled(input, shape, 0.0) if bias is None else bias)
    return apply("layer_norm", *operands, ndim=len(shape), eps=float(eps))[0]


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """x / max(||x||_p, eps) over ``dim``.

    For p = 2 the maximum is taken before the square root, so that the gradient at 0 is finite.
    """
    need_tensor("normalize", "input", 1, input)
    need_float("normalize", input)
    if out is not None:
        raise unsupported("normalize", "out=", "assign the result instead")
    if p == 2:
        return input / (input * input).sum(dim, keepdim=True).clamp(min=eps * eps).sqrt()
    size = abs(input)
    if p == 1:
        norm = size.sum(dim, keepdim=True)
    elif math.isinf(p):
        norm = size.amax(dim, keepdim=True) if p > 0 else size.amin(dim, keepdim=True)
    elif p > 0:
        norm = (size**p).sum(dim, keepdim=True) ** (1.0 / p)
    else:
        raise UnsupportedError(f"normalize(): p={p} is not supported; use a positive p")
    return input / norm.clamp(min=eps)
