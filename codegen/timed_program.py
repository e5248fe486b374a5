"""The form of a program that says how long each of its steps takes, for the profiler.

It runs the kernels of the program itself, which it imports, on the same memory. A barrier stands
before the first step of an entry and after every one, and each thread stores the cycle counter when
it gets there. A step lasts from the arrival of the last thread at the barrier before it to that of
the last one at the barrier after it: waiting counts for the kernel that caused it, and no thread
can start the next one unseen.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.plan import Plan
from .llvm import module_text
from .program import BARRIER, STRIDE, EntryEmitter, Launch, Native, Program, Touched
from .spmd import BARRIER_IR
from .text import Function

TIMES = "times"
"""The slot after those of the program: for each thread as many i64 as there are marks."""


def marks(segment: Native) -> int:
    """How often each thread stores the time in an entry: before the first step, after each."""
    return len(segment.steps) + 1


def emit_timed(graph: Graph, plan: Plan, program: Program) -> Program:
    """The timed form of the ``run`` segments of ``program``, made from the same graph and plan.

    Its text declares the kernels; who links it knows their addresses.
    """
    return _TimedEmitter(graph, plan, program).run()


class _TimedEmitter(EntryEmitter):
    def __init__(self, graph: Graph, plan: Plan, program: Program) -> None:
        super().__init__(graph, plan, (*program.slots, TIMES))
        self.plan = plan
        self.launches = {x.node.name: x for x in program.launches if x.phase == "run"}
        self.program.scratch_bytes = program.scratch_bytes
        self.marks = 0

    def launch_of(self, node: Node, phase: str) -> Launch | None:
        launch = self.launches.get(node.name)
        if launch is not None:
            self.program.launches.append(launch)
            pointers = len(node.types) + len(node.operands) + 2  # scratch and status, too
            params = ", ".join(["ptr"] * pointers + ["i64"] * 3)
            self.declarations.add(f"declare void @{launch.symbol}({params})")
        return launch

    def opened(self, fn: Function) -> None:
        self._mark(fn)

    def done(self, fn: Function, touched: Touched) -> None:
        self._mark(fn)
        touched.clear()

    def _mark(self, fn: Function) -> None:
        """Every thread stores the time in a row of its own and waits for the others."""
        now = fn.call("i64", "llvm.readcyclecounter")
        times = fn.load("ptr", fn.element("%args", "ptr", self.slots[TIMES]), 8)
        row = fn.element(times, "i64", fn.emit(f"mul i64 %tid, {_MARKS}"))
        fn.store("i64", now, fn.element(row, "i64", self.marks), 8)
        fn.do(BARRIER)
        self.marks += 1

    def run(self) -> Program:
        program = self.program
        program.run = self.segments("run", self.plan.steps)
        program.slots = list(self.slots)
        known = {STRIDE: program.scratch_bytes, _MARKS: self.marks}
        text = "\n".join(self.entries)
        for name, number in known.items():
            text = text.replace(name, str(number))
        program.text = module_text([BARRIER_IR, text], self.declarations)
        return program


_MARKS = "NUMBEROFMARKS"
