"""Attention reads and writes heads where they are, if they are columns of something."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from netwright.ir.graph import Graph, Value
from netwright.ir.interpreter import evaluate
from netwright.ir.types import Dim, TensorType, float32
from netwright.passes.lay_out_attention import lay_out_attention
from netwright.passes.rewriting import Ledger
from netwright.passes.simplify import simplify

N = Dim(1)
HEADS, TOKENS, DIM = 3, 5, 4
SIZE = HEADS * DIM
ATTRS: dict[str, Any] = {
    "heads": HEADS, "head_dim": DIM, "value_dim": DIM, "scale": 0.5, "starts": (0, 0, 0),
    "causal": False, "merged": False,
}  # fmt: skip
Operands = Callable[[Graph], list[Value]]


def projection(graph: Graph, *shape: int | Dim) -> Value:
    kind = TensorType(float32, shape or (N, TOKENS, 3 * SIZE))
    return graph.add("input", path="x", type=kind)


def sliced(graph: Graph) -> list[Value]:
    """Slices of the last dimension, each split into heads: torch.nn.MultiheadAttention."""
    x = projection(graph)
    found = []
    for i in range(3):
        part = graph.add("slice", x, dim=2, start=i * SIZE, stop=(i + 1) * SIZE, step=1)
        split = graph.add("reshape", part, shape=(N, TOKENS, HEADS, DIM))
        found.append(graph.add("permute", split, dims=(0, 2, 1, 3)))
    return found


def unbound(graph: Graph) -> list[Value]:
    """One permute of all, of which queries, keys and values are parts: timm."""
    x = graph.add("reshape", projection(graph), shape=(N, TOKENS, 3, HEADS, DIM))
    x = graph.add("permute", x, dims=(2, 0, 3, 1, 4))
    parts = [graph.add("slice", x, dim=0, start=i, stop=i + 1, step=1) for i in range(3)]
    return [graph.add("reshape", p, shape=(N, HEADS, TOKENS, DIM)) for p in parts]


def heads_apart(graph: Graph) -> list[Value]:
    x = projection(graph, N, HEADS, TOKENS, DIM)
    return [x, x, x]


def batch_second(graph: Graph) -> list[Value]:
    """Rows before the batch: the rows of a head are not evenly spaced over the batch."""
    x = projection(graph, TOKENS, N, SIZE)
    x = graph.add("reshape", x, shape=(TOKENS, N, HEADS, DIM))
    return [graph.add("permute", x, dims=(1, 2, 0, 3))] * 3


def whole_rows(graph: Graph) -> list[Value]:
    """Elements of a head that are not next to each other."""
    x = graph.add("reshape", projection(graph, N, TOKENS, SIZE), shape=(N, TOKENS, DIM, HEADS))
    return [graph.add("permute", x, dims=(0, 3, 1, 2))] * 3


def build(operands: Operands, merge: bool = True) -> Graph:
    graph = Graph("example")
    y = graph.add("attention", *operands(graph), **ATTRS)
    if merge:
        y = graph.add("permute", y, dims=(0, 2, 1, 3))
        y = graph.add("reshape", y, shape=(N, TOKENS, SIZE))
    graph.outputs["out"] = y
    return graph


def attention(graph: Graph) -> Any:
    (node,) = [n for n in graph.nodes if n.op == "attention"]
    return node


def check(before: Graph, after: Graph) -> None:
    (node,) = before.sources("input")
    array = np.random.default_rng(0).normal(size=node.type.at(2).shape).astype(np.float32)
    wanted, found = (evaluate(g, {"x": array}, 2)["out"] for g in (before, after))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("operands", [sliced, unbound])
def test_heads_of_a_projection_are_read_and_written_in_place(operands: Operands) -> None:
    before = build(operands)
    ledger = Ledger()
    after = simplify(lay_out_attention(before, ledger))
    assert [n.op for n in after.nodes] == ["input", "attention"]
    node = attention(after)
    assert node.attrs["starts"] == (0, SIZE, 2 * SIZE)
    assert node.attrs["merged"]
    assert [e.code for e in ledger.entries] == ["Y201"]
    assert "reads 3 operands in place, writes merged heads" in ledger.entries[0].message
    check(before, after)


def test_weights_read_their_operands_in_place() -> None:
    graph = Graph("weights")
    q, k, _ = sliced(graph)
    kept = {n: ATTRS[n] for n in ("heads", "head_dim", "scale", "causal")}
    graph.outputs["out"] = graph.add("attention_weights", q, k, starts=(0, 0), **kept)
    after = simplify(lay_out_attention(graph))
    assert [n.op for n in after.nodes] == ["input", "attention_weights"]
    check(graph, after)


@pytest.mark.parametrize("operands", [heads_apart, batch_second, whole_rows])
def test_operands_that_are_no_columns_stay(operands: Operands) -> None:
    before = build(operands, merge=False)
    assert lay_out_attention(before) == before


def test_each_operand_is_judged_alone() -> None:
    def mixed(graph: Graph) -> list[Value]:
        q, _, v = sliced(graph)
        k = graph.add("mul", q, q)
        return [q, k, v]

    before = build(mixed)
    after = simplify(lay_out_attention(before))
    node = attention(after)
    assert [after.type(v).rank for v in node.operands] == [3, 4, 3]
    assert node.attrs["starts"] == (0, 0, 2 * SIZE)
    check(before, after)


def test_a_result_that_is_read_twice_keeps_its_order() -> None:
    before = build(heads_apart)
    before.outputs["other"] = attention(before).value
    assert lay_out_attention(before) == before


def test_a_result_that_is_read_in_another_order_stays() -> None:
    graph = Graph("example")
    y = graph.add("attention", *heads_apart(graph), **ATTRS)
    graph.outputs["out"] = graph.add("permute", y, dims=(2, 0, 1, 3))
    assert lay_out_attention(graph) == graph


def test_a_second_run_finds_nothing() -> None:
    once = simplify(lay_out_attention(build(sliced)))
    assert lay_out_attention(once) == once
