"""Reading ``.safetensors`` files, without any other package.

Format (github.com/huggingface/safetensors): 8 bytes, the little-endian length of a JSON header
``{name: {"dtype", "shape", "data_offsets"}}``, then the bytes of the tensors, to which the offsets
refer.
"""

from __future__ import annotations

import json
from typing import IO, Any

import numpy as np

from . import dispatch
from .tensor import Tensor

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_MAX_HEADER = 100_000_000


def read(file: IO[bytes]) -> dict[str, Tensor]:
    """The tensors by name; float16 and bfloat16, which netwright lacks, as float32, without loss.

    ValueError if the file is damaged or has another dtype.
    """
    data = file.read()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(_MAX_HEADER, len(data) - 8):
        raise ValueError("its first 8 bytes are not the length of a safetensors header")
    header = json.loads(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    content = memoryview(data)[8 + size :]
    return {
        name: dispatch.wrap(_tensor(name, entry, content))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _tensor(name: str, entry: Any, content: memoryview) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise ValueError(
            f"{name!r} has dtype {entry['dtype']}; those that can be read are {', '.join(_DTYPES)}"
        )
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = np.dtype(_DTYPES[entry["dtype"]])
    if not 0 <= begin <= end <= len(content) or end - begin != dtype.itemsize * int(
        np.prod(shape, dtype=np.int64)
    ):
        raise ValueError(f"{name!r} of shape {list(shape)} does not fit bytes {begin} to {end}")
    array = np.frombuffer(content[begin:end], dtype).reshape(shape)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    if entry["dtype"] == "F16":
        return array.astype(np.float32)
    return array.astype(dtype.newbyteorder("="))
