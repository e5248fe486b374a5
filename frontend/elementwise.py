"""Operations on single elements, with PyTorch's names, broadcasting and type promotion.

Each function is also a method of Tensor, with ``input`` as the tensor itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DTypeError, UnsupportedError
from ..ir.types import Dim, bool_, int64
from .comparison import eq, isnan, logical_and, logical_or
from .dispatch import apply, as_operand, cast, connect, is_tensor, result_type
from .grad_fn import FlatGradFn
from .grad_mode import is_grad_enabled

if TYPE_CHECKING:
    from .tensor import Tensor


def _unary(name: str, meaning: str) -> Callable[[Any], Tensor]:
    def function(input: Any) -> Tensor:
        found: Tensor = apply(name, input)
        return found

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{meaning}, for each element. Integers are computed as float32."
    return function


exp = _unary("exp", "e to the power x")
expm1 = _unary("expm1", "exp(x) - 1, precise near 0")
log = _unary("log", "Natural logarithm")
log1p = _unary("log1p", "log(1 + x), precise near 0")
sqrt = _unary("sqrt", "Square root")
rsqrt = _unary("rsqrt", "1 / sqrt(x)")
reciprocal = _unary("reciprocal", "1 / x")
sin = _unary("sin", "Sine")
cos = _unary("cos", "Cosine")
erf = _unary("erf", "Error function")
sigmoid = _unary("sigmoid", "1 / (1 + exp(-x))")
tanh = _unary("tanh", "Hyperbolic tangent")


# -- arithmetic ------------------------------------------------------------------------------


def add(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input + alpha * other``; logical or for bool."""
    return _on_numbers("add", logical_or, input, _scaled(other, alpha))


def _on_numbers(name: str, logical: Callable[[Any, Any], Tensor], input: Any, other: Any) -> Tensor:
    # The records of these operators exclude bool, on which PyTorch defines them as logic.
    if result_type(input, other) is bool_:
        return logical(input, other)
    found: Tensor = apply(name, input, other)
    return found


def sub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``input - alpha * other``; DTypeError for bool."""
    if any(result_type(x) is bool_ for x in (input, other)):
        raise DTypeError(
            "Subtraction, the `-` operator, with a bool tensor is not supported. If you are "
            "trying to invert a mask, use the `~` or `logical_not()` operator instead."
        )
    found: Tensor = apply("sub", input, _scaled(other, alpha))
    return found


def rsub(input: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """``other - alpha * input``."""
    return sub(other, input, alpha=alpha)


def _scaled(other: Any, alpha: float) -> Any:
    return other if isinstance(alpha, (int, float)) and alpha == 1 else mul(other, alpha)


def mul(input: Any, other: Any) -> Tensor:
    """``input * other``; logical and for bool."""
    return _on_numbers("mul", logical_and, input, other)


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """``input / other``; integers give float32. rounding_mode: None, 'trunc' or 'floor'."""
    if rounding_mode is None:
        found: Tensor = apply("div", input, other)
        return found
    if rounding_mode == "floor":
        return _rounded_quotient(input, other, np.floor_divide, floor)
    if rounding_mode == "trunc":
        return _rounded_quotient(input, other, _trunc_divide, trunc)
    raise RuntimeError(
        "div expected rounding_mode to be one of None, 'trunc', or 'floor' but found "
        f"'{rounding_mode}'"
    )


def floor_divide(input: Any, other: Any) -> Tensor:
    """The quotient rounded down, as Python's ``//``; keeps integer dtypes."""
    return _rounded_quotient(input, other, np.floor_divide, floor)


def remainder(input: Any, other: Any) -> Tensor:
    """Python's ``%``: the result has the sign of ``other``."""
    return _modulo(input, other, np.remainder, floor_divide)


def fmod(input: Any, other: Any) -> Tensor:
    """C's fmod: the result has the sign of ``input``."""
    return _modulo(input, other, np.fmod, lambda a, b: div(a, b, rounding_mode="trunc"))


def _trunc_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.trunc(a / b)
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


def _rounded_quotient(
    a: Any,
    b: Any,
    numpy: Callable[[np.ndarray, np.ndarray], np.ndarray],
    rounding: Callable[[Any], Tensor],
) -> Tensor:
    # On arrays the exact integer or Python rule; as a graph, the rounded quotient.
    x, y = _numbers("div with rounding", a, b)
    if x._traced or y._traced:
        return cast(rounding(div(x, y)), x.dtype)
    found: Tensor = x._like(_integer_safe(numpy, x._array, y._array))
    if is_grad_enabled() and (x.requires_grad or y.requires_grad):
        connect(FlatGradFn("div", (x, y)), (found,))
    return found


