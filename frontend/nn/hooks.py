"""Forward hooks: the handle that removes one."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_ids = itertools.count()


class RemovableHandle:
    """Returned by ``register_*_hook``; ``remove()`` or leaving a ``with`` block removes it."""

    def __init__(self, hooks: OrderedDict[int, Any]) -> None:
        self.id = next(_ids)
        self._hooks = hooks

    def remove(self) -> None:
        """Removes the hook; a second call does nothing."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


def add_hook(
    hooks: OrderedDict[int, tuple[Callable[..., Any], bool]],
    hook: Callable[..., Any],
    *,
    prepend: bool,
    with_kwargs: bool,
) -> RemovableHandle:
    """Stores ``(hook, with_kwargs)``, in front of the others when ``prepend``."""
    handle = RemovableHandle(hooks)
    hooks[handle.id] = (hook, with_kwargs)
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle
