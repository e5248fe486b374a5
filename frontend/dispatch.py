"""``apply``: the single door through which every operation goes.

It converts the operands (Python numbers, numpy arrays, type promotion), then either hands the
operation to the tracer or runs the operator's record on numpy arrays and records it for backward.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import DTypeError, NetwrightError
from ..ir.ops import record as ops
from ..ir.types import Dim, DType, TensorType, bool_, dtype_of
from .grad_fn import GradFn, OpGradFn
from .grad_mode import is_grad_enabled
from .promotion import common_dtype, get_default_dtype, scalar_dtype

if TYPE_CHECKING:
    from .tensor import Tensor


class Tracer(Protocol):
    """What takes the operations while a model is captured as a graph."""

    def wants(self, tensor: Tensor) -> bool:
        """Whether an operation on this tensor belongs into the graph."""

    def apply(self, name: str, args: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
        """Adds the operation; ``args`` are tensors, already of the promoted dtypes."""

    def assign(self, tensor: Tensor, value: Tensor) -> None:
        """Makes ``value`` the new content of a traced tensor that is written to in place."""

    def update_buffer(self, buffer: Tensor, value: Tensor) -> None:
        """Notes that a run ends with ``value`` in ``buffer``; later reads see it."""

    def assume_not_one(self, extent: Dim, what: str) -> None:
        """Notes that ``what`` does something else where a symbolic extent is 1."""

    def random_key(self) -> tuple[Tensor, int]:
        """The generator's key and the stream of this draw."""

    def enter_module(self, module: Any) -> None:
        """A module's forward begins."""

    def exit_module(self, module: Any) -> None:
        """A module's forward ends."""

    def failed(self, error: NetwrightError) -> None:
        """A module's forward ends with an error."""


class _Current(threading.local):
    tracer: Tracer | None = None
    """Set while this thread traces a model; sees the operations with a traced operand or a symbolic
    extent."""


current = _Current()

_tensor_class: Any = None


def register_tensor_class(cls: type[Tensor]) -> None:
    """Called once by ``tensor.py``, which imports this module and not the other way round."""
    global _tensor_class
    _tensor_class = cls


def wrap(array: np.ndarray, storage: Any = None) -> Tensor:
    """A tensor over an array, without copying; ``storage`` if the memory is another tensor's."""
    made: Tensor = _tensor_class._wrap(array, storage)
    return made


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a netwright tensor."""
    return isinstance(value, _tensor_class)


_PACKAGE = __name__.partition(".")[0]
_ZOO = f"{_PACKAGE}.frontend.vision.models"

# Operators whose result may be a view of the operand's memory.
VIEWS = frozenset({"reshape", "permute", "broadcast_to", "slice"})

_SAME = frozenset(
    [
        "add",
        "sub",
        "mul",
        "pow",
        "maximum",
        "minimum",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "cat",
        "fmod",
        "smooth_l1",
        "binary_cross_entropy",
    ]
)
_LOGICAL = frozenset(["logical_and", "logical_or", "logical_xor", "logical_not"])
_FLOAT = frozenset(
    [
        "exp",
        "expm1",
        "log",
        "log1p",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "sin",
        "cos",
        "erf",
        "tanh",
        "sigmoid",
        "div",
    ]
)


def apply(name: str, *args: Any, **attrs: Any) -> Any:
    """Runs, or traces, operator ``name``; returns a Tensor, or a tuple for several results.

    args: tensors, Python numbers, numpy arrays or symbolic extents (``Dim``). Errors are the
    operator's, with the line of the program that called it.
    """
    try:
        tensors = _operands(name, args)
        tracer = current.tracer
        if tracer is not None and (
            any(map(tracer.wants, tensors)) or any(map(_is_symbolic, attrs.values()))
        ):
            return tracer.apply(name, tensors, attrs)
        return _run(name, tensors, attrs)
    except NetwrightError as error:
        raise _located(error) from error.__cause__


def cast(tensor: Tensor, dtype: DType) -> Tensor:
    """The tensor in another dtype (itself if it has it)."""
    return tensor if tensor.dtype is dtype else apply("cast", tensor, dtype=dtype.short)


def result_type(*operands: Any) -> DType:
    """The dtype in which PyTorch computes with these tensors and Python numbers."""
    tensors: list[DType] = []
    zero_dim: list[DType] = []
    scalars: list[DType] = []
    for x in operands:
        if isinstance(x, _tensor_class):
            (tensors if len(x.shape) else zero_dim).append(x.dtype)
        elif isinstance(x, np.ndarray):
            (tensors if x.ndim else zero_dim).append(dtype_of(x.dtype))
        else:
            scalars.append(scalar_dtype(x))
    return common_dtype(tensors, zero_dim, scalars)


def constant(value: Any, dtype: DType) -> Tensor:
    """A number as a 0-d tensor; RuntimeError if an integer dtype cannot hold it."""
    if isinstance(value, Dim):
        return apply("extent", size=value, dtype=dtype.short)
    if dtype.is_int and isinstance(value, (int, np.integer)):
        info = np.iinfo(dtype.np)
        if not info.min <= value <= info.max:
            raise RuntimeError(
                f"value cannot be converted to type {dtype.name} without overflow: {value}"
            )
    made = wrap(np.asarray(value, dtype.np))
    made._is_constant = True
    return made


def as_operand(value: Any, dtype: DType | None = None) -> Tensor:
    """A tensor from a tensor, an array or a number (a number becomes ``dtype``)."""
    if isinstance(value, _tensor_class):
        return value
    if isinstance(value, np.ndarray):
        return wrap(native(value))
    return constant(value, dtype or scalar_dtype(value))


def native(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that netwright has and in this machine's byte order."""
    return array.astype(dtype_of(array.dtype).np, copy=False)


