"""Tensor: a numpy array with PyTorch's interface, gradients and in-place bookkeeping.

Operations live in the modules of functions and are bound here as methods; this file holds what a
tensor is: its memory, its place in the autograd graph, its conversions to Python and numpy.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError, TraceError
from ..ir.types import DType, dtype_of
from . import (
    autograd,
    comparison,
    dispatch,
    elementwise,
    inplace,
    linalg,
    reductions,
    shaping,
    tensor_text,
)
from .changes import structure
from .device import CPU, check_device, device
from .dims import Size, dim_index
from .grad_fn import GradFn
from .methods import Methods
from .operators import Operators
from .promotion import get_default_dtype
from .storage import Storage, StorageOnDemand

_hook_ids = itertools.count()
_NO_HOOKS: Mapping[int, Callable[[Any], Any]] = MappingProxyType({})


class HookHandle:
    """Returned by ``register_hook``; ``remove()`` undoes it."""

    def __init__(self, hooks: dict[int, Callable[[Any], Any]], hook: Callable[[Any], Any]) -> None:
        self._hooks = hooks
        self._id = next(_hook_ids)
        hooks[self._id] = hook

    def remove(self) -> None:
        """Removes the hook; a second call does nothing."""
        self._hooks.pop(self._id, None)
        structure.bump()


class Tensor(Operators, Methods):
    """An n-dimensional array of one dtype.

    ``Tensor(data)`` shares the memory of an array or tensor and keeps its dtype; other data
    becomes the default dtype (float32); ``Tensor(2, 3)`` is zeros of that shape. ``nw.tensor``
    copies, and infers the dtype.
    """

    _array: np.ndarray
    _storage: Storage = StorageOnDemand()  # type: ignore[assignment]
    _traced = False
    _requires_grad = False
    _grad: Tensor | None = None
    _grad_fn: GradFn | None = None
    _output_index = 0
    _is_view = False
    _is_constant = False  # made from a Python number for one operation
    _retains_grad = False
    _hooks: Mapping[int, Callable[[Any], Any]] = _NO_HOOKS
    __array_priority__ = 1000  # array * tensor is a tensor

    def __init__(self, *data: Any, requires_grad: bool = False) -> None:
        if len(data) == 1 and isinstance(data[0], Tensor):
            self._adopt(data[0]._array, data[0]._storage)
        elif len(data) == 1 and isinstance(data[0], np.ndarray):
            self._adopt(dispatch.native(data[0]), Storage(exported=True))
        elif len(data) == 1 and not isinstance(data[0], int):
            self._adopt(np.array(data[0], get_default_dtype().np))
        else:
            self._adopt(np.zeros(data, get_default_dtype().np))
        if requires_grad:
            self.requires_grad = True

    @classmethod
    def _wrap(cls, array: np.ndarray, storage: Storage | None = None) -> Tensor:
        made = object.__new__(cls)
        made._array = array
        if storage is not None:
            made._storage = storage
        return made

    def _adopt(self, array: np.ndarray, storage: Storage | None = None) -> None:
        self._array = array
        self._storage = Storage() if storage is None else storage

    def _like(self, array: np.ndarray) -> Tensor:
        return dispatch.wrap(np.asarray(array))

    def _no_data(self, what: str) -> None:
        """Raises TraceError where a value is needed that a trace does not have."""
        if dispatch.current.tracer is not None and dispatch.current.tracer.wants(self):
            file, line = dispatch.caller()
            raise TraceError(
                f"{what} at {file}:{line} reads a parameter or buffer while the model is being "
                "traced; its value would be frozen into the compiled program. Use tensor "
                "operations instead, or move this code out of forward()"
            )

    def _eager_array(self, what: str) -> np.ndarray:
        self._no_data(what)
        return self._array

    # -- what it is ----------------------------------------------------------------------------

    @property
    def shape(self) -> Size:
        """The sizes of the dimensions."""
        return Size(self._array.shape)

    @property
    def dtype(self) -> DType:
        """The element type."""
        return dtype_of(self._array.dtype)

    @property
    def device(self) -> device:
        """Always the CPU."""
        return CPU

    @property
    def is_cuda(self) -> bool:
        """Always False."""
        return False

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        if dim is None:
            return self.shape
        if not self.dim():
            raise IndexError("Dimension specified as 0 but tensor has no dimensions")
        return self.shape[dim_index(dim, self.dim())]

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    ndimension = dim

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def numel(self) -> Any:
        """Number of elements."""
        return self.shape.numel()

    nelement = numel

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize

    def element_size(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel() * self.dtype.itemsize

    def stride(self, dim: int | None = None) -> Any:
        """Elements to step from one index to the next, of all dimensions or of one."""
        steps = tuple(s // self.dtype.itemsize for s in self._eager_array("stride()").strides)
        return steps if dim is None else steps[dim_index(dim, self.dim())]

    def data_ptr(self) -> int:
        """Address of the first element."""
        return self._eager_array("data_ptr()").ctypes.data

    def is_floating_point(self) -> bool:
        """Whether the dtype is float32 or float64."""
        return self.dtype.is_float

    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return self._traced or self._array.flags.c_contiguous

    @property
    def T(self) -> Tensor:
        """The dimensions in reverse order."""
        return shaping.permute(self, tuple(reversed(range(self.dim()))))

    @property
    def mT(self) -> Tensor:
        """The last two dimensions swapped."""
        return linalg.matrix_transpose(self)

    # -- autograd ------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether backward computes a gradient for this tensor."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not self.dtype.is_float:
            raise DTypeError("only Tensors of floating point dtype can require gradients")
        if not value and self._grad_fn is not None:
            raise RuntimeError(
                "you can only change requires_grad flags of leaf variables. If you want to use a "
                "computed variable in a subgraph that doesn't require differentiation use "
                "var_no_grad = var.detach()."
            )
        self._requires_grad = bool(value)
        structure.bump()

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Sets ``requires_grad``; returns the tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad_fn(self) -> GradFn | None:
        """The recorded operation that made this tensor."""
        return self._grad_fn

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self._grad_fn is None

    @property
    def grad(self) -> Tensor | None:
        """The accumulated gradient of a leaf."""
        if self._grad_fn is not None and not self._retains_grad:
            warnings.warn(
                "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. "
                "Its .grad attribute won't be populated during autograd.backward(). If you want "
                "it, use .retain_grad() on the non-leaf Tensor.",
                UserWarning,
                stacklevel=2,
            )
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"assigned grad expected to be a Tensor or None but got {type(value).__name__}"
                )
            if value.shape != self.shape or value.dtype is not self.dtype:
                raise ShapeError(
                    f"assigned grad has data of a different size or type: {value.dtype} "
                    f"{list(value.shape)} for a tensor of {self.dtype} {list(self.shape)}"
                )
        self._grad = value

    def backward(
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
    ) -> None:
        """Adds this tensor's gradients to the leaves' ``.grad`` (see ``autograd.backward``)."""
        weights = None if gradient is None else [gradient]
        autograd.backward([self], weights, retain_graph, create_graph)

    def register_hook(self, hook: Callable[[Tensor], Any]) -> HookHandle:
        """Calls ``hook(gradient)`` in backward; a tensor that it returns replaces the gradient."""
        if not self.requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        if self._grad_fn is not None:
            return HookHandle(self._grad_fn.hooks.setdefault(self._output_index, {}), hook)
        if not isinstance(self._hooks, dict):
            self._hooks = {}
        structure.bump()  # a compiled step must learn of it
        return HookHandle(self._hooks, hook)

    def retain_grad(self) -> None:
        """Keeps ``.grad`` of this tensor although it is not a leaf."""
        if not self.requires_grad:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if self._grad_fn is None or self._retains_grad:
            return
        self._retains_grad = True

        def keep(gradient: Tensor) -> None:
            old = self._grad
            self._grad = gradient.clone() if old is None else elementwise.add(old, gradient)

        self.register_hook(keep)

    @property
    def retains_grad(self) -> bool:
        """Whether this non-leaf keeps its ``.grad``."""
        return self._retains_grad

    def detach(self) -> Tensor:
        """The same memory, without history."""
        if self._traced:
            found: Tensor = dispatch.apply("detach", self)
            return found
        return dispatch.wrap(self._array, self._storage)

    def detach_(self) -> Tensor:
        """Forgets this tensor's history."""
        if self._is_view and self._grad_fn is not None:
            raise RuntimeError("Can't detach views in-place. Use detach() instead.")
        self._grad_fn = None
        self._requires_grad = False
        return self

    @property
    def data(self) -> Tensor:
        """The same memory, without history; writes are counted as changes of this tensor."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self._no_data("assignment to .data")
        # Whoever remembers the old storage's version must see that the content has changed.
        self._storage.wrote()
        if value._array.shape != self._array.shape or value._array.dtype != self._array.dtype:
            structure.bump()
        self._array, self._storage = value._array, value._storage

    def _assign(self, value: Tensor) -> Tensor:
        """Overwrites the elements in place; see ``inplace.assign``."""
        return inplace.assign(self, value)

    # -- conversions ---------------------------------------------------------------------------

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The array itself: it shares memory with the tensor. RuntimeError if it requires grad."""
        self._no_data("numpy()")
        if self.requires_grad and not force:
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() "
                "instead."
            )
        self._storage.export()
        return self._array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def item(self) -> Any:
        """The only element as a Python number."""
        self._no_data("item()")
        if self._array.size != 1:
            raise RuntimeError(
                f"a Tensor with {self._array.size} elements cannot be converted to Scalar"
            )
        return self._array.item()

    def tolist(self) -> Any:
        """Nested lists of Python numbers; a number for a 0-d tensor."""
        self._no_data("tolist()")
        return self._array.tolist()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Another dtype: ``to(dtype)``, ``to('cpu')``, ``to(device, dtype)``, ``to(tensor)``."""
        duplicate = kwargs.pop("copy", False)
        dtype = wanted_dtype(args, kwargs)
        found = self if dtype is None else dispatch.cast(self, dtype)
        return found.clone() if duplicate and found is self else found

    def type_as(self, other: Tensor) -> Tensor:
        """``to(other.dtype)``."""
        return self.to(other.dtype)

    def half(self) -> Tensor:
        """DTypeError: there is no float16."""
        return self.to("float16")

    def bfloat16(self) -> Tensor:
        """DTypeError: there is no bfloat16."""
        return self.to("bfloat16")

    def cpu(self) -> Tensor:
        """The tensor itself."""
        return self

    def cuda(self, device: Any = None, non_blocking: bool = False) -> Tensor:
        """UnsupportedError: there is no GPU."""
        check_device("cuda" if device is None else device)
        return self

    def clone(self) -> Tensor:
        """A copy with its own memory; gradients flow through."""
        made: Tensor = dispatch.apply("reshape", self, shape=tuple(self.shape))
        if not made._traced:
            made._adopt(made._array.copy())
            made._is_view = False
        return made

    def contiguous(self) -> Tensor:
        """The tensor itself if it is contiguous, else a contiguous copy."""
        return self if self.is_contiguous() else self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) in memo:
            return memo[id(self)]
        self._no_data("deepcopy()")
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
                "protocol at the moment; detach() it first."
            )
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        if not self.is_leaf:
            raise RuntimeError("cannot pickle a tensor with a history; detach() it first")
        internal = ("_array", "_storage", "_requires_grad", "_hooks", "_is_view", "_is_constant")
        extra = {k: v for k, v in self.__dict__.items() if k not in internal}
        return {"array": self._array, "requires_grad": self._requires_grad, "extra": extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._adopt(state["array"])
        self._requires_grad = state["requires_grad"]
        self.__dict__.update(state["extra"])

    # -- Python protocols ----------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.dim():
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.dim():
            raise TypeError("iteration over a 0-d tensor")
        return iter(shaping.unbind(self))

    def __contains__(self, element: Any) -> bool:
        return bool(reductions.any(comparison.eq(self, element)))

    def _number(self, what: str) -> Any:
        self._no_data(what)
        return self.item()

    def __bool__(self) -> bool:
        self._no_data("a condition on a tensor (if, while, and, or, not)")
        if self._array.size != 1:
            many = "more than one value" if self._array.size else "no values"
            raise RuntimeError(f"Boolean value of Tensor with {many} is ambiguous")
        return bool(self._array.item())

    def __float__(self) -> float:
        return float(self._number("float()"))

    def __int__(self) -> int:
        return int(self._number("int()"))

    def __index__(self) -> int:
        if self.dtype.is_float or self.numel() != 1:
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self._number("use as an index"))

    def __format__(self, spec: str) -> str:
        if spec and not self.dim():
            return format(self._number("formatting"), spec)
        return format(str(self), spec)

    def __repr__(self) -> str:
        return tensor_text.text(self)

    def __hash__(self) -> int:
        return id(self)


dispatch.register_tensor_class(Tensor)


def wanted_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> DType | None:
    """The dtype among the arguments of ``to()``, of a tensor or a module; a device other than the
    CPU is an error."""
    options = dict(kwargs)
    check_device(options.pop("device", None))
    wanted = options.pop("dtype", None)
    options.pop("non_blocking", None)
    if options:
        raise TypeError(f"to() got an unexpected keyword argument {next(iter(options))!r}")
    for arg in args:
        if isinstance(arg, Tensor):
            wanted = arg.dtype
        elif isinstance(arg, str) and arg in ("float16", "half", "bfloat16"):
            wanted = arg  # no dtype that there is: the error names those
        elif isinstance(arg, (str, device)):
            check_device(arg)
        elif arg is not None and not isinstance(arg, bool):
            wanted = arg
    return None if wanted is None else dtype_of(wanted)
