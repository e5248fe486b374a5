"""A linked program on its memory: batch sizes, fallbacks, bad indices, threads."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from netwright.codegen import program as program_module
from netwright.codegen.columns import accepts_columns
from netwright.codegen.program import emit_program
from netwright.codegen.target import host
from netwright.ir.graph import Graph
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, TensorType, float32, int32, int64
from netwright.passes.plan_memory import plan_memory
from netwright.runtime import executable as module
from netwright.runtime import pool, settings, team
from netwright.runtime.executable import Executable
from netwright.runtime.memory import ALIGN, address

N = Dim(1)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def linked(graph: Graph, hoist: bool = False) -> Executable:
    target = host()
    program = emit_program(graph, plan_memory(graph, hoist), target)
    constants = {n.name: n.attrs["value"] for n in graph.sources("constant")}
    return Executable(program, target, constants)


def chain() -> Graph:
    """out = (tanh(x) @ w) + 1, with an intermediate value in the batch arena."""
    graph = Graph("chain")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 5)))
    w = graph.add("parameter", path="w", type=TensorType(float32, (5, 3)))
    one = graph.add("constant", value=np.array(1, np.float32))
    product = graph.add("matmul", graph.add("tanh", x), w)
    graph.outputs["out"] = graph.add("add", product, one)
    return graph


def counted_loss(update: str = "count") -> Graph:
    """A loss of labels, and state that is updated by an operator that reads no label."""
    graph = Graph("loss")
    logits = graph.add("input", path="x", type=TensorType(float32, (N, 3)))
    target = graph.add("input", path="t", type=TensorType(int64, (N,)))
    count = graph.add("buffer", path="count", type=TensorType(float32, (1,)))
    one = graph.add("constant", value=np.array(1, np.float32))
    graph.updates[update] = graph.add("add", count, one)
    graph.outputs["out"] = graph.add(
        "cross_entropy", logits, target, reduction="mean", ignore_index=-100, label_smoothing=0.0
    )
    return graph


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run_chain(made: Executable, w: np.ndarray, n: int, version: object = None) -> np.ndarray:
    x, out = weights(n, 5, seed=n), np.full((n, 3), np.nan, np.float32)
    made.run(n, {"x": x}, {"out": out}, version)
    np.testing.assert_allclose(out, np.tanh(x) @ w + 1, rtol=1e-5, atol=1e-5)
    return out


def test_memory_grows_with_the_batch_and_is_used_again_for_smaller_ones():
    made, w = linked(chain()), weights(5, 3)
    made.bind({"w": w})
    sizes = []
    for n in (2, 7, 1, 64, 3):
        run_chain(made, w, n)
        arena = made._bases["batch"]
        assert address(arena) % ALIGN == 0
        assert arena.size >= made.program.batch_bytes * n
        sizes.append(arena.size)
    assert sizes == sorted(sizes)
    assert sizes[1] == sizes[2] and sizes[3] == sizes[4]
    per_sample = made.program.batch_bytes
    assert per_sample > 0
    assert made.arena_bytes(10) - made.arena_bytes(4) == 6 * per_sample


def test_an_empty_batch_runs_and_leaves_the_next_one_right():
    made, w = linked(chain()), weights(5, 3)
    made.bind({"w": w})
    assert run_chain(made, w, 0).shape == (0, 3)
    run_chain(made, w, 4)
    run_chain(made, w, 0)


def test_rebound_state_is_used_from_the_next_call_on():
    made = linked(chain())
    for seed in range(3):
        w = weights(5, 3, seed=seed)
        made.bind({"w": w})
        run_chain(made, w, 2)


def test_prepared_values_are_computed_again_when_the_version_changes_or_is_unknown():
    graph = Graph("prepared")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 3)))
    w = graph.add("parameter", path="w", type=TensorType(float32, (3,)))
    graph.outputs["out"] = graph.add("mul", x, graph.add("exp", w))
    made = linked(graph, hoist=True)
    assert made.program.prepare
    w = np.zeros(3, np.float32)
    made.bind({"w": w})
    x, out = np.ones((2, 3), np.float32), np.empty((2, 3), np.float32)

    def run(version: object) -> float:
        made.run(2, {"x": x}, {"out": out}, version)
        return float(out[1, 2])

    assert run(1) == 1
    w[:] = -np.inf
    assert run(1) == 1  # told that nothing changed
    assert run(2) == 0
    w[:] = 0
    assert run(None) == 1
    made.bind({"w": np.full(3, -np.inf, np.float32)})
    assert run(None) == run(2) == 0


def test_an_operator_without_a_kernel_runs_in_numpy_between_native_ones():
    graph = Graph("mixed")
    x = graph.add("input", path="x", type=TensorType(int32, (N, 4)))
    w = graph.add("parameter", path="w", type=TensorType(int32, (4, 2)))
    doubled = graph.add("add", x, x)
    product = graph.add("matmul", doubled, w)
    graph.outputs["out"] = graph.add("neg", product)
    made = linked(graph)
    assert made.fallbacks == 1
    kinds = [isinstance(s, int) for s in made._run]
    assert kinds == [True, False, True]
    w = np.arange(8, dtype=np.int32).reshape(4, 2)
    made.bind({"w": w})
    for n in (3, 0, 5):
        x, out = np.arange(4 * n, dtype=np.int32).reshape(n, 4), np.empty((n, 2), np.int32)
        made.run(n, {"x": x}, {"out": out})
        np.testing.assert_array_equal(out, -(2 * x @ w))


@pytest.mark.parametrize("fallback", [False, True])
def test_operators_work_on_columns_of_wider_tensors(
    fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operand is a slice of an input; the results are the halves of an output."""
    graph = Graph("columns")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 2, 7)))
    part = graph.add("slice", x, dim=2, start=1, stop=5, step=1)
    halves = [graph.add(op, part) for op in ("exp", "neg")]
    graph.outputs["out"] = graph.add("cat", *halves, dim=2)
    if fallback:
        monkeypatch.setattr(program_module, "select_kernel", lambda *_: None)
    made = Executable(
        emit_program(graph, plan_memory(graph, accepts=accepts_columns), host()), host(), {}
    )
    assert made.fallbacks == 2 * fallback
    launched = [launch.node.op for launch in made.program.launches]
    assert launched == ([] if fallback else ["exp", "neg"])
    for n in (2, 0, 5):
        values, out = weights(n, 2, 7), np.full((n, 2, 8), np.nan, np.float32)
        made.run(n, {"x": values}, {"out": out})
        wanted = [np.exp(values[..., 1:5]), -values[..., 1:5]]
        np.testing.assert_allclose(out, np.concatenate(wanted, 2), rtol=1e-6)


