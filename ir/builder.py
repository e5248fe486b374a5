"""Builders: the one interface in which gradient and optimizer rules are written.

A rule calls ``b.mul(x, y)`` or ``b.op("permute", x, dims=(1, 0))``. With a GraphBuilder that adds
nodes, with an ArrayBuilder it computes on numpy arrays, so one rule serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .ops.record import get
from .types import Dim, DType, TensorType, dtype_of

if TYPE_CHECKING:
    from .graph import Graph, Source, Value


class Builder:
    """Common part: Python numbers become 0-d constants of the other operand's dtype."""

    def op(self, name: str, *operands: Any, **attrs: Any) -> Any:
        """Applies an operator; returns one value, or a tuple for several results."""
        dtype = next((self.type(v).dtype for v in reversed(operands) if not _is_number(v)), None)
        values = [
            self.constant(v, dtype) if _is_number(v) and dtype is not None else v for v in operands
        ]
        return self._apply(name, values, attrs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self.op, name)

    def type(self, value: Any) -> TensorType:
        """Type of a value."""
        raise NotImplementedError

    def constant(self, number: float, dtype: DType) -> Any:
        """A 0-d constant."""
        raise NotImplementedError

    def same(self, x: Any, y: Any) -> bool:
        """Whether two values are known to be one."""
        return x is y

    def _apply(self, name: str, values: list[Any], attrs: dict[str, Any]) -> Any:
        raise NotImplementedError


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, np.generic)


class GraphBuilder(Builder):
    """Adds nodes to a graph; every node gets ``source``."""

    def __init__(self, graph: Graph, source: Source | None = None) -> None:
        self.graph = graph
        self.source = source
        self._constants: dict[tuple[str, DType], Value] = {}

    def type(self, value: Value) -> TensorType:
        return self.graph.type(value)

    def same(self, x: Value, y: Value) -> bool:
        return x == y

    def constant(self, number: float, dtype: DType) -> Value:
        key = (repr(number), dtype)
        if key not in self._constants:
            value = np.asarray(number, dtype.np)
            self._constants[key] = self.graph.add("constant", value=value)
        return self._constants[key]

    def _apply(self, name: str, values: list[Value], attrs: dict[str, Any]) -> Any:
        return self.graph.add(name, *values, source=self.source, **attrs)


class ArrayBuilder(Builder):
    """Runs the numpy meaning of each operator at once."""

    def type(self, value: np.ndarray) -> TensorType:
        return TensorType(dtype_of(value.dtype), tuple(value.shape))

    def constant(self, number: float, dtype: DType) -> np.ndarray:
        return np.asarray(number, dtype.np)

    def _apply(self, name: str, values: list[np.ndarray], attrs: dict[str, Any]) -> Any:
        return get(name).numpy(*values, **attrs)


def substitute_batch(attrs: Any, n: int) -> Any:
    """Attributes with every symbolic extent replaced by its number for batch size ``n``."""
    if isinstance(attrs, Dim):
        return attrs.at(n)
    if isinstance(attrs, tuple):
        return tuple(substitute_batch(a, n) for a in attrs)
    if isinstance(attrs, TensorType):
        return attrs.at(n)
    return attrs
