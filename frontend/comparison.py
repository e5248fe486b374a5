"""Comparison and logic on single elements, with PyTorch's names, broadcasting and promotion.

Each function is also a method of Tensor, with ``input`` as the tensor itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.types import bool_, uint8
from .dispatch import apply, as_operand, cast, result_type

if TYPE_CHECKING:
    from .tensor import Tensor


def _binary(name: str, meaning: str) -> Callable[[Any, Any], Tensor]:
    def function(input: Any, other: Any) -> Tensor:
        if ordered and result_type(input, other) is bool_:
            input, other = cast(as_operand(input), uint8), cast(as_operand(other), uint8)
        found: Tensor = apply(name, input, other)
        return found

    ordered = name in ("lt", "le", "gt", "ge")
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"``input {meaning} other`` as bool, for each element."
    return function


eq = _binary("eq", "==")
ne = _binary("ne", "!=")
lt = _binary("lt", "<")
le = _binary("le", "<=")
gt = _binary("gt", ">")
ge = _binary("ge", ">=")
logical_and = _binary("logical_and", "and")
logical_or = _binary("logical_or", "or")
logical_xor = _binary("logical_xor", "xor")


def logical_not(input: Any) -> Tensor:
    """True where the element is zero."""
    found: Tensor = apply("logical_not", input)
    return found


def _bitwise(
    name: str, function: Callable[..., np.ndarray], logical: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def operation(input: Any, other: Any) -> Tensor:
        dtype = result_type(input, other)
        if dtype.is_float:
            raise RuntimeError(f"\"{name}_cpu\" not implemented for '{dtype.name}'")
        if dtype is bool_:
            return logical(input, other)
        x, y = cast(as_operand(input, dtype), dtype), cast(as_operand(other, dtype), dtype)
        found: Tensor = x._like(function(x._eager_array(name), y._eager_array(name)))
        return found

    operation.__name__ = operation.__qualname__ = name
    operation.__doc__ = "On bits of integers, or logical on bool."
    return operation


bitwise_and = _bitwise("bitwise_and", np.bitwise_and, logical_and)
bitwise_or = _bitwise("bitwise_or", np.bitwise_or, logical_or)
bitwise_xor = _bitwise("bitwise_xor", np.bitwise_xor, logical_xor)


def bitwise_not(input: Any) -> Tensor:
    """``~``: the inverse of each bit of integers, or logical not on bool."""
    if input.dtype is bool_:
        return logical_not(input)
    if input.dtype.is_float:
        raise RuntimeError(f"\"bitwise_not_cpu\" not implemented for '{input.dtype.name}'")
    found: Tensor = input._like(np.invert(input._eager_array("bitwise_not")))
    return found


def isnan(input: Any) -> Tensor:
    """True where the element is NaN."""
    x = as_operand(input)
    found: Tensor = apply("isnan", x) if x.dtype.is_float else ne(x, x)
    return found


def isinf(input: Any) -> Tensor:
    """True where the element is infinite."""
    x = as_operand(input)
    return eq(apply("abs", x), math.inf) if x.dtype.is_float else ne(x, x)


def isfinite(input: Any) -> Tensor:
    """True where the element is neither infinite nor NaN."""
    x = as_operand(input)
    return lt(apply("abs", x), math.inf) if x.dtype.is_float else eq(x, x)


def isclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """``|input - other| <= atol + rtol * |other|``; both must have one dtype."""
    if input.dtype is not other.dtype:
        raise RuntimeError(f"{input.dtype} did not match {other.dtype}")
    a, b = input._eager_array("isclose"), other._eager_array("isclose")
    found: Tensor = input._like(np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan))
    return found


def allclose(
    input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether all elements are close (see ``isclose``)."""
    close = isclose(input, other, rtol=rtol, atol=atol, equal_nan=equal_nan)
    return bool(close._array.all())


def equal(input: Any, other: Any) -> bool:
    """Whether shapes and all elements are equal."""
    if input.shape != other.shape:
        return False
    return bool(np.array_equal(input._eager_array("equal"), other._eager_array("equal")))


greater, greater_equal, less, less_equal, not_equal = gt, ge, lt, le, ne
