"""Tracing: runs a module's Python code once on symbolic tensors and records a graph.

The leading dimension of the inputs is the symbolic batch ``N``. Parameters and buffers of the
module become ``parameter`` and ``buffer`` nodes named by their ``state_dict`` keys, other tensors
become constants (`captured.py`). What cannot be captured (control flow that depends on data,
parameters that no module owns) is an error that names the user's line and the fix.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import numpy as np

from ..errors import BatchSpecializationError, NetwrightError, TraceError
from ..ir.graph import Graph, Source, Value
from ..ir.types import Dim, DType, Extent, TensorType, dtype_of, shape_text
from . import dispatch, grad_mode, tree
from .captured import Captured
from .nn.module import Module
from .nn.parameter import Parameter
from .symbolic import TracedTensor
from .tensor import Tensor


@dataclass
class Traced:
    """A captured program: its graph and how its Python arguments and results map to it.

    ``inputs`` are the paths of the tensor arguments in order, ``result`` is the nest that the
    program returned with output names in place of tensors, ``state`` holds the tensor of every
    parameter and buffer by path, ``random_streams`` counts the draws from the generator,
    ``captured`` are the tensors of other places that became constants.
    """

    graph: Graph
    inputs: list[str]
    result: Any
    state: dict[str, Tensor]
    random_streams: int = 0
    needs_many: bool = False
    """Whether a batch of one needs a program of its own (``squeeze()`` would drop that batch)."""
    captured: Captured = field(default_factory=Captured)


class OutputRef(str):
    """The name of a graph output, standing in the result's nest where its tensor belongs."""


