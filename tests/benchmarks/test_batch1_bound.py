"""benchmarks/batch1_bound.py: the loops read what they say, and the least time has all parts."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from netwright import nn
from netwright.runtime import pool

Load = Callable[[str], ModuleType]
needs_threads = pytest.mark.skipif(not pool.available(), reason="no thread pool here")


def test_the_parts_of_the_least_time_belong_to_the_model(program: Load) -> None:
    bound = program("batch1_bound")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5))
    found = bound.least(model, 1e-6, 100.0, 1, 0.01)
    assert found["weight_bytes"] == 4 * 8 * 5
    assert found["convolution_flop"] == pytest.approx(1e3 - 2 * 8 * 5)
    assert found["us"] == pytest.approx(sum(found["parts_us"].values()))
    assert found["parts_us"]["reading"] == min(found["reading_us"].values()) > 0


@needs_threads
@pytest.mark.parametrize("threads", [1, 2])
def test_loops_run_with_the_threads_that_are_asked_for(program: Load, threads: int) -> None:
    bound = program("batch1_bound")
    readers = bound.readers(100_000, threads)
    assert list(readers) == list(bound.ORDERS)
    for read in readers.values():
        read()
    assert pool.shared.threads >= threads
