"""The timed form of a program: the same kernels and slots, a mark around every step of a run."""

import re

import numpy as np

from netwright.codegen.llvm import compile_ir
from netwright.codegen.program import Fallback, Move, Native, Program, emit_program
from netwright.codegen.target import host
from netwright.codegen.timed_program import TIMES, emit_timed, marks
from netwright.ir.graph import Graph
from netwright.ir.types import Dim, TensorType, float32, int32
from netwright.passes.plan_memory import plan_memory

N = Dim(1)


def mixed() -> Graph:
    """Prepared, native, numpy and copying steps: int32 matmul has no kernel."""
    graph = Graph("mixed")
    x = graph.add("input", path="x", type=TensorType(int32, (N, 4)))
    w = graph.add("parameter", path="w", type=TensorType(int32, (4, 4)))
    doubled = graph.add("add", x, graph.add("constant", value=np.array(2, np.int32)))
    product = graph.add("matmul", doubled, graph.add("neg", w))
    graph.outputs["out"] = graph.add("neg", product)
    graph.outputs["same"] = graph.outputs["out"]
    return graph


def emitted(graph: Graph) -> tuple[Program, Program]:
    plan = plan_memory(graph, hoist=True)
    program = emit_program(graph, plan, host())
    return program, emit_timed(graph, plan, program)


def entries(program: Program) -> str:
    """The text of the entries of ``run``."""
    text = program.text[program.text.index("define  void @run") :]
    return text[: text.index("\ndeclare")]


def test_it_has_the_slots_and_the_steps_of_the_program() -> None:
    program, timed = emitted(mixed())
    assert timed.slots == [*program.slots, TIMES]
    assert [type(s) for s in timed.run] == [Native, Fallback, Native]
    last = timed.run[-1]
    assert isinstance(last, Native)
    assert [type(s).__name__ for s in last.steps] == ["Launch", "Move"]
    assert isinstance(last.steps[-1], Move) and last.steps[-1].target.slot == "output:same"
    assert [getattr(s, "steps", None) for s in timed.run] == [
        getattr(s, "steps", None) for s in program.run
    ]
    assert timed.scratch_bytes == program.scratch_bytes


def test_it_calls_kernels_and_defines_none() -> None:
    program, timed = emitted(mixed())
    run = {x.symbol for x in program.launches if x.phase == "run"}
    assert run == set(re.findall(r"^declare void @(\w+_[0-9a-f]{12})\(", timed.text, re.M))
    defined = set(re.findall(r"^define [^@]*@(\w+)", timed.text, re.M))
    assert not defined & {x.symbol for x in program.launches}
    for symbol in run:
        assert f"define void @{symbol}(" in program.text
    compile_ir(timed.text, host())


def test_every_step_is_between_two_marks_and_the_program_has_none() -> None:
    program, timed = emitted(mixed())
    count = sum(marks(s) for s in timed.run if isinstance(s, Native))
    text = entries(timed)
    assert text.count("call i64 @llvm.readcyclecounter") == count
    assert text.count("@nw_barrier") == count  # they make all others superfluous
    assert f"mul i64 %tid, {count}" in text
    assert "readcyclecounter" not in entries(program)


def test_float_chains_have_one_mark_more_than_kernels() -> None:
    graph = Graph("chain")
    x = graph.add("input", path="x", type=TensorType(float32, (N, 8)))
    w = graph.add("parameter", path="w", type=TensorType(float32, (8, 8)))
    graph.outputs["out"] = graph.add("matmul", graph.add("matmul", x, w), w)
    _, timed = emitted(graph)
    (segment,) = timed.run
    assert isinstance(segment, Native)
    assert marks(segment) == len(segment.steps) + 1 == 3
