"""Arena memory: alignment, huge pages, and blocks that are used again."""

import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from netwright.runtime import memory
from netwright.runtime.memory import ALIGN, Blocks, address, allocate


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1])
def test_memory_is_aligned_and_of_the_size_asked_for(size):
    block = allocate(size)
    assert block.dtype == np.uint8
    assert block.shape == (size,)
    assert size == 0 or address(block) % ALIGN == 0
    block[:] = 0xA5  # all of it can be written
    assert (block == 0xA5).all()


def test_large_memory_outlives_the_mapping_object():
    block = allocate(4 << 20)[1 << 20 :]
    block[:] = 7
    assert int(block[::4096].sum()) == 7 * (3 << 20) // 4096


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="Linux only")
def test_a_kernel_without_huge_pages_gives_small_ones(monkeypatch):
    class Pages(mmap.mmap):
        def madvise(self, *args):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(memory.mmap, "mmap", Pages)
    assert allocate(2 << 20).size == 2 << 20


def test_a_block_that_came_back_is_given_out_again():
    blocks = Blocks()
    first = blocks.take(1000)
    blocks.give(first)
    assert blocks.take(900) is first
    assert blocks.take(900) is not first


def test_a_block_that_is_too_small_stays_for_a_smaller_request():
    blocks = Blocks()
    small = blocks.take(100)
    blocks.give(small)
    assert blocks.take(101).size >= 101
    assert blocks.take(100) is small


def test_blocks_of_larger_batches_replace_those_of_smaller_ones():
    blocks = Blocks()
    for block in [blocks.take(64) for _ in range(10)]:
        blocks.give(block)
    large = blocks.take(1 << 16)
    blocks.give(large)
    assert blocks.take(1 << 16) is large
    assert len(blocks._free) == 3


def test_threads_never_get_the_same_block_nor_one_that_is_too_small():
    blocks = Blocks()

    def work(mark: int) -> bool:
        rng = np.random.default_rng(mark)
        for size in rng.integers(1, 4096, 500).tolist():
            block = blocks.take(size)
            if block.size < size:
                return False
            block[:] = mark
            if not (block == mark).all():
                return False
            blocks.give(block)
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
