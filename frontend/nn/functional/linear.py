"""linear, conv1d, conv2d."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ....errors import ShapeError
from ....ir.types import Extent, is_fixed
from ...dispatch import apply
from ...tensor import Tensor
from .checks import need_float, need_same_dtype, need_tensor, sizes, spread
from .inplace import owned

Ints = int | Sequence[int]
Pads = tuple[tuple[int, int], ...]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``; input (..., in), weight (out, in) or (in,), bias (out,)."""
    need_tensor("linear", "input", 1, input)
    need_tensor("linear", "weight", 2, weight)
    need_float("linear", input)
    need_same_dtype("linear", input, weight=weight, bias=bias)
    if weight.ndim == 1:
        row = linear(input, weight.reshape(1, -1))
        result = row.reshape(*row.shape[:-1])
        return result if bias is None else result + bias
    if input.ndim == 0 or weight.ndim != 2 or input.shape[-1] != weight.shape[1]:
        one, two = _by_text(input.shape), _by_text(reversed(weight.shape))
        raise ShapeError(
            f"mat1 and mat2 shapes cannot be multiplied ({one} and {two}): linear() expects an "
            f"input whose last dimension is in_features = {weight.shape[-1]}, got size "
            f"{sizes(input.shape)}"
        )
    operands = (input, weight) if bias is None else (input, weight, bias)
    return apply("linear", *operands)


def _by_text(shape: Iterable[Extent]) -> str:
    return "x".join(str(d) for d in shape)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: str | Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation over (N, C, L) or (C, L) with weight (out, C / groups, K)."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: str | Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation over (N, C, H, W) or (C, H, W) with weight (out, C / groups, KH, KW)."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


def _conv(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: str | Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    """Convolution over ``n`` spatial dimensions; one dimension is a picture of height 1."""
    name = f"conv{n}d"
    _check_conv(name, n, input, weight, bias, groups)
    strides = spread(stride, n, name, "stride", minimum=1)
    dilations = spread(dilation, n, name, "dilation", minimum=1)
    kernel = tuple(weight.shape[2:])
    pads = _padding(name, kernel, strides, padding, dilations)
    _check_kernel_fits(input.shape[-n:], kernel, pads, dilations)
    batched = input.ndim == n + 2
    x = input if batched else input.reshape(1, *input.shape)
    if n == 1:
        x = x.reshape(*x.shape[:2], 1, x.shape[2])
        weight = weight.reshape(*weight.shape[:2], 1, weight.shape[2])
        strides, dilations, pads = (1, *strides), (1, *dilations), ((0, 0), *pads)
    y = apply(
        "conv2d",
        *((x, weight) if bias is None else (x, weight, bias)),
        stride=strides,
        padding=pads,
        dilation=dilations,
        groups=groups,
        layout="NCHW",
    )
    if n == 2 and batched:
        return y
    shape = y.shape if n == 2 else (*y.shape[:2], y.shape[3])
    return owned(y.reshape(*(shape if batched else shape[1:])))


def _check_conv(
    name: str, n: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> None:
    need_tensor(name, "input", 1, input)
    need_tensor(name, "weight", 2, weight)
    need_float(name, input)
    need_same_dtype(name, input, weight=weight, bias=bias)
    if input.ndim not in (n + 1, n + 2):
        raise ShapeError(
            f"Expected {n + 1}D (unbatched) or {n + 2}D (batched) input to {name}, but got input "
            f"of size: {sizes(input.shape)}"
        )
    if weight.ndim != n + 2:
        raise ShapeError(
            f"{name}: expected a {n + 2}-dimensional weight, but got size {sizes(weight.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise ShapeError(
            f"{name}: groups={groups} must be positive and divide the {weight.shape[0]} output "
            "channels of the weight"
        )
    channels = weight.shape[1] * groups
    if input.shape[-n - 1] != channels:
        raise ShapeError(
            f"Given groups={groups}, weight of size {sizes(weight.shape)}, expected "
            f"input{sizes(input.shape)} to have {channels} channels, but got "
            f"{input.shape[-n - 1]} channels instead"
        )


def _padding(
    name: str,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | Ints,
    dilation: tuple[int, ...],
) -> Pads:
    """(low, high) padding per dimension."""
    if not isinstance(padding, str):
        return tuple((p, p) for p in spread(padding, len(kernel), name, "padding", minimum=0))
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise RuntimeError(f"Invalid padding string: '{padding}'; use 'same', 'valid' or numbers")
    if any(s != 1 for s in stride):
        raise ShapeError(
            "padding='same' is not supported for strided convolutions; give the padding in numbers"
        )
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple((t // 2, t - t // 2) for t in totals)


def _check_kernel_fits(
    spatial: Sequence[Extent],
    kernel: tuple[int, ...],
    pads: Pads,
    dilation: tuple[int, ...],
) -> None:
    if not is_fixed(spatial):
        return  # a symbolic extent: the operator's shape rule explains what is wrong
    padded = [d + low + high for d, (low, high) in zip(spatial, pads, strict=True)]
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if any(e > p for e, p in zip(extents, padded, strict=True)):
        have, want = (" x ".join(str(v) for v in values) for values in (padded, extents))
        raise ShapeError(
            f"Calculated padded input size per channel: ({have}). Kernel size: ({want}). "
            "Kernel size can't be greater than actual input size"
        )
