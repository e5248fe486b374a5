"""What tensors that share memory have in common."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tensor import Tensor


class Storage:
    """Shared by a tensor, its views, ``.data`` and ``detach()``.

    version: number of in-place writes so far; a reader that remembers it can tell a change.
    exported: a numpy array outside aliases the memory, so writes may go uncounted.
    """

    __slots__ = ("__weakref__", "_views", "exported", "version")

    def __init__(self, exported: bool = False) -> None:
        self.version = 0
        self.exported = exported
        self._views: list[weakref.ref[Tensor]] = []

    def add_view(self, view: Tensor) -> None:
        """Remembers a view that autograd has recorded."""
        self._views = [r for r in self._views if r() is not None]
        self._views.append(weakref.ref(view))

    def live_views(self) -> list[Tensor]:
        """The recorded views that still exist (a clone has moved to memory of its own)."""
        return [v for r in self._views if (v := r()) is not None and v._storage is self]
