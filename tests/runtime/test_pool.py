"""The thread pool: work is done once, waits hold, and nothing can deadlock or crash; nobody waits
for a thread that is not working."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from netwright.codegen.llvm import assembly, module_text
from netwright.codegen.sharing import close_entry, entry_function, shared
from netwright.codegen.spmd import SHARING_DECLARATIONS, SHARING_IR
from netwright.codegen.target import AVX2, NEON
from netwright.codegen.text import Function
from netwright.runtime import jit, placement, pool, settings, team

needs_pool = pytest.mark.skipif(not pool.available(), reason="no native threads here")
SLOTS = 64
GO, COME = 40, 41  # slots that `linger_text` uses


def module(entry: Function) -> str:
    text = close_entry(entry)
    return module_text([SHARING_IR, text], entry.declarations | SHARING_DECLARATIONS)


def count(fn: Function, task: str) -> str:
    """Adds 1 to the slot of a task, not atomically; the new value."""
    slot = fn.element("%args", "i64", task)
    value = fn.emit(f"add i64 {fn.load('i64', slot, 8)}, 1")
    fn.store("i64", value, slot, 8)
    return value


def rounds_text() -> str:
    """N times: each thread's part counts in a slot of its own; wait; each compares its neighbour's
    slot with its own, and counts differences in the last one; wait."""
    fn = entry_function("rounds")
    with fn.loop("%N"):
        with shared(fn, "%nthreads") as (begin, end), fn.loop(end, start=begin) as task:
            count(fn, task.index)
        fn.do("call void @nw_arrive(ptr %ticket)")
        with shared(fn, "%nthreads") as (begin, end), fn.loop(end, start=begin) as task:
            following = fn.emit(f"add i64 {task.index}, 1")
            neighbour = fn.emit(f"urem i64 {following}, %nthreads")
            values = [
                fn.load("i64", fn.element("%args", "i64", k), 8) for k in (task.index, neighbour)
            ]
            wrong = fn.emit(f"icmp ne i64 {values[0]}, {values[1]}")
            with fn.when(wrong):
                fn.do(f"atomicrmw add ptr {fn.element('%args', 'i64', SLOTS)}, i64 1 seq_cst")
        fn.do("call void @nw_arrive(ptr %ticket)")
    return module(fn)


def tasks_text(cuts: int) -> str:
    """Counts each of N tasks in a slot of its own, in three rounds; the second does not wait, so
    that two threads may be in one slot."""
    fn = entry_function("tasks")
    for first in (True, False, True):
        with shared(fn, "%N", cuts, first) as (begin, end), fn.loop(end, start=begin) as task:
            slot = fn.element("%args", "i64", task.index)
            fn.emit(f"atomicrmw add ptr {slot}, i64 1 monotonic")
        if not first:
            fn.do("call void @nw_arrive(ptr %ticket)")
    return module(fn)


def linger_text() -> str:
    """Counts N tasks like `tasks_text`; but all threads except the caller first set slot COME and
    then stay where they are, holding nothing, until slot GO is set."""
    fn = entry_function("linger")
    come, go = (fn.element("%args", "i64", k) for k in (COME, GO))
    helps = fn.emit("icmp ne i64 %tid, 0")
    with fn.when(helps):
        fn.do(f"store atomic i64 1, ptr {come} seq_cst, align 8")
        fn.do("br label %look")
        fn.label("look")
        flag = fn.emit(f"load atomic i64, ptr {go} seq_cst, align 8")
        stay = fn.emit(f"icmp eq i64 {flag}, 0")
        fn.do(f"br i1 {stay}, label %look, label %leave")
        fn.label("leave")
    with shared(fn, "%N", 2) as (begin, end), fn.loop(end, start=begin) as task:
        count(fn, task.index)
    return module(fn)


# Sets flag 0, then looks at flag 1 until it is set or N looks were in vain; flag 2 tells which.
WAIT_FOR_FLAG = """\
define void @wait_for_flag(ptr %args, i64 %N, i64 %tid, i64 %nthreads, ptr %ticket) {
entry:
  %asked = getelementptr i64, ptr %args, i64 1
  %seen = getelementptr i64, ptr %args, i64 2
  store atomic i64 1, ptr %args seq_cst, align 8
  br label %look
look:
  %i = phi i64 [0, %entry], [%after, %look]
  %after = add i64 %i, 1
  %flag = load atomic i64, ptr %asked seq_cst, align 8
  %set = icmp ne i64 %flag, 0
  %late = icmp sge i64 %after, %N
  %stop = or i1 %set, %late
  br i1 %stop, label %done, label %look
done:
  store i64 %flag, ptr %seen
  ret void
}
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_suspensions(patient):
    """All threads take part, however busy the machine is."""


