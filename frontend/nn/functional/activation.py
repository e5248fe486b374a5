"""Activation functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from ....errors import ShapeError
from ...dims import dim_index
from ...dispatch import apply
from ...elementwise import where
from ...tensor import Tensor
from .checks import need_float, need_same_dtype, need_tensor, sizes
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


def _composed(
    name: str, input: Tensor, function: Callable[[Tensor], Tensor], inplace: bool = False
) -> Tensor:
    """An activation that is written in other operators; they become one loop when compiled."""
    need_tensor(name, "input", 1, input)
    need_float(name, input)
    return overwrite(input, function(unaliased(input))) if inplace else function(input)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """scale * elu(x, alpha) with the constants of Klambauer et al. 2017."""
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return _composed("selu", input, lambda x: elu(x, alpha) * scale, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x for x > 0, else alpha * (exp(x / alpha) - 1)."""
    if alpha == 0:
        raise ZeroDivisionError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return _composed("celu", input, lambda x: elu(x / alpha) * alpha, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x))."""
    return _composed("mish", input, lambda x: x * tanh(softplus(x)), inplace)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return _composed("softsign", input, lambda x: x / (abs(x) + 1.0))


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    return _composed("logsigmoid", input, lambda x: -softplus(-x, threshold=50.0))


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x)."""
    return _composed("tanhshrink", input, lambda x: x - tanh(x))


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """x between min_val and max_val, else the nearer of them, where the gradient is 0."""
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    return _composed(
        "hardtanh",
        input,
        lambda x: where(x <= min_val, min_val, where(x >= max_val, max_val, x)),
        inplace,
    )


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """0 for -lambd <= x <= lambd, else x."""
    return _composed("hardshrink", input, lambda x: where((x >= -lambd) & (x <= lambd), 0.0, x))


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x - lambd for x > lambd, x + lambd for x < -lambd, else 0."""
    if lambd < 0:
        raise RuntimeError(f"lambda must be greater or equal to 0, but found to be {lambd}.")
    return _composed(
        "softshrink",
        input,
        lambda x: where(x > lambd, x - lambd, where(x < -lambd, x + lambd, x * 0.0)),
    )


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x for x > threshold, else value."""
    return _composed("threshold", input, lambda x: where(x <= threshold, value, x), inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """x for x > 0, else weight * x; weight has one number, or one per channel (dimension 1)."""
    need_tensor("prelu", "input", 1, input)
    need_tensor("prelu", "weight", 2, weight)
    need_same_dtype("prelu", input, weight=weight)
    if weight.ndim > 1:
        raise ShapeError(
            f"prelu: Expected `weight` to be a scalar or 1D tensor, but got {sizes(weight.shape)}"
        )
    slope = weight
    if weight.numel() != 1:
        channels = input.shape[1] if input.ndim > 1 else 1
        if weight.numel() != channels:
            raise ShapeError(
                "Mismatch of parameter numbers and input channel size. Found parameter numbers = "
                f"{weight.numel()} and channel size = {channels}."
            )
        slope = weight.reshape(-1, *[1] * (input.ndim - 2))
    return where(input > 0, input, slope * input)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b), where a and b are the halves along ``dim``. Dauphin et al. 2016."""
    need_tensor("glu", "input", 1, input)
    axis = dim_index(dim, input.ndim)
    size = input.shape[axis] if input.ndim else 1
    if isinstance(size, int) and size % 2:
        raise RuntimeError(f"Halving dimension must be even, but dimension {axis} is size {size}")
    a, b = input.chunk(2, axis)
    return a * sigmoid(b)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """softmax(-x)."""
    need_tensor("softmin", "input", 1, input)
    return softmax(-input, dim, _stacklevel + 1, dtype)


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
