"""The dtypes under PyTorch's names: ``nw.float32``, ``nw.long``, ``nw.bool``."""

from __future__ import annotations

from ..ir.types import DType as dtype
from ..ir.types import bool_ as bool
from ..ir.types import float32, float64, int8, int16, int32, int64, uint8

float = float32
double = float64
int = int32
long = int64
short = int16

__all__ = [
    "bool",
    "double",
    "dtype",
    "float",
    "float32",
    "float64",
    "int",
    "int8",
    "int16",
    "int32",
    "int64",
    "long",
    "short",
    "uint8",
]
