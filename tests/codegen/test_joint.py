"""Rounds of many kernels: which steps share one, and that every kernel gets its own tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from netwright.codegen.joint import MOST_WORK
from netwright.codegen.program import Joint, Native, emit_program
from netwright.codegen.target import host
from netwright.codegen.timed_program import emit_timed, marks
from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, TensorType, float32, int64
from netwright.passes.plan_memory import plan_memory
from netwright.runtime import settings
from netwright.runtime.executable import Executable

N = Dim(1)
SIZES = (1, 3, 64, 700, 5000, 16)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def state(graph: Graph, path: str, *shape: int) -> Value:
    return graph.add("buffer", path=path, type=TensorType(float32, shape))


def updates(sizes: Sequence[int] = SIZES, labels: bool = False) -> Graph:
    """Two kinds of updates, alternating; ``labels`` may be found bad by the same program."""
    graph = Graph("updates")
    rate = graph.add("input", path="rate", type=TensorType(float32, ()))
    if labels:
        logits = graph.add("input", path="x", type=TensorType(float32, (N, 3)))
        target = graph.add("input", path="t", type=TensorType(int64, (N,)))
        graph.outputs["loss"] = graph.add(
            "cross_entropy", logits, target, reduction="mean", ignore_index=-100,
            label_smoothing=0.0,
        )  # fmt: skip
    for k, size in enumerate(sizes):
        old = state(graph, f"s{k}", size)
        graph.updates[f"s{k}"] = graph.add(("mul", "sub")[k % 2], old, rate)
    return graph


def linked(graph: Graph) -> Executable:
    constants = {n.name: n.attrs["value"] for n in graph.sources("constant")}
    return Executable(emit_program(graph, plan_memory(graph), host()), host(), constants)


def rounds(graph: Graph) -> list[int]:
    """The number of kernels in each round."""
    program = emit_program(graph, plan_memory(graph), host())
    return [
        len(s.launches) if isinstance(s, Joint) else 1
        for segment in program.run
        if isinstance(segment, Native)
        for s in segment.steps
    ]


def values(sizes: Sequence[int] = SIZES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"s{k}": rng.normal(size=size).astype(np.float32) for k, size in enumerate(sizes)}


@pytest.fixture
def threads() -> object:
    before = settings.num_threads()
    yield settings.set_num_threads
    settings.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_kernel_of_a_round_does_all_its_tasks(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("netwright.runtime.executable.WORTH_A_THREAD", 0)
    monkeypatch.setattr("netwright.codegen.sharing.TOO_SMALL", 0)
    threads(count)
    graph = updates()
    assert rounds(graph) == [len(SIZES)]
    made, found = linked(graph), values()
    made.bind(found)
    for rate in (0.5, 3.0):
        given = {**{k: v.copy() for k, v in found.items()}, "rate": np.float32(rate)}
        expected = evaluate(graph, given)
        made.run(1, {"rate": np.array(rate, np.float32)}, {})
        for path, array in found.items():
            np.testing.assert_array_equal(array, expected["update:" + path])


def test_updates_of_all_lengths_are_one_kernel() -> None:
    program = emit_program(g := updates(), plan_memory(g), host())
    symbols = [x.symbol for x in program.launches]
    assert len(set(symbols[2::2])) == len(set(symbols[1::2])) == 1  # mul, sub; one element is alone
    assert program.text.count("private unnamed_addr constant [") == 3


def test_a_bad_label_leaves_the_state_of_a_round_alone() -> None:
    made, found = linked(updates(labels=True)), values()
    made.bind(found)
    before = {k: v.copy() for k, v in found.items()}
    inputs = {"x": np.zeros((2, 3), np.float32), "rate": np.array(2.0, np.float32)}
    loss = {"loss": np.empty((), np.float32)}
    with pytest.raises(IndexError):
        made.run(2, {**inputs, "t": np.array([0, 7])}, loss)
    assert all((found[k] == before[k]).all() for k in found)
    made.run(2, {**inputs, "t": np.array([0, 2])}, loss)
    np.testing.assert_array_equal(found["s2"], 2 * before["s2"])


def test_a_kernel_that_reads_what_another_one_writes_is_in_a_later_round() -> None:
    graph = Graph("chain")
    a, b = state(graph, "a", 8), state(graph, "b", 8)
    first = graph.add("exp", a)
    graph.updates["a"] = first
    graph.updates["b"] = graph.add("mul", b, b)
    graph.outputs["out"] = graph.add("neg", first)
    assert rounds(graph) == [2, 1]


def test_much_work_and_work_that_grows_with_the_batch_have_their_own_rounds() -> None:
    big = MOST_WORK * 10 // 4
    assert rounds(updates((8, 8, big, 8, 8))) == [2, 1, 2]
    graph = Graph("batch")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 4)))
    y = graph.add("input", path="y", type=TensorType(float32, (N, 4)))
    graph.outputs["a"], graph.outputs["b"] = graph.add("exp", x), graph.add("exp", y)
    assert rounds(graph) == [1, 1]


def test_kernels_that_write_state_share_no_round_with_others() -> None:
    """Bad indices are looked for between them."""
    graph = updates((8, 8))
    x = graph.add("input", path="x", type=TensorType(float32, (4,)))
    graph.outputs["out"] = graph.add("exp", x)
    assert rounds(graph) == [2, 1]


def test_the_timed_form_has_one_mark_for_a_round() -> None:
    graph = updates()
    plan = plan_memory(graph)
    program = emit_program(graph, plan, host())
    (segment,) = emit_timed(graph, plan, program).run
    assert isinstance(segment, Native) and isinstance(segment.steps[0], Joint)
    assert marks(segment) == 2
    assert program.run[0].steps == segment.steps  # type: ignore[union-attr]
