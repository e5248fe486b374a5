"""Counter-based random numbers: element ``i`` of a tensor depends on the key and ``i`` only.

Results therefore do not depend on threads, tiles or the batch size. The generator is
Philox4x32-10 of J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import Shape, TensorType, float32, int64
from .record import Op, Sample, register

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, the key's steps
_LOW = 0xFFFFFFFF
_BLOCK = 1 << 14  # elements at a time: the ten rounds then stay in the cache

Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Four random 32-bit words per counter; words are uint64 arrays of values below 2**32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0 = c0 * np.uint64(_MULTIPLIERS[0])
        p1 = c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & np.uint64(_LOW),
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & np.uint64(_LOW),
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform(seed: int, offset: int, stream: int, index: np.ndarray) -> np.ndarray:
    """float32 in [0, 1) for each linear index; ``ir/lower.py`` documents counter and key."""
    index = index.astype(np.uint64)
    zero = np.zeros_like(index)
    counter = (
        index & np.uint64(_LOW),
        index >> np.uint64(32),
        zero + np.uint64((offset + stream) & _LOW),
        zero,
    )
    word = philox4x32(counter, (seed & _LOW, (seed >> 32) & _LOW))[0]
    return (word >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def _infer_uniform(key: TensorType, *, shape: Shape, stream: int) -> TensorType:
    if key != TensorType(int64, (2,)):
        raise ShapeError(f"uniform: the key is {key}, expected i64[2] = (seed, offset)")
    return TensorType(float32, tuple(shape))


def _uniform(key: np.ndarray, *, shape: tuple[int, ...], stream: int) -> np.ndarray:
    seed, offset = int(key[0]), int(key[1])
    out = np.empty(shape, np.float32)
    flat = out.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        index = np.arange(start, min(start + _BLOCK, flat.size), dtype=np.uint64)
        flat[start : start + _BLOCK] = uniform(seed, offset, stream, index)
    return out


def _lower_uniform(e: Any, seed: Any, offset: Any, *, shape: Shape, stream: int) -> Any:
    return e.uniform(seed, offset, stream)


register(
    Op(
        "uniform",
        "elementwise",
        _infer_uniform,
        _uniform,
        None,
        _lower_uniform,
        lambda rng: [
            Sample((np.array([7, 0]),), {"shape": (5, 7), "stream": 0}),
            Sample((np.array([-(2**40) - 1, 2**32 - 1]),), {"shape": (3,), "stream": 2}),
            Sample((np.array([7, 1]),), {"shape": (), "stream": 1}),
        ],
    )
)
