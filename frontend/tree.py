"""Nested tuples, lists and dicts of tensors: to a flat list of leaves and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def flatten(tree: Any, is_leaf: Callable[[Any], bool], path: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nest with their paths (``0``, ``x.1``, ``out.logits``), in order."""
    if is_leaf(tree):
        return [(path, tree)]
    if isinstance(tree, dict):
        items = [(str(k), v) for k, v in tree.items()]
    elif isinstance(tree, (tuple, list)):
        items = [(str(i), v) for i, v in enumerate(tree)]
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
        return type(tree)((k, map_leaves(v, is_leaf, fn)) for k, v in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(v, is_leaf, fn) for v in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_leaves(v, is_leaf, fn) for v in tree)
    return tree


def signature(tree: Any, is_leaf: Callable[[Any], bool]) -> Any:
    """A hashable description of a nest: its structure and its leaves that are no tensors."""
    if is_leaf(tree):
        return "*"
    if isinstance(tree, dict):
        return ("dict", tuple((k, signature(v, is_leaf)) for k, v in tree.items()))
    if isinstance(tree, (tuple, list)):
        return (type(tree).__name__, tuple(signature(v, is_leaf) for v in tree))
    try:
        hash(tree)
    except TypeError:
        return (type(tree).__name__, id(tree))
    return (type(tree).__name__, tree)