@pytest.fixture(scope="module")
def rounds(own_cache):
    library = jit.load(rounds_text())
    yield library.address("rounds")
    del library


def counts() -> np.ndarray:
    return np.zeros(SLOTS + 1, np.int64)


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    """Runs ``body`` in a new process in which ``entry`` and ``call(nthreads)`` are ready."""
    prelude = (
        "import os, sys, threading, time\n"
        "import numpy as np\n"
        "from netwright.runtime import jit, placement, pool, settings, team\n"
        "team.PATIENCE_SECONDS = 1e5\n"
        "library = jit.load(sys.argv[1]); entry = library.address('rounds')\n"
        "def call(nthreads, n=3):\n"
        "    slots = np.zeros(65, np.int64)\n"
        "    ran = pool.run(entry, slots.ctypes.data, n, nthreads)\n"
        "    assert slots[:ran].tolist() == [n] * ran and slots[ran:].sum() == 0\n"
        "    return ran\n"
    )
    command = [sys.executable, "-c", prelude + body, rounds_text()]
    env = {k: v for k, v in os.environ.items() if k != settings.NUM_THREADS}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_part_is_done_once_and_waits_separate_the_rounds(rounds, threads):
    slots = counts()
    ran = 0
    for dispatch in range(300):
        ran = pool.run(rounds, slots.ctypes.data, 2, threads)
        assert slots[:ran].tolist() == [2 * (dispatch + 1)] * ran
    assert slots[ran:].sum() == 0
    assert ran == (threads if pool.available() else 1)


@pytest.mark.parametrize("cuts", [0, 1, 2, 4])
def test_every_task_is_done_once(cuts):
    library = jit.load(tasks_text(cuts))
    for threads in (1, 2, 3, 4, 5):
        for tasks in (0, 1, 2, 3, 7, 16, 37):
            slots = counts()
            for _ in range(20):
                pool.run(library.address("tasks"), slots.ctypes.data, tasks, threads)
            assert slots[:tasks].tolist() == [3 * 20] * tasks
            assert not slots[tasks:].any()


def slow_text() -> str:
    """One chunk for each thread. The caller's takes until slot COME is set by another thread's,
    which takes until slot GO is set."""
    fn = entry_function("slow")
    come, go = (fn.element("%args", "i64", k) for k in (COME, GO))
    caller = fn.emit("icmp eq i64 %tid, 0")
    awaited = fn.emit(f"select i1 {caller}, ptr {come}, ptr {go}")
    with shared(fn, "%nthreads") as (begin, _):
        helps = fn.emit(f"xor i1 {caller}, true")
        with fn.when(helps):
            fn.do(f"store atomic i64 1, ptr {come} seq_cst, align 8")
        fn.do("br label %look")
        fn.label("look")
        flag = fn.emit(f"load atomic i64, ptr {awaited} seq_cst, align 8")
        stay = fn.emit(f"icmp eq i64 {flag}, 0")
        fn.do(f"br i1 {stay}, label %look, label %leave")
        fn.label("leave")
        count(fn, begin)
    return module(fn)


class Lingering:
    """A pool whose worker is in an old job that is done, and stays there until `release`."""

    def __init__(self, library: jit.Library, tasks: int = 10) -> None:
        self.pool = pool.Pool()
        self.slots = counts()
        self.tasks = tasks
        entry = library.address("linger")
        while not self.slots[COME]:  # the worker may come when all is done, and find no job
            self.slots[:tasks] = 0
            assert self.pool.run(entry, self.slots.ctypes.data, tasks, 2) == 2
            assert self.is_done()
            time.sleep(0.01)

    def is_done(self) -> bool:
        return bool((self.slots[: self.tasks] == 1).all())

    def release(self) -> None:
        self.slots[GO] = 1
        assert self.pool.quiesce(timeout=30)


