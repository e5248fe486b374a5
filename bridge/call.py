"""The arguments of one call of a compiled program."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..frontend import dispatch, tree
from ..frontend.tensor import Tensor


class Call:
    """The arguments of one call: nests with numpy arrays turned into tensors, and the tensors."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args: tuple[Any, ...]
        self.kwargs: dict[str, Any]
        self.leaves: list[Tensor]
        if not kwargs and all([isinstance(a, (Tensor, np.ndarray)) for a in args]):
            # The usual call, without a walk through nests.
            self.args, self.kwargs = tuple([_as_tensor(a) for a in args]), {}
            self.leaves = list(self.args)
            self._nest: Any = len(args)
            self.plain = True
            return
        self.plain = False
        self.args = tree.map_leaves(args, _is_array, _as_tensor)
        self.kwargs = tree.map_leaves(kwargs, _is_array, _as_tensor)
        self.leaves = [t for _, t in tree.flatten((self.args, self.kwargs), _is_array)]
        self._nest = (
            tree.signature(self.args, _is_array),
            tree.signature(self.kwargs, _is_array),
        )

    def key(self, fixed_batch: bool) -> tuple[Any, ...]:
        """What a compilation depends on: nests, constants, dtypes, shapes without the batch."""
        shapes = [t._array.shape for t in self.leaves]
        batch = next((s[0] for s in shapes if s), None)
        kinds = [
            (t._array.dtype.char, ("N", *s[1:]) if s and s[0] == batch and not fixed_batch else s)
            for t, s in zip(self.leaves, shapes, strict=True)
        ]
        return self._nest, tuple(kinds)

    @property
    def batch(self) -> int | None:
        """The leading extent that counts as the batch."""
        return next((t._array.shape[0] for t in self.leaves if t._array.shape), None)

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The exact shapes of the tensors."""
        return tuple([t._array.shape for t in self.leaves])


def _is_array(value: Any) -> bool:
    """Also arrays of other libraries, PyTorch's tensors for one; numpy's scalars are numbers."""
    if isinstance(value, (Tensor, np.ndarray)):
        return True
    return hasattr(value, "__array__") and not isinstance(value, (np.generic, type))


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else dispatch.as_operand(np.asarray(value))
