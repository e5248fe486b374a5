"""What tensors that share memory have in common."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from .changes import writes

if TYPE_CHECKING:
    from .tensor import Tensor


class Storage:
    """Shared by a tensor, its views, ``.data`` and ``detach()``.

    version: number of in-place writes so far; a reader that remembers it can tell a change.
    exported: a numpy array outside aliases the memory, so writes may go uncounted.
    """

    __slots__ = ("__weakref__", "_limit", "_sharers", "exported", "version")

    def __init__(self, exported: bool = False) -> None:
        self.version = 0
        self.exported = exported
        self._sharers: list[weakref.ref[Tensor]] = []
        self._limit = 8

    def wrote(self) -> None:
        """Counts an in-place write."""
        self.version += 1
        writes.bump()

    def export(self) -> None:
        """Notes that from now on writes may go uncounted."""
        if not self.exported:
            self.exported = True
            writes.bump()

    def share(self, base: Tensor, view: Tensor) -> None:
        """Remembers that ``view`` is a view of ``base`` (weakly)."""
        if len(self._sharers) >= self._limit:
            # Rarely, so that making many views takes linear time.
            self._sharers = [r for r in self._sharers if r() is not None]
            self._limit = 2 * len(self._sharers) + 8
        if not self._sharers or not base._is_view:
            self._sharers.append(weakref.ref(base))
        self._sharers.append(weakref.ref(view))

    def sharers(self, tensor: Tensor) -> list[Tensor]:
        """The other tensors that exist and see what is written into ``tensor``."""
        found = [r() for r in self._sharers]
        return [t for t in found if t is not None and t is not tensor and t._storage is self]


class StorageOnDemand:
    """A tensor's ``_storage``, made when it is first asked for: few results are viewed or written
    to. Afterwards it is an ordinary attribute of the tensor."""

    def __get__(self, tensor: Tensor, owner: type[Tensor]) -> Storage:
        made: Storage = tensor.__dict__.setdefault("_storage", Storage())
        return made
