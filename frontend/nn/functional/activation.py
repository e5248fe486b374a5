"""Activation functions."""

from __future__ import annotations

import warnings
from typing import Any

from ...dims import dim_index
from ...dispatch import apply
from ...tensor import Tensor
from .checks import need_float, need_tensor
from .inplace import overwrite, unaliased


def _unary(name: str, input: Tensor, inplace: bool = False, **attrs: Any) -> Tensor:
    need_tensor(name, "input", 1, input)
    if not inplace:
        return apply(name, input, **attrs)
    return overwrite(input, apply(name, unaliased(input), **attrs))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(0, x)."""
    return _unary("relu", input, inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(0, x), 6)."""
    return _unary("relu6", input, inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x for x > 0, else negative_slope * x."""
    return _unary("leaky_relu", input, inplace, slope=float(negative_slope))


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x for x > 0, else alpha * (exp(x) - 1)."""
    return _unary("elu", input, inplace, alpha=float(alpha))


def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """x * Phi(x), Phi the normal distribution function; 'tanh' selects its approximation."""
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate argument must be either none or tanh, got {approximate!r}")
    return _unary("gelu", input, approximate=approximate)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    return _unary("silu", input, inplace)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return _unary("sigmoid", input)


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return _unary("tanh", input)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * relu6(x + 3) / 6."""
    return _unary("hardswish", input, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6."""
    return _unary("hardsigmoid", input, inplace)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold."""
    return _unary("softplus", input, beta=float(beta), threshold=float(threshold))


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """exp(x) / sum(exp(x)) over ``dim``; without ``dim``, PyTorch's old rule and a warning."""
    return _normalised("softmax", input, dim, _stacklevel, dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """log(softmax(x)) over ``dim``, computed without overflow."""
    return _normalised("log_softmax", input, dim, _stacklevel, dtype)


def _normalised(name: str, input: Tensor, dim: int | None, stacklevel: int, dtype: Any) -> Tensor:
    need_tensor(name, "input", 1, input)
    if dim is None:
        warnings.warn(
            f"Implicit dimension choice for {name} has been deprecated. Change the call to "
            "include dim=X as an argument.",
            stacklevel=stacklevel + 1,
        )
        dim = 0 if input.ndim in (0, 1, 3) else 1
    if dtype is not None:
        input = input.to(dtype=dtype)
    need_float(name, input)
    axis = dim_index(dim, input.ndim)
    if input.ndim == 0:
        return apply(name, input.reshape(1), dim=0).reshape(())
    return apply(name, input, dim=axis)
