"""Timed runs: the same bits, a time for every step, and nothing left behind."""

from collections.abc import Sequence

import numpy as np
import pytest

from netwright.codegen.program import emit_program
from netwright.codegen.target import host
from netwright.codegen.timed_program import emit_timed
from netwright.ir.graph import Graph
from netwright.ir.types import Dim, TensorType, float32, int32, int64
from netwright.passes.plan_memory import plan_memory
from netwright.runtime import executable as executable_module
from netwright.runtime import settings
from netwright.runtime.executable import Executable
from netwright.runtime.timed import Recorder

N = Dim(1)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch, patient: None):
    monkeypatch.setattr(executable_module, "WORTH_A_THREAD", 0)
    settings.set_num_threads(2)
    yield
    settings.set_num_threads(None)


def linked(graph: Graph, groups: Sequence[str] = ()) -> tuple[Executable, Recorder]:
    plan = plan_memory(graph, hoist=True)
    program = emit_program(graph, plan, host(), [{path} for path in groups])
    constants = {n.name: n.attrs["value"] for n in graph.sources("constant")}
    made = Executable(program, host(), constants)
    return made, Recorder(made, emit_timed(graph, plan, program), host())


def network() -> Graph:
    """Two layers, a prepared weight and a copied output."""
    graph = Graph("network")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 33)))
    w = graph.add("parameter", path="w", type=TensorType(float32, (33, 33)))
    hidden = graph.add("tanh", graph.add("matmul", x, graph.add("exp", w)))
    graph.outputs["out"] = graph.add("matmul", hidden, w)
    graph.outputs["same"] = graph.outputs["out"]
    return graph


def counter() -> Graph:
    """A checked operator and a count that every run increases."""
    graph = Graph("counter")
    labels = graph.add("input", path="t", type=TensorType(int64, (N,)))
    table = graph.add("parameter", path="table", type=TensorType(float32, (3, 4)))
    count = graph.add("buffer", path="count", type=TensorType(float32, (1,)))
    one = graph.add("constant", value=np.array(1, np.float32))
    graph.outputs["out"] = graph.add("embedding", labels, table, padding_idx=None)
    graph.updates["count"] = graph.add("add", count, one)
    return graph


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def run_network(made: Executable, n: int) -> bytes:
    x = values(n, 33)
    found = {name: np.full((n, 33), np.nan, np.float32) for name in ("out", "same")}
    made.run(n, {"x": x}, found, version=1)
    assert found["out"].tobytes() == found["same"].tobytes()
    return found["out"].tobytes()


def test_timed_runs_give_the_same_bits_for_one_and_two_threads(two_threads: None) -> None:
    made, recorder = linked(network())
    made.bind({"w": values(33, 33) / 8})
    for n in (1, 37, 4):
        plain = run_network(made, n)
        with recorder.recording():
            assert run_network(made, n) == plain
        assert recorder.threads == 2
        settings.set_num_threads(1)
        with recorder.recording():
            assert run_network(made, n) == plain
        assert recorder.threads == 1
        settings.set_num_threads(2)
        assert run_network(made, n) == plain


def test_every_step_of_a_run_has_a_time_and_prepared_ones_have_none(two_threads: None) -> None:
    made, recorder = linked(network())
    made.bind({"w": values(33, 33) / 8})
    launches = [x for x in made.program.launches if x.phase == "run"]
    assert len(launches) == len(made.program.launches) - 1
    assert [s for s in recorder.steps if s in launches] == launches
    assert len(recorder.steps) == len(launches) + 1  # the copied output
    with recorder.recording():
        run_network(made, 64)
    ticks = recorder.ticks()
    assert ticks.shape == (len(recorder.steps),)
    assert (ticks >= 0).all() and ticks.sum() > 0


def test_numpy_calls_between_kernels_are_timed_too() -> None:
    graph = Graph("mixed")
    x = graph.add("input", path="x", type=TensorType(int32, (N, 4)))
    w = graph.add("parameter", path="w", type=TensorType(int32, (4, 2)))
    graph.outputs["out"] = graph.add("neg", graph.add("matmul", graph.add("add", x, x), w))
    made, recorder = linked(graph)
    w_values = np.arange(8, dtype=np.int32).reshape(4, 2)
    made.bind({"w": w_values})
    x_values, out = np.arange(12, dtype=np.int32).reshape(3, 4), np.empty((3, 2), np.int32)
    with recorder.recording():
        made.run(3, {"x": x_values}, {"out": out})
    np.testing.assert_array_equal(out, -(2 * x_values @ w_values))
    assert [type(s).__name__ for s in recorder.steps] == ["Launch", "Fallback", "Launch"]
    assert recorder.ticks()[1] > 0


def test_a_bad_index_in_a_timed_run_is_an_error_and_the_next_run_is_right() -> None:
    made, recorder = linked(counter())
    table, count = values(3, 4), np.zeros(1, np.float32)
    made.bind({"table": table, "count": count})
    out = np.empty((2, 4), np.float32)
    with pytest.raises(IndexError, match="out of bounds"), recorder.recording():
        made.run(2, {"t": np.array([0, 3])}, {"out": out})
    assert count[0] == 0
    made.run(2, {"t": np.array([2, 1])}, {"out": out})
    np.testing.assert_array_equal(out, table[[2, 1]])
    assert count[0] == 1


def test_groups_of_updates_are_told_of_in_a_timed_run_too() -> None:
    made, recorder = linked(counter(), ["count"])
    count = np.zeros(1, np.float32)
    made.bind({"table": values(3, 4), "count": count})
    out, told = np.empty((2, 4), np.float32), []

    def ready(group: int) -> None:
        told.append((group, float(count[0])))

    made.run(2, {"t": np.array([0, 1])}, {"out": out}, ready=ready)
    with recorder.recording():
        made.run(2, {"t": np.array([0, 1])}, {"out": out}, ready=ready)
        with pytest.raises(IndexError, match="out of bounds"):
            made.run(2, {"t": np.array([0, 3])}, {"out": out}, ready=ready)
    assert told == [(0, 1.0), (0, 2.0)]


def test_runs_on_copies_leave_the_state_alone_and_restore_starts_again() -> None:
    made, recorder = linked(counter())
    table, count = values(3, 4), np.full(1, 5, np.float32)
    made.bind({"table": table, "count": count})
    out = np.empty((2, 4), np.float32)

    def run() -> None:
        made.run(2, {"t": np.array([0, 1])}, {"out": out})

    with made.on_copies(["count", "no such state"]) as restore:
        copy = made._bases["state:count"]
        run()
        with recorder.recording():
            run()
        assert (copy[0], count[0]) == (7, 5)
        restore()
        assert copy[0] == 5
    run()
    assert count[0] == 6


def test_a_program_of_other_slots_is_refused() -> None:
    made, _ = linked(network())
    graph = counter()
    plan = plan_memory(graph)
    other = emit_timed(graph, plan, emit_program(graph, plan, host()))
    with pytest.raises(ValueError, match="not the timed form"):
        Recorder(made, other, host())
