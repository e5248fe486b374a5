"""Forward hooks: adding, removing and running them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..changes import structure

if TYPE_CHECKING:
    from .module import Module

_ids = itertools.count()


class RemovableHandle:
    """Returned by ``register_*_hook``; ``remove()`` or leaving a ``with`` block removes it."""

    def __init__(self, hooks: OrderedDict[int, Any]) -> None:
        self.id = next(_ids)
        self._hooks = hooks

    def remove(self) -> None:
        """Removes the hook; a second call does nothing."""
        structure.bump()
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
    structure.bump()
    handle = RemovableHandle(hooks)
    hooks[handle.id] = (hook, with_kwargs)
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle


def call_with_hooks(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``module.forward`` between its hooks, each of which may replace what it is shown."""
    for hook, with_kwargs in list(module._forward_pre_hooks.values()):
        if not with_kwargs:
            changed = hook(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
            continue
        changed = hook(module, args, kwargs)
        if changed is None:
            continue
        if not isinstance(changed, tuple) or len(changed) != 2:
            raise RuntimeError(
                "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                f"but got {changed}."
            )
        args, kwargs = changed
    output = module.forward(*args, **kwargs)
    for hook, with_kwargs in list(module._forward_hooks.values()):
        inputs = (args, kwargs) if with_kwargs else (args,)
        changed = hook(module, *inputs, output)
        output = output if changed is None else changed
    return output