def _operands(name: str, args: Sequence[Any]) -> tuple[Tensor, ...]:
    if name in _SAME:
        return _promoted(args, result_type(*args))
    if name == "where":
        condition = as_operand(args[0])
        if condition.dtype is not bool_:
            raise DTypeError(
                f"where expected condition to be a boolean tensor, but got {condition.dtype}; "
                "compare first, for instance x != 0"
            )
        return (condition, *_promoted(args[1:], result_type(*args[1:])))
    if name in _FLOAT:
        common = result_type(*args)
        return _promoted(args, common if common.is_float else get_default_dtype())
    if name in _LOGICAL:
        return tuple(_truth(as_operand(a)) for a in args)
    if all(isinstance(a, _tensor_class) for a in args):
        return tuple(args)
    dtype = next((a.dtype for a in args if isinstance(a, _tensor_class)), None)
    return tuple(as_operand(a, dtype) for a in args)


def _promoted(args: Sequence[Any], dtype: DType) -> tuple[Tensor, ...]:
    return tuple(cast(as_operand(a, dtype), dtype) for a in args)


def _truth(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is bool_ else apply("ne", tensor, 0)


def _is_symbolic(attr: Any) -> bool:
    if isinstance(attr, tuple):
        return any(isinstance(d, Dim) for d in attr)
    return isinstance(attr, Dim)


def _run(name: str, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
    record = ops.get(name)
    record.infer(*(TensorType(t.dtype, t.shape) for t in inputs), **attrs)
    arrays = [t._array for t in inputs]
    if name == "broadcast_to":
        result = np.broadcast_to(arrays[0], attrs["shape"])  # a view here, as in PyTorch
    else:
        result = record.numpy(*arrays, **attrs)
    several = isinstance(result, tuple)
    results = [np.asarray(r) for r in result] if several else [np.asarray(result)]
    outputs = [_wrap_result(name, r, inputs) for r in results]
    if record.grad is not None and is_grad_enabled() and any(t.requires_grad for t in inputs):
        connect(OpGradFn(record, attrs, inputs, outputs), outputs)
    return tuple(outputs) if several else outputs[0]


def _wrap_result(name: str, array: np.ndarray, inputs: tuple[Tensor, ...]) -> Tensor:
    if name in VIEWS:
        source = inputs[0]
        if array is source._array or np.may_share_memory(array, source._array):
            view = wrap(array, source._storage)
            source._storage.share(source, view)
            view._is_view = True
            return view
    elif any(array is t._array or array.base is t._array for t in inputs):
        array = array.copy()
    return wrap(array)


def connect(fn: GradFn, outputs: Sequence[Tensor]) -> None:
    """Makes ``fn`` the function that backward runs for these results (floating ones)."""
    for i, t in enumerate(outputs):
        if t.dtype.is_float:
            t._grad_fn = fn
            t._output_index = i
            t._requires_grad = True


def is_ours(frame: FrameType) -> bool:
    """Whether the code of a frame belongs to this package.

    The model zoo counts as the user's: its lines are the model's own lines.
    """
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] == _PACKAGE and not name.startswith(_ZOO)


def caller() -> tuple[str, int]:
    """File and line of the innermost frame outside this package; ('', 0) if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not is_ours(frame):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "", 0


def _located(error: NetwrightError) -> NetwrightError:
    """The error with the user's line added, once."""
    if getattr(error, "located", False):
        return error
    file, line = caller()
    known = not file or f"{file}:{line}" in str(error)
    made = error if known else type(error)(f"{error} (at {file}:{line})")
    made.located = True  # type: ignore[attr-defined]
    return made
