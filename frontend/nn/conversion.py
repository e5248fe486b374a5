"""``Module.to``: which dtype was asked for, and casting a module to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...ir.types import DType
from ..tensor import Tensor, wanted_dtype

if TYPE_CHECKING:
    from .module import Module


def parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> DType | None:
    """The dtype among the arguments of ``to``; a device other than the CPU is an error."""
    dtype = wanted_dtype(args, kwargs)
    if dtype is None:
        return None
    if not dtype.is_float:
        raise TypeError(
            "nn.Module.to only accepts floating point dtypes, but got desired "
            f"dtype={dtype}; the layers compute in float32 or float64"
        )
    return dtype


def convert(module: Module, dtype: DType | None) -> None:
    """Casts the floating parameters (with their gradients) and buffers; identities stay."""
    if dtype is None:
        return
    for param in module.parameters():
        grad, param.grad = param.grad, None
        _cast(param, dtype)
        param.grad = None if grad is None else grad.detach().to(dtype)
    for buffer in module.buffers():
        _cast(buffer, dtype)


def _cast(tensor: Tensor, dtype: DType) -> None:
    if tensor.dtype.is_float and tensor.dtype is not dtype:
        tensor.data = tensor.detach().to(dtype)
