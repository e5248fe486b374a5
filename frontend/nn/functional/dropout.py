"""Dropout: zeroes elements or channels at random and scales the others up."""

from __future__ import annotations

import warnings

from ....errors import ShapeError
from ....ir.types import Extent
from ...dispatch import apply
from ...random import draw_key
from ...tensor import Tensor
from .checks import need_float, need_tensor, sizes
from .inplace import overwrite, unaliased


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training each element is 0 with probability ``p``, else multiplied by 1 / (1 - p).

    Srivastava et al. 2014. The random numbers are counter based (Philox), so that eager and
    compiled programs draw the same ones after ``manual_seed``.
    """
    need_tensor("dropout", "input", 1, input)
    return _dropped("dropout", input, tuple(input.shape), p, training, inplace)


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """In training each channel (N, C, :, :) is 0 with probability ``p``. Tompson et al. 2015."""
    need_tensor("dropout2d", "input", 1, input)
    check_probability(p)
    if input.ndim < 2:
        raise ShapeError(
            "Feature dropout requires at least 2 dimensions in the input, got size "
            f"{sizes(input.shape)}; use dropout instead"
        )
    if input.ndim == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D "
            "dropout behavior is desired - input is interpreted as shape (N, C, L), where C is "
            "the channel dim.",
            stacklevel=2,
        )
    elif input.ndim != 4:
        warnings.warn(
            f"dropout2d: Received a {input.ndim}-D input to dropout2d, which is deprecated; "
            "use dropout instead to zero single elements",
            stacklevel=2,
        )
    shape = (*input.shape[:2], *(1,) * (input.ndim - 2))
    return _dropped("dropout2d", input, shape, p, training, inplace)


def check_probability(p: float) -> None:
    """ValueError unless 0 <= p <= 1."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def _dropped(
    name: str, input: Tensor, shape: tuple[Extent, ...], p: float, training: bool, inplace: bool
) -> Tensor:
    check_probability(p)
    if not training or p == 0.0:
        return input
    need_float(name, input)
    source = unaliased(input) if inplace else input
    result = source * 0.0 if p == 1.0 else _masked(source, shape, float(p))
    return overwrite(input, result) if inplace else result


def _masked(input: Tensor, shape: tuple[Extent, ...], p: float) -> Tensor:
    key, stream = draw_key()
    keep = apply("uniform", key, shape=shape, stream=stream) >= p
    return apply("where", keep, input * (1.0 / (1.0 - p)), 0.0)
