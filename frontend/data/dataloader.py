"""DataLoader: batches of a dataset."""

from __future__ import annotations

import functools
import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ..random import Generator
from .collate import default_collate, default_convert
from .dataset import Dataset, IterableDataset
from .sampler import BatchSampler, RandomSampler, SequentialSampler, check_batch_size


def get_worker_info() -> None:
    """None: samples are always read in this process, and each of them once."""


class DataLoader:
    """Iterates over batches of ``dataset``; each iteration is one epoch.

    batch_size: samples per batch; None gives single samples. shuffle: a new order every epoch,
    from ``generator`` or the global generator that ``manual_seed`` seeds. drop_last: leaves out a
    last batch that is smaller. collate_fn: makes a batch of a list of samples.

    num_workers > 0: one background thread prepares up to ``num_workers * prefetch_factor`` batches
    ahead. It reads the samples one after the other, so the dataset needs no locks and the order is
    that of ``num_workers=0``. pin_memory, multiprocessing_context, persistent_workers and
    timeout have no effect, there being neither GPU nor worker processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        _check_workers(num_workers, prefetch_factor, timeout, persistent_workers)
        if pin_memory_device not in ("", "cpu"):
            raise UnsupportedError(f"pin_memory_device={pin_memory_device!r}: there is only a CPU")
        self.dataset = dataset
        self.num_workers = num_workers
        self.prefetch_factor = 2 if prefetch_factor is None and num_workers else prefetch_factor
        self.pin_memory = pin_memory
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.persistent_workers = persistent_workers
        self.generator = generator
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._iterable = isinstance(dataset, IterableDataset)
        if self._iterable:
            self._check_iterable(shuffle, sampler, batch_sampler)
        self._choose_samplers(shuffle, sampler, batch_sampler)
        self._batched = self.batch_sampler is not None or (
            self._iterable and self.batch_size is not None
        )
        default = default_collate if self._batched else default_convert
        self.collate_fn: Callable[[Any], Any] = default if collate_fn is None else collate_fn

    def _choose_samplers(self, shuffle: bool | None, sampler: Any, batch_sampler: Any) -> None:
        """Sets ``sampler`` and ``batch_sampler``; ValueError for arguments that exclude others."""
        dataset: Any = self.dataset
        batch_size, drop_last = self.batch_size, self.drop_last
        if sampler is not None and shuffle:
            raise ValueError("sampler option is mutually exclusive with shuffle")
        if batch_sampler is not None:
            if batch_size != 1 or shuffle or sampler is not None or drop_last:
                raise ValueError(
                    "batch_sampler option is mutually exclusive with batch_size, shuffle, "
                    "sampler, and drop_last"
                )
            self.batch_size = None
        elif batch_size is None:
            if drop_last:
                raise ValueError(
                    "batch_size=None option disables auto-batching and is mutually exclusive with "
                    "drop_last"
                )
        else:
            check_batch_size(batch_size)
        if sampler is None and not self._iterable:
            sampler = (
                RandomSampler(dataset, generator=self.generator)
                if shuffle
                else SequentialSampler(dataset)
            )
        if batch_sampler is None and batch_size is not None and sampler is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        self.sampler = sampler
        self.batch_sampler = batch_sampler

    def _check_iterable(self, shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
        for name, value in (("sampler", sampler), ("batch_sampler", batch_sampler)):
            if value is not None:
                raise ValueError(
                    f"DataLoader with IterableDataset: expected unspecified {name} option, but "
                    f"got {name}={value}"
                )
        if shuffle:
            raise ValueError(
                "DataLoader with IterableDataset: expected unspecified shuffle option, but got "
                f"shuffle={shuffle}"
            )

    def __len__(self) -> int:
        if self._iterable:
            total = len(self.dataset)  # type: ignore[arg-type]
            if self.batch_size is None:
                return total
            full, rest = divmod(total, self.batch_size)
            return full + (rest > 0 and not self.drop_last)
        chosen: Any = self.sampler if self.batch_sampler is None else self.batch_sampler
        return len(chosen)

    def __iter__(self) -> Iterator[Any]:
        fetches = self._stream() if self._iterable else self._indexed()
        if self.num_workers:
            return self._ahead(fetches)
        return (batch for fetch in fetches if (batch := fetch()) is not _END)

    def _indexed(self) -> Iterator[Callable[[], Any]]:
        """One function per batch that reads it."""
        chosen = self.sampler if self.batch_sampler is None else self.batch_sampler
        for indices in chosen or ():
            yield functools.partial(self._read, indices)

    def _read(self, indices: Any) -> Any:
        if not self._batched:
            return self.collate_fn(self.dataset[indices])
        whole = getattr(self.dataset, "_read_batch", None)
        if whole is not None and self.collate_fn is default_collate and len(indices):
            positions = np.asarray([operator.index(i) for i in indices], np.int64)
            batch = whole(positions)
            if batch is not None:
                return batch
        several = getattr(self.dataset, "__getitems__", None)
        if several is not None:
            return self.collate_fn(several(indices))
        return self.collate_fn([self.dataset[i] for i in indices])

    def _stream(self) -> Iterator[Callable[[], Any]]:
        samples = iter(self.dataset)
        ended = False

        def read() -> Any:
            nonlocal ended
            if self.batch_size is None:
                for sample in samples:
                    return self.collate_fn(sample)
                ended = True
                return _END
            batch = list(itertools.islice(samples, self.batch_size))
            ended = len(batch) < self.batch_size
            if not batch or (ended and self.drop_last):
                return _END
            return self.collate_fn(batch)

        while not ended:
            yield read

    def _ahead(self, fetches: Iterator[Callable[[], Any]]) -> Iterator[Any]:
        """The results of ``fetches``, computed by one thread before they are asked for."""
        limit = self.num_workers * (self.prefetch_factor or 1)
        waiting: deque[Future[Any]] = deque()
        thread = ThreadPoolExecutor(1, "netwright-data")
        try:
            if self.worker_init_fn is not None:
                thread.submit(self.worker_init_fn, 0).result()
            for fetch in fetches:
                waiting.append(thread.submit(fetch))
                if len(waiting) >= limit and (batch := waiting.popleft().result()) is not _END:
                    yield batch
            while waiting:
                if (batch := waiting.popleft().result()) is not _END:
                    yield batch
        finally:
            thread.shutdown(cancel_futures=True)


_END = object()  # an iterable dataset had no further batch


def _check_workers(
    num_workers: int, prefetch_factor: int | None, timeout: float, persistent: bool
) -> None:
    if num_workers < 0:
        raise ValueError(
            "num_workers option should be non-negative; use num_workers=0 to disable prefetching"
        )
    if timeout < 0:
        raise ValueError("timeout option should be non-negative")
    if num_workers == 0 and prefetch_factor is not None:
        raise ValueError("prefetch_factor option needs num_workers > 0")
    if prefetch_factor is not None and prefetch_factor < 0:
        raise ValueError("prefetch_factor option should be non-negative")
    if persistent and num_workers == 0:
        raise ValueError("persistent_workers option needs num_workers > 0")
