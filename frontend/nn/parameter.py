"""Parameter and Buffer: tensors that a Module registers when they are assigned to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir.types import dtype_of
from .. import dispatch
from ..device import check_device
from ..promotion import get_default_dtype
from ..tensor import Tensor


def _adopted(cls: str, data: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError(
            f"{cls}() takes a Tensor, not {type(data).__name__}; wrap it with netwright.tensor(...)"
        )
    data._no_data(f"{cls}()")
    return data


class Parameter(Tensor):
    """A tensor that is trained: ``Module.parameters()`` lists it once it is an attribute."""

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        if data is None:
            data = dispatch.wrap(np.zeros(0, get_default_dtype().np))
        super().__init__(_adopted("Parameter", data))
        self.requires_grad = requires_grad


class Buffer(Tensor):
    """A tensor that is state but not trained; ``persistent`` ones are in the state_dict."""

    def __init__(self, data: Tensor, *, persistent: bool = True) -> None:
        super().__init__(_adopted("Buffer", data))
        self.persistent = persistent


def empty(shape: Sequence[int], device: Any = None, dtype: Any = None) -> Tensor:
    """A tensor to be initialised (zeros) on the CPU, of the default dtype if none is given."""
    check_device(device)
    kind = get_default_dtype() if dtype is None else dtype_of(dtype)
    for size in shape:
        if size < 0:
            raise RuntimeError(
                f"Trying to create tensor with negative dimension {size}: {list(shape)}"
            )
    return dispatch.wrap(np.zeros(tuple(shape), kind.np))


def empty_parameter(
    shape: Sequence[int], device: Any = None, dtype: Any = None, requires_grad: bool = True
) -> Parameter:
    """A parameter to be initialised."""
    return Parameter(empty(shape, device, dtype), requires_grad)
