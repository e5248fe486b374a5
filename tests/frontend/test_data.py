"""Datasets, samplers, collation and the loader."""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from netwright.errors import ShapeError, UnsupportedError
from netwright.frontend.creation import arange, from_numpy, ones, tensor, zeros
from netwright.frontend.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)
from netwright.frontend.random import Generator, manual_seed
from netwright.frontend.tensor import Tensor

Pair = namedtuple("Pair", ["x", "y"])


class Squares(Dataset[tuple[int, float]]):
    """Sample i is (i, i squared)."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __getitem__(self, index: int) -> tuple[int, float]:
        if not 0 <= index < self.n:
            raise IndexError(index)
        return index, float(index**2)

    def __len__(self) -> int:
        return self.n


class Stream(IterableDataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))

    def __len__(self) -> int:
        return self.n


def numbered(n: int) -> TensorDataset:
    return TensorDataset(arange(2 * n).reshape(n, 2), arange(n))


def seen(loader: DataLoader) -> list[int]:
    return [int(i) for batch in loader for i in batch[-1]]


def test_batches_stack_the_samples_in_order_with_a_smaller_last_one() -> None:
    loader = DataLoader(numbered(10), batch_size=4)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [tuple(x.shape) for x, _ in batches] == [(4, 2), (4, 2), (2, 2)]
    assert batches[1][0].tolist() == [[8, 9], [10, 11], [12, 13], [14, 15]]
    assert isinstance(batches[0], list)


def test_drop_last_leaves_out_the_smaller_batch() -> None:
    loader = DataLoader(numbered(10), batch_size=4, drop_last=True)
    assert len(loader) == len(list(loader)) == 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_whole_batches_equal_collated_samples(shuffle: bool) -> None:
    dataset = TensorDataset(from_numpy(np.random.default_rng(0).random((11, 3))), arange(11))
    manual_seed(3)
    fast = list(DataLoader(dataset, 4, shuffle=shuffle))
    manual_seed(3)
    slow = list(DataLoader(dataset, 4, shuffle=shuffle, collate_fn=lambda s: default_collate(s)))
    for a, b in zip(fast, slow, strict=True):
        for p, q in zip(a, b, strict=True):
            assert p.dtype is q.dtype
            np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_a_batch_does_not_share_the_datasets_memory() -> None:
    dataset = numbered(4)
    (x, _), *_ = DataLoader(dataset, 4)
    x.zero_()
    assert dataset.tensors[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_an_overridden_getitem_is_used() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
            return tuple(2 * t for t in super().__getitem__(index))

    assert seen(DataLoader(Doubled(arange(4)), 2)) == [0, 2, 4, 6]


def test_gradients_flow_through_batches_of_a_trained_tensor() -> None:
    x = ones(4, 2, requires_grad=True)
    for (batch,) in DataLoader(TensorDataset(x), 3):
        batch.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 1.0]] * 4


def test_shuffling_is_a_permutation_that_changes_and_follows_the_seed() -> None:
    loader = DataLoader(numbered(50), batch_size=8, shuffle=True)
    manual_seed(0)
    first, second = seen(loader), seen(loader)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second and first != sorted(first)
    manual_seed(0)
    assert seen(loader) == first


def test_a_generator_makes_the_order_independent_of_the_global_seed() -> None:
    def order() -> list[int]:
        chosen = Generator().manual_seed(5)
        return seen(DataLoader(numbered(20), 4, shuffle=True, generator=chosen))

    manual_seed(0)
    first = order()
    manual_seed(1)
    assert order() == first


def test_a_python_dataset_is_collated_sample_by_sample() -> None:
    (i, squares), (j, _) = DataLoader(Squares(5), batch_size=3)
    assert i.tolist() == [0, 1, 2] and str(i.dtype) == "netwright.int64"
    assert squares.tolist() == [0.0, 1.0, 4.0] and str(squares.dtype) == "netwright.float64"
    assert j.tolist() == [3, 4]


def test_a_list_is_a_dataset() -> None:
    ((batch, labels),) = DataLoader([(ones(2), 0), (zeros(2), 1)], batch_size=2)
    assert batch.tolist() == [[1, 1], [0, 0]] and labels.tolist() == [0, 1]


def test_batch_size_none_gives_samples() -> None:
    samples = list(DataLoader([np.ones(2, np.float32), np.zeros(2, np.float32)], batch_size=None))
    assert [s.tolist() for s in samples] == [[1, 1], [0, 0]]
    assert all(isinstance(s, Tensor) for s in samples)


def test_getitems_is_preferred_over_single_reads() -> None:
    class Many(Squares):
        def __getitems__(self, indices: list[int]) -> list[tuple[int, float]]:
            return [(-i, 0.0) for i in indices]

    assert next(iter(DataLoader(Many(4), 4)))[0].tolist() == [0, -1, -2, -3]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_iterable_dataset_gives_each_sample_once(workers: int) -> None:
    batches = list(DataLoader(Stream(10), batch_size=4, num_workers=workers))
    assert [b.tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    dropped = DataLoader(Stream(10), batch_size=4, num_workers=workers, drop_last=True)
    assert [len(b) for b in dropped] == [4, 4] and len(dropped) == 2
    assert list(DataLoader(Stream(3), batch_size=None, num_workers=workers)) == [0, 1, 2]
    assert [len(b) for b in DataLoader(Stream(8), batch_size=4, num_workers=workers)] == [4, 4]
    assert list(DataLoader(Stream(0), batch_size=4, num_workers=workers)) == []


def test_workers_keep_the_order_and_read_in_one_other_thread() -> None:
    threads = set()

    class Noting(Squares):
        def __getitem__(self, index: int) -> tuple[int, float]:
            threads.add(threading.current_thread())
            return super().__getitem__(index)

    started: list[int] = []
    loader = DataLoader(Noting(23), 4, num_workers=3, worker_init_fn=started.append)
    assert [int(i) for batch in loader for i in batch[0]] == list(range(23))
    assert started == [0]
    assert len(threads) == 1 and threading.current_thread() not in threads
    assert not any(t.is_alive() for t in threads)


def test_a_loop_that_stops_early_ends_the_worker() -> None:
    before = threading.active_count()
    iterator = iter(DataLoader(Squares(100), 2, num_workers=2, prefetch_factor=3))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_dataset_reaches_the_loop(workers: int) -> None:
    class Broken(Squares):
        def __getitem__(self, index: int) -> tuple[int, float]:
            if index == 5:
                raise OSError("sample 5 is damaged")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="sample 5 is damaged"):
        list(DataLoader(Broken(8), 2, num_workers=workers))


def test_samplers_choose_the_samples() -> None:
    assert seen(DataLoader(numbered(9), 2, sampler=[7, 1, 3])) == [7, 1, 3]
    assert seen(DataLoader(numbered(9), batch_sampler=[[4], [2, 0]])) == [4, 2, 0]
    subset = SubsetRandomSampler([2, 4, 6])
    assert sorted(seen(DataLoader(numbered(9), 2, sampler=subset))) == [2, 4, 6]
    batches = BatchSampler(SequentialSampler(range(5)), 2, False)
    assert list(batches) == [[0, 1], [2, 3], [4]] and len(batches) == 3


def test_random_sampler_draws_as_many_as_asked() -> None:
    assert len(list(RandomSampler(range(4), num_samples=10))) == 10
    first_round = list(RandomSampler(range(4), num_samples=10))[:4]
    assert sorted(first_round) == [0, 1, 2, 3]
    drawn = list(RandomSampler(range(3), replacement=True, num_samples=50))
    assert set(drawn) == {0, 1, 2} and len(drawn) == 50


def test_weights_of_zero_are_never_drawn() -> None:
    assert set(WeightedRandomSampler([0.0, 1.0, 3.0], 60)) == {1, 2}
    assert sorted(WeightedRandomSampler([0.0, 1.0, 3.0], 2, replacement=False)) == [1, 2]


def test_collate_follows_the_samples_structure() -> None:
    batch = default_collate(
        [
            {"x": ones(2), "n": 1, "f": 0.5, "b": True, "s": "a", "p": Pair(1, [2, np.ones(1)])},
            {"x": zeros(2), "n": 2, "f": 1, "b": False, "s": "b", "p": Pair(3, [4, np.ones(1)])},
        ]
    )
    assert batch["x"].tolist() == [[1, 1], [0, 0]]
    assert batch["n"].tolist() == [1, 2] and batch["f"].tolist() == [0.5, 1.0]
    assert batch["b"].tolist() == [True, False] and batch["s"] == ["a", "b"]
    assert isinstance(batch["p"], Pair) and batch["p"].x.tolist() == [1, 3]
    assert batch["p"].y[0].tolist() == [2, 4] and tuple(batch["p"].y[1].shape) == (2, 1)


@pytest.mark.parametrize(
    "samples",
    [
        [1, 2],
        [1.5, 2],
        [1, 2.5],
        [True, False],
        [np.float32(1), np.float32(2)],
        [np.ones(2, np.int16), np.ones(2, np.int16)],
        ["a", "b"],
        [(1, 2.0), (3, 4.0)],
        [[1, "x"], [2, "y"]],
    ],
)
def test_collated_types_equal_torchs(samples: list[Any]) -> None:
    data = pytest.importorskip("torch.utils.data")
    ours, theirs = default_collate(samples), data.default_collate(samples)

    def same(a: Any, b: Any) -> None:
        if isinstance(a, Tensor):
            assert str(a.dtype).split(".")[1] == str(b.dtype).split(".")[1]
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        elif isinstance(a, list) and not isinstance(a[0], str):
            assert type(a) is type(b)
            for p, q in zip(a, b, strict=True):
                same(p, q)
        else:
            assert list(a) == list(b)

    same(ours, theirs)


def test_big_endian_and_strided_arrays_are_collated() -> None:
    samples = [np.arange(4, dtype=">f4")[::2], np.arange(4, dtype=">f4")[::-2]]
    assert default_collate(samples).tolist() == [[0, 2], [3, 1]]


def test_samples_that_cannot_be_collated_are_errors() -> None:
    with pytest.raises(ShapeError, match=r"got \[2\] at entry 0 and \[3\] at entry 1.*collate_fn"):
        default_collate([ones(2), ones(3)])
    with pytest.raises(RuntimeError, match="equal size"):
        default_collate([(1, 2), (1,)])
    with pytest.raises(TypeError, match="NoneType"):
        default_collate([None, None])


def test_subsets_index_the_dataset_also_by_whole_batches() -> None:
    inner = Subset(numbered(10), [9, 7, 5, 3])
    outer = Subset(inner, [3, 0])
    assert len(outer) == 2
    assert [int(y) for _, y in outer] == [3, 9]
    assert seen(DataLoader(outer, 2)) == [3, 9]
    assert seen(DataLoader(Subset(Squares(9), [4, 2]), 2)) == [16, 4]


def test_concatenation_is_one_dataset() -> None:
    both = numbered(3) + numbered(4)
    assert isinstance(both, ConcatDataset) and len(both) == 7
    assert seen(DataLoader(both, 5)) == [0, 1, 2, 0, 1, 2, 3]
    assert int(both[-1][1]) == 3
    with pytest.raises(IndexError, match="7 is out of range"):
        both[7]


@pytest.mark.parametrize(("lengths", "sizes"), [([6, 4], [6, 4]), ([0.5, 0.25, 0.25], [6, 2, 2])])
def test_random_split_partitions(lengths: list[float], sizes: list[int]) -> None:
    parts = random_split(numbered(10), lengths, Generator().manual_seed(0))
    assert [len(p) for p in parts] == sizes
    assert sorted(i for p in parts for i in p.indices) == list(range(10))
    again = random_split(numbered(10), lengths, Generator().manual_seed(0))
    assert [p.indices for p in again] == [p.indices for p in parts]


def test_an_empty_part_of_a_split_warns() -> None:
    with pytest.warns(UserWarning, match="index 1 is 0"):
        random_split(numbered(2), [0.9, 0.1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DataLoader(Squares(3), batch_size=0), ValueError, "batch_size=0"),
        (lambda: DataLoader(Squares(3), batch_size=2.0), ValueError, "batch_size=2.0"),
        (lambda: DataLoader(Squares(3), num_workers=-1), ValueError, "num_workers"),
        (lambda: DataLoader(Squares(3), prefetch_factor=2), ValueError, "prefetch_factor"),
        (lambda: DataLoader(Squares(3), persistent_workers=True), ValueError, "persistent"),
        (lambda: DataLoader(Squares(3), shuffle=True, sampler=[1]), ValueError, "exclusive"),
        (
            lambda: DataLoader(Squares(3), batch_size=2, batch_sampler=[[1]]),
            ValueError,
            "exclusive",
        ),
        (lambda: DataLoader(Squares(3), batch_size=None, drop_last=True), ValueError, "drop_last"),
        (lambda: DataLoader(Stream(3), shuffle=True), ValueError, "IterableDataset.*shuffle"),
        (lambda: DataLoader(Stream(3), sampler=[1]), ValueError, "IterableDataset.*sampler"),
        (lambda: DataLoader(Squares(3), pin_memory_device="cuda"), UnsupportedError, "CPU"),
        (lambda: TensorDataset(ones(3), ones(4)), ShapeError, r"Size mismatch.*\[3\], \[4\]"),
        (lambda: TensorDataset(tensor(1.0)), ShapeError, "Size mismatch"),
        (lambda: TensorDataset(), ValueError, "at least one"),
        (lambda: ConcatDataset([]), ValueError, "empty iterable"),
        (lambda: ConcatDataset([Stream(2)]), TypeError, "IterableDataset"),
        (lambda: random_split(Squares(5), [3, 3]), ValueError, r"Sum of input.*\[3, 3\] for 5"),
        (lambda: random_split(Squares(5), [1.5, -0.5]), ValueError, "index 0 is not between"),
        (lambda: RandomSampler(range(3), num_samples=0), ValueError, "num_samples=0"),
        (lambda: WeightedRandomSampler([[1.0]], 1), ValueError, "1d"),
        (lambda: WeightedRandomSampler([0.0, 0.0], 1), ValueError, "not all zero"),
        (lambda: Dataset()[0], NotImplementedError, "__getitem__"),
    ],
)
def test_wrong_arguments_are_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_an_index_outside_the_dataset_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        list(DataLoader(numbered(3), sampler=[3]))


# -- DistributedSampler ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_distributed_shares_in_order_are_those_of_pytorch(
    count: int, replicas: int, drop_last: bool
) -> None:
    torch_data = pytest.importorskip("torch.utils.data", reason="the extra 'torch' is missing")
    for rank in range(replicas):
        arguments = {"num_replicas": replicas, "rank": rank, "drop_last": drop_last}
        own = DistributedSampler(range(count), shuffle=False, **arguments)
        reference = torch_data.DistributedSampler(range(count), shuffle=False, **arguments)
        assert list(own) == list(reference)
        assert len(own) == len(reference)


def test_distributed_shares_are_a_permutation_that_depends_on_seed_and_epoch() -> None:
    shares = [DistributedSampler(range(10), 2, rank, seed=3) for rank in range(2)]
    first = [list(s) for s in shares]
    assert sorted(first[0] + first[1]) == list(range(10))
    assert [list(s) for s in shares] == first
    for s in shares:
        s.set_epoch(1)
    assert [list(s) for s in shares] != first
    # Taken in turns, the shares are the order of one process.
    alone = DistributedSampler(range(10), 1, 0, seed=3)
    assert [i for pair in zip(*first, strict=True) for i in pair] == list(alone)


def test_a_distributed_sampler_needs_to_know_its_rank() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        DistributedSampler(range(4))
    with pytest.raises(ValueError, match="Invalid rank 2, rank should be in the interval"):
        DistributedSampler(range(4), num_replicas=2, rank=2)
