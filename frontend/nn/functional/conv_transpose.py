"""Transposed convolutions: what the gradient of a convolution does to a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....errors import ShapeError
from ...dispatch import apply
from ...tensor import Tensor
from .checks import need_float, need_same_dtype, need_tensor, sizes, spread

Ints = int | Sequence[int]


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """Input (N, C, L) or (C, L), weight (C, out / groups, K)."""
    return _transposed(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """Input (N, C, H, W) or (C, H, W), weight (C, out / groups, KH, KW)."""
    return _transposed(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def _transposed(
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Tensor:
    name = f"conv_transpose{n}d"
    _check(name, n, input, weight, bias, groups)
    strides = spread(stride, n, name, "stride", minimum=1)
    pads = spread(padding, n, name, "padding", minimum=0)
    extra = spread(output_padding, n, name, "output_padding", minimum=0)
    dilations = spread(dilation, n, name, "dilation", minimum=1)
    for e, s, d in zip(extra, strides, dilations, strict=True):
        if e >= max(s, d):
            raise RuntimeError(
                "output padding must be smaller than either stride or dilation, but got "
                f"output_padding={e}, stride={s}, dilation={d}"
            )
    x = input if input.ndim == n + 2 else input.unsqueeze(0)
    if n == 1:  # a picture of height 1
        x, weight = x.unsqueeze(-2), weight.unsqueeze(-2)
        strides, pads, extra, dilations = (1, *strides), (0, *pads), (0, *extra), (1, *dilations)
    kernel = weight.shape[2:]
    size = tuple(
        (int(i) - 1) * s - 2 * p + d * (int(k) - 1) + e + 1
        for i, s, p, d, k, e in zip(
            x.shape[2:], strides, pads, dilations, kernel, extra, strict=True
        )
    )
    if min(size) < 1:
        raise ShapeError(
            f"{name}: Given input size per channel: {sizes(input.shape[-n:])}, the calculated "
            f"output size {sizes(size)} is too small; the padding cuts off everything"
        )
    y = apply(
        "conv2d_grad_input",
        x,
        weight,
        size=size,
        stride=strides,
        padding=tuple((p, p) for p in pads),
        dilation=dilations,
        groups=groups,
        layout="NCHW",
    )
    if bias is not None:
        y = y + bias.reshape(-1, 1, 1)
    y = y.squeeze(-2) if n == 1 else y
    return y if input.ndim == n + 2 else y.squeeze(0)


def _check(
    name: str, n: int, input: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> None:
    need_tensor(name, "input", 1, input)
    need_tensor(name, "weight", 2, weight)
    need_float(name, input)
    need_same_dtype(name, input, weight=weight, bias=bias)
    if input.ndim not in (n + 1, n + 2) or weight.ndim != n + 2:
        raise ShapeError(
            f"Expected {n + 1}D (unbatched) or {n + 2}D (batched) input to {name} and a weight of "
            f"{n + 2} dimensions, but got sizes {sizes(input.shape)} and {sizes(weight.shape)}"
        )
    channels = input.shape[-n - 1]
    if channels != weight.shape[0] or groups < 1 or weight.shape[0] % groups:
        raise ShapeError(
            f"Given transposed=1, weight of size {sizes(weight.shape)} and groups={groups}, "
            f"expected input{sizes(input.shape)} to have {weight.shape[0]} channels, divided by "
            f"groups, but got {channels} channels instead"
        )
