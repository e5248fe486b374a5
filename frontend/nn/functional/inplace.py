"""``inplace=True``: the result goes into the input's memory, as other readers of it can see."""

from __future__ import annotations

from ...grad_mode import is_grad_enabled
from ...tensor import Tensor


def unaliased(input: Tensor) -> Tensor:
    """The input, or a copy if backward may need the values that will be overwritten."""
    keep = input.requires_grad and is_grad_enabled() and not input._traced
    return input.clone() if keep else input


def overwrite(input: Tensor, result: Tensor) -> Tensor:
    """Writes ``result`` and its history into ``input``."""
    return input._assign(result)


def owned(result: Tensor) -> Tensor:
    """Makes a reshaped result the owner of its memory, so that it can be written to in place.

    Only for a view of an intermediate that nobody else holds.
    """
    if not result._traced and result._is_view:
        result._adopt(result._array)
        result._is_view = False
    return result
