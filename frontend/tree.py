"""Nested tuples, lists, dicts and dataclasses of tensors: to a flat list of leaves and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any


def flatten(tree: Any, is_leaf: Callable[[Any], bool], path: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nest with their paths (``0``, ``x.1``, ``out.logits``), in order."""
    if is_leaf(tree):
        return [(path, tree)]
    if isinstance(tree, dict):
        items = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, (tuple, list)):
        items = [(str(i), v) for i, v in enumerate(tree)]
    elif _is_record(tree):
        items = _fields(tree)
    else:
        return []
    leaves = []
    for key, child in items:
        leaves += flatten(child, is_leaf, f"{path}.{key}" if path else key)
    return leaves


def map_leaves(tree: Any, is_leaf: Callable[[Any], bool], fn: Callable[[Any], Any]) -> Any:
    """The same nest with every leaf replaced by ``fn(leaf)``; anything else stays."""
    if is_leaf(tree):
        return fn(tree)
    if isinstance(tree, dict):
        items = [(k, map_leaves(v, is_leaf, fn)) for k, v in tree.items()]
        if type(tree) is dict:
            return dict(items)
        made = copy.copy(tree)  # a defaultdict, a class of the user's: made in its own way
        for key, value in items:
            made[key] = value
        return made
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(v, is_leaf, fn) for v in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_leaves(v, is_leaf, fn) for v in tree)
    if _is_record(tree):
        made = copy.copy(tree)
        for name, value in _fields(tree):
            object.__setattr__(made, name, map_leaves(value, is_leaf, fn))  # it may be frozen
        return made
    return tree


def signature(tree: Any, is_leaf: Callable[[Any], bool]) -> Any:
    """A hashable description of a nest: its structure and its leaves that are no tensors."""
    if is_leaf(tree):
        return "*"
    if isinstance(tree, dict):
        return ("dict", tuple((k, signature(v, is_leaf)) for k, v in tree.items()))
    if isinstance(tree, (tuple, list)):
        return (type(tree).__name__, tuple(signature(v, is_leaf) for v in tree))
    if _is_record(tree):
        return (type(tree), tuple((k, signature(v, is_leaf)) for k, v in _fields(tree)))
    try:
        hash(tree)
    except TypeError:
        return (type(tree).__name__, id(tree))
    return (type(tree).__name__, tree)


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _fields(record: Any) -> list[tuple[str, Any]]:
    return [(f.name, getattr(record, f.name)) for f in fields(record) if hasattr(record, f.name)]
