"""Remembered kernels: generated once, the same as those that are generated anew."""

from collections.abc import Iterator

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401  (registers the records)
from netwright.codegen import program, select
from netwright.codegen.kernel import Kernel
from netwright.codegen.target import AVX2, AVX512, Target
from netwright.ir.graph import Graph, Node
from netwright.ir.ops.record import all_ops
from netwright.ir.parser import parse
from netwright.ir.structure import Widths, isolated, node_key
from netwright.ir.types import Dim, TensorType, dtype_of, float32
from netwright.passes.plan_memory import plan_memory


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(select, "_made", {})
    yield


def sampled(op: str) -> list[tuple[Node, Graph]]:
    """A node for each sample of an operator's record, in float32."""
    found = []
    for sample in all_ops()[op].samples(np.random.default_rng(0)):
        graph = Graph("samples")
        operands = []
        for i, a in enumerate(sample.arrays):
            dtype = float32 if a.dtype.kind == "f" else dtype_of(a.dtype)
            operands.append(graph.add("input", path=str(i), type=TensorType(dtype, a.shape)))
        graph.add(op, *operands, **sample.attrs)
        found.append((graph.nodes[-1], graph))
    return found


def test_a_kernel_depends_on_its_key_alone() -> None:
    """Generators see an isolated copy; the kernel is that of the node in its place."""
    kernels = {}
    for op in sorted(all_ops()):
        for node, graph in sampled(op):
            expected = select.generate(node, graph, AVX512)
            assert select.select_kernel(node, graph, AVX512) == expected, node
            assert kernels.setdefault(node_key(node, graph), expected) == expected, node
    assert len(kernels) > 300


NET = """graph net {
  %x: f32[N,8] = input {path="x"}
  %w: f32[8,8] = parameter {path="w"}
  %half: f32[] = constant {value=0.5}
  %third: f32[] = constant {value=0.33}
  %a: f32[N,8] = matmul(%x, %w)
  %b: f32[N,8] = mul(%a, %half)
  %c: f32[N,8] = matmul(%b, %w)
  %d: f32[N,8] = mul(%c, %half)
  %e: f32[N,8] = mul(%d, %third)
  output "out" = %e
}"""


def emitted(target: Target) -> program.Program:
    graph = parse(NET)
    return program.emit_program(graph, plan_memory(graph, hoist=True), target)


def test_equal_nodes_are_generated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    generate = select.generate

    def counted(node: Node, graph: Graph, target: Target) -> object:
        made.append(node.op)
        return generate(node, graph, target)

    monkeypatch.setattr(select, "generate", counted)
    first = emitted(AVX512)
    assert sorted(made) == ["matmul", "mul", "mul"]
    again = emitted(AVX512)
    assert len(made) == 3
    assert again.text == first.text
    emitted(AVX2)
    assert len(made) == 6


def test_programs_do_not_depend_on_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    remembered = emitted(AVX512)

    def anew(node: Node, graph: Graph, target: Target, widths: Widths = ()) -> Kernel | None:
        return select.generate(*isolated(node, graph, widths), target)

    monkeypatch.setattr(program, "select_kernel", anew)
    assert emitted(AVX512).text == remembered.text


def test_an_operator_without_a_kernel_is_remembered_too() -> None:
    graph = parse(
        """graph g { %x: i32[N,4] = input {path="x"} %w: i32[4,4] = input {path="w"}
        %y: i32[N,4] = matmul(%x, %w) }"""
    )
    assert select.select_kernel(graph.node("y"), graph, AVX512) is None
    assert list(select._made.values()) == [None]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "MAX_MADE", 2)
    graph = Graph("many")
    x = graph.add("input", path="x", type=TensorType(float32, (Dim(1), 4)))
    for op in ("relu", "exp", "neg", "abs", "square"):
        select.select_kernel(graph.node(graph.add(op, x)), graph, AVX512)
        assert len(select._made) <= 2
