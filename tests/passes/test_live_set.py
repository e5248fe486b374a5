"""largest_live_set: what a plan needs at its worst step, and how close plans come to it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import netwright as nw
from netwright import compiler
from netwright.ir.graph import Graph
from netwright.ir.types import Dim, TensorType, float32
from netwright.passes.live_set import largest_live_set
from netwright.passes.plan_memory import plan_memory

N = Dim(1)
PER_SAMPLE = 16 * 4


def exps(count: int, *, keep_first: bool = False) -> Graph:
    """``count`` matrix products after each other; the first may be read again by the last step."""
    graph = Graph("chain")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 16)))
    w = graph.add("input", path="w", type=TensorType(float32, (16, 16)))
    first = value = graph.add("matmul", x, w)
    for _ in range(count - 1):
        value = graph.add("matmul", value, w)
    if keep_first:
        value = graph.add("add", value, first)
    graph.outputs["out"] = graph.add("matmul", value, w)
    return graph


@pytest.mark.parametrize(("keep_first", "values"), [(False, 2), (True, 3)])
def test_a_value_counts_from_its_writer_to_its_last_reader(keep_first: bool, values: int) -> None:
    graph = exps(4, keep_first=keep_first)
    for n in (0, 1, 7):
        assert largest_live_set(graph, plan_memory(graph), n) == values * PER_SAMPLE * n


def test_a_result_over_its_operand_counts_once() -> None:
    graph = Graph("in_place")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 16)))
    w = graph.add("input", path="w", type=TensorType(float32, (16, 16)))
    value = graph.add("tanh", graph.add("exp", graph.add("matmul", x, w)))
    graph.outputs["out"] = graph.add("matmul", value, w)
    assert largest_live_set(graph, plan_memory(graph), 3) == 3 * PER_SAMPLE


def test_prepared_values_that_a_run_reads_are_in_use_for_ever() -> None:
    graph = Graph("prepared")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 16)))
    a, b = (graph.add("parameter", path=p, type=TensorType(float32, (16, 16))) for p in ("a", "b"))
    first = graph.add("matmul", graph.add("matmul", a, a), a)  # the inner one serves only the outer
    second = graph.add("matmul", b, b)
    graph.outputs["out"] = graph.add("matmul", graph.add("matmul", x, first), second)
    plan = plan_memory(graph, hoist=True)
    matrix = 16 * 16 * 4
    assert largest_live_set(graph, plan, 0) == 2 * matrix
    assert plan.prepared_bytes == 2 * matrix


def test_no_plan_is_below_its_largest_live_set(random_graph: Callable[..., Graph]) -> None:
    for seed in range(20):
        graph = random_graph(seed, size=30)
        extents = [d for n in graph.nodes for t in n.types for d in t.shape[1:]]
        if any(isinstance(d, Dim) for d in extents):
            continue  # N x N elements have no place in a plan
        for hoist in (False, True):
            plan = plan_memory(graph, hoist)
            assert 0 < largest_live_set(graph, plan, 3) <= plan.arena_bytes(3)


@pytest.fixture(scope="module")
def resnet() -> Graph:
    """The optimised graph of the example's ResNet-18 for inference."""
    path = Path(nw.__file__).parent / "examples" / "resnet18.py"
    spec = importlib.util.spec_from_file_location("resnet18_example", path)
    assert spec is not None and spec.loader is not None
    example: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model, options = example.ResNet18().eval(), compiler.Options()
    image = nw.zeros(2, 3, 32, 32)
    made = compiler.capture(model, {"": model}, (image,), {}, options, "ResNet18", set())
    return compiler.lower(compiler.clean(made.traced.graph, made, options), made, options)


@pytest.mark.parametrize("n", [1, 8, 64])
def test_the_arena_of_resnet18_is_close_to_its_largest_live_set(resnet: Graph, n: int) -> None:
    plan = plan_memory(resnet, hoist=True)
    assert plan.arena_bytes(n) <= 1.3 * largest_live_set(resnet, plan, n)
