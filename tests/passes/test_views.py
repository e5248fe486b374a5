"""Chains of reshapes, permutes and slices as strides: elements are where the strides say."""

import itertools

import numpy as np
import pytest

from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import run_node
from netwright.ir.types import Dim, TensorType, extent_at, float32
from netwright.passes.views import dense, is_dense, views

N = Dim(1)
BATCH = 3


def chain(shape: tuple, *steps: tuple[str, dict]) -> tuple[Graph, Value, Value]:
    """(graph, input, result) of operators one after the other."""
    graph = Graph()
    x = value = graph.add("input", path="x", type=TensorType(float32, shape))
    for op, attrs in steps:
        value = graph.add(op, value, **attrs)
    return graph, x, value


def elements(graph: Graph, base: Value, value: Value) -> np.ndarray:
    """The numbers of the elements of ``base`` in ``value``, by running the operators."""
    kind = graph.type(base).at(BATCH)
    array = np.arange(int(np.prod(kind.shape))).reshape(kind.shape)
    names = [n.name for n in graph.nodes]
    for node in graph.nodes[names.index(base.node) + 1 : names.index(value.node) + 1]:
        (array,) = run_node(node, [array], BATCH)
    return array


def permute(*dims: int) -> tuple[str, dict]:
    return "permute", {"dims": dims}


def reshape(*shape: int | Dim) -> tuple[str, dict]:
    return "reshape", {"shape": shape}


def part(dim: int, start: int, stop: int, step: int = 1) -> tuple[str, dict]:
    return "slice", {"dim": dim, "start": start, "stop": stop, "step": step}


CHAINS = [
    ((N, 6, 24), [part(2, 8, 16), reshape(N, 6, 2, 4), permute(0, 2, 1, 3)]),
    ((N, 5, 24), [reshape(N, 5, 3, 2, 4), permute(2, 0, 3, 1, 4), part(0, 1, 2),
                  reshape(N, 2, 5, 4)]),
    ((N, 4, 5, 7), [permute(0, 3, 1, 2), reshape(N, 7, 20), permute(0, 2, 1)]),
    ((N, 4, 6), [part(1, 1, 4, 2), reshape(N, 2, 2, 3), permute(3, 0, 1, 2)]),
    ((N, 1, 6), [permute(1, 2, 0), reshape(2, 3, 1, N)]),
    ((5, N, 4), [permute(1, 0, 2), reshape(N, 5, 2, 2)]),
    ((N, 2, 3), [reshape(Dim(2), 3), permute(1, 0)]),
]  # fmt: skip


@pytest.mark.parametrize("shape,steps", CHAINS, ids=str)
def test_a_chain_is_a_view_of_its_input(shape: tuple, steps: list) -> None:
    graph, x, value = chain(shape, *steps)
    found = list(views(graph, value))
    assert found[0].base == x
    assert found[-1].base == value and not found[-1].moved
    for view in found:
        wanted = elements(graph, view.base, value)
        strides = [extent_at(s, BATCH) for s in view.strides]
        assert wanted.shape == tuple(extent_at(d, BATCH) for d in view.shape)
        for index in itertools.product(*map(range, wanted.shape)):
            at = view.start + sum(i * s for i, s in zip(index, strides, strict=True))
            assert wanted[index] == at


def test_a_reshape_that_needs_a_copy_begins_anew() -> None:
    graph, _, value = chain((N, 4, 6), permute(0, 2, 1), reshape(N, 24), part(1, 3, 9))
    bases = [v.base for v in views(graph, value)]
    assert [graph.node(b).op for b in bases] == ["permute", "reshape", "slice"]


def test_rows_of_the_batch_cannot_be_counted_from_its_start() -> None:
    graph, _, value = chain((5, N, 4), part(0, 2, 4))
    assert [v.base for v in views(graph, value)] == [value]
    assert dense((5, N, 4)) == (Dim(4), 4, 1)


def test_only_the_same_order_from_the_first_to_the_last_element_is_dense() -> None:
    for steps, whole in (
        ([permute(0, 3, 1, 2), reshape(N, 7, 20), permute(0, 2, 1)], True),
        ([permute(0, 3, 1, 2)], False),
        ([part(1, 0, 3)], False),
        ([part(1, 0, 4)], True),
    ):
        graph, x, value = chain((N, 4, 5, 7), *steps)
        assert is_dense(next(iter(views(graph, value))), graph.type(x).size) == whole
