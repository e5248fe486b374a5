"""What holds for every pass: the graph stays valid, its text round-trips, its results stay."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright import compiler
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import evaluate
from netwright.ir.text import parse
from netwright.ir.types import Dim, numel
from netwright.ir.verify import verify
from netwright.passes.absorb_flatten import absorb_flatten
from netwright.passes.assign_layout import assign_layout
from netwright.passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from netwright.passes.eliminate_dead_code import eliminate_dead_code
from netwright.passes.eliminate_redundant_softmax import eliminate_redundant_softmax
from netwright.passes.fold_constants import fold_constants
from netwright.passes.fuse_conv_bn_relu import fuse_conv_bn_relu
from netwright.passes.fuse_elementwise import fuse_elementwise
from netwright.passes.fuse_elementwise_pooling import fuse_elementwise_pooling
from netwright.passes.fuse_moments import fuse_moments
from netwright.passes.fuse_pooling import fuse_pooling
from netwright.passes.fuse_reductions import fuse_reductions
from netwright.passes.fuse_row_means import fuse_row_means
from netwright.passes.fuse_update import fuse_update
from netwright.passes.lay_out_attention import lay_out_attention
from netwright.passes.lower_batch_norm import lower_batch_norm
from netwright.passes.merge_cross_entropy import merge_cross_entropy
from netwright.passes.pack_weights import pack_weights
from netwright.passes.rewriting import Ledger
from netwright.passes.save_pool_places import save_pool_places
from netwright.passes.schedule_updates import schedule_updates
from netwright.passes.simplify import simplify
from netwright.passes.split_batch_norm import split_batch_norm

Pass = Callable[[Graph, Ledger], Graph]


def _pack(graph: Graph, ledger: Ledger) -> Graph:
    return pack_weights(graph, lambda n, dtype: 8, ledger, lambda *geometry: 2)


def _moments(graph: Graph, ledger: Ledger) -> Graph:
    def rows(node: Node, graph: Graph) -> int:
        samples = numel(node.type.shape[:-1])
        return samples.coef if isinstance(samples, Dim) else 0

    return fuse_moments(graph, rows, ledger)


PASSES: dict[str, Pass] = {
    "eliminate_redundant_softmax": eliminate_redundant_softmax,
    "lay_out_attention": lay_out_attention,
    "simplify": simplify,
    "fold_constants": fold_constants,
    "eliminate_common_subexpressions": eliminate_common_subexpressions,
    "eliminate_dead_code": eliminate_dead_code,
    "assign_layout": assign_layout,
    "absorb_flatten": absorb_flatten,
    "merge_cross_entropy": merge_cross_entropy,
    "save_pool_places": save_pool_places,
    "split_batch_norm": split_batch_norm,
    "fuse_conv_bn_relu": fuse_conv_bn_relu,
    "lower_batch_norm": lower_batch_norm,
    "fuse_elementwise": fuse_elementwise,
    "fuse_elementwise_pooling": fuse_elementwise_pooling,
    "fuse_reductions": fuse_reductions,
    "fuse_update": fuse_update,
    "fuse_pooling": fuse_pooling,
    "fuse_row_means": fuse_row_means,
    "pack_weights": _pack,
    "fuse_moments": _moments,
    "schedule_updates": schedule_updates,
}
SEEDS = range(20)


def test_these_are_the_passes_of_the_compiler_in_its_order() -> None:
    assert list(PASSES) == list(compiler.PASSES)


def _check(after: Graph, values: dict[str, np.ndarray], old: dict[str, np.ndarray]) -> None:
    """``after`` is valid, its text round-trips, and its results are the ``old`` ones."""
    verify(after)
    assert parse(str(after)) == after
    new = evaluate(after, values)
    assert list(old) == list(new)
    for name in old:
        assert old[name].dtype == new[name].dtype
        np.testing.assert_allclose(new[name], old[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_keeps_the_results_of_random_graphs(
    name: str, random_graph: Callable[..., Graph], graph_values: Callable[..., dict]
) -> None:
    for seed in SEEDS:
        graph = random_graph(seed, regions=seed % 3 == 0)
        before = str(graph)
        after = PASSES[name](graph, Ledger())
        assert str(graph) == before, "the pass changed its input"
        values = graph_values(graph, seed=seed)
        _check(after, values, evaluate(graph, values))


def test_all_passes_in_order_keep_the_results_of_random_graphs(
    random_graph: Callable[..., Graph], graph_values: Callable[..., dict]
) -> None:
    for seed in range(12):
        graph = after = random_graph(seed, size=40)
        values, ledger = graph_values(graph, n=4, seed=seed), Ledger()
        expected = evaluate(graph, values)
        for apply in PASSES.values():
            after = apply(after, ledger)
            _check(after, values, expected)


@pytest.mark.parametrize("name", [n for n in PASSES if n != "eliminate_redundant_softmax"])
def test_a_pass_keeps_the_results_of_the_example_networks(
    name: str, example_graphs: dict[str, Graph], assert_same: Any
) -> None:
    for graph in example_graphs.values():
        assert_same(graph, PASSES[name](graph, Ledger()), 1e-11)


def test_all_passes_in_order_keep_the_results_of_the_example_networks(
    example_graphs: dict[str, Graph], assert_same: Any
) -> None:
    for graph in example_graphs.values():
        first, *others = PASSES.values()
        corrected = after = first(graph, Ledger())  # without a softmax before the loss
        for apply in others:
            after = apply(after, Ledger())
            assert_same(corrected, after, 1e-11)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_is_deterministic(name: str, random_graph: Callable[..., Graph]) -> None:
    for seed in range(5):
        texts = {str(PASSES[name](random_graph(seed), Ledger())) for _ in range(3)}
        assert len(texts) == 1


@pytest.mark.parametrize("name", PASSES)
def test_a_second_run_of_a_pass_changes_nothing(
    name: str, random_graph: Callable[..., Graph]
) -> None:
    for seed in range(10):
        once = PASSES[name](random_graph(seed), Ledger())
        assert PASSES[name](once, Ledger()) == once


@pytest.mark.parametrize("name", PASSES)
def test_the_order_of_inputs_and_the_names_of_results_stay(
    name: str, random_graph: Callable[..., Graph]
) -> None:
    graph = random_graph(3)
    after = PASSES[name](graph, Ledger())
    assert [n.attrs["path"] for n in after.sources("input")] == [
        n.attrs["path"] for n in graph.sources("input")
    ]
    assert list(after.outputs) == list(graph.outputs)
    assert list(after.updates) == list(graph.updates)


@pytest.mark.parametrize("name", PASSES)
def test_new_nodes_keep_a_source(name: str, random_graph: Callable[..., Graph]) -> None:
    """Whatever computes something says which module and line it comes from."""
    for seed in range(5):
        graph = random_graph(seed)
        after = PASSES[name](graph, Ledger())
        known = {n.source for n in graph.nodes}
        assert all(n.source in known for n in after.nodes)
        unsourced = {n.name for n in graph.nodes if n.operands and not str(n.source)}
        assert not any(
            n.operands and not str(n.source) and n.name not in unsourced for n in after.nodes
        )