@pytest.mark.parametrize("bad", [3, -1, 2**40])
def test_a_label_out_of_range_is_an_index_error_and_leaves_the_state_as_it_was(bad):
    made = linked(counted_loss())
    count = np.zeros(1, np.float32)
    made.bind({"count": count})
    x, out = weights(4, 3), np.empty((), np.float32)
    for labels, after in (([0, 1, 2, 0], 1), ([0, bad, 2, 0], 1), ([2, 2, 2, -100], 2)):
        target = np.array(labels, np.int64)
        if bad in labels:
            with pytest.raises(IndexError, match=rf"Target {bad} is out of bounds.*cross_entropy"):
                made.run(4, {"x": x, "t": target}, {"out": out})
        else:
            made.run(4, {"x": x, "t": target}, {"out": out})
            wanted = evaluate(counted_loss(), {"x": x, "t": target, "count": count}, 4)
            np.testing.assert_allclose(out, wanted["out"], rtol=1e-5)
        assert count[0] == after


def test_state_that_a_checked_operator_computes_is_not_touched_by_a_bad_index():
    graph = Graph("lookup")
    index = graph.add("input", path="i", type=TensorType(int64, (2,)))
    table = graph.add("parameter", path="table", type=TensorType(float32, (3, 4)))
    graph.add("buffer", path="last", type=TensorType(float32, (2, 4)))
    graph.updates["last"] = graph.add("embedding", index, table, padding_idx=None)
    made = linked(graph)
    values, last = weights(3, 4), np.zeros((2, 4), np.float32)
    made.bind({"table": values, "last": last})
    with pytest.raises(IndexError, match="embedding"):
        made.run(1, {"i": np.array([1, 3])}, {})
    assert not last.any()
    made.run(1, {"i": np.array([1, 2])}, {})
    np.testing.assert_array_equal(last, values[[1, 2]])


def network() -> Graph:
    """Rounds of all kinds: shared kernels, tiny ones, two that do not wait for each other, copies
    to a second output, and state that is updated."""
    graph = Graph("network")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 40)))
    w = graph.add("parameter", path="w", type=TensorType(float32, (40, 40)))
    count = graph.add("buffer", path="count", type=TensorType(float32, (3,)))
    hidden = graph.add("tanh", graph.add("matmul", x, w))
    left, right = graph.add("exp", hidden), graph.add("matmul", hidden, w)
    total = graph.add("sum", graph.add("mul", left, right), dims=(0,), keepdim=False)
    out = graph.add("add", graph.add("matmul", left, w), total)
    graph.outputs["out"] = graph.outputs["same"] = out
    graph.updates["count"] = graph.add("add", count, graph.add("constant", value=np.float32(1)))
    return graph