@pytest.fixture
def linger(own_cache):
    """``linger(library)``: a Lingering, which is released after the test whatever happens."""
    made: list[Lingering] = []

    def make(library: jit.Library) -> Lingering:
        made.append(Lingering(library))
        return made[-1]

    yield make
    for one in made:
        one.release()
        one.pool.close()


@pytest.fixture
def lingering(linger):
    return linger(jit.load(linger_text()))


@needs_pool
def test_the_caller_does_not_wait_for_a_worker_that_holds_nothing(lingering, rounds):
    slots = counts()
    for _ in range(100):
        assert lingering.pool.run(rounds, slots.ctypes.data, 3, 2) == 2
    assert slots[:2].tolist() == [300, 300] and not slots[2:].any()


@needs_pool
def test_a_late_worker_touches_neither_its_own_job_nor_later_ones(lingering, rounds):
    slots = counts()
    for _ in range(10):
        lingering.pool.run(rounds, slots.ctypes.data, 3, 2)
    lingering.slots[GO] = 1
    for _ in range(1000):  # the worker comes along into one of these
        lingering.pool.run(rounds, slots.ctypes.data, 1, 2)
    lingering.release()
    assert slots[:2].tolist() == [1030, 1030] and not slots[2:].any()
    assert lingering.is_done()


@needs_pool
def test_a_pool_is_quiet_once_no_worker_is_inside_of_a_program(lingering, rounds):
    assert not lingering.pool.quiesce(timeout=0.01)
    lingering.slots[GO] = 1
    assert lingering.pool.quiesce(timeout=30)
    slots = counts()
    assert lingering.pool.run(rounds, slots.ctypes.data, 1, 2) == 2  # and works as before
    assert slots[:2].tolist() == [1, 1]


class Kept:
    pass


@needs_pool
def test_what_is_retired_is_dropped_when_the_last_worker_has_left(lingering):
    kept = Kept()
    gone = weakref.ref(kept)
    pool.retire(kept)
    del kept
    gc.collect()
    assert gone() is not None
    pool.retire(Kept())
    assert gone() is not None
    lingering.release()
    assert pool.quiesce(timeout=30)
    assert gone() is None


@needs_pool
def test_retiring_never_waits_for_a_busy_pool_and_is_made_up_for_later(rounds):
    own = pool.Pool()
    assert own.run(rounds, counts().ctypes.data, 1, 2) == 2
    kept = Kept()
    gone = weakref.ref(kept)
    with own._lock:  # as when a call of this very thread is interrupted by the garbage collector
        pool.retire(kept)
        del kept
        assert gone() is not None
    for _ in range(200):  # calls look from time to time
        own.run(rounds, counts().ctypes.data, 1, 2)
    pool.quiesce()
    assert gone() is None
    own.close()


@needs_pool
def test_code_is_unloaded_only_when_the_last_worker_has_left_it(linger):
    library = jit.load(linger_text())
    made = linger(library)
    tracker = weakref.ref(library._tracker)
    del library
    gc.collect()
    assert tracker() is not None
    made.release()
    assert pool.quiesce(timeout=30)
    assert tracker() is None
    assert made.is_done()


@needs_pool
def test_code_may_be_dropped_right_after_it_ran():
    for _ in range(30):  # linked again each time, from the cache
        library = jit.load(tasks_text(1))
        slots = counts()
        for _ in range(5):
            pool.run(library.address("tasks"), slots.ctypes.data, 7, 3)
        assert slots[:7].tolist() == [15] * 7
        del library
    assert pool.quiesce(timeout=30)


def test_the_number_of_threads_may_change_with_every_call(rounds):
    rng = np.random.default_rng(0)
    for threads in rng.integers(1, 5, 500):
        slots = counts()
        ran = pool.run(rounds, slots.ctypes.data, 1, int(threads))
        assert slots[:ran].tolist() == [1] * ran
        assert slots[ran:].sum() == 0


