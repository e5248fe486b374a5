"""What the functions check about their arguments, with PyTorch's words and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ....errors import DTypeError, ShapeError, UnsupportedError
from ....ir.types import DType, Extent
from ...tensor import Tensor


def sizes(shape: Iterable[Extent]) -> str:
    """``[1, 2, 8, 8]``, as PyTorch prints a size in a message."""
    return "[" + ", ".join(str(d) for d in shape) + "]"


def need_tensor(function: str, argument: str, position: int, value: Any) -> None:
    """TypeError unless ``value`` is a Tensor."""
    if not isinstance(value, Tensor):
        name, hint = type(value).__name__, "wrap it with netwright.tensor(...)"
        if name == "Tensor":  # of another library
            name = f"{type(value).__module__}.{name}"
            hint = "convert it with netwright.from_numpy(x.numpy())"
        raise TypeError(
            f"{function}(): argument '{argument}' (position {position}) must be Tensor, not "
            f"{name}; {hint}"
        )


def need_float(function: str, tensor: Tensor) -> None:
    """DTypeError unless the tensor is floating."""
    if not tensor.dtype.is_float:
        raise DTypeError(
            f"{function}(): input must be a floating tensor, but got {tensor.dtype}; "
            "convert it with .float()"
        )


def need_same_dtype(function: str, input: Tensor, **others: Tensor | None) -> None:
    """DTypeError unless parameters have the dtype of the input."""
    for name, other in others.items():
        if other is not None and other.dtype is not input.dtype:
            raise DTypeError(
                f"{function}(): input and {name} must have the same dtype, but got "
                f"{input.dtype} and {other.dtype}; convert the input with "
                f".{torch_cast(other.dtype)} or the model with .to({input.dtype})"
            )


def torch_cast(dtype: DType) -> str:
    """The method call that converts to ``dtype``."""
    short = {"float32": "float()", "float64": "double()", "int64": "long()", "bool": "bool()"}
    return short.get(dtype.name, f"to({dtype})")


def spread(
    value: Any, n: int, function: str, argument: str, *, minimum: int | None = None
) -> tuple[int, ...]:
    """An int, or a list of 1 or ``n`` ints, as ``n`` ints."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if len(values) not in (1, n):
        raise ShapeError(
            f"{function}: expected {argument} to be a single integer value or a list of {n} "
            f"values to match the dimensions, but got {argument}={list(values)}"
        )
    for v in values:
        if isinstance(v, bool) or not hasattr(v, "__index__"):
            raise TypeError(
                f"{function}(): argument '{argument}' must be int or tuple of ints, but got "
                f"{type(v).__name__}"
            )
    numbers = tuple(int(v.__index__()) for v in values)
    if minimum is not None and min(numbers) < minimum:
        sign = "non-positive" if minimum == 1 else "negative"
        raise ShapeError(f"{function}: {sign} {argument} is not supported, got {list(numbers)}")
    return numbers * n if len(numbers) == 1 else numbers


def unsupported(function: str, option: str, fix: str) -> UnsupportedError:
    """The error for an option that PyTorch has and netwright has not."""
    return UnsupportedError(f"{function}(): {option} is not supported; {fix}")