def run_network(made: Executable, n: int, seed: int = 0) -> bytes:
    found = {name: np.full((n, 40), np.nan, np.float32) for name in ("out", "same")}
    made.run(n, {"x": weights(n, 40, seed=seed)}, found)
    assert found["out"].tobytes() == found["same"].tobytes()
    return found["out"].tobytes()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, patient: None):
    """Small programs are shared, too."""
    monkeypatch.setattr(module, "WORTH_A_THREAD", 0)
    yield
    settings.set_num_threads(None)


def test_results_have_the_same_bits_for_any_number_of_threads(shared):
    made, big, w, count = linked(chain()), linked(network()), weights(5, 3), np.zeros(3, np.float32)
    made.bind({"w": w})
    big.bind({"w": weights(40, 40) / 8, "count": count})
    found, others = [], []
    for threads in (1, 2, 3, 1, 5):
        settings.set_num_threads(threads)
        for _ in range(20):
            found.append(run_chain(made, w, 37).tobytes())
            others.append(run_network(big, 150))
    assert len(set(found)) == 1
    assert len(set(others)) == 1
    assert count.tolist() == [len(others)] * 3


@pytest.fixture
def busy_neighbour():
    """Another process that wants the CPUs of this one."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    neighbour.kill()
    neighbour.wait()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_come_late_never_disturb_later_calls(
    shared, busy_neighbour, monkeypatch, threads
):
    """Alternating programs and batch sizes, each result checked."""
    monkeypatch.setattr(team, "PATIENCE_SECONDS", 1e-4)  # as users have it
    small, large = linked(chain()), linked(network())
    w, v, count = weights(5, 3), weights(40, 40) / 8, np.zeros(3, np.float32)
    small.bind({"w": w})
    large.bind({"w": v, "count": count})
    sizes = (1, 33, 2, 9)
    inputs = {n: (weights(n, 5, seed=n), weights(n, 40, seed=n)) for n in sizes}
    settings.set_num_threads(1)
    wanted = {n: (run_chain(small, w, n).tobytes(), run_network(large, n, seed=n)) for n in sizes}
    settings.set_num_threads(threads)
    for call in range(10_000):
        n = sizes[call % 4]
        outs = [np.empty((n, 3), np.float32), *(np.empty((n, 40), np.float32) for _ in "ab")]
        if call % 3:
            small.run(n, {"x": inputs[n][0]}, {"out": outs[0]})
            assert outs[0].tobytes() == wanted[n][0]
        else:
            large.run(n, {"x": inputs[n][1]}, {"out": outs[1], "same": outs[2]})
            assert outs[1].tobytes() == outs[2].tobytes() == wanted[n][1]


@pytest.mark.skipif(not pool.available(), reason="no native threads here")
def test_what_a_late_worker_may_read_outlives_the_executable(shared, monkeypatch):
    made, w = linked(chain()), weights(5, 3)
    made.bind({"w": w})
    settings.set_num_threads(2)
    run_chain(made, w, 3)
    kept = [weakref.ref(x) for x in (made._table, made._status, made.library._tracker)]
    with monkeypatch.context() as patch:
        patch.setattr(pool.Pool, "_is_vacant", lambda self: False)  # somebody is still inside
        del made
        gc.collect()
        assert all(ref() is not None for ref in kept)
    assert pool.quiesce(timeout=30)
    assert all(ref() is None for ref in kept)


def test_python_threads_take_turns():
    made, w = linked(chain()), weights(5, 3)
    made.bind({"w": w})

    def work(n: int) -> bool:
        for _ in range(50):
            run_chain(made, w, n)
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, (1, 9, 0, 33)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX only")
def test_the_lock_of_a_thread_that_a_fork_left_behind_is_a_new_one_in_the_child():
    made = linked(chain())
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with made._lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    before: Any = made._lock
    try:
        assert not before.acquire(blocking=False)
        module._after_fork()
        assert made._lock.acquire(blocking=False)
        made._lock.release()
    finally:
        release.set()
        thread.join()


def test_a_dropped_executable_is_collected():
    made = linked(chain())
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None
