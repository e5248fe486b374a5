"""The thread pool: every thread runs, barriers hold, and nothing can deadlock or crash."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from netwright.codegen import spmd
from netwright.codegen.llvm import assembly, module_text
from netwright.codegen.target import AVX2, NEON, host
from netwright.runtime import jit, pool, settings

needs_pool = pytest.mark.skipif(not pool.available(), reason="no native threads here")
SLOTS = 64

# Each of N rounds: count in the own slot, barrier, compare the neighbour's slot, barrier.
ROUNDS = """\
define void @rounds(ptr %args, i64 %N, i64 %tid, i64 %nthreads, ptr %barrier) {
entry:
  %own = getelementptr i64, ptr %args, i64 %tid
  %next = add i64 %tid, 1
  %wrapped = urem i64 %next, %nthreads
  %neighbour = getelementptr i64, ptr %args, i64 %wrapped
  %errors = getelementptr i64, ptr %args, i64 64
  br label %head
head:
  %i = phi i64 [0, %entry], [%after, %both]
  %more = icmp slt i64 %i, %N
  br i1 %more, label %round, label %done
round:
  %old = load i64, ptr %own
  %count = add i64 %old, 1
  store i64 %count, ptr %own
  call void @nw_barrier(ptr %barrier, i64 %nthreads)
  %theirs = load i64, ptr %neighbour
  %equal = icmp eq i64 %theirs, %count
  br i1 %equal, label %both, label %wrong
wrong:
  %ignored = atomicrmw add ptr %errors, i64 1 seq_cst
  br label %both
both:
  call void @nw_barrier(ptr %barrier, i64 %nthreads)
  %after = add i64 %i, 1
  br label %head
done:
  ret void
}
"""


# Sets flag 0, then looks at flag 1 until it is set or N looks were in vain; flag 2 tells which.
WAIT_FOR_FLAG = """\
define void @wait_for_flag(ptr %args, i64 %N, i64 %tid, i64 %nthreads, ptr %barrier) {
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


def rounds_text(triple: str) -> str:
    return module_text([ROUNDS, spmd.barrier_ir(triple)], spmd.declarations(triple))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def rounds(own_cache):
    library = jit.load(rounds_text(spmd.host_triple()))
    yield library.address("rounds")
    assert pool.shared.close(timeout=30)
    del library


def counts() -> np.ndarray:
    return np.zeros(SLOTS + 1, np.int64)


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    """Runs ``body`` in a new process in which ``entry`` and ``call(nthreads)`` are ready."""
    prelude = (
        "import os, sys, threading, time\n"
        "import numpy as np\n"
        "from netwright.runtime import jit, pool, settings\n"
        "library = jit.load(sys.argv[1]); entry = library.address('rounds')\n"
        "def call(nthreads, n=3):\n"
        "    slots = np.zeros(65, np.int64)\n"
        "    ran = pool.run(entry, slots.ctypes.data, n, nthreads)\n"
        "    assert slots[:ran].tolist() == [n] * ran and slots[ran:].sum() == 0\n"
        "    return ran\n"
    )
    command = [sys.executable, "-c", prelude + body, rounds_text(spmd.host_triple())]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_thread_runs_once_and_barriers_separate_the_phases(rounds, threads):
    slots = counts()
    ran = 0
    for dispatch in range(300):
        ran = pool.run(rounds, slots.ctypes.data, 2, threads)
        assert slots[:ran].tolist() == [2 * (dispatch + 1)] * ran
    assert slots[ran:].sum() == 0
    assert ran == (threads if pool.available() else 1)


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
        patch.setattr(pool, "_libc", Libc)
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


def test_the_barrier_constant_is_the_one_for_this_machine():
    assert spmd.barrier_ir(spmd.host_triple()) == spmd.BARRIER_IR
    assert spmd.threads_supported(spmd.host_triple()) == spmd.threads_supported(host().triple)


@pytest.mark.parametrize("target", [AVX2, NEON], ids=lambda t: t.name)
def test_pool_and_barrier_compile_for_other_machines(target):
    text = assembly(rounds_text(target.triple), target) + assembly(
        pool.pool_ir(target.triple), target
    )
    assert ("pause" in text) == (target is AVX2)
    assert ("yield" in text) == (target is NEON)


def test_where_threads_are_not_supported_the_barrier_does_nothing():
    for triple in ("x86_64-apple-darwin", "x86_64-pc-windows-msvc", "riscv64-unknown-linux-gnu"):
        assert not spmd.threads_supported(triple)
        assert "call" not in spmd.barrier_ir(triple)
        assert spmd.declarations(triple) == frozenset()


@pytest.mark.parametrize(
    ("caller", "allowed", "workers", "available", "wanted"),
    [
        (0, {0, 1}, 1, 2, [{1}]),
        (2, {0, 1, 2, 3}, 3, 4, [{0}, {1}, {3}]),
        (2, {0, 1, 2, 3}, 2, 4, [{0, 1, 3}] * 2),
        (0, {0}, 1, 1, [{0}]),
        (0, {0, 1}, 2, 2, [{0, 1}] * 2),
        (0, {0, 1, 2, 3}, 3, 2, [{0, 1, 2, 3}] * 3),
        (7, {0, 1}, 1, 2, [{0, 1}]),
    ],
    ids=["two", "one each", "spare", "one CPU", "crowded", "quota", "caller moved"],
)
def test_workers_have_cpus_of_their_own_if_there_are_enough(
    caller, allowed, workers, available, wanted
):
    assert pool._placement(caller, allowed, workers, available) == wanted


@needs_pool
def test_workers_are_moved_off_the_callers_cpu_and_get_all_cpus_back_when_they_are_many():
    run = run_script(
        "def masks():\n"
        "    own = threading.get_native_id()\n"
        "    return [os.sched_getaffinity(int(t)) for t in os.listdir('/proc/self/task')\n"
        "            if int(t) != own]\n"
        "cpus = os.sched_getaffinity(0)\n"
        "before = masks()\n"
        "if min(len(cpus), settings.available_cpus()) > 1:\n"
        "    cpu = min(cpus)\n"
        "    pool._current_cpu = lambda: cpu\n"
        "    assert call(2) == 2\n"
        "    assert before + [cpus - {cpu}] == masks(), masks()\n"
        "    cpu = max(cpus)\n"
        "    assert call(2) == 2\n"
        "    assert before + [cpus - {cpu}] == masks(), masks()\n"
        "many = settings.available_cpus() + 1\n"
        "assert call(many) == many\n"
        "assert before + [cpus] * (many - 1) == masks(), masks()\n"
    )
    assert run.returncode == 0, run.stderr


@needs_pool
def test_where_threads_cannot_be_placed_the_pool_works(rounds, monkeypatch):
    monkeypatch.setattr(pool, "_current_cpu", lambda: -1)
    own = pool.Pool()
    assert own.run(rounds, counts().ctypes.data, 1, 2) == 2
    assert own._team is not None and own._team._placement == []
    assert own.close()