def trace(
    program: Callable[..., Any],
    modules: dict[str, Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    dynamic: bool = True,
    name: str = "graph",
) -> Traced:
    """Captures ``program(*args, **kwargs)``.

    modules: root modules by the prefix of their state's paths ('' for the model itself).
    args, kwargs: nests of tensors (their shapes and dtypes count, not their values) and of
    Python values, which are taken as constants. dynamic: whether the leading dimension is the
    symbolic batch; raises BatchSpecializationError if the program needs it as a number.
    """
    tracer = _Tracer(modules, name)
    # One tensor may stand in two places, and names bind in another order than that of the call:
    # each place gets a slot of its own.
    slots: list[_Slot] = []

    def slot(t: Tensor) -> _Slot:
        slots.append(_Slot(t))
        return slots[-1]

    placed_args = tree.map_leaves(args, _is_tensor, slot)
    placed_kwargs = tree.map_leaves(kwargs or {}, _is_tensor, slot)
    named = _bind_names(program, placed_args, placed_kwargs)
    path_of = {id(found): path for path, found in tree.flatten(named, _is_slot)}
    paths = [path_of[id(s)] for s in slots]
    batch = _batch_extent([s.tensor for s in slots]) if dynamic else None
    tracer.batch = batch
    for s, path in zip(slots, paths, strict=True):
        s.symbol = tracer.input(path, s.tensor, batch)
    traced_args = tree.map_leaves(placed_args, _is_slot, _symbol_of)
    traced_kwargs = tree.map_leaves(placed_kwargs, _is_slot, _symbol_of)
    previous, dispatch.current.tracer = dispatch.current.tracer, tracer
    tracer.root_frame = sys._getframe()
    try:
        with grad_mode.enable_grad():
            result = program(*traced_args, **traced_kwargs)
    finally:
        dispatch.current.tracer = previous
    outputs = tree.flatten(result, _is_tensor)
    if not outputs:
        raise TraceError(
            f"{_name_of(program)} returned no tensor (it returned {type(result).__name__}); "
            "return a tensor, or a tuple, list or dict of tensors"
        )
    names: dict[int, str] = {}
    for path, tensor in outputs:
        names[id(tensor)] = path or "out"
        tracer.graph.outputs[path or "out"] = tracer.value_of(tensor)
    refs = tree.map_leaves(result, _is_tensor, lambda t: OutputRef(names[id(t)]))
    return Traced(
        tracer.graph,
        paths,
        refs,
        tracer.used_state,
        tracer.streams,
        tracer.needs_many,
        tracer.captured,
    )


def is_symbolic_leaf(value: Any) -> bool:
    """Whether an argument becomes an input of the graph."""
    return isinstance(value, Tensor)


_is_tensor = is_symbolic_leaf


class _Slot:
    """One place of the arguments: the tensor that was passed there, and its symbol."""

    symbol: Tensor

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _is_slot(value: Any) -> bool:
    return isinstance(value, _Slot)


def _symbol_of(slot: _Slot) -> Tensor:
    return slot.symbol


def _batch_extent(tensors: list[Any]) -> int | None:
    return next((t.shape[0] for t in tensors if len(t.shape) > 0), None)


def _bind_names(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments under the names of the parameters of the program's signature."""
    target = program.forward if isinstance(program, Module) else program
    try:
        bound = inspect.signature(target).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{_name_of(program)}: {error}") from None
    return dict(bound.arguments)


def _name_of(program: Any) -> str:
    if isinstance(program, Module):
        return f"{type(program).__name__}.forward()"
    return getattr(program, "__name__", type(program).__name__)


def _plain(attr: Any) -> Any:
    """Attributes as the IR keeps them: plain extents, dtypes by their short names."""
    if isinstance(attr, Dim):
        return Dim(attr.coef)
    if isinstance(attr, DType):
        return attr.short
    if isinstance(attr, (tuple, list)):
        return tuple(_plain(a) for a in attr)
    if isinstance(attr, np.bool_):
        return bool(attr)
    if isinstance(attr, np.integer):
        return int(attr)
    if isinstance(attr, np.floating):
        return float(attr)
    return attr


class _Tracer:
    """Receives every operation on traced tensors and on the modules' state."""

    def __init__(self, modules: dict[str, Module], name: str) -> None:
        self.graph = Graph(name)
        self.root_frame: FrameType | None = None
        self.streams = 0
        self.batch: int | None = None
        self.needs_many = False
        self.used_state: dict[str, Tensor] = {}
        self.captured = Captured()
        self._random: Tensor | None = None
        self._stack: list[Module] = []
        self._paths: dict[int, str] = {}
        self._state: dict[int, tuple[str, str, Tensor]] = {}
        self._values: dict[int, Value] = {}
        self._kept: list[Tensor] = []
        self._overwritten: dict[Value, Source] = {}
        for prefix, module in modules.items():
            self._register(prefix, module)

    def _register(self, prefix: str, root: Module) -> None:
        dot = prefix + "." if prefix else ""
        for path, module in root.named_modules():
            self._paths.setdefault(id(module), (dot + path).strip("."))
        for kind, items in (
            ("parameter", root.named_parameters()),
            ("buffer", root.named_buffers()),
        ):
            for path, tensor in items:
                self._state.setdefault(id(tensor), (kind, dot + path, tensor))
        # Tensors in plain attributes are read anew in every call, as in eager mode.
        for path, module in root.named_modules():
            for name, value in module.__dict__.items():
                if isinstance(value, Tensor) and not (value._traced or value.requires_grad):
                    place = f"{dot}{path}.{name}" if path else dot + name
                    self._state.setdefault(id(value), ("buffer", place, value))

    # -- the dispatcher's interface --------------------------------------------------------

    def wants(self, tensor: Tensor) -> bool:
        """Whether an operation on this tensor belongs into the graph."""
        return tensor._traced or id(tensor) in self._state

    def apply(self, name: str, args: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
        """Adds a node; returns traced tensors for its results."""
        if grad_mode.is_grad_enabled():
            args = tuple(self._without_history(t) for t in args)
        operands = [self.value_of(t) for t in args]
        plain = {k: _plain(v) for k, v in attrs.items()}
        results = self.graph.add(name, *operands, source=self.source(), **plain)
        several = not isinstance(results, Value)
        values = results if several else (results,)
        for value in values:
            self._check_size(name, self.graph.type(value))
        tensors = tuple(self.tensor(v) for v in values)
        if not grad_mode.is_grad_enabled():
            for tensor in tensors:
                tensor._made_without_grad = tensor.dtype.is_float
        return tensors if several else tensors[0]

    def _check_size(self, name: str, kind: TensorType) -> None:
        """A batch by batch tensor (x @ x.T) has no size that is a multiple of N."""
        if sum(isinstance(d, Dim) for d in kind.shape) > 1:
            raise BatchSpecializationError(
                f"{name}{_in(self.source())} makes a tensor of shape {shape_text(kind.shape)}, "
                "whose size is no multiple of the batch"
            )

    def _without_history(self, tensor: Tensor) -> Tensor:
        """What no_grad() made is a constant for what is computed from it outside of no_grad()."""
        if not isinstance(tensor, TracedTensor) or not tensor._made_without_grad:
            return tensor
        return self.tensor(self.graph.add("detach", self.value_of(tensor), source=self.source()))

    def enter_module(self, module: Module) -> None:
        self._stack.append(module)

    def exit_module(self, module: Module) -> None:
        self._stack.pop()

    def assign(self, tensor: Tensor, value: Tensor) -> None:
        """Makes ``value`` the content of a traced tensor that is written to in place.

        Other names of the same memory (views of it, what it is a view of) would see the write; to
        read one of them afterwards is a TraceError. So is writing to the caller's input.
        """
        if not isinstance(tensor, TracedTensor):
            raise TraceError("an in-place operation on a tensor that is no part of the trace")
        source = self.source()
        names = self._same_memory(tensor._value)
        ops = {self.graph.node(v).op for v in names}
        if not ops.isdisjoint({"input", "parameter", "buffer", "constant", "broadcast_to"}):
            raise TraceError(
                f"an in-place operation{_in(source)} on an input of the model, on a view of an "
                "input or of its state, or on an expanded tensor; write y = y + 1 instead of y += 1"
            )
        written = self.value_of(value)
        self._overwritten.update(dict.fromkeys(names - {tensor._value}, source))
        tensor._value = written

    def _same_memory(self, value: Value) -> set[Value]:
        """A value, its views, what it is a view of, and so on."""
        found: set[Value] = set()
        pending = [value]
        while pending:
            value = pending.pop()
            if value in found:
                continue
            found.add(value)
            node = self.graph.node(value)
            if node.op in dispatch.VIEWS:
                pending.append(node.operands[0])
            views = [n for n in self.graph.users(value) if n.op in dispatch.VIEWS]
            pending += [v for n in views for v in n.values]
        return found

    def update_buffer(self, buffer: Tensor, value: Tensor) -> None:
        """Notes that a run ends with ``value`` in ``buffer``; later reads see it."""
        kind, path, _ = self._state.get(id(buffer), ("", "", buffer))
        if not kind:
            raise TraceError(
                f"a buffer of shape {tuple(buffer.shape)} is updated but belongs to no module "
                "of the traced model; register it with register_buffer()"
            )
        self.value_of(buffer)
        updated = self.value_of(value)
        self._values[id(buffer)] = updated
        self.graph.updates[path] = updated

    def assume_not_one(self, extent: Dim, what: str) -> None:
        """Notes that the graph holds for batches of more than one only; raises
        BatchSpecializationError if this call's batch is one."""
        if extent.coef != 1:
            return
        self.needs_many = True
        if self.batch == 1:
            raise BatchSpecializationError(f"{what} drops a batch of one{_in(self.source())}")

    def random_key(self) -> tuple[Tensor, int]:
        """The generator's key as an input of the graph, and the number of this draw."""
        if self._random is None:
            value = self.graph.add(
                "input", name="rng", path="rng", type=TensorType(dtype_of("i64"), (2,))
            )
            self._random = self.tensor(value)
        self.streams += 1
        return self._random, self.streams - 1

    # -- values ----------------------------------------------------------------------------

    def input(self, path: str, like: Tensor, batch: int | None) -> Tensor:
        """A symbolic argument with the type of ``like``."""
        shape: tuple[Extent, ...] = tuple(like.shape)
        if batch is not None and shape and shape[0] == batch:
            shape = (Dim(1), *shape[1:])
        kind = TensorType(like.dtype, shape)
        name = path.replace(".", "_")
        return self.tensor(self.graph.add("input", name=name, path=path, type=kind))

    def tensor(self, value: Value) -> TracedTensor:
        """The traced tensor of a value."""
        return TracedTensor(self, value, self.graph.type(value))

    def value_of(self, tensor: Tensor) -> Value:
        """The value of a tensor: traced, state of a module, or a constant."""
        if isinstance(tensor, TracedTensor):
            if tensor._tracer is not self:
                where = _in(self.source())
                raise TraceError(
                    f"a tensor of another trace is used{where}: forward() kept it, in an "
                    "attribute or a global. State that lasts from call to call belongs into a "
                    "buffer (register_buffer)"
                )
            if tensor._value in self._overwritten:
                raise TraceError(
                    f"a tensor is read{_in(self.source())} whose memory was overwritten under "
                    f"another name by the in-place operation{_in(self._overwritten[tensor._value])}"
                    "; write y = y + 1 instead of y += 1"
                )
            return tensor._value
        if id(tensor) not in self._values:
            self._values[id(tensor)] = self._add_source(tensor)
            self._kept.append(tensor)
        return self._values[id(tensor)]

    def _add_source(self, tensor: Tensor) -> Value:
        array = tensor._array
        kind = TensorType(tensor.dtype, tuple(array.shape))
        if id(tensor) in self._state:
            role, path, _ = self._state[id(tensor)]
            self.used_state[path] = tensor
            name = path.replace(".", "_")
            return self.graph.add(role, name=name, path=path, type=kind, source=self.source())
        if isinstance(tensor, Parameter) or tensor.requires_grad:
            where = self.source()
            raise TraceError(
                f"a parameter of shape {tuple(array.shape)} is used{_in(where)} but no module "
                "of the model owns it, so it would not be trained or saved. Keep layers in "
                "nn.ModuleList, nn.ModuleDict or nn.Sequential instead of a plain Python list or "
                "dict, and tensors in nn.Parameter attributes"
            )
        source, content = self.source(), array.copy()
        if not tensor._is_constant:
            self.captured.add(tensor, content, str(source))
        return self.graph.add("constant", value=content, source=source)

    # -- where we are ------------------------------------------------------------------------

    def source(self) -> Source:
        """Module path, and the user's line: the innermost frame outside the package that the
        traced program runs, else the line that made the module."""
        path = self._path()
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.root_frame:
            if not dispatch.is_ours(frame):
                return Source(path, frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        module = self._stack[-1] if self._stack else None
        file, line = getattr(module, "_created_at", ("", 0))
        return Source(path, file, line)

    def _path(self) -> str:
        """The path of the innermost module that has one."""
        return next((p for m in reversed(self._stack) if (p := self._paths.get(id(m)))), "")

    def failed(self, error: NetwrightError) -> None:
        """Adds the module's path and the user's line to an error that leaves a module."""
        if getattr(error, "in_module", False):
            return
        error.in_module = True  # type: ignore[attr-defined]
        source = self.source()
        step = error.__traceback__
        while step is not None:
            if not dispatch.is_ours(step.tb_frame):
                source = replace(source, file=step.tb_frame.f_code.co_filename, line=step.tb_lineno)
            step = step.tb_next
        text = str(error)
        place = f"{source.file}:{source.line}"
        if source.file and place not in text:
            error.args = (f"{text} (in {source})",)
        elif source.module and source.module not in text:
            error.args = (f"{text} (in {source.module})",)


def _in(source: Source) -> str:
    return f" in {source}" if str(source) else ""
