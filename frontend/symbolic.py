"""What a traced program computes with: a batch size and tensors of which only the type is known."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from ..errors import BatchSpecializationError, TraceError
from ..ir.graph import Value
from ..ir.types import Dim, DType, Extent, TensorType
from . import dispatch
from .dims import Size
from .storage import Storage
from .tensor import Tensor


class TracedDim(Dim):
    """The symbolic batch as a program sees it in ``x.shape[0]``: it can be multiplied and passed
    to ``view``; using it as a number means the graph must be made for one batch size."""

    def _needs_number(self, what: str) -> NoReturn:
        file, line = dispatch.caller()
        raise BatchSpecializationError(
            f"{what} needs the batch size as a number at {file}:{line}, where it is the symbolic N"
        )

    def __eq__(self, other: object) -> bool:
        return self._equals(other, sys._getframe(1))

    def __ne__(self, other: object) -> bool:
        return not self._equals(other, sys._getframe(1))

    def _equals(self, other: object, caller: FrameType) -> bool:
        if isinstance(other, Dim):
            return self.coef == other.coef
        if isinstance(other, (int, tuple)) and not dispatch.is_ours(caller):
            self._needs_number("comparing x.shape[0] with a number")
        return False

    def __hash__(self) -> int:
        if not dispatch.is_ours(sys._getframe(1)):
            self._needs_number("looking up x.shape[0] in a set or dict")
        return hash((self.coef,))

    def __index__(self) -> int:
        self._needs_number("using x.shape[0] as an integer")

    __int__ = __index__

    def __float__(self) -> float:
        self._needs_number("float(x.shape[0])")

    def __bool__(self) -> bool:
        self._needs_number("a condition on x.shape[0]")

    def __lt__(self, other: object) -> bool:
        self._needs_number("comparing x.shape[0]")

    __le__ = __gt__ = __ge__ = __lt__

    def __add__(self, other: object) -> Any:
        self._needs_number("adding to x.shape[0]")

    __radd__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __add__
    __mod__ = __rmod__ = __pow__ = __rpow__ = __rfloordiv__ = __divmod__ = __rdivmod__ = __add__

    def __neg__(self) -> Any:
        self._needs_number("arithmetic with x.shape[0]")

    __pos__ = __abs__ = __invert__ = __round__ = __trunc__ = __floor__ = __ceil__ = __neg__


def _visible(extent: Extent) -> Extent:
    return TracedDim(extent.coef) if isinstance(extent, Dim) else extent


class TracedTensor(Tensor):
    """A tensor of which only the type is known; operations on it become nodes."""

    _traced = True
    _made_without_grad = False

    def __init__(self, tracer: dispatch.Tracer, value: Value, kind: TensorType) -> None:
        self._storage = Storage()
        self._tracer = tracer
        self._value = value
        self._kind = TensorType(kind.dtype, tuple(map(_visible, kind.shape)))

    @property
    def _array(self) -> np.ndarray:  # type: ignore[override]
        self._no_data("this operation")

    @property
    def shape(self) -> Size:
        """The sizes; the batch is symbolic."""
        return Size(self._kind.shape)

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self._kind.dtype

    def _no_data(self, what: str) -> NoReturn:
        file, line = dispatch.caller()
        if dispatch.current.tracer is not self._tracer:
            raise TraceError(
                f"a tensor of type {self._kind} that was made while a model was traced is used "
                f"outside of the trace, at {file}:{line}: forward() or a hook kept it, in an "
                "attribute or a global. Return it from forward() instead"
            )
        raise TraceError(
            f"{what} at {file}:{line} needs the value of a tensor while the model is being "
            f"traced, when only its type {self._kind} is known. Data-dependent Python code "
            "cannot be compiled: use tensor operations (nw.where, masks, clamp), or move this "
            "code out of forward()"
        )
