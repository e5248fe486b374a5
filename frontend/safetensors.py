"""Reads files of the safetensors format, for ``load``: the format of most published weights.

A file is the length of a header (8 bytes, little endian), the header as JSON, ``{name: {"dtype":
"F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}``, and the elements of all tensors, at these
offsets. https://github.com/huggingface/safetensors describes it.
"""

from __future__ import annotations

import json
import math
from typing import IO, Any

import numpy as np

from . import dispatch
from .tensor import Tensor

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_LENGTH = 8
_LONGEST_HEADER = 100_000_000


def looks_like_one(start: bytes) -> bool:
    """Whether a file that begins with these bytes (9 at least) may be one."""
    return len(start) > _LENGTH and start[_LENGTH : _LENGTH + 1] == b"{"


def read(file: IO[bytes]) -> dict[str, Tensor]:
    """The tensors by name. Half precision (F16, BF16) becomes float32, which loses nothing.

    Raises ValueError if the file is damaged or has elements of another type.
    """
    length = int.from_bytes(file.read(_LENGTH), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has {length} bytes; the format allows {_LONGEST_HEADER}")
    text = file.read(length)
    if len(text) != length:
        raise ValueError(f"its header has {length} bytes, but {len(text)} are there")
    header = json.loads(text)
    data = file.read()
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: dispatch.wrap(_array(name, entry, data)) for name, entry in entries.items()}


def _array(name: str, entry: dict[str, Any], data: bytes) -> np.ndarray:
    kind, shape = entry["dtype"], [int(d) for d in entry["shape"]]
    first, end = entry["data_offsets"]
    if kind not in _DTYPES and kind != "BF16":
        known = ", ".join([*_DTYPES, "BF16"])
        raise ValueError(f"{name!r} has elements of type {kind}; those that are read are {known}")
    stored = np.dtype("<u2" if kind == "BF16" else _DTYPES[kind])
    if not 0 <= first <= end <= len(data) or end - first != math.prod(shape) * stored.itemsize:
        raise ValueError(f"the elements of {name!r} are not complete")
    array = np.frombuffer(data[first:end], stored).reshape(shape)
    if kind == "BF16":  # the upper half of a float32
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif kind == "F16":
        array = array.astype(np.float32)
    return np.array(array, array.dtype.newbyteorder("="))
