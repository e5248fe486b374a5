"""The arguments of one call of a compiled program."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..frontend import dispatch, tree
from ..frontend.tensor import Tensor
from ..frontend.trace import batch_dims


class Call:
    """The tensor arguments of one call: nests with numpy arrays turned into tensors."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = tree.map_leaves(args, _is_array, _as_tensor)
        self.kwargs = tree.map_leaves(kwargs, _is_array, _as_tensor)
        self.leaves: list[Tensor] = [
            t for _, t in tree.flatten((self.args, self.kwargs), _is_array)
        ]

    def key(self, fixed_batch: bool) -> tuple[Any, ...]:
        """What a compilation depends on: nests, constants, dtypes, shapes without the batch."""
        dims = [False] * len(self.leaves) if fixed_batch else batch_dims(self.leaves)
        kinds = tuple(
            (t.dtype.short, ("N", *t.shape[1:]) if batch else tuple(t.shape))
            for t, batch in zip(self.leaves, dims, strict=True)
        )
        return tree.signature(self.args, _is_array), tree.signature(self.kwargs, _is_array), kinds


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else dispatch.as_operand(value)
