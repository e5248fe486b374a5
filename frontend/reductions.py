"""Reductions over dimensions: sums, moments, extrema, norms, softmax, sorting.

``dim`` is an int, a tuple where PyTorch allows one, or None for all dimensions.
"""

from __future__ import annotations

import builtins
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DTypeError, ShapeError, UnsupportedError
from ..ir.types import Dim, Extent, bool_, dtype_of, int64, numel, uint8
from .comparison import eq, isfinite, ne
from .dims import concrete, dim_index, dim_indices
from .dispatch import apply, as_operand, cast, is_tensor
from .elementwise import (
    abs,
    add,
    clamp_min,
    div,
    exp,
    log,
    mul,
    pow,
    square,
    sub,
    where,
)
from .elementwise import maximum as _maximum
from .elementwise import minimum as _minimum
from .elementwise import sqrt as _sqrt
from .shaping import select

if TYPE_CHECKING:
    from .tensor import Tensor


class ValuesIndices(NamedTuple):
    """What ``max(dim)``, ``min(dim)``, ``sort`` and ``topk`` return."""

    values: Tensor
    indices: Tensor


def _reduce(name: str, input: Tensor, dim: Any, keepdim: bool) -> Tensor:
    dims = dim_indices(dim, input.dim())
    found: Tensor = apply(name, input, dims=dims, keepdim=bool(keepdim))
    return found


def sum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Sum; bool and integers are summed as int64."""
    x = as_operand(input)
    if dtype is not None:
        x = cast(x, dtype_of(dtype))
    elif not x.dtype.is_float:
        x = cast(x, int64)
    return _reduce("sum", x, dim, keepdim)


def mean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Arithmetic mean of floating tensors; DTypeError for integers."""
    x = as_operand(input)
    if dtype is not None:
        x = cast(x, dtype_of(dtype))
    if not x.dtype.is_float:
        raise DTypeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point "
            f"or complex dtype. Got: {x.dtype.name}; cast it with .float()"
        )
    return _reduce("mean", x, dim, keepdim)


def var(
    input: Any,
    dim: Any = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
    unbiased: bool | None = None,
) -> Tensor:
    """Variance; the divisor is ``max(0, n - correction)``, correction 1 unless given."""
    x = as_operand(input)
    if isinstance(dim, bool):  # x.var(False) is x.var(unbiased=False)
        dim, unbiased = None, dim
    if not x.dtype.is_float:
        raise DTypeError(f"var/std: only floating tensors are supported, got {x.dtype.name}")
    if unbiased is not None and correction is not None:
        raise TypeError("var/std: give either unbiased or correction, not both")
    less = (1 if unbiased is None else int(unbiased)) if correction is None else correction
    dims = dim_indices(dim, x.dim())
    centre = sub(x, _reduce("mean", x, dims, True)) if x.dim() else sub(x, x)
    total = _reduce("sum", square(centre), dims, keepdim) if x.dim() else square(centre)
    count: Extent = numel(x.shape[d] for d in dims)
    if isinstance(count, Dim):
        return div(
            total, clamp_min(sub(apply("extent", size=count, dtype=x.dtype.short), less), 0.0)
        )
    return div(total, builtins.max(0.0, count - less))


def std(
    input: Any,
    dim: Any = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
    unbiased: bool | None = None,
) -> Tensor:
    """Standard deviation (see ``var``); its gradient is 0 where it is 0."""
    return _root(var(input, dim, keepdim, correction=correction, unbiased=unbiased))


def var_mean(
    input: Any, dim: Any = None, keepdim: bool = False, *, correction: float = 1
) -> tuple[Tensor, Tensor]:
    """Variance and mean."""
    return var(input, dim, keepdim, correction=correction), mean(input, dim, keepdim)


def std_mean(
    input: Any, dim: Any = None, keepdim: bool = False, *, correction: float = 1
) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean."""
    return std(input, dim, keepdim, correction=correction), mean(input, dim, keepdim)


def _root(x: Tensor) -> Tensor:
    # sqrt with gradient 0 at 0, which PyTorch defines for std and norm (plain sqrt: infinity).
    zero = eq(x, 0)
    return where(zero, 0.0, _sqrt(where(zero, 1.0, x)))


# -- extrema ---------------------------------------------------------------------------------


def amax(input: Any, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Largest value; the gradient is shared evenly among equal ones."""
    return _extremum("amax", input, dim, keepdim)