@needs_pool
def test_sleeping_workers_wake_up(rounds):
    for _ in range(20):
        slots = counts()
        time.sleep(0.002)  # longer than a worker spins
        assert pool.run(rounds, slots.ctypes.data, 1, 2) == 2
        assert slots[:2].tolist() == [1, 1]


def test_one_thread_starts_no_pool(rounds):
    own = pool.Pool()
    slots = counts()
    assert own.run(rounds, slots.ctypes.data, 4, 1) == 1
    assert slots[0] == 4
    assert own.threads == 1
    assert own._team is None


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_a_senseless_number_of_threads_is_an_error(rounds, threads):
    with pytest.raises(ValueError, match="from 1 to 1024"):
        pool.run(rounds, None, 0, threads)


def test_the_default_number_of_threads_is_the_setting(rounds):
    settings.set_num_threads(2)
    try:
        assert pool.run(rounds, counts().ctypes.data, 1) == (2 if pool.available() else 1)
    finally:
        settings.set_num_threads(None)


def test_several_python_threads_call_at_once(rounds):
    def work(_: int) -> int:
        for _ in range(200):
            slots = counts()
            ran = pool.run(rounds, slots.ctypes.data, 2, 2)
            assert slots[:ran].tolist() == [2] * ran
            assert slots[ran:].sum() == 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 8


@needs_pool
def test_a_busy_pool_runs_the_caller_alone(rounds):
    with pool.shared._lock:
        slots = counts()
        assert pool.run(rounds, slots.ctypes.data, 1, 2) == 1
        assert slots[:2].tolist() == [1, 0]
        assert not pool.shared.close(timeout=0.01)


@needs_pool
def test_a_closed_pool_starts_again(rounds):
    own = pool.Pool()
    for _ in range(5):
        assert own.run(rounds, counts().ctypes.data, 1, 3) == 3
        assert own.threads == 3
        assert own.close()
        assert own.threads == 1
    assert own.close()


@needs_pool
def test_a_pool_is_kept_alive_as_long_as_its_workers_are(rounds):
    own = pool.Pool()
    own.run(rounds, counts().ctypes.data, 1, 2)
    assert own in pool._started
    own.close()
    assert own not in pool._started


@needs_pool
def test_when_threads_cannot_be_started_the_program_runs_with_those_there_are(rounds, monkeypatch):
    class Libc:
        def pthread_create(self, *args: object) -> int:
            return 11  # EAGAIN

    own = pool.Pool()
    with monkeypatch.context() as patch:
        patch.setattr(team, "libc", Libc)
        with pytest.warns(RuntimeWarning, match=r"cannot start thread 2 of 3.*ulimit"):
            assert own.run(rounds, counts().ctypes.data, 1, 3) == 1
        assert own.run(rounds, counts().ctypes.data, 1, 3) == 1  # said once
    assert own.close()


def test_without_native_threads_everything_runs_on_the_caller(rounds, monkeypatch):
    monkeypatch.setattr(pool, "available", lambda: False)
    own = pool.Pool()
    slots = counts()
    assert own.run(rounds, slots.ctypes.data, 3, 4) == 1
    assert slots[0] == 3


def test_the_gil_is_free_while_native_code_runs():
    library = jit.load(WAIT_FOR_FLAG)
    flags = np.zeros(3, np.int64)

    def answer() -> None:
        while not flags[0]:
            time.sleep(0.001)
        flags[1] = 1

    thread = threading.Thread(target=answer)
    thread.start()
    pool.run(library.address("wait_for_flag"), flags.ctypes.data, 10**10, 1)
    thread.join()
    assert flags.tolist() == [1, 1, 1]


@needs_pool
@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="POSIX signals")
def test_signals_reach_python_although_there_are_workers(rounds):
    pool.run(rounds, counts().ctypes.data, 1, 2)
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == [signal.SIGUSR1]
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@needs_pool
def test_a_child_of_a_fork_starts_its_own_workers():
    run = run_script(
        "assert call(2) == 2\n"
        "children = []\n"
        "for _ in range(3):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if call(2) == 2 and call(3) == 3 else 1)\n"
        "    children.append(child)\n"
        "    assert call(2) == 2\n"
        "codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]\n"
        "assert codes == [0, 0, 0], codes\n"
    )
    assert run.returncode == 0, run.stderr


