"""Methods that write into a tensor: ``add_`` and the like. Each returns the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DTypeError, ShapeError
from . import comparison, dispatch, elementwise, random
from .grad_mode import is_grad_enabled
from .promotion import can_cast
from .shaping import expand

if TYPE_CHECKING:
    from .tensor import Tensor


def assign(target: Tensor, value: Tensor) -> Tensor:
    """Overwrites the elements; ``value``'s history becomes the target's."""
    if value.dtype is not target.dtype:
        if not can_cast(value.dtype, target.dtype):
            raise DTypeError(
                f"result type {value.dtype.name} can't be cast to the desired output type "
                f"{target.dtype.name}"
            )
        value = dispatch.cast(value, target.dtype)
    if value.shape != target.shape:
        raise ShapeError(
            f"output with shape {list(target.shape)} doesn't match the broadcast shape "
            f"{list(value.shape)}"
        )
    tracer = dispatch.current.tracer
    if target._traced and tracer is not None:
        tracer.assign(target, value)
        return target
    if tracer is not None and tracer.wants(target):
        tracer.update_buffer(target, value)
        return target
    if is_grad_enabled() and (target.requires_grad or value.requires_grad):
        value = _history_for(target, value)
    if not target._array.flags.writeable:
        raise RuntimeError(
            "unsupported operation: the written-to tensor is read-only, or more than one of "
            "its elements refers to a single memory location (expand). Please clone() the "
            "tensor before performing the operation."
        )
    np.copyto(target._array, value._array)
    target._storage.wrote()
    if value.requires_grad and is_grad_enabled():
        target._grad_fn, target._output_index = value._grad_fn, value._output_index
        target._requires_grad = True
    return target


def _history_for(target: Tensor, value: Tensor) -> Tensor:
    """Checks that a recorded write is allowed; the value, with a history."""
    if target.requires_grad and target.is_leaf:
        raise RuntimeError(
            "a leaf Variable that requires grad is being used in an in-place operation."
        )
    if target._storage.sharers(target):
        raise RuntimeError(
            "an in-place operation that is recorded for backward, on a tensor that shares memory "
            "with another one (a view of it, or what it is a view of), is not supported; write "
            "y = y + 1 instead of y += 1, or clone() the tensor first"
        )
    if value.requires_grad:
        return value
    none = dispatch.wrap(np.zeros(target._array.shape, np.bool_))
    found: Tensor = dispatch.apply("where", none, target, value)
    return found


def _written(
    function: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    def method(input: Any, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = input._assign(function(input, *args, **kwargs))
        return found

    method.__name__ = method.__qualname__ = function.__name__ + "_"
    method.__doc__ = f"``{function.__name__}``, written into the tensor."
    return method


add_ = _written(elementwise.add)
sub_ = _written(elementwise.sub)
mul_ = _written(elementwise.mul)
div_ = _written(elementwise.div)
pow_ = _written(elementwise.pow)
floor_divide_ = _written(elementwise.floor_divide)
remainder_ = _written(elementwise.remainder)
clamp_ = _written(elementwise.clamp)
clamp_min_ = _written(elementwise.clamp_min)
clamp_max_ = _written(elementwise.clamp_max)
neg_ = _written(elementwise.neg)
abs_ = _written(elementwise.abs)
exp_ = _written(elementwise.exp)
log_ = _written(elementwise.log)
sqrt_ = _written(elementwise.sqrt)
rsqrt_ = _written(elementwise.rsqrt)
square_ = _written(elementwise.square)
reciprocal_ = _written(elementwise.reciprocal)
sigmoid_ = _written(elementwise.sigmoid)
tanh_ = _written(elementwise.tanh)
relu_ = _written(elementwise.relu)
floor_ = _written(elementwise.floor)
ceil_ = _written(elementwise.ceil)
round_ = _written(elementwise.round)
lerp_ = _written(elementwise.lerp)
addcmul_ = _written(elementwise.addcmul)
addcdiv_ = _written(elementwise.addcdiv)
masked_fill_ = _written(elementwise.masked_fill)
tril_ = _written(elementwise.tril)
triu_ = _written(elementwise.triu)
logical_not_ = _written(comparison.logical_not)


def fill_(input: Any, value: Any) -> Tensor:
    """Sets every element to a number or 0-d tensor."""
    if dispatch.is_tensor(value):
        if value.dim():
            raise RuntimeError(
                "fill_ only supports 0-dimension value tensor but got tensor with "
                f"{value.dim()} dimensions."
            )
        filled = dispatch.cast(value, input.dtype)
    else:
        filled = dispatch.wrap(np.asarray(value).astype(input.dtype.np))
    found: Tensor = input._assign(expand(filled, tuple(input.shape)))
    return found


def zero_(input: Any) -> Tensor:
    """Sets every element to zero."""
    return fill_(input, 0)


def copy_(input: Any, src: Any, non_blocking: bool = False) -> Tensor:
    """Copies the elements of ``src``, broadcast and converted to this tensor's dtype."""
    source = dispatch.cast(dispatch.as_operand(src), input.dtype)
    found: Tensor = input._assign(expand(source, tuple(input.shape)))
    return found


def normal_(input: Any, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fills with samples of a normal distribution."""
    if std < 0:
        raise RuntimeError(f"normal_ expects std >= 0.0, but found std={std}")
    draws = random.numpy_generator(generator).standard_normal(
        tuple(input.shape), dtype=_float_dtype("normal_", input)
    )
    return _drawn(input, draws * draws.dtype.type(std) + draws.dtype.type(mean))


def uniform_(input: Any, a: float = 0.0, b: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fills with samples of the uniform distribution on [a, b)."""
    if b < a:
        raise RuntimeError(
            f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}"
        )
    draws = random.numpy_generator(generator).random(
        tuple(input.shape), dtype=_float_dtype("uniform_", input)
    )
    return _drawn(input, draws * draws.dtype.type(b - a) + draws.dtype.type(a))


def bernoulli_(input: Any, p: float = 0.5, *, generator: Any = None) -> Tensor:
    """Fills with ones, each with probability p, and zeros."""
    if not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    draws = random.numpy_generator(generator).random(tuple(input.shape)) < p
    return _drawn(input, draws.astype(input.dtype.np))


def _float_dtype(name: str, input: Tensor) -> Any:
    if not input.dtype.is_float:
        raise RuntimeError(f"{name}: not implemented for {input.dtype.name}; use a float tensor")
    return input.dtype.np


def _drawn(input: Any, values: Any) -> Tensor:
    found: Tensor = input._assign(dispatch.wrap(np.asarray(values, input.dtype.np)))
    return found
