"""The protocol by which threads share work, one step at a time: every chunk is done once, whatever
the order of the steps, and a thread that comes late changes nothing.

The threads are simulated: their steps are calls of the native functions in an order drawn by the
test, each with a ticket of its own on the same team.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from netwright.codegen import spmd, waiting
from netwright.codegen.chunks import HALVINGS, TAPERED
from netwright.codegen.llvm import assembly, module_text
from netwright.codegen.target import AVX2, NEON, host

needs_threads = pytest.mark.skipif(
    not waiting.threads_supported(waiting.host_triple()), reason="no native threads here"
)
MANY = 8


class _Range(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_int64), ("end", ctypes.c_int64))


@dataclass
class Team:
    """The shared memory of up to MANY threads, and the native functions."""

    call: dict[str, Callable[..., object]]
    memory: np.ndarray = field(
        default_factory=lambda: np.zeros(spmd.team_bytes(MANY) // 8 + 8, np.int64)
    )

    def __post_init__(self) -> None:
        skip = -self.memory.ctypes.data % 64 // 8
        self.words = self.memory[skip:]

    @property
    def done(self) -> int:
        return int(self.words[0])

    def suspend(self, tid: int, until: int) -> None:
        self.words[(spmd.TEAM_LINES + 64 * tid + spmd.SUSPENDED) // 8] = until

    def thread(self, tid: int, nthreads: int, first: int) -> Thread:
        return Thread(self, tid, nthreads, first)


class Thread:
    """A thread in a job that began when ``first`` chunks were done."""

    def __init__(self, team: Team, tid: int, nthreads: int, first: int) -> None:
        self.team, self.tid = team, tid
        self.ticket = np.zeros(spmd.TICKET_WORDS, np.int64)
        self.address = self.ticket.ctypes.data
        team.call["nw_ticket"](self.address, team.words.ctypes.data, tid, nthreads, first)

    def begin(self, tasks: int, cuts: int, single: int = 0) -> None:
        self.team.call["nw_round"](self.address, tasks, cuts, single)

    def claim(self) -> tuple[int, int] | None:
        found = self.team.call["nw_claim"](self.address)
        assert isinstance(found, _Range)
        return None if found.begin < 0 else (found.begin, found.end)

    def finish(self) -> None:
        self.team.call["nw_finish"](self.address)

    @property
    def target(self) -> int:
        """How many chunks must be done before this thread goes on after a wait."""
        return int(self.ticket[spmd._FIELDS.index("end")])

    @property
    def left(self) -> bool:
        return bool(self.ticket[spmd.TICKET_LEFT // 8])


@pytest.fixture
def team(link: Callable[..., int]) -> Team:
    text = module_text(
        [spmd.sharing_ir(waiting.host_triple()), spmd.ticket_ir()],
        spmd.declarations(waiting.host_triple()),
    )
    word, address = ctypes.c_int64, ctypes.c_void_p
    types = {
        "nw_ticket": (None, address, address, word, word, word),
        "nw_round": (None, address, word, word, word),
        "nw_claim": (_Range, address),
        "nw_finish": (None, address),
        "nw_arrive": (None, address),
        "nw_stop": (None, address, word),
    }
    return Team({n: ctypes.CFUNCTYPE(*t)(link(text, n)) for n, t in types.items()})


@dataclass(frozen=True)
class Round:
    tasks: int
    cuts: int
    single: int = 0
    wait: bool = True
    """Whether threads wait for all earlier work first."""


def steps(
    thread: Thread, rounds: list[Round], log: list[list[int]], goes_on: bool = True
) -> Iterator[None]:
    """What a thread does in a job, one step after the other; ``log`` counts how often each task of
    each round was done. The job ends unfinished if it does not go on."""
    for number, work in enumerate(rounds):
        if work.wait:
            while thread.team.done < thread.target:
                yield
            if goes_on:  # nothing is ever missing behind a wait
                assert all(all(earlier) for earlier in log[:number])
        thread.begin(work.tasks, work.cuts, work.single)
        yield
        while (chunk := thread.claim()) is not None:
            yield
            for task in range(*chunk):
                log[number][task] += 1
            yield
            thread.finish()
            yield
    while thread.tid == 0 and thread.team.done < thread.target:
        yield


def play(rng: np.random.Generator, running: list[Iterator[None]]) -> None:
    """Takes steps of threads in random order until the first, the caller, is through."""
    while True:
        # Bursts: a thread may run alone for long, or stand still.
        which = int(rng.integers(len(running)))
        for _ in range(int(rng.integers(1, 12))):
            if next(running[which], self_done) is self_done:
                if which == 0:
                    return
                break


self_done = object()


def random_job(rng: np.random.Generator) -> list[Round]:
    return [
        Round(
            int(rng.choice([0, 1, 2, 3, 5, 7, 16, 37, 240])),
            int(rng.choice([0, 1, 2, 4, TAPERED + 1, TAPERED + 2, TAPERED + 4])),
            int(rng.integers(2)),
            bool(rng.integers(3)),
        )
        for _ in range(rng.integers(1, 6))
    ]


@needs_threads
@pytest.mark.parametrize("seed", range(40))
def test_every_task_is_done_once_in_any_order_of_steps_and_late_threads_change_nothing(
    team: Team, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    late: list[Iterator[None]] = []
    logs: list[list[list[int]]] = []
    for _ in range(25):
        rounds = random_job(rng)
        logs.append([[0] * r.tasks for r in rounds])
        nthreads = int(rng.integers(2, MANY + 1))
        first = team.done
        threads = [team.thread(k, nthreads, first) for k in range(nthreads)]
        running = [steps(t, rounds, logs[-1]) for t in threads]
        awake = running[: int(rng.integers(1, nthreads + 1))]
        play(rng, [*awake, *late])
        # Those who have not left come along into later jobs, or wake up there.
        late = [*late, *running[1:]][-10:]
        assert all(count == 1 for log in logs for tasks in log for count in tasks)
        assert team.done == threads[0].target


@needs_threads
@pytest.mark.parametrize("nthreads", [2, 3, 5])
@pytest.mark.parametrize("cuts", [1, 2, 4])
@pytest.mark.parametrize("tasks", [2, 7, 20, 37])
def test_chunks_cover_the_tasks_and_everybody_has_the_same_part(
    team: Team, nthreads: int, cuts: int, tasks: int
) -> None:
    threads = [team.thread(k, nthreads, 0) for k in range(nthreads)]
    found: list[list[tuple[int, int]]] = [[] for _ in threads]
    per = cuts if tasks >= cuts * nthreads else 1
    for thread in threads:
        thread.begin(tasks, cuts)
    for _ in range(per):
        for chunks, thread in zip(found, threads, strict=True):
            chunk = thread.claim()
            assert chunk is not None
            chunks.append(chunk)
    assert [t.claim() for t in threads] == [None] * nthreads
    line = [chunk for chunks in found for chunk in chunks]
    assert [begin for begin, _ in line] == [0, *(end for _, end in line[:-1])]
    assert line[-1][1] == tasks
    sizes = [end - begin for begin, end in line]
    assert max(sizes) - min(sizes) <= 1


@needs_threads
@pytest.mark.parametrize("nthreads", [2, 3, 5])
@pytest.mark.parametrize("cuts", [1, 2, 4])
def test_a_tapered_part_ends_in_small_chunks(team: Team, nthreads: int, cuts: int) -> None:
    tasks = 240
    threads = [team.thread(k, nthreads, 0) for k in range(nthreads)]
    for thread in threads:
        thread.begin(tasks, TAPERED + cuts)
    line = []
    for thread in threads:
        sizes = []
        for _ in range(cuts + HALVINGS):
            chunk = thread.claim()
            assert chunk is not None
            line.append(chunk)
            sizes.append(chunk[1] - chunk[0])
        equal = tasks / nthreads / cuts
        halves = [equal / 2 ** (k + 1) for k in range(HALVINGS)]
        wanted = [*[equal] * (cuts - 1), *halves, halves[-1]]
        assert all(abs(s - w) < 2 for s, w in zip(sizes, wanted, strict=True))
    assert [begin for begin, _ in line] == [0, *(end for _, end in line[:-1])]
    assert line[-1][1] == tasks
    assert [t.claim() for t in threads] == [None] * nthreads


@needs_threads
def test_the_other_takes_the_small_chunks_first(team: Team) -> None:
    one, two = (team.thread(k, 2, 0) for k in range(2))
    for thread in (one, two):
        thread.begin(64, TAPERED + 1)
    assert [two.claim() for _ in range(4)] == [(32, 48), (48, 56), (56, 60), (60, 64)]
    assert two.claim() == (28, 32)
    assert one.claim() == (0, 16)


@needs_threads
def test_few_tasks_are_not_tapered(team: Team) -> None:
    one, two = (team.thread(k, 2, 0) for k in range(2))
    for thread in (one, two):
        thread.begin(8, TAPERED + 2)
    assert [one.claim() for _ in range(2)] == [(0, 2), (2, 4)]
    assert [two.claim() for _ in range(2)] == [(4, 6), (6, 8)]
    assert one.claim() is two.claim() is None


@needs_threads
def test_who_has_done_its_part_takes_from_the_far_end_of_the_others(team: Team) -> None:
    one, two = (team.thread(k, 2, 0) for k in range(2))
    for thread in (one, two):
        thread.begin(8, 4)
    assert [one.claim() for _ in range(4)] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert one.claim() == (7, 8)
    assert two.claim() == (4, 5)
    assert one.claim() == (6, 7)
    assert two.claim() == (5, 6)
    assert one.claim() is two.claim() is None


@needs_threads
@pytest.mark.parametrize(("tasks", "cuts"), [(100, 0), (1, 4), (0, 1)])
def test_a_round_of_one_chunk_is_the_callers_or_anybodys(team: Team, tasks: int, cuts: int) -> None:
    one, two = (team.thread(k, 2, 0) for k in range(2))
    one.begin(tasks, cuts, 0)
    two.begin(tasks, cuts, 0)
    assert two.claim() is None
    assert one.claim() == (0, tasks)
    assert one.claim() is None
    two.begin(tasks, cuts, 1)
    one.begin(tasks, cuts, 1)
    assert two.claim() == (0, tasks)
    assert two.claim() is one.claim() is None


@needs_threads
def test_a_thread_that_misses_the_reason_to_stop_claims_nothing(team: Team) -> None:
    rounds = [Round(7, 2), Round(200, TAPERED + 4, wait=False), Round(1, 1), Round(5, 4)]
    one, two = (team.thread(k, 2, 0) for k in range(2))
    for thread in (one, two):
        thread.begin(4, 1)
    while one.claim() is not None:
        one.finish()
    team.call["nw_stop"](two.address, len(rounds))  # not its business
    assert team.done == two.target
    team.call["nw_stop"](one.address, len(rounds))
    # The next job is at work when the other thread goes on in the old one.
    log = [[0] * r.tasks for r in rounds]
    caller, helper = (team.thread(k, 2, team.done) for k in range(2))
    running = [steps(t, rounds, log) for t in (caller, helper)]
    unwanted = [[0] * r.tasks for r in rounds]
    stale = steps(two, rounds, unwanted, goes_on=False)
    play(np.random.default_rng(0), [*running, stale])
    assert all(count == 1 for tasks in log for count in tasks)
    assert not any(count for tasks in unwanted for count in tasks)
    for _ in stale:  # it comes to an end
        pass
    assert not any(count for tasks in unwanted for count in tasks)


@needs_threads
def test_a_suspended_thread_leaves_the_job_and_comes_back_when_its_time_is_over(
    team: Team,
) -> None:
    one, two = (team.thread(k, 2, 0) for k in range(2))
    one.begin(8, 2)
    two.begin(8, 2)
    team.suspend(1, 2**62)
    assert two.claim() is None and two.left
    team.call["nw_arrive"](two.address)  # returns although nothing is done
    assert [one.claim() for _ in range(4)] == [(0, 2), (2, 4), (6, 8), (4, 6)]
    team.suspend(1, 1)
    assert two.claim() is None and two.left  # not in the same job
    for _ in range(4):
        one.finish()
    again = team.thread(1, 2, team.done)
    again.begin(8, 2)
    assert again.claim() == (4, 6) and not again.left


@needs_threads
def test_a_suspension_does_not_hold_for_the_caller(team: Team) -> None:
    team.suspend(0, 2**62)
    one = team.thread(0, 2, 0)
    one.begin(8, 1)
    assert one.claim() == (0, 4) and one.claim() == (4, 8)


@pytest.mark.parametrize("target", [AVX2, NEON], ids=lambda t: t.name)
def test_it_compiles_for_other_machines(target):
    text = module_text([spmd.sharing_ir(target.triple)], spmd.declarations(target.triple))
    code = assembly(text.replace("define internal", "define"), target)
    assert ("pause" in code) == (target is AVX2)
    assert ("yield" in code) == (target is NEON)


def test_the_constant_is_the_one_for_this_machine():
    assert spmd.sharing_ir(waiting.host_triple()) == spmd.SHARING_IR
    here, there = waiting.host_triple(), host().triple
    assert waiting.threads_supported(here) == waiting.threads_supported(there)


def test_where_threads_are_not_supported_nothing_is_shared():
    for triple in ("x86_64-apple-darwin", "x86_64-pc-windows-msvc", "riscv64-unknown-linux-gnu"):
        assert not waiting.threads_supported(triple)
        assert "call" not in spmd.sharing_ir(triple)
        assert spmd.declarations(triple) == frozenset()