def _modulo(
    a: Any,
    b: Any,
    numpy: Callable[[np.ndarray, np.ndarray], np.ndarray],
    quotient: Callable[[Any, Any], Tensor],
) -> Tensor:
    x, y = _numbers("remainder", a, b)
    recorded = is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if recorded or x._traced or y._traced:
        return sub(x, mul(quotient(x, y), y))
    return x._like(_integer_safe(numpy, x._array, y._array))


def _numbers(name: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both operands in their common dtype; DTypeError for bool."""
    dtype = result_type(a, b)
    if dtype is bool_:
        raise DTypeError(f"{name}: not implemented for bool; cast an operand with .long()")
    return cast(as_operand(a, dtype), dtype), cast(as_operand(b, dtype), dtype)


def _integer_safe(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    if a.dtype.kind != "f" and not np.all(b):
        raise RuntimeError("ZeroDivisionError: integer division by zero")
    with np.errstate(all="ignore"):
        return function(a, b)


def pow(input: Any, exponent: Any) -> Tensor:
    """``input ** exponent``; RuntimeError for an integer to a negative integer power."""
    if is_tensor(input) and isinstance(exponent, (int, float)):
        if isinstance(exponent, int) and exponent < 0 and not input.dtype.is_float:
            raise RuntimeError("Integers to negative integer powers are not allowed.")
        special = _POWERS.get(exponent) if input.dtype.is_float else None
        if special is not None:
            return special(input)
    dtype = result_type(input, exponent)
    if dtype.is_float:
        found: Tensor = apply("pow", input, exponent)
        return found
    if is_tensor(input) and input.dtype is bool_ and exponent is True:
        return input.clone()
    x, y = _numbers("pow", input, exponent)
    if (y._eager_array("pow of integers") < 0).any():
        raise RuntimeError("Integers to negative integer powers are not allowed.")
    return x._like(np.power(x._eager_array("pow of integers"), y._array))


def neg(input: Any) -> Tensor:
    """``-input``; DTypeError for bool."""
    x = as_operand(input)
    if x.dtype is bool_:
        raise DTypeError(
            "Negation, the `-` operator, on a bool tensor is not supported. If you are trying to "
            "invert a mask, use the `~` or `logical_not()` operator instead."
        )
    found: Tensor = apply("neg", x)
    return found


def square(input: Any) -> Tensor:
    """``input * input``."""
    x = as_operand(input)
    if x.dtype is bool_:
        x = cast(x, int64)
    found: Tensor = apply("square", x)
    return found


_POWERS: dict[float, Callable[[Any], Tensor]] = {
    1: lambda x: mul(x, 1),
    2: square,
    3: lambda x: mul(square(x), x),
    0.5: sqrt,
    -0.5: rsqrt,
    -1: reciprocal,
    -2: lambda x: reciprocal(square(x)),
}


def _kept(name: str, input: Any) -> Tensor:
    # Operators that leave integers as they are.
    x = as_operand(input)
    found: Tensor = apply(name, x)
    return found


def abs(input: Any) -> Tensor:
    """Absolute value."""
    return _kept("abs", input)


def sign(input: Any) -> Tensor:
    """-1, 0 or 1."""
    x = as_operand(input)
    return x.clone() if x.dtype is bool_ else _kept("sign", x)


def _rounding(name: str, input: Any) -> Tensor:
    x = as_operand(input)
    if x.dtype is bool_:
        raise DTypeError(f"{name}: not implemented for bool; cast it with .long()")
    return _kept(name, x) if x.dtype.is_float else x.clone()


def floor(input: Any) -> Tensor:
    """The largest integer that is not larger, in the same dtype."""
    return _rounding("floor", input)


def ceil(input: Any) -> Tensor:
    """The smallest integer that is not smaller, in the same dtype."""
    return _rounding("ceil", input)


def trunc(input: Any) -> Tensor:
    """Towards zero, in the same dtype."""
    return _rounding("trunc", input)


def round(input: Any, *, decimals: int = 0) -> Tensor:
    """To the nearest integer, ties to even; ``decimals`` digits are kept."""
    if decimals == 0:
        return _rounding("round", input)
    scale = 10.0 ** math.fabs(decimals)
    if decimals < 0:
        return mul(_rounding("round", div(input, scale)), scale)
    return div(_rounding("round", mul(input, scale)), scale)


def relu(input: Any) -> Tensor:
    """``max(x, 0)``."""
    return _kept("relu", input)


def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """Limits to ``[min, max]``: numbers or tensors, at least one of them."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    bounds = [b for b in (min, max) if b is not None]
    dtype = result_type(input, *bounds)
    x = cast(as_operand(input), dtype)
    if dtype.is_float and not any(is_tensor(b) or isinstance(b, Dim) for b in bounds):
        low = None if min is None else float(min)
        high = None if max is None else float(max)
        found: Tensor = apply("clamp", x, min=low, max=high)
        return found
    if min is not None:
        x = maximum(x, as_operand(min, dtype))
    return x if max is None else minimum(x, as_operand(max, dtype))


def clamp_min(input: Any, min: Any) -> Tensor:
    """``clamp(min=min)``."""
    return clamp(input, min=min)


def clamp_max(input: Any, max: Any) -> Tensor:
    """``clamp(max=max)``."""
    return clamp(input, max=max)


def maximum(input: Any, other: Any) -> Tensor:
    """The larger of the two; NaN if either is NaN."""
    return _on_numbers("maximum", logical_or, input, other)


def minimum(input: Any, other: Any) -> Tensor:
    """The smaller of the two; NaN if either is NaN."""
    return _on_numbers("minimum", logical_and, input, other)


def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """``input`` where the condition holds, else ``other``; alone, the indices where it holds."""
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    return apply("where", condition, input, other)


def masked_fill(input: Any, mask: Any, value: Any) -> Tensor:
    """``value`` (a number or 0-d tensor) where ``mask`` is True."""
    filled = as_operand(value, input.dtype)
    found: Tensor = apply("where", mask, cast(filled, input.dtype), input)
    return found


def nonzero(input: Any, *, as_tuple: bool = False) -> Any:
    """Indices of the elements that are not zero: one row each, or one tensor per dimension."""
    found = np.nonzero(np.atleast_1d(input._eager_array("nonzero")))
    if as_tuple:
        return tuple(input._like(i.astype(np.int64)) for i in found)
    rows = np.stack(found, axis=1).astype(np.int64)
    return input._like(rows if input.dim() else rows[:, :0])


def lerp(input: Any, end: Any, weight: Any) -> Tensor:
    """``input + weight * (end - input)``."""
    return add(input, mul(weight, sub(end, input)))


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 * tensor2``."""
    return add(input, mul(tensor1, tensor2), alpha=value)


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 / tensor2``."""
    return add(input, div(tensor1, tensor2), alpha=value)


def _triangle(name: str, input: Any, lower: bool, diagonal: int) -> Tensor:
    if input.dim() < 2:
        raise RuntimeError(f"{name}: input tensor must have at least 2 dimensions")
    rows, columns = input.shape[-2:]
    if isinstance(rows, Dim) or isinstance(columns, Dim):
        raise UnsupportedError(
            f"{name} over the batch dimension of {tuple(input.shape)}: the last two sizes must "
            "be numbers"
        )
    keep = np.tri(rows, columns, diagonal if lower else diagonal - 1, dtype=bool)
    mask = as_operand(keep if lower else ~keep)
    found: Tensor = apply("where", mask, input, as_operand(0, input.dtype))
    return found


def tril(input: Any, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two dimensions; zero above ``diagonal``."""
    return _triangle("tril", input, True, diagonal)


def triu(input: Any, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two dimensions; zero below ``diagonal``."""
    return _triangle("triu", input, False, diagonal)


def nan_to_num(
    input: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """Replaces NaN and infinities; None stands for the dtype's largest numbers."""
    x = as_operand(input)
    if not x.dtype.is_float:
        return x.clone()
    limits = np.finfo(x.dtype.np)
    x = masked_fill(x, isnan(x), nan)
    x = masked_fill(x, eq(x, math.inf), float(limits.max) if posinf is None else posinf)
    return masked_fill(x, eq(x, -math.inf), float(limits.min) if neginf is None else neginf)


subtract, multiply, divide, true_divide = sub, mul, div, div
negative, absolute, clip = neg, abs, clamp
