"""The form of a program that says how long each of its steps takes, for the profiler.

It runs the kernels of the program itself, which it imports, on the same memory. All threads wait
for all work before the first step of an entry and after every one, and thread 0 stores the cycle
counter when its wait is over: waiting counts for the kernel that caused it, and no thread can start
the next one unseen. The other threads store nothing, since they may still be on their way when the
times are read.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.plan import Plan, Step
from .llvm import module_text
from .program import ARRIVE, STRIDE, EntryEmitter, Launch, Native, Program
from .spmd import SHARING_IR
from .text import Function
from .touched import Touched

TIMES = "times"
"""The slot after those of the program: as many i64 as there are marks."""


def marks(segment: Native) -> int:
    """How often the time is stored in an entry: before the first step, after each."""
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

    def launch_of(self, step: Step, node: Node, phase: str) -> Launch | None:
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
        """All threads wait for all work; then thread 0 stores the time."""
        fn.do(ARRIVE)
        with fn.when(fn.emit("icmp eq i64 %tid, 0")):
            times = fn.load("ptr", fn.element("%args", "ptr", self.slots[TIMES]), 8)
            now = fn.call("i64", "llvm.readcyclecounter")
            fn.store("i64", now, fn.element(times, "i64", self.marks), 8)
        self.marks += 1

    def run(self) -> Program:
        program = self.program
        program.run = self.segments("run", self.plan.steps)
        program.slots = list(self.slots)
        text = "\n".join(self.entries).replace(STRIDE, str(program.scratch_bytes))
        program.text = module_text([SHARING_IR, text], self.declarations)
        return program