@needs_pool
def test_a_fork_while_another_thread_uses_the_pool_leaves_the_child_working():
    run = run_script(
        "stop = threading.Event()\n"
        "def work():\n"
        "    while not stop.is_set(): call(2, 50)\n"
        "thread = threading.Thread(target=work); thread.start()\n"
        "codes = []\n"
        "for _ in range(10):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if call(2) == 2 else 1)\n"
        "    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "stop.set(); thread.join()\n"
        "assert codes == [0] * 10, codes\n"
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(0)", "del library, entry", "time.sleep(0.01)", "pool.shared.close()"],
)
def test_the_interpreter_exits_cleanly_with_a_pool(ending):
    run = run_script(f"call(2); call(3)\n{ending}\n")
    assert (run.returncode, run.stderr) == (0, "")


def test_the_interpreter_exits_while_a_daemon_thread_is_in_the_pool():
    run = run_script(
        "def work():\n"
        "    while True: call(2, 1000)\n"
        "for _ in range(2): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.05)\n"
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_pinned_to_one_cpu_uses_one_thread_but_can_be_asked_for_more():
    run = run_script(
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "assert settings.num_threads() == 1\n"
        "assert call(None) == 1\n"
        "for _ in range(50): assert call(2) == (2 if pool.available() else 1)\n"
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("target", [AVX2, NEON], ids=lambda t: t.name)
def test_the_native_half_compiles_for_other_machines(target):
    text = assembly(team.team_ir(target.triple), target)
    assert ("pause" in text) == (target is AVX2)
    assert ("yield" in text) == (target is NEON)


@needs_pool
def test_a_worker_that_costs_more_time_than_it_saves_is_suspended_for_a_while(
    rounds, own_cache, monkeypatch
):
    monkeypatch.setattr(team, "PATIENCE_SECONDS", 1e-3)
    library, own = jit.load(slow_text()), pool.Pool()

    def stall() -> None:
        slots = counts()

        def release() -> None:
            while not slots[COME]:
                time.sleep(0.001)
            time.sleep(0.2)
            slots[GO] = 1

        thread = threading.Thread(target=release)
        thread.start()
        assert own.run(library.address("slow"), slots.ctypes.data, 1, 2) == 2
        thread.join()

    stall()  # once is nothing
    slots = counts()
    assert own.run(rounds, slots.ctypes.data, 1, 2) == 2
    stall()
    assert own.run(rounds, slots.ctypes.data, 1, 2) == 1
    assert slots[:2].tolist() == [2, 1]
    while own.run(rounds, slots.ctypes.data, 1, 2) == 1:
        time.sleep(0.01)  # it comes back
    own.close()


@needs_pool
def test_workers_are_moved_off_the_callers_cpu_and_get_all_cpus_back_when_they_are_many():
    run = run_script(
        "def masks():\n"
        "    own = threading.get_native_id()\n"
        "    return [os.sched_getaffinity(int(t)) for t in os.listdir('/proc/self/task')\n"
        "            if int(t) != own]\n"
        "def look(): pool.shared._team and pool.shared._team.placement.forget()\n"
        "cpus = os.sched_getaffinity(0)\n"
        "before = masks()\n"
        "if min(len(cpus), settings.available_cpus()) > 1:\n"
        "    cpu = min(cpus)\n"
        "    placement.current_cpu = lambda: cpu\n"
        "    look(); assert call(2) == 2\n"
        "    assert before + [cpus - {cpu}] == masks(), masks()\n"
        "    cpu = max(cpus)\n"
        "    look(); assert call(2) == 2\n"
        "    assert before + [cpus - {cpu}] == masks(), masks()\n"
        "many = settings.available_cpus() + 1\n"
        "assert call(many) == many\n"
        "assert before + [cpus] * (many - 1) == masks(), masks()\n"
    )
    assert run.returncode == 0, run.stderr


@needs_pool
def test_where_threads_cannot_be_placed_the_pool_works(rounds, monkeypatch):
    monkeypatch.setattr(placement, "_libc", lambda: None)
    own = pool.Pool()
    assert own.run(rounds, counts().ctypes.data, 1, 2) == 2
    assert own.close()
