"""Averages arrays over all processes, in buckets, in an order of additions that is fixed.

MPI's own reductions may add in any order, so that results could differ from run to run. Here each
bucket is cut into one slice per rank; every rank sends each slice to its owner, which adds the
ranks' slices from 0 on, divides, and sends the mean to all. That moves as many bytes as a ring
reduction, and since one process computes each element, all have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bridge.gradient_buffers import parts
from .process_group import Group

_DOING = "the averaging of gradients"


class Bucket:
    """A part of a flat array, with the memory for the slices that this rank owns."""

    def __init__(self, group: Group, part: np.ndarray) -> None:
        self._group = group
        self._part = part
        ends = [part.size * (r + 1) // group.size for r in range(group.size)]
        starts = [0, *ends[:-1]]
        size = part.itemsize
        self._counts = [(b - a) * size for a, b in zip(starts, ends, strict=True)]
        self._offsets = [a * size for a in starts]
        own = ends[group.rank] - starts[group.rank]
        self._slices = np.empty((group.size, own), part.dtype)
        self._request: Any = None

    def send(self) -> None:
        """Starts to send the slices to their owners."""
        byte, bytes_of = self._group.mpi.BYTE, self._part.view(np.uint8)
        own = self._slices.shape[1] * self._slices.itemsize
        self._request = self._group.comm.Ialltoallv(
            [bytes_of, self._counts, self._offsets, byte],
            [
                self._slices.view(np.uint8).reshape(-1),
                [own] * self._group.size,
                [own * r for r in range(self._group.size)],
                byte,
            ],
        )

    def progress(self) -> None:
        """Lets MPI go on with what was sent; it does nothing by itself between two calls."""
        self._request.Test()

    def average(self) -> None:
        """Waits for the own slices, and starts to send their mean to all."""
        self._group.wait([self._request], _DOING)
        mean = self._slices[0]
        for other in self._slices[1:]:
            mean += other
        mean /= self._group.size
        byte = self._group.mpi.BYTE
        self._request = self._group.comm.Iallgatherv(
            [mean.view(np.uint8), byte],
            [self._part.view(np.uint8), self._counts, self._offsets, byte],
        )

    def finish(self) -> None:
        """Waits until what was started last is over: the means are there, or the own slices."""
        self._group.wait([self._request], _DOING)


class Averaging:
    """Averages the same flat arrays again and again. bucket_bytes: size of a bucket."""

    def __init__(self, group: Group, bucket_bytes: int) -> None:
        self._group = group
        self.bucket_bytes = bucket_bytes
        self._arrays: list[np.ndarray] = []
        self._buckets: list[Bucket] = []
        self._sent = 0

    def start(self, arrays: Sequence[np.ndarray], bucket: int) -> None:
        """Sends the slices of a bucket ahead of the call. Buckets in order, as on all ranks: MPI
        asks for the same order of collective operations everywhere."""
        if self._group.size == 1:
            return
        buckets = self._buckets_of(arrays)
        if bucket != self._sent:
            raise ValueError(f"bucket {bucket} was started, expected {self._sent}")
        buckets[bucket].send()
        self._sent += 1
        for sent in buckets[: self._sent]:
            sent.progress()

    def give_up(self) -> None:
        """Forgets buckets that were sent ahead of a call that will not come, once MPI no longer
        reads or writes their memory. All ranks give up, or none."""
        for bucket in self._buckets[: self._sent]:
            bucket.finish()
        self._sent = 0

    def __call__(self, arrays: Sequence[np.ndarray]) -> None:
        """Replaces every element by its mean over the ranks, with the same bits on all."""
        if self._group.size == 1:
            return
        for bucket in self._buckets_of(arrays)[self._sent :]:
            bucket.send()
        self._sent = 0
        for bucket in self._buckets:
            bucket.average()
        for bucket in self._buckets:
            bucket.finish()

    def _buckets_of(self, arrays: Sequence[np.ndarray]) -> list[Bucket]:
        same = len(arrays) == len(self._arrays)
        if not same or any(a is not b for a, b in zip(arrays, self._arrays, strict=True)):
            self._arrays = list(arrays)
            self._buckets = [
                Bucket(self._group, part)
                for array in arrays
                for part in parts(array, self.bucket_bytes)
            ]
        return self._buckets
