"""Pooling over the last dimension, or the last two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....errors import ShapeError
from ...dispatch import apply
from ...shaping import cat, slice_dim
from ...tensor import Tensor
from .checks import need_tensor, sizes, spread, unsupported
from .inplace import owned

Ints = int | Sequence[int]


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Maximum of each window; stride None means kernel_size. Input (N, C, H, W) or (C, H, W)."""
    if return_indices:
        raise unsupported("max_pool2d", "return_indices=True", "use the maxima alone")
    dilations = spread(dilation, 2, "max_pool2d", "dilation", minimum=1)
    windows = _windows("max_pool2d", kernel_size, stride, padding, dilations)
    return _pool("max_pool2d", input, dilation=dilations, ceil_mode=bool(ceil_mode), **windows)


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window, over its size, its unpadded size or ``divisor_override``."""
    if divisor_override == 0:
        raise RuntimeError("divisor must be not zero")
    windows = _windows("avg_pool2d", kernel_size, stride, padding, (1, 1))
    return _pool(
        "avg_pool2d",
        input,
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
        **windows,
    )


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Means of windows that divide the image into ``output_size``; None keeps an extent."""
    size = _adaptive_size("adaptive_avg_pool2d", input, output_size)
    numbers = tuple(d if s is None else s for s, d in zip(size, input.shape[-2:], strict=True))
    return _pool("adaptive_avg_pool2d", input, output_size=numbers)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """Maxima of windows that divide the image into ``output_size``; None keeps an extent."""
    if return_indices:
        raise unsupported("adaptive_max_pool2d", "return_indices=True", "use the maxima alone")
    size = _adaptive_size("adaptive_max_pool2d", input, output_size)
    return _maxima_along(_maxima_along(input, -2, size[0]), -1, size[1])


def _adaptive_size(name: str, input: Tensor, output_size: Any) -> tuple[int | None, ...]:
    """Height and width of the result, after a check of the arguments."""
    need_tensor(name, "input", 1, input)
    size = tuple(output_size) if isinstance(output_size, Sequence) else (output_size,) * 2
    if len(size) != 2:
        raise ShapeError(f"{name}: output_size must be 2, got {list(size)}")
    if input.ndim not in (3, 4):
        raise ShapeError(f"{name}(): Expected 3D or 4D tensor, but got {sizes(input.shape)}")
    return size


def _maxima_along(input: Tensor, dim: int, count: int | None) -> Tensor:
    """Maxima of ``count`` windows that divide a dimension: a window begins at floor(i * size /
    count) and ends at ceil((i + 1) * size / count)."""
    size = int(input.shape[dim])
    if count is None or count == size:
        return input
    if count < 1:
        raise ShapeError(f"adaptive_max_pool2d: output_size must be positive, got {count}")
    if size % count == 0:
        window = size // count
        kernel = (window, 1) if dim == -2 else (1, window)
        return max_pool2d(input, kernel)
    axis = input.ndim + dim
    parts = [
        slice_dim(input, axis, i * size // count, -(-(i + 1) * size // count)).amax(axis, True)
        for i in range(count)
    ]
    return cat(parts, axis)


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Maximum of each window; stride None means kernel_size. Input (N, C, L) or (C, L)."""
    if return_indices:
        raise unsupported("max_pool1d", "return_indices=True", "use the maxima alone")
    kernel = spread(kernel_size, 1, "max_pool1d", "kernel_size", minimum=1)
    y = max_pool2d(
        _row("max_pool1d", input),
        (1, *kernel),
        _beside(stride, 1, "max_pool1d", "stride", kernel),
        (0, *spread(padding, 1, "max_pool1d", "padding", minimum=0)),
        (1, *spread(dilation, 1, "max_pool1d", "dilation", minimum=1)),
        ceil_mode,
    )
    return y.squeeze(-2)


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean of each window, over its size or its unpadded size. Input (N, C, L) or (C, L)."""
    kernel = spread(kernel_size, 1, "avg_pool1d", "kernel_size", minimum=1)
    y = avg_pool2d(
        _row("avg_pool1d", input),
        (1, *kernel),
        _beside(stride, 1, "avg_pool1d", "stride", kernel),
        (0, *spread(padding, 1, "avg_pool1d", "padding", minimum=0)),
        ceil_mode,
        count_include_pad,
    )
    return y.squeeze(-2)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Means of windows that divide the length into ``output_size``."""
    count = output_size[0] if isinstance(output_size, Sequence) else output_size
    return adaptive_avg_pool2d(_row("adaptive_avg_pool1d", input), (1, count)).squeeze(-2)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """Maxima of windows that divide the length into ``output_size``."""
    if return_indices:
        raise unsupported("adaptive_max_pool1d", "return_indices=True", "use the maxima alone")
    count = output_size[0] if isinstance(output_size, Sequence) else output_size
    return adaptive_max_pool2d(_row("adaptive_max_pool1d", input), (1, count)).squeeze(-2)


def _row(name: str, input: Tensor) -> Tensor:
    """(N, C, L) as images of one row."""
    need_tensor(name, "input", 1, input)
    if input.ndim not in (2, 3):
        raise ShapeError(f"{name}(): Expected 2D or 3D input, but got size {sizes(input.shape)}")
    return input.unsqueeze(-2)


def _beside(
    value: Ints | None, first: int, name: str, argument: str, default: tuple[int, ...]
) -> tuple[int, ...]:
    if value is None or (isinstance(value, Sequence) and not value):
        return (first, *default)
    return (first, *spread(value, 1, name, argument, minimum=1))


def _windows(
    name: str, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: tuple[int, ...]
) -> dict[str, Any]:
    kernel = spread(kernel_size, 2, name, "kernel_size", minimum=1)
    no_stride = stride is None or (isinstance(stride, Sequence) and not stride)
    strides = kernel if no_stride else spread(stride, 2, name, "stride", minimum=1)
    pads = spread(padding, 2, name, "padding", minimum=0)
    for p, k, d in zip(pads, kernel, dilation, strict=True):
        if p > (d * (k - 1) + 1) // 2:
            raise ShapeError(
                f"pad should be at most half of effective kernel size, but got pad={p}, "
                f"kernel_size={k} and dilation={d}"
            )
    return {"kernel_size": kernel, "stride": strides, "padding": tuple((p, p) for p in pads)}


def _pool(name: str, input: Tensor, **attrs: Any) -> Tensor:
    need_tensor(name, "input", 1, input)
    if input.ndim == 4:
        return apply(name, input, layout="NCHW", **attrs)
    if input.ndim != 3:
        raise ShapeError(
            f"{name}(): non-empty 3D or 4D (batch mode) tensor expected for input, but got size "
            f"{sizes(input.shape)}"
        )
    y = apply(name, input.reshape(1, *input.shape), layout="NCHW", **attrs)
    return owned(y.reshape(*y.shape[1:]))
