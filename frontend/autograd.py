"""The backward pass over recorded operations: ``Tensor.backward`` and ``autograd.grad``."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError
from ..ir.builder import Builder
from ..ir.types import DType, TensorType
from . import dispatch
from .grad_fn import CustomGradFn, Edge, GradFn, OpGradFn, Saved, SavedArrayBuilder, edge_of
from .grad_mode import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled

if TYPE_CHECKING:
    from .tensor import Tensor

__all__ = [
    "CustomGradFn",
    "GradFn",
    "OpGradFn",
    "backward",
    "enable_grad",
    "grad",
    "inference_mode",
    "is_grad_enabled",
    "no_grad",
    "record",
    "set_grad_enabled",
]


class TensorBuilder(Builder):
    """Computes gradients with recorded operations on tensors, so they can be differentiated."""

    def type(self, value: Any) -> TensorType:
        if isinstance(value, Saved):
            return value.type
        return TensorType(value.dtype, tuple(value.shape))

    def constant(self, number: float, dtype: DType) -> Any:
        return dispatch.constant(number, dtype)

    def _apply(self, name: str, values: list[Any], attrs: dict[str, Any]) -> Any:
        operands = (_tensor_of(v) if isinstance(v, Saved) else v for v in values)
        return dispatch.apply(name, *operands, **attrs)


def _tensor_of(saved: Saved) -> Tensor:
    """The saved tensor with its place in the graph."""
    array = saved.read()
    if saved.edge is not None and saved.edge.leaf is not None:
        return saved.edge.leaf
    made = dispatch.wrap(array, saved.storage)
    if saved.edge is not None:
        made._grad_fn, made._output_index = saved.edge.fn, saved.edge.slot
        made._requires_grad = True
    return made


class _Gradient:
    """A gradient on its way: its value, and whether the engine may keep the array itself."""

    __slots__ = ("owned", "value")

    def __init__(self, value: Any, owned: bool) -> None:
        self.value = value
        self.owned = owned


class _Backward:
    """One backward pass.

    Functions run in the reverse order of their recording, so that all gradients of a result are
    summed before its function runs.
    """

    def __init__(self, create_graph: bool, targets: dict[tuple[int, int], int] | None) -> None:
        self.builder: Builder = TensorBuilder() if create_graph else SavedArrayBuilder()
        self.create_graph = create_graph
        self.targets = targets  # None: accumulate into the leaves' .grad
        self.found: dict[int, Any] = {}
        self._wanted: set[GradFn] | None = None
        self._pending: dict[GradFn, dict[int, _Gradient]] = {}
        self._leaves: dict[int, tuple[Tensor, _Gradient]] = {}
        self._heap: list[tuple[int, GradFn]] = []

    def run(self, roots: Sequence[tuple[Edge, Any]], retain_graph: bool) -> None:
        """Propagates the roots' gradients to the leaves, or to the targets."""
        if self.targets is not None:
            self._wanted = _functions_before(roots, self.targets)
        for edge, value in roots:
            self._send(edge, _Gradient(value, False))
        while self._heap:
            fn = heapq.heappop(self._heap)[1]
            self._step(fn, self._pending.pop(fn), retain_graph)
        for leaf, gradient in self._leaves.values():
            self._deliver(leaf, gradient)

    def _step(self, fn: GradFn, arrived: dict[int, _Gradient], retain_graph: bool) -> None:
        for index, gradient in arrived.items():
            for hook in list(fn.hooks.get(index, {}).values()):
                gradient.value = self._hooked(hook, gradient.value)
            self._capture((id(fn), index), gradient)
        if self._wanted is not None and fn not in self._wanted:
            return
        grads = [arrived[i].value if i in arrived else None for i in range(fn.results)]
        for edge, value in zip(fn.edges, fn.backward(self.builder, grads), strict=True):
            if edge is not None and value is not None:
                self._send(edge, _Gradient(value, fn.fresh))
        if not retain_graph:
            fn.free()

    def _send(self, edge: Edge, gradient: _Gradient) -> None:
        if edge.leaf is not None:
            known = self._leaves.get(id(edge.leaf))
            if known is not None:
                gradient = self._sum(known[1], gradient)
            self._leaves[id(edge.leaf)] = (edge.leaf, gradient)
        elif edge.fn is not None:
            self._queue(edge.fn, edge.slot, gradient)

    def _queue(self, fn: GradFn, index: int, gradient: _Gradient) -> None:
        waiting = self._pending.get(fn)
        if waiting is None:
            waiting = self._pending[fn] = {}
            heapq.heappush(self._heap, (-fn.sequence, fn))
        if index in waiting:
            gradient = self._sum(waiting[index], gradient)
        waiting[index] = gradient

    def _sum(self, a: _Gradient, b: _Gradient) -> _Gradient:
        return _Gradient(self.builder.op("add", a.value, b.value), True)

    def _hooked(self, hook: Any, value: Any) -> Any:
        result = hook(value if self.create_graph else dispatch.wrap(value))
        if result is None:
            return value
        if not dispatch.is_tensor(result):
            raise TypeError(f"a gradient hook must return a tensor or None, got {type(result)}")
        return result if self.create_graph else result._array

    def _capture(self, key: tuple[int, int], gradient: _Gradient) -> None:
        if self.targets is not None and key in self.targets:
            gradient.owned = False
            self.found[self.targets[key]] = gradient.value

    def _deliver(self, leaf: Tensor, gradient: _Gradient) -> None:
        for hook in list(leaf._hooks.values()):
            gradient = _Gradient(self._hooked(hook, gradient.value), False)
        if self.targets is not None:
            self._capture((id(leaf), 0), gradient)
            return
        old = leaf.grad
        if self.create_graph:
            leaf.grad = (
                gradient.value if old is None else dispatch.apply("add", old, gradient.value)
            )
        elif old is None:
            leaf.grad = dispatch.wrap(_own(gradient, leaf))
        elif old.requires_grad:
            leaf.grad = dispatch.wrap(np.asarray(old._array + gradient.value))
        else:
            np.add(old._array, gradient.value, out=old._array)
            old._storage.wrote()


