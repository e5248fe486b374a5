"""Which CPUs workers may use: not the caller's, if there are enough of them."""

import pytest

from netwright.runtime import placement
from netwright.runtime.placement import Placement, choose


@pytest.mark.parametrize(
    ("caller", "allowed", "workers", "available", "wanted"),
    [
        (0, {0, 1}, 1, 2, [{1}]),
        (2, {0, 1, 2, 3}, 3, 4, [{0, 1, 3}] * 3),
        (2, {0, 1, 2, 3}, 2, 4, [{0, 1, 3}] * 2),
        (0, {0}, 1, 1, [{0}]),
        (0, {0, 1}, 2, 2, [{0, 1}] * 2),
        (0, {0, 1, 2, 3}, 3, 2, [{0, 1, 2, 3}] * 3),
        (7, {0, 1}, 1, 2, [{0, 1}]),
    ],
    ids=["two", "one each", "spare", "one CPU", "crowded", "quota", "caller moved"],
)
def test_workers_keep_off_the_callers_cpu_if_there_are_enough(
    caller, allowed, workers, available, wanted
):
    assert choose(caller, allowed, workers, available) == wanted


@pytest.fixture
def looks(monkeypatch):
    """The CPUs that `Placement` asks for, without threads that it could move."""
    asked: list[int] = []

    def current_cpu() -> int:
        asked.append(len(asked))
        return 0

    monkeypatch.setattr(placement, "current_cpu", current_cpu)
    return asked


def test_the_callers_cpu_is_looked_up_in_few_calls_only(looks, monkeypatch):
    monkeypatch.setattr(placement, "LOOK_SECONDS", 1e9)
    chosen = Placement([])
    found = [chosen.check() for _ in range(2 * placement.LOOK_CALLS + 1)]
    assert [k for k, looked in enumerate(found) if looked] == [
        0, placement.LOOK_CALLS, 2 * placement.LOOK_CALLS
    ]  # fmt: skip
    assert len(looks) == 3


def test_after_some_time_and_for_new_threads_it_is_looked_up_at_once(looks, monkeypatch):
    monkeypatch.setattr(placement, "LOOK_SECONDS", 1e9)
    chosen = Placement([])
    assert chosen.check() and not chosen.check()
    chosen.forget()
    assert chosen.check() and not chosen.check()
    monkeypatch.setattr(placement, "LOOK_SECONDS", 0)
    chosen = Placement([])
    assert chosen.check() and chosen.check()
