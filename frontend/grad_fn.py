"""Nodes of the autograd graph: one per recorded operation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import UnsupportedError
from ..ir.autodiff import input_gradients
from ..ir.builder import ArrayBuilder, Builder
from ..ir.ops.record import GradContext, Op
from ..ir.types import TensorType, dtype_of

if TYPE_CHECKING:
    from .tensor import Storage, Tensor

_sequence = itertools.count()

FREED = (
    "Trying to backward through the graph a second time (or directly access saved tensors after "
    "they have already been freed). Saved intermediate values of the graph are freed when you "
    "call .backward() or autograd.grad(). Specify retain_graph=True if you need to backward "
    "through the graph a second time or if you need to access saved tensors after calling "
    "backward."
)


class Edge(NamedTuple):
    """Where a gradient flows to: result ``slot`` of ``fn``, or a leaf tensor."""

    fn: GradFn | None
    slot: int
    leaf: Tensor | None

    @property
    def key(self) -> tuple[int, int]:
        """Identity of the target."""
        return (id(self.fn if self.fn is not None else self.leaf), self.slot)


def edge_of(tensor: Tensor) -> Edge | None:
    """The edge to a tensor, or None if it needs no gradient."""
    if tensor._grad_fn is not None:
        return Edge(tensor._grad_fn, tensor._output_index, None)
    return Edge(None, 0, tensor) if tensor.requires_grad else None


class Saved:
    """An array kept for backward; reading it checks that nobody wrote to it in between."""

    __slots__ = ("array", "edge", "origin", "storage", "type", "version")

    def __init__(
        self, array: np.ndarray, storage: Storage | None, edge: Edge | None, origin: str
    ) -> None:
        self.array: np.ndarray | None = array
        self.storage = storage  # None: a constant that nobody else sees
        self.version = 0 if storage is None else storage.version
        self.edge = edge
        self.origin = origin
        self.type = TensorType(dtype_of(array.dtype), array.shape)

    def read(self) -> np.ndarray:
        """The array; RuntimeError if it was modified in place or freed."""
        if self.array is None:
            raise RuntimeError(FREED)
        if self.storage is not None and self.storage.version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: [netwright.{self.type.dtype.name} "
                f"{list(self.type.shape)}], which is {self.origin}, is at version "
                f"{self.storage.version}; expected version {self.version} instead. Hint: write "
                "the operation out of place (y = y + 1), or clone() the tensor before it."
            )
        return self.array

    def seen_as(self, edge: Edge) -> Saved:
        """The same array, version and origin, as the target of ``edge``."""
        seen = object.__new__(type(self))
        seen.array, seen.storage, seen.version = self.array, self.storage, self.version
        seen.edge, seen.origin, seen.type = edge, self.origin, self.type
        return seen

    def free(self) -> None:
        """Drops the array (constants stay)."""
        if self.storage is not None:
            self.array = None


class SavedArrayBuilder(ArrayBuilder):
    """Computes gradients on numpy arrays; operands may be ``Saved``, read when they are used."""

    def type(self, value: Any) -> TensorType:
        return value.type if isinstance(value, Saved) else super().type(value)

    def _apply(self, name: str, values: list[Any], attrs: dict[str, Any]) -> Any:
        arrays = [v.read() if isinstance(v, Saved) else v for v in values]
        result = super()._apply(name, arrays, attrs)
        if isinstance(result, tuple):
            return tuple(np.asarray(r) for r in result)
        return np.asarray(result)


class GradFn:
    """A recorded operation: edges to its inputs, and ``backward`` from result gradients to theirs.

    ``fresh`` promises that ``backward`` returns new contiguous arrays, which the engine may keep.
    """

    fresh = False

    def __init__(self, name: str, inputs: Sequence[Tensor]) -> None:
        self.op_name = name
        self.edges = tuple(edge_of(t) for t in inputs)
        self.sequence = next(_sequence)
        self.results = 1
        self.hooks: dict[int, dict[int, Callable[[Tensor], Any]]] = {}

    def backward(self, builder: Builder, grads: Sequence[Any]) -> Sequence[Any]:
        """Gradients of the inputs (None where there is none)."""
        raise NotImplementedError

    def free(self) -> None:
        """Drops what was saved for backward."""

    def name(self) -> str:
        """``AddBackward0``."""
        return "".join(w.capitalize() for w in self.op_name.split("_")) + "Backward0"

    @property
    def next_functions(self) -> tuple[tuple[GradFn | None, int], ...]:
        """The functions of the inputs, and which of their results; leaves appear as None."""
        return tuple((e.fn, e.slot) if e is not None else (None, 0) for e in self.edges)

    def __repr__(self) -> str:
        return f"<{self.name()}>"


class OpGradFn(GradFn):
    """An operator with a record: its gradient rule runs on the saved inputs and outputs."""

    def __init__(
        self,
        record: Op,
        attrs: dict[str, Any],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
    ) -> None:
        super().__init__(record.name, inputs)
        self.record = record
        self.attrs = attrs
        self.saved_inputs = tuple(
            Saved(
                t._array,
                None if t._is_constant else t._storage,
                edge,
                f"input {i} of {self.name()}",
            )
            for i, (t, edge) in enumerate(zip(inputs, self.edges, strict=True))
        )
        self.results = len(outputs)
        # No edge here: it would point at this object, and the cycle would keep arrays alive.
        self.saved_outputs = tuple(
            Saved(t._array, t._storage, None, f"output {i} of {self.name()}")
            for i, t in enumerate(outputs)
        )

    def backward(self, builder: Builder, grads: Sequence[Any]) -> Sequence[Any]:
        outputs = self.saved_outputs
        if not isinstance(builder, ArrayBuilder):
            outputs = tuple(s.seen_as(Edge(self, i, None)) for i, s in enumerate(outputs))
        context = GradContext(
            self.saved_inputs, outputs, self.attrs, tuple(e is not None for e in self.edges)
        )
        found = input_gradients(builder, self.record, context, grads)
        # A rule's None for an operand that needs a gradient stands for zero (floor, sign).
        return [
            _zeros(builder, saved.type) if g is None and edge is not None else g
            for g, edge, saved in zip(found, self.edges, self.saved_inputs, strict=True)
        ]

    def free(self) -> None:
        for saved in self.saved_inputs + self.saved_outputs:
            saved.free()


class FlatGradFn(GradFn):
    """A function that is piecewise constant: zero gradients."""

    def __init__(self, name: str, inputs: Sequence[Tensor]) -> None:
        super().__init__(name, inputs)
        self._types = [TensorType(t.dtype, tuple(t.shape)) for t in inputs]

    def backward(self, builder: Builder, grads: Sequence[Any]) -> Sequence[Any]:
        return [
            _zeros(builder, kind) if edge is not None else None
            for edge, kind in zip(self.edges, self._types, strict=True)
        ]


def _zeros(builder: Builder, kind: TensorType) -> Any:
    zero = builder.constant(0.0, kind.dtype)
    return builder.op("broadcast_to", zero, shape=kind.shape)


class CustomGradFn(GradFn):
    """An object with ``inputs`` (tensors) and ``backward(*grads) -> list`` of numpy arrays.

    A compiled executable records itself this way: its backward is one native call. Gradients of
    results that nothing used are passed as None. The arrays it returns must be its own to give.
    """

    fresh = True

    def __init__(self, function: Any) -> None:
        super().__init__(type(function).__name__, function.inputs)
        self.function = function

    def backward(self, builder: Builder, grads: Sequence[Any]) -> Sequence[Any]:
        if self.function is None:
            raise RuntimeError(FREED)
        if not isinstance(builder, ArrayBuilder):
            raise UnsupportedError(
                f"create_graph=True: {self.name()} has no gradient of its gradient; "
                "run the model uncompiled for higher derivatives"
            )
        found = self.function.backward(*grads)
        if len(found) != len(self.edges):
            raise RuntimeError(
                f"{self.name()} returned {len(found)} gradients for {len(self.edges)} inputs"
            )
        return list(found)

    def free(self) -> None:
        self.function = None

    def name(self) -> str:
        return self.op_name