def _own(gradient: _Gradient, leaf: Tensor) -> np.ndarray:
    """The gradient as an array that nobody else writes to, contiguous, of the leaf's type."""
    array = np.asarray(gradient.value)
    kept = gradient.owned and array.flags.c_contiguous and array.flags.writeable
    if kept and array.dtype == leaf._array.dtype:
        return array
    return np.array(array, dtype=leaf._array.dtype, order="C", copy=True)


def _functions_before(
    roots: Sequence[tuple[Edge, Any]], targets: dict[tuple[int, int], int]
) -> set[GradFn]:
    """The functions from which a target is reached."""
    order: list[GradFn] = []
    seen: set[GradFn] = set()
    stack = [edge.fn for edge, _ in roots if edge.fn is not None]
    while stack:
        fn = stack.pop()
        if fn not in seen:
            seen.add(fn)
            order.append(fn)
            stack.extend(e.fn for e in fn.edges if e is not None and e.fn is not None)
    wanted: set[GradFn] = set()
    for fn in sorted(order, key=lambda f: f.sequence):
        for edge in fn.edges:
            if edge is not None and (edge.key in targets or edge.fn in wanted):
                wanted.add(fn)
                break
    return wanted


def backward(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Adds the gradients of ``tensors`` (weighted by ``grad_tensors``) to the leaves' ``.grad``.

    A scalar's weight is 1 by default. The arrays saved for backward are freed unless
    ``retain_graph``; ``create_graph`` records the gradients themselves.
    """
    outputs = [tensors] if dispatch.is_tensor(tensors) else list(tensors)
    roots = _roots(outputs, grad_tensors)
    retain = create_graph if retain_graph is None else retain_graph
    with set_grad_enabled(create_graph), np.errstate(all="ignore"):
        _Backward(create_graph, None).run(_prepared(roots, create_graph), retain)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """Gradients of ``outputs`` with respect to ``inputs``, without touching ``.grad``.

    An input that the outputs do not depend on is a RuntimeError, None with ``allow_unused``, or
    zeros with ``materialize_grads``.
    """
    results = [outputs] if dispatch.is_tensor(outputs) else list(outputs)
    wanted = [inputs] if dispatch.is_tensor(inputs) else list(inputs)
    targets: dict[tuple[int, int], int] = {}
    slots = []
    for t in wanted:
        edge = edge_of(t)
        if edge is None:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
        slots.append(targets.setdefault(edge.key, len(targets)))
    roots = _roots(results, grad_outputs)
    retain = create_graph if retain_graph is None else retain_graph
    engine = _Backward(create_graph, targets)
    with set_grad_enabled(create_graph), np.errstate(all="ignore"):
        engine.run(_prepared(roots, create_graph), retain)
    return tuple(
        _result(engine.found.get(slot), t, bool(allow_unused), materialize_grads)
        for slot, t in zip(slots, wanted, strict=True)
    )


def _result(value: Any, like: Tensor, allow_unused: bool, zeros: bool) -> Any:
    if value is None:
        if zeros:
            return dispatch.wrap(np.zeros_like(like._array))
        if not allow_unused:
            raise RuntimeError(
                "One of the differentiated Tensors appears to not have been used in the graph. "
                "Set allow_unused=True if this is the desired behavior."
            )
        return None
    return value if dispatch.is_tensor(value) else dispatch.wrap(np.array(value))


def _roots(outputs: Sequence[Tensor], grads: Any) -> list[tuple[Edge, Any]]:
    if grads is None:
        weights: list[Any] = [None] * len(outputs)
    else:
        weights = [grads] if dispatch.is_tensor(grads) else list(grads)
    if len(weights) != len(outputs):
        raise RuntimeError(f"got {len(outputs)} tensors and {len(weights)} gradients")
    roots = []
    for i, (t, weight) in enumerate(zip(outputs, weights, strict=True)):
        t._no_data("backward()")
        edge = edge_of(t)
        if edge is None:
            raise RuntimeError(
                f"element {i} of tensors does not require grad and does not have a grad_fn"
            )
        if weight is None:
            if t.numel() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            weight = dispatch.wrap(np.ones(t._array.shape, t._array.dtype))
        elif tuple(weight.shape) != tuple(t.shape):
            raise ShapeError(
                f"Mismatch in shape: grad_output[{i}] has a shape of {weight.shape!r} and "
                f"output[{i}] has a shape of {t.shape!r}."
            )
        elif weight.dtype is not t.dtype:
            weight = dispatch.cast(weight, t.dtype)
        roots.append((edge, weight))
    return roots


def _prepared(roots: list[tuple[Edge, Any]], create_graph: bool) -> list[tuple[Edge, Any]]:
    return roots if create_graph else [(edge, weight._array) for edge, weight in roots]


def record(function: Any, arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """The arrays as tensors whose gradients ``function`` computes.

    function: has ``inputs``, a list of tensors, and ``backward(*grads)``, which takes an array
    or None for each of ``arrays`` and returns a new array or None for each input. Nothing is
    recorded when grad mode is off or no input requires grad.
    """
    outputs = tuple(dispatch.wrap(dispatch.native(np.asarray(a))) for a in arrays)
    if is_grad_enabled() and any(t.requires_grad for t in function.inputs):
        fn = CustomGradFn(function)
        fn.results = len(outputs)
        dispatch.connect(fn, outputs)
    return outputs
