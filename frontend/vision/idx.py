"""The IDX file format of the MNIST database.

Layout, big-endian: two zero bytes, a type code, the number of dimensions, each dimension as
uint32, then the elements in row-major order (http://yann.lecun.com/exdb/mnist, "The IDX file
format").
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib

import numpy as np

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, plain or compressed with gzip, in this machine's byte order.

    ValueError, with the file's name, if it is truncated, damaged or no IDX file.
    """
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(
            f"{os.fspath(path)}: not an IDX file: it starts with {content[:4].hex(' ')!r}, "
            "expected 00 00, a type code (08, 09, 0b, 0c, 0d, 0e) and the number of dimensions"
        )
    dtype, rank = np.dtype(_DTYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(
            f"{os.fspath(path)}: the IDX file is truncated: its header of {start} bytes ends after "
            f"{len(content)}"
        )
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    if len(content) - start != expected:
        problem = "is truncated" if len(content) - start < expected else "has bytes left over"
        raise ValueError(
            f"{os.fspath(path)}: the IDX file {problem}: shape {list(shape)} of {dtype.name} needs "
            f"{expected} bytes after the header, there are {len(content) - start}"
        )
    if len(shape) > 32:
        raise ValueError(f"{os.fspath(path)}: {len(shape)} dimensions are too many")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _content(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        content = file.read()
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise ValueError(
            f"{os.fspath(path)}: the gzip file is truncated or damaged: {error}"
        ) from error
