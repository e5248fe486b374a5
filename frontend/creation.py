"""Functions that make tensors. ``device`` may only be the CPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DTypeError, TraceError
from ..ir.types import Dim, DType, bool_, dtype_of, float64, int64
from . import dispatch
from .device import check_device
from .dims import size_arguments
from .dispatch import apply, is_tensor, wrap
from .promotion import get_default_dtype, scalar_dtype
from .random import Generator, draw_key, numpy_generator
from .storage import Storage

if TYPE_CHECKING:
    from .tensor import Tensor


def _finish(made: Tensor, requires_grad: bool) -> Tensor:
    return made.requires_grad_() if requires_grad else made


def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A new tensor with a copy of ``data``: numbers, nested lists, arrays or tensors.

    Python floats become the default dtype (float32), ints int64; arrays keep their dtype.
    """
    check_device(device)
    return _finish(wrap(np.array(_array_of(data, dtype), order="C")), requires_grad)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor that shares the memory of ``data`` where possible."""
    check_device(device)
    if is_tensor(data):
        found: Tensor = data if dtype is None else data.to(dtype)
        return found
    if isinstance(data, np.ndarray) and (dtype is None or dtype_of(dtype).np == data.dtype):
        return from_numpy(data)
    return wrap(_array_of(data, dtype))


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory (foreign byte order: a converted copy)."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(array).__name__})")
    found = dispatch.native(array)
    return wrap(found, Storage(exported=found is array))


def _array_of(data: Any, dtype: Any) -> np.ndarray:
    wanted = None if dtype is None else dtype_of(dtype)
    if is_tensor(data):
        array = data._eager_array("nw.tensor()")
        return array if wanted is None else array.astype(wanted.np)
    if isinstance(data, (np.ndarray, np.generic)):
        array = dispatch.native(np.asarray(data))
        return array if wanted is None else array.astype(wanted.np)
    if hasattr(data, "__array__") and not isinstance(data, (list, tuple)):
        return _array_of(np.asarray(data), dtype)
    nested = _without_tensors(data)
    try:
        array = np.asarray(nested)
    except ValueError:
        raise ValueError(_ragged(nested)) from None
    except OverflowError:
        raise RuntimeError("Overflow when unpacking long long") from None
    if array.dtype.kind == "O" and isinstance(data, int):
        raise RuntimeError("Overflow when unpacking long long")
    if wanted is None:
        wanted = _inferred(array, nested)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"nw.tensor(): cannot make a tensor of {type(data).__name__} with elements of "
            f"{array.dtype}; expected numbers or nested lists of numbers"
        )
    with np.errstate(all="ignore"):
        return array.astype(wanted.np)


def _without_tensors(data: Any) -> Any:
    if isinstance(data, (list, tuple)):
        return [_without_tensors(d) for d in data]
    return data._eager_array("nw.tensor()") if is_tensor(data) else data


def _inferred(array: np.ndarray, data: Any) -> DType:
    if array.size == 0:
        return get_default_dtype()
    if array.dtype.kind == "f":
        first = data
        while isinstance(first, list):
            first = next((d for d in first if not (isinstance(d, list) and not d)), 0.0)
        if isinstance(first, (np.ndarray, np.generic)):
            return dtype_of(array.dtype)
        return get_default_dtype()
    if array.dtype.kind == "b":
        return bool_
    if array.dtype.kind in "iu":
        return int64 if array.dtype != np.uint64 else _overflow()
    return get_default_dtype()


def _overflow() -> DType:
    raise RuntimeError("Overflow when unpacking long long")


def _ragged(data: Any, depth: int = 0) -> str:
    lengths = [len(d) if isinstance(d, (list, np.ndarray)) else None for d in data]
    for length in lengths:
        if length != lengths[0]:
            return f"expected sequence of length {lengths[0]} at dim {depth + 1} (got {length})"
    for d in data:
        if isinstance(d, list):
            found = _ragged(d, depth + 1)
            if found:
                return found
    return f"nw.tensor(): the nested lists differ in shape at dim {depth + 1}" if not depth else ""


# -- filled ----------------------------------------------------------------------------------


def full(
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of one value; the dtype is the value's unless given."""
    check_device(device)
    shape = size_arguments((tuple(size) if isinstance(size, (tuple, list)) else size,))
    if is_tensor(fill_value):
        value = fill_value if dtype is None else dispatch.cast(fill_value, dtype_of(dtype))
        found: Tensor = apply("broadcast_to", value, shape=shape)
        return found.clone()
    kind = scalar_dtype(fill_value) if dtype is None else dtype_of(dtype)
    for d in shape:
        if not isinstance(d, Dim) and d < 0:
            raise RuntimeError(
                f"Trying to create tensor with negative dimension {d}: {list(shape)}"
            )
    if any(isinstance(d, Dim) for d in shape):
        return apply("broadcast_to", dispatch.constant(fill_value, kind), shape=shape)
    return _finish(wrap(np.full(shape, np.asarray(fill_value).astype(kind.np))), requires_grad)


