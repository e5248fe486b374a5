"""Walking the tree of modules: members with their paths, and members by path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .module import Module


def named_members(
    root: Module, store: str, prefix: str, recurse: bool, remove_duplicate: bool
) -> Iterator[tuple[str, Any]]:
    """Paths and values of the ``_parameters`` or ``_buffers`` of ``root`` and all below it."""
    seen: set[int] = set()
    modules = (
        root.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        if recurse
        else [(prefix, root)]
    )
    for path, module in modules:
        for name, value in getattr(module, store).items():
            if value is None or id(value) in seen:
                continue
            if remove_duplicate:
                seen.add(id(value))
            yield (f"{path}.{name}" if path else name), value


def submodule(root: Module, target: str) -> Module:
    """The module at a dotted path; AttributeError names what is missing."""
    module = root
    for name in target.split(".") if target else ():
        module = _attribute(module, name)
        if not hasattr(module, "_modules"):
            raise AttributeError(f"`{name}` is not an nn.Module")
    return module


def member(root: Module, target: str, role: str, store: str) -> Any:
    """The parameter or buffer at a dotted path."""
    path, _, name = target.rpartition(".")
    module = submodule(root, path)
    value = _attribute(module, name)
    if name not in getattr(module, store):
        raise AttributeError(f"`{name}` is not {role}")
    return value


def _attribute(module: Module, name: str) -> Any:
    if not hasattr(module, name):
        raise AttributeError(f"{module._get_name()} has no attribute `{name}`")
    return getattr(module, name)
