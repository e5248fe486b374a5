"""Gradients of a step that wait for its update, in memory that stays where it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..frontend import dispatch
from ..frontend.tensor import Tensor
from ..ir.graph import Graph
from ..passes.differentiate import GRAD
from ..runtime.memory import ALIGN, allocate


class GradientBuffers:
    """One array per parameter, all of a dtype in one flat array.

    order: paths in the order in which a backward pass finishes them, which is that of the memory;
    arrays: by path, views into ``flat``; flat: one array per dtype; tensors: the same memory for
    executables; count: backward passes that they hold; reached: paths that have a gradient, of
    all whose loss was differentiated.
    """

    def __init__(self, order: Iterable[str], parameters: Mapping[str, Tensor]) -> None:
        self.order = tuple(order)
        self.count = 0
        self.reached: tuple[str, ...] = ()
        arrays: dict[str, np.ndarray] = {}
        self.flat: list[np.ndarray] = []
        by_dtype: dict[Any, list[str]] = {}
        for path in self.order:
            by_dtype.setdefault(parameters[path]._array.dtype, []).append(path)
        for dtype, paths in by_dtype.items():
            sizes = {p: parameters[p]._array.nbytes for p in paths}
            padded = {p: -(-size // ALIGN) * ALIGN for p, size in sizes.items()}
            memory = allocate(max(sum(padded.values()), ALIGN))
            memory[...] = 0  # also what lies between the gradients: others may add it up
            self.flat.append(memory.view(dtype))
            start = 0
            for path in paths:
                part = memory[start : start + sizes[path]].view(dtype)
                arrays[path] = part.reshape(parameters[path]._array.shape)
                start += padded[path]
        self.arrays = {path: arrays[path] for path in self.order}
        self.tensors = {GRAD + path: dispatch.wrap(a) for path, a in self.arrays.items()}

    def buckets(self, size: int) -> list[tuple[str, ...]]:
        """For each of the ``parts`` of all flat arrays, the paths that have memory in it."""
        found = []
        for flat in self.flat:
            inside = [(p, a) for p, a in self.arrays.items() if a.dtype == flat.dtype]
            starts = [a.__array_interface__["data"][0] for _, a in inside]
            for part in parts(flat, size):
                first = part.__array_interface__["data"][0]
                end = first + part.nbytes
                touched = [
                    path
                    for (path, a), start in zip(inside, starts, strict=True)
                    if start < end and first < start + a.nbytes
                ]
                found.append(tuple(touched))
        return found

    def fits(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether these are the gradients of such parameters."""
        return self.arrays.keys() == parameters.keys() and all(
            a.shape == parameters[p]._array.shape and a.dtype == parameters[p]._array.dtype
            for p, a in self.arrays.items()
        )


def parts(array: np.ndarray, size: int) -> list[np.ndarray]:
    """A flat array in pieces of ``size`` bytes, the last of which may be smaller."""
    length = max(1, size // array.itemsize)
    return [array[i : i + length] for i in range(0, array.size, length)]


def ready_order(graph: Graph, paths: Iterable[str]) -> list[str]:
    """The paths of parameters in the order in which a backward pass finishes their gradients: that
    of a parameter is complete when the first operation that uses it has been differentiated."""
    first = {}
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    for node in graph.sources("parameter"):
        users = graph.users(node.value)
        first[node.attrs["path"]] = min((position[u.name] for u in users), default=-1)
    return sorted(paths, key=lambda path: -first.get(path, -1))