def _sizes(name: str, size: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    if not size and "size" in kwargs:
        size = (kwargs.pop("size"),)
    elif not size:
        raise TypeError(f"{name}() missing the size")
    return size_arguments(size)


def zeros(*size: Any, dtype: Any = None, **options: Any) -> Tensor:
    """Zeros. Sizes as ``zeros(2, 3)`` or ``zeros((2, 3))``; options as for ``full``."""
    shape = _sizes("zeros", size, options)
    return full(shape, 0.0, dtype=dtype or get_default_dtype(), **options)


def ones(*size: Any, dtype: Any = None, **options: Any) -> Tensor:
    """Ones. Sizes as ``ones(2, 3)`` or ``ones((2, 3))``; options as for ``full``."""
    shape = _sizes("ones", size, options)
    return full(shape, 1.0, dtype=dtype or get_default_dtype(), **options)


def empty(*size: Any, dtype: Any = None, **options: Any) -> Tensor:
    """A tensor to be filled; here its elements are zero."""
    return zeros(*size, dtype=dtype, **options)


def zeros_like(input: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    """Zeros with the shape and dtype of ``input``."""
    return full(input.shape, 0, dtype=dtype or input.dtype, **options)


def ones_like(input: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    """Ones with the shape and dtype of ``input``."""
    return full(input.shape, 1, dtype=dtype or input.dtype, **options)


def empty_like(input: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    """A tensor to be filled, with the shape and dtype of ``input``."""
    return zeros_like(input, dtype=dtype, **options)


def full_like(input: Any, fill_value: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    """One value, with the shape and dtype of ``input``."""
    return full(input.shape, fill_value, dtype=dtype or input.dtype, **options)


# -- ranges ----------------------------------------------------------------------------------


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``start, start + step, ...`` below ``end``; int64 if all are ints."""
    check_device(device)
    if end is None:
        start, end = 0, start
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (step > 0) != (end > start) and end != start:
        raise RuntimeError("upper bound and lower bound inconsistent with step sign")
    whole = all(isinstance(v, (int, np.integer)) for v in (start, end, step))
    kind = dtype_of(dtype) if dtype is not None else (int64 if whole else get_default_dtype())
    count = math.ceil((end - start) / step) if not whole else len(range(start, end, step))
    exact = np.int64 if whole else np.float64
    values = start + np.arange(count, dtype=exact) * step
    return _finish(wrap(values.astype(kind.np)), requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """``steps`` values from ``start`` to ``end``, both included."""
    check_device(device)
    if steps < 0:
        raise RuntimeError("number of steps must be non-negative")
    kind = get_default_dtype() if dtype is None else dtype_of(dtype)
    return _finish(wrap(np.linspace(start, end, steps).astype(kind.np)), requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, **options: Any) -> Tensor:
    """The identity matrix, n x m."""
    check_device(options.pop("device", None))
    kind = get_default_dtype() if dtype is None else dtype_of(dtype)
    return _finish(wrap(np.eye(n, m, dtype=kind.np)), options.pop("requires_grad", False))


# -- random ----------------------------------------------------------------------------------


def _float_kind(name: str, dtype: Any) -> DType:
    kind = get_default_dtype() if dtype is None else dtype_of(dtype)
    if not kind.is_float:
        raise DTypeError(f"{name}: not implemented for {kind.name}; use float32 or float64")
    return kind


def rand(
    *size: Any, dtype: Any = None, generator: Generator | None = None, **options: Any
) -> Tensor:
    """Uniform samples in [0, 1)."""
    shape = _sizes("rand", size, options)
    kind = _float_kind("rand", dtype)
    if any(isinstance(d, Dim) for d in shape):
        return _traced_uniform(shape, kind)
    values = numpy_generator(generator).random(shape, dtype=kind.np)
    return _random(values, options)


def randn(
    *size: Any, dtype: Any = None, generator: Generator | None = None, **options: Any
) -> Tensor:
    """Samples of the standard normal distribution."""
    shape = _sizes("randn", size, options)
    kind = _float_kind("randn", dtype)
    if any(isinstance(d, Dim) for d in shape):
        return _traced_normal(shape, kind)
    values = numpy_generator(generator).standard_normal(shape, dtype=kind.np)
    return _random(values, options)


def _random(values: np.ndarray, options: dict[str, Any]) -> Tensor:
    if dispatch.current.tracer is not None:
        raise TraceError(
            "random numbers of a fixed shape are drawn while the model is being traced, so every "
            "run would see the same ones; use rand_like/randn_like of a tensor with the batch, or "
            "draw them outside of forward()"
        )
    check_device(options.pop("device", None))
    requires_grad = options.pop("requires_grad", False)
    options.pop("layout", None)
    if options:
        raise TypeError(f"unexpected keyword argument {next(iter(options))!r}")
    return _finish(wrap(np.asarray(values)), requires_grad)


def _traced_uniform(shape: tuple[Any, ...], kind: DType) -> Tensor:
    key, stream = draw_key()
    found: Tensor = apply("uniform", key, shape=shape, stream=stream)
    return dispatch.cast(found, kind)


def _traced_normal(shape: tuple[Any, ...], kind: DType) -> Tensor:
    # Box and Muller, "A note on the generation of random normal deviates" (1958).
    radius = (1.0 - _traced_uniform(shape, kind)).log().mul(-2.0).sqrt()
    angle = _traced_uniform(shape, kind) * (2.0 * math.pi)
    return radius * angle.cos()


def rand_like(input: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    """``rand`` with the shape and dtype of ``input``."""
    return rand(tuple(input.shape), dtype=dtype or input.dtype, **options)


def randn_like(input: Any, *, dtype: Any = None, **options: Any) -> Tensor:
    """``randn`` with the shape and dtype of ``input``."""
    return randn(tuple(input.shape), dtype=dtype or input.dtype, **options)


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    dtype: Any = None,
    generator: Generator | None = None,
    **options: Any,
) -> Tensor:
    """Integers in [low, high): ``randint(high, size)`` or ``randint(low, high, size)``."""
    if isinstance(high, (tuple, list)):
        high, size = None, high
    if high is None:
        low, high = 0, low
    if size is None:
        raise TypeError("randint() missing the size")
    if low >= high:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got {low} >= {high}")
    kind = int64 if dtype is None else dtype_of(dtype)
    values = numpy_generator(generator).integers(low, high, size_arguments((size,)))
    return _random(values.astype(kind.np), options)


def randperm(
    n: int, *, dtype: Any = None, generator: Generator | None = None, **options: Any
) -> Tensor:
    """A random order of 0 ... n - 1."""
    kind = int64 if dtype is None else dtype_of(dtype)
    return _random(numpy_generator(generator).permutation(n).astype(kind.np), options)


def normal(
    mean: float = 0.0,
    std: float = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    **options: Any,
) -> Tensor:
    """Samples of a normal distribution with mean and standard deviation."""
    draws = randn(tuple(size), generator=generator, **options)
    return draws * std + mean


def bernoulli(input: Any, *, generator: Generator | None = None) -> Tensor:
    """One with the probability that the element is, else zero."""
    chances = input._eager_array("bernoulli()")
    draws = numpy_generator(generator).random(chances.shape) < chances
    return _random(draws.astype(chances.dtype), {})


def multinomial(
    input: Any, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with the rows' weights, per row."""
    weights = np.atleast_2d(input._eager_array("multinomial()")).astype(float64.np)
    source = numpy_generator(generator)
    rows = [source.choice(w.size, num_samples, replace=replacement, p=w / w.sum()) for w in weights]
    values = np.asarray(rows, np.int64)
    return _random(values if input.dim() == 2 else values[0], {})
