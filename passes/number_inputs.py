"""Numbers that a program takes anew in every call: learning rates, limits, scales.

They are inputs without dimensions, one per number and dtype, so that changing one compiles nothing.
"""

from __future__ import annotations

from ..ir.graph import Graph, Value
from ..ir.types import DType, TensorType, float32


class Numbers:
    """Finds or adds the inputs of a graph that stand for numbers."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known = {n.attrs["path"]: n.value for n in graph.sources("input")}

    def get(self, path: str, name: str, dtype: DType) -> Value:
        """The number ``path`` in a dtype, as an input whose node is called ``name``."""
        full = number_path(path, dtype)
        if full not in self._known:
            kind = TensorType(dtype, ())
            self._known[full] = self._graph.add("input", name=name, path=full, type=kind)
        return self._known[full]


def number_path(path: str, dtype: DType) -> str:
    """The path of the input for a number in a dtype."""
    return path if dtype == float32 else f"{path}.{dtype.short}"
