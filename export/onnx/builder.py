"""What a conversion rule sees: the ONNX graph under construction."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...ir.graph import Graph, Node, Value
from ...ir.types import Dim, DType, Extent, TensorType

_END = np.iinfo(np.int64).max


class OnnxBuilder:
    """Adds nodes and initialisers. Values are their ONNX names; every name is used once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names: dict[Value, str] = {}
        """The ONNX names of the IR values that are converted so far; of inputs, first of all."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.current: Node | None = None
        """The IR node that is being converted; ONNX nodes are named after it."""
        self._names: set[str] = set()
        self._constants: dict[tuple[Any, ...], str] = {}
        self._batch: str | None = None

    # -- for rules ----------------------------------------------------------------------------

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """An ONNX node with one result. An empty name is an input that is left out."""
        return self.add_several(op, 1, *inputs, **attributes)[0]

    def add_several(self, op: str, results: int, *inputs: str, **attributes: Any) -> list[str]:
        """An ONNX node with several results."""
        stem = self.current.name if self.current is not None else op.lower()
        outputs = [self.fresh(stem) for _ in range(results)]
        node = helper.make_node(op, inputs, outputs, **attributes)
        place = self.current.source.module if self.current is not None else ""
        node.name = f"{place}/{outputs[0]}" if place else outputs[0]
        self.nodes.append(node)
        return outputs

    def type(self, node: Node, operand: int = 0) -> TensorType:
        """The type of an operand of an IR node."""
        return self.graph.type(node.operands[operand])

    def array(self, value: np.ndarray, name: str = "constant") -> str:
        """An array as an initialiser; equal ones are shared."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = self.state(name, value)
        return self._constants[key]

    def scalar(self, value: float, dtype: DType) -> str:
        """A number of a dtype."""
        return self.array(np.asarray(value, dtype.np))

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.array(np.asarray(values, np.int64))

    def extents(self, *values: Extent) -> str:
        """An int64 vector whose elements may be multiples of the batch size."""
        numbers = [v for v in values if not isinstance(v, Dim)]
        if len(numbers) == len(values):
            return self.ints(*numbers)
        parts = [self._multiple(v.coef) if isinstance(v, Dim) else self.ints(v) for v in values]
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    def cast(self, value: str, dtype: DType) -> str:
        """A value in another dtype."""
        return self.add("Cast", value, to=element_type(dtype))

    # -- for the model ------------------------------------------------------------------------

    def fresh(self, wanted: str) -> str:
        """A name that nothing has yet: ``wanted``, or with a number behind it."""
        name, number = wanted, 0
        while name in self._names:
            number += 1
            name = f"{wanted}.{number}"
        self._names.add(name)
        return name

    def state(self, name: str, value: np.ndarray) -> str:
        """An initialiser of its own."""
        name = self.fresh(name)
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def _multiple(self, coef: int) -> str:
        """``coef * N`` as an int64 vector of one element."""
        if self._batch is None:
            name, axis, extent = next(
                (self.names[n.value], axis, d)
                for n in self.graph.sources("input")
                for axis, d in enumerate(n.type.shape)
                if isinstance(d, Dim)
            )
            size = self.add("Shape", name, start=axis, end=axis + 1)
            if extent.coef != 1:
                size = self.add("Div", size, self.ints(extent.coef))
            self._batch = size
        return self._batch if coef == 1 else self.add("Mul", self._batch, self.ints(coef))


def element_type(dtype: DType) -> int:
    """ONNX's number of a dtype."""
    return int(helper.np_dtype_to_tensor_dtype(dtype.np))


def slice_end(extent: Extent) -> int:
    """An end of a Slice that is the end of the dimension, whatever its size."""
    return _END if isinstance(extent, Dim) else extent
