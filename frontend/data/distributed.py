"""DistributedSampler: each of several processes reads its own share of a dataset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized

import numpy as np

from .. import world
from ..random import Generator
from .sampler import Sampler


class DistributedSampler(Sampler[int]):
    """Every ``num_replicas``-th index, from ``rank`` on, of an order that all processes share.

    The order is random if ``shuffle``, and depends on ``seed`` and on the epoch that
    ``set_epoch`` sets, on nothing else: call it before each epoch, or every epoch has the same
    order. All shares are equally long: indices from the start are repeated at the end, or with
    ``drop_last`` the last ones left out. num_replicas, rank: by default those of
    ``netwright.distributed``; RuntimeError if it has not been initialised.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if num_replicas is None:
            num_replicas = world.current().size
        if rank is None:
            rank = world.current().rank
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"Invalid rank {rank}, rank should be in the interval [0, {num_replicas - 1}]"
            )
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        share = len(dataset) / num_replicas
        self.num_samples = math.floor(share) if drop_last else math.ceil(share)
        self.total_size = self.num_samples * num_replicas

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the coming iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)
        if self.shuffle:
            chosen = Generator().manual_seed((self.seed + self.epoch) % 2**64)
            order = chosen.numpy.permutation(count)
        else:
            order = np.arange(count)
        # np.resize repeats from the start, as often as it takes, or cuts.
        shared = np.resize(order, self.total_size)
        return iter(shared[self.rank :: self.num_replicas].tolist())

    def __len__(self) -> int:
        return self.num_samples