def amin(input: Any, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Smallest value; the gradient is shared evenly among equal ones."""
    return _extremum("amin", input, dim, keepdim)


def _extremum(name: str, input: Any, dim: Any, keepdim: bool) -> Tensor:
    x = as_operand(input)
    dims = dim_indices(dim, x.dim())
    if builtins.any(x.shape[d] == 0 for d in dims):
        raise IndexError(
            f"{name}(): Expected reduction dim to have non-zero size; input has shape "
            f"{list(x.shape)}"
        )
    if x.dtype is bool_:
        return _reduce("any" if name == "amax" else "all", x, dims, keepdim)
    return _reduce(name, x, dims, keepdim)


def max(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest value; with ``dim`` (values, indices); with a tensor as in ``maximum``."""
    return _max_or_min("max", input, dim, keepdim)


def min(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest value; with ``dim`` (values, indices); with a tensor as in ``minimum``."""
    return _max_or_min("min", input, dim, keepdim)


def _max_or_min(name: str, input: Any, dim: Any, keepdim: bool) -> Any:
    x = as_operand(input)
    if dim is None:
        if builtins.any(d == 0 for d in x.shape):
            raise RuntimeError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. "
                "Specify the reduction dim with the 'dim' argument."
            )
        return _extremum("a" + name, x, None, False)
    if is_tensor(dim):
        return _maximum(x, dim) if name == "max" else _minimum(x, dim)
    indices = _arg("arg" + name, x, dim, True)
    if not x.dim():
        return ValuesIndices(x.clone(), indices)
    d = dim_index(dim, x.dim())
    values: Tensor = apply("gather", x, indices, dim=d)
    if keepdim:
        return ValuesIndices(values, indices)
    return ValuesIndices(select(values, d, 0), select(indices, d, 0))


def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index (int64) of the first largest value; without ``dim`` into the flattened tensor."""
    return _arg("argmax", _ordered("argmax", input), dim, keepdim)


def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Index (int64) of the first smallest value; without ``dim`` into the flattened tensor."""
    return _arg("argmin", _ordered("argmin", input), dim, keepdim)


def _ordered(name: str, input: Any) -> Tensor:
    x = as_operand(input)
    if x.dtype is bool_:
        raise DTypeError(f"{name}(): does not support bool input; cast it with .long()")
    return x


def _arg(name: str, x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    rank = x.dim()
    if x.dtype is bool_:
        x = cast(x, dtype_of("u8"))
    if dim is None:
        if builtins.any(d == 0 for d in x.shape):
            raise IndexError(
                f"{name}(): Expected reduction dim to be specified for input.numel() == 0. "
                "Specify the reduction dim with the 'dim' argument."
            )
        flat: Tensor = apply(name, x.reshape(-1), dim=0, keepdim=False)
        return flat.reshape((1,) * rank) if keepdim else flat
    d = dim_index(dim, rank)
    if not rank:
        return apply(name, x.reshape(1), dim=0, keepdim=False)
    if x.shape[d] == 0:
        raise IndexError(f"{name}(): Expected reduction dim {dim} to have non-zero size.")
    found: Tensor = apply(name, x, dim=d, keepdim=bool(keepdim))
    return found


def all(input: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether every element is non-zero."""
    return _logical("all", input, dim, keepdim)


def any(input: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether an element is non-zero."""
    return _logical("any", input, dim, keepdim)


def _logical(name: str, input: Any, dim: Any, keepdim: bool) -> Tensor:
    x = as_operand(input)
    found = _reduce(name, _truth(x), dim, keepdim)
    return cast(found, uint8) if x.dtype is uint8 else found  # as PyTorch, for old masks


def _truth(input: Any) -> Tensor:
    x = as_operand(input)
    return x if x.dtype is bool_ else ne(x, 0)


# -- products, norms, softmax ----------------------------------------------------------------


def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Product of all elements or along one dimension, by halving (log2(n) multiplications)."""
    x = as_operand(input)
    if dtype is not None:
        x = cast(x, dtype_of(dtype))
    elif not x.dtype.is_float:
        x = cast(x, int64)
    rank = x.dim()
    if dim is None:
        whole = prod(x.reshape(-1), 0)
        return whole.reshape((1,) * rank) if keepdim else whole
    d = dim_index(dim, rank)
    if not rank:
        return x.clone()
    size = concrete(x.shape[d], "prod()")
    if size == 0:
        ones = sum(x, d, keepdim)  # zeros of the right shape
        return add(ones, 1)
    while size > 1:
        half = size // 2
        product = mul(x.narrow(d, 0, half), x.narrow(d, half, half))
        if size % 2:
            last = x.narrow(d, size - 1, 1)
            product = apply("cat", product, last, dim=d)
        x, size = product, half + size % 2
    return x if keepdim else select(x, d, 0)


def norm(
    input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """The vector p-norm over ``dim``; 'fro' is p = 2. p may be inf, -inf or 0."""
    x = as_operand(input)
    if dtype is not None:
        x = cast(x, dtype_of(dtype))
    if not x.dtype.is_float:
        raise DTypeError(
            "linalg.vector_norm: Expected a floating point or complex tensor as input. Got "
            f"{x.dtype.name}; cast it with .float()"
        )
    order = 2.0 if p in (None, "fro") else p
    if isinstance(order, str):
        raise UnsupportedError(f"norm: p={p!r} is not supported; use a number or 'fro'")
    order = float(order)
    if order == 2:
        return _root(_reduce("sum", square(x), dim, keepdim))
    size = abs(x)
    if order == 1:
        return _reduce("sum", size, dim, keepdim)
    if math.isinf(order):
        return _extremum("amax" if order > 0 else "amin", size, dim, keepdim)
    if order == 0:
        return _reduce("sum", cast(ne(x, 0), x.dtype), dim, keepdim)
    return pow(_reduce("sum", pow(size, order), dim, keepdim), 1.0 / order)


def logsumexp(input: Any, dim: Any, keepdim: bool = False) -> Tensor:
    """``log(sum(exp(x)))`` without overflow."""
    x = as_operand(input)
    if not x.dtype.is_float:
        x = cast(x, dtype_of("f32"))
    if not x.dim():
        return x.clone()
    dims = dim_indices(dim, x.dim())
    peak = _extremum("amax", x, dims, True).detach()
    peak = where(isfinite(peak), peak, 0.0)
    total = add(log(_reduce("sum", exp(sub(x, peak)), dims, True)), peak)
    kept = tuple(d for i, d in enumerate(x.shape) if i not in dims)
    return total if keepdim else total.reshape(kept)


def _rowwise(name: str, input: Any, dim: int | None, dtype: Any) -> Tensor:
    x = as_operand(input)
    if dtype is not None:
        x = cast(x, dtype_of(dtype))
    if dim is None:
        raise TypeError(f"{name}(): missing the argument 'dim'")
    d = dim_index(dim, x.dim())
    if not x.dim():
        return apply(name, x.reshape(1), dim=0).reshape(())
    found: Tensor = apply(name, x, dim=d)
    return found


def softmax(input: Any, dim: int | None = None, dtype: Any = None) -> Tensor:
    """``exp(x) / sum(exp(x))`` along ``dim``."""
    return _rowwise("softmax", input, dim, dtype)


def log_softmax(input: Any, dim: int | None = None, dtype: Any = None) -> Tensor:
    """``log(softmax(x))``, computed without overflow."""
    return _rowwise("log_softmax", input, dim, dtype)


# -- order -----------------------------------------------------------------------------------


def gather(input: Any, dim: int, index: Any) -> Tensor:
    """``out[i][j] = input[index[i][j]][j]`` for dim 0, and so on; index has input's rank."""
    d = dim_index(dim, input.dim())
    found: Tensor = apply("gather", input, as_operand(index), dim=d)
    return found


def sort(
    input: Any, dim: int = -1, descending: bool = False, stable: bool = False
) -> ValuesIndices:
    """Values and indices in order along ``dim`` (always stable; NaN is the largest)."""
    indices = argsort(input, dim, descending)
    return ValuesIndices(_take(input, indices, dim), indices)


def argsort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """Indices that sort along ``dim``."""
    d = dim_index(dim, input.dim())
    if not input.dim():
        return as_operand(np.zeros((), np.int64))
    found: Tensor = apply("argsort", input, dim=d, descending=bool(descending))
    return found


def topk(
    input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> ValuesIndices:
    """The k largest (or smallest) values along ``dim``, in order, and their indices."""
    d = dim_index(dim, input.dim())
    size = input.shape[d] if input.dim() else 1
    if not isinstance(size, Dim) and not 0 <= k <= size:
        raise ShapeError(f"selected index k out of range: k = {k}, dimension {dim} has size {size}")
    indices = argsort(input, dim, descending=largest)
    indices = indices.narrow(d, 0, k) if input.dim() else indices
    return ValuesIndices(_take(input, indices, dim), indices)


def _take(input: Tensor, indices: Tensor, dim: int) -> Tensor:
    return gather(input, dim, indices) if input.dim() else input.clone()


def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Tensor:
    """Running sum along ``dim``: a product with a triangle of ones, so it has a gradient."""
    x = as_operand(input)
    if dtype is not None:
        x = cast(x, dtype_of(dtype))
    elif not x.dtype.is_float:
        x = cast(x, int64)
    d = dim_index(dim, x.dim())
    if not x.dim():
        return x.clone()
    if not x.requires_grad and not x._traced:
        return x._like(np.cumsum(x._array, axis=d, dtype=x._array.dtype))
    size = concrete(x.shape[d], "cumsum()")
    triangle = as_operand(np.triu(np.ones((size, size), x.dtype.np)))
    last = x.transpose(d, -1)
    rows = last.reshape(-1, size) if last.dim() != 2 else last
    total: Tensor = apply("matmul", rows, triangle)
    return total.reshape(last.shape).transpose(d, -1)


def count_nonzero(input: Any, dim: Any = None) -> Tensor:
    """Number of elements that are not zero."""
    return sum(_truth(input), dim)
