"""From a planned graph to native entries: which kernels run, in which order, on which memory.

An entry is ``void @name(ptr args, i64 N, i64 tid, i64 nthreads, ptr barrier)``, run by every thread
(SPMD). ``args`` is the table of pointers named by ``Program.slots``. Each kernel's tasks are cut
into one range per thread; a barrier stands where a kernel touches memory that another kernel has
touched since the last one.

A *timed* program, for the profiler, has the same kernels on the same memory. In it, a barrier
stands before the first kernel of an entry and after each, and thread 0 stores the cycle counter
after each of these barriers: the time that threads wait for the last one is the kernel's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..ir.graph import Graph, Node, Value
from ..ir.plan import Location, Plan, Step
from ..ir.types import Dim, Extent, TensorType, numel
from .kernel import Kernel, TaskCount
from .llvm import module_text
from .select import select_kernel
from .spmd import BARRIER_DECLARATIONS, BARRIER_IR
from .target import Target
from .text import Function

STATUS, SCRATCH = "status", "scratch"
TIMES = "times"
"""The last slot of a timed program: i64 for the cycle counter, `Native.marks` for each segment of
``run`` in order."""


@dataclass(frozen=True)
class Native:
    """A run of kernels and copies in one entry."""

    entry: str
    steps: tuple[Launch | Move, ...] = ()

    @property
    def marks(self) -> int:
        """How often a timed entry stores the time: before the first step and after each."""
        return len(self.steps) + 1


@dataclass(frozen=True)
class Fallback:
    """An operator without a kernel: the runtime runs its numpy record on the same memory."""

    node: Node
    operands: tuple[tuple[Location, TensorType], ...]
    results: tuple[tuple[Location, TensorType], ...]
    commits: bool


Segment = Native | Fallback


@dataclass(frozen=True)
class Launch:
    """One kernel of the program, for reports: its node, symbol and costs."""

    node: Node
    symbol: str
    phase: str
    tasks: TaskCount
    flops: Extent
    bytes: Extent


@dataclass(frozen=True)
class Move:
    """A copy at the end of a run, to a result or to state (see ``passes/commits.py``)."""

    value: Value
    target: Location


@dataclass
class Program:
    """Everything that the runtime needs to link and run a graph.

    text: one LLVM module with all entries; slots: names of the pointers in the argument table;
    prepare and run: segments in order; scratch_bytes: private memory per thread.
    """

    name: str
    text: str = ""
    slots: list[str] = field(default_factory=list)
    prepare: list[Segment] = field(default_factory=list)
    run: list[Segment] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    fallbacks: list[Node] = field(default_factory=list)
    scratch_bytes: int = 0
    batch_bytes: int = 0
    fixed_bytes: int = 0
    prepared_bytes: int = 0


def emit_program(graph: Graph, plan: Plan, target: Target, timed: bool = False) -> Program:
    """The program of a graph with its memory plan; ``timed``: the one that times each step of
    ``run``. Both have the same slots, but for TIMES at the end."""
    return _Emitter(graph, plan, target, timed).run()


class _Emitter:
    def __init__(self, graph: Graph, plan: Plan, target: Target, timed: bool) -> None:
        self.graph = graph
        self.plan = plan
        self.target = target
        self.timed = timed
        self.marks = 0
        self.program = Program(
            graph.name,
            batch_bytes=plan.batch_bytes,
            fixed_bytes=plan.fixed_bytes,
            prepared_bytes=plan.prepared_bytes,
        )
        self.slots: dict[str, int] = {STATUS: 0, SCRATCH: 1}
        self.kernels: dict[str, Kernel] = {}
        self.entries: list[str] = []
        self.declarations: set[str] = set(BARRIER_DECLARATIONS)

    def run(self) -> Program:
        program = self.program
        program.prepare = self._segments("prepare", self.plan.prepare)
        program.run = self._segments("run", self.plan.steps)
        program.slots = list(self.slots)
        program.scratch_bytes = max(
            (-(-k.scratch_bytes // 64) * 64 for k in self.kernels.values()), default=0
        )
        bodies = [k.text for k in self.kernels.values()]
        for kernel in self.kernels.values():
            self.declarations |= kernel.declarations
        # The scratch stride and the number of slots are known only now.
        known = {_STRIDE: program.scratch_bytes, _TIMES_SLOT: len(self.slots)}
        entries = self.entries
        for name, number in known.items():
            entries = [e.replace(name, str(number)) for e in entries]
        if self.timed:
            program.slots.append(TIMES)
        program.text = module_text([BARRIER_IR, *bodies, *entries], self.declarations)
        return program

    def _segments(self, phase: str, steps: Sequence[Step]) -> list[Segment]:
        segments: list[Segment] = []
        pending: list[tuple[Step, Kernel | None]] = []
        done: list[Launch | Move] = []

        def flush() -> None:
            if pending:
                name = f"{phase}{len(self.entries)}"
                self.entries.append(self._entry(name, pending, self.timed and phase == "run"))
                segments.append(Native(name, tuple(done)))
                pending.clear()
                done.clear()

        for step in steps:
            kernel = select_kernel(step.node, self.graph, self.target) if step.node else None
            if step.node is not None and kernel is None:
                flush()
                segments.append(self._fallback(step.node, step))
                continue
            if step.node is not None and kernel is not None:
                self.kernels.setdefault(kernel.symbol, kernel)
                launch = Launch(
                    step.node, kernel.symbol, phase, kernel.tasks, kernel.flops, kernel.bytes
                )
                self.program.launches.append(launch)
                done.append(launch)
            else:
                done.append(Move(_copied(step), step.results[0]))
            pending.append((step, kernel))
        flush()
        return segments

    def _fallback(self, node: Node, step: Step) -> Fallback:
        self.program.fallbacks.append(node)
        operands = tuple(
            (loc, self.graph.type(v)) for loc, v in zip(step.operands, node.operands, strict=True)
        )
        results = tuple(zip(step.results, node.types, strict=True))
        for location, _ in (*operands, *results):
            self._slot(location.slot)
        return Fallback(node, operands, results, step.commits)

    def _slot(self, name: str) -> int:
        return self.slots.setdefault(name, len(self.slots))

    # -- one entry ---------------------------------------------------------------------------

    def _entry(
        self, name: str, steps: Sequence[tuple[Step, Kernel | None]], timed: bool
    ) -> str:
        params = [("ptr", "args"), ("i64", "N"), ("i64", "tid"), ("i64", "nthreads")]
        fn = Function(name, [*params, ("ptr", "barrier")], linkage="")
        pointers: dict[Location, str] = {}
        status = self._pointer(fn, pointers, Location(STATUS))
        scratch_base = self._pointer(fn, pointers, Location(SCRATCH))
        shift = fn.emit(f"mul i64 %tid, {_STRIDE}")
        scratch = fn.emit(f"getelementptr i8, ptr {scratch_base}, i64 {shift}")
        touched = _Touched()
        committed = False
        if timed:
            # Threads that are still waking up are no kernel's time.
            fn.do(_BARRIER)
            self._mark(fn)
        for step, kernel in steps:
            reads, writes = self._ranges(step)
            first_commit = step.commits and not committed
            if first_commit or touched.conflicts(reads, writes):
                fn.do(_BARRIER)
                touched.clear()
            if first_commit:
                committed = True
                self._stop_on_error(fn, status)
            touched.add(reads, writes)
            results = [self._pointer(fn, pointers, loc) for loc in step.results]
            operands = [self._pointer(fn, pointers, loc) for loc in step.operands]
            if kernel is None:
                self._copy(fn, step, results[0], operands[0])
            else:
                begin, end = self._share(fn, kernel.tasks)
                args = [f"ptr {p}" for p in (*results, *operands, scratch, status)]
                args += ["i64 %N", f"i64 {begin}", f"i64 {end}"]
                fn.do(f"call void @{kernel.symbol}({', '.join(args)})")
            if timed:
                fn.do(_BARRIER)
                touched.clear()
                self._mark(fn)
        self.declarations |= fn.declarations
        return fn.render()

    def _mark(self, fn: Function) -> None:
        """Thread 0 stores the time."""
        with fn.when(fn.emit("icmp eq i64 %tid, 0")):
            times = fn.load("ptr", fn.element("%args", "ptr", _TIMES_SLOT), 8)
            now = fn.call("i64", "llvm.readcyclecounter")
            fn.store("i64", now, fn.element(times, "i64", self.marks), 8)
        self.marks += 1

    def _pointer(self, fn: Function, known: dict[Location, str], location: Location) -> str:
        if location not in known:
            base = Location(location.slot)
            if base not in known:
                address = fn.element("%args", "ptr", self._slot(location.slot))
                known[base] = fn.load("ptr", address, 8)
            if location.offset:
                offset = str(location.offset)
                if location.slot == "batch":
                    offset = fn.emit(f"mul i64 %N, {offset}")
                known[location] = fn.emit(f"getelementptr i8, ptr {known[base]}, i64 {offset}")
        return known[location]

    def _share(self, fn: Function, tasks: TaskCount) -> tuple[str, str]:
        """This thread's range of a kernel's tasks."""
        total = _extent(fn, tasks.extent)
        if tasks.per > 1:
            rounded = fn.emit(f"add i64 {total}, {tasks.per - 1}")
            total = fn.emit(f"udiv i64 {rounded}, {tasks.per}")
        low = fn.emit(f"mul i64 {total}, %tid")
        begin = fn.emit(f"udiv i64 {low}, %nthreads")
        high = fn.emit(f"add i64 {low}, {total}")
        return begin, fn.emit(f"udiv i64 {high}, %nthreads")

    def _copy(self, fn: Function, step: Step, target: str, source: str) -> None:
        size = _extent(fn, _bytes(self.graph.type(_copied(step))))
        first = fn.emit("icmp eq i64 %tid, 0")
        with fn.when(first):
            fn.call(
                "void", "llvm.memmove.p0.p0.i64",
                ("ptr", target), ("ptr", source), ("i64", size), ("i1", "false"),
            )

    def _stop_on_error(self, fn: Function, status: str) -> None:
        """State is not touched once a kernel has met a bad index."""
        code = fn.load("i64", status, 8)
        bad = fn.emit(f"icmp ne i64 {code}, 0")
        stop, go = fn.fresh("stop")[1:], fn.fresh("go")[1:]
        fn.do(f"br i1 {bad}, label %{stop}, label %{go}")
        fn.label(stop)
        fn.do("ret void")
        fn.label(go)

    def _ranges(self, step: Step) -> tuple[list[_Range], list[_Range]]:
        if step.node is None:
            kind = self.graph.type(step.copied) if step.copied else None
            size = _span(kind) if kind else 0
            return [_Range(step.operands[0], size)], [_Range(step.results[0], size)]
        reads = [
            _Range(loc, _span(self.graph.type(v)))
            for loc, v in zip(step.operands, step.node.operands, strict=True)
        ]
        writes = [
            _Range(loc, _span(t)) for loc, t in zip(step.results, step.node.types, strict=True)
        ]
        return reads, writes


_STRIDE, _TIMES_SLOT = "SCRATCHSTRIDE", "TIMESSLOT"
_BARRIER = "call void @nw_barrier(ptr %barrier, i64 %nthreads)"


def _copied(step: Step) -> Value:
    if step.copied is None:
        raise ValueError("a step without a node must say what it copies")
    return step.copied


def _extent(fn: Function, extent: Extent) -> str:
    if isinstance(extent, Dim):
        return "%N" if extent.coef == 1 else fn.emit(f"mul i64 %N, {extent.coef}")
    return str(extent)


def _bytes(kind: TensorType) -> Extent:
    return numel(kind.shape) * kind.dtype.itemsize


def _span(kind: TensorType) -> int:
    """Bytes, per sample if the size depends on the batch."""
    size = _bytes(kind)
    return size.coef if isinstance(size, Dim) else size


@dataclass(frozen=True)
class _Range:
    location: Location
    size: int

    def overlaps(self, other: _Range) -> bool:
        if self.location.slot != other.location.slot:
            return False
        a, b = self.location.offset, other.location.offset
        return a < b + max(other.size, 1) and b < a + max(self.size, 1)


class _Touched:
    """Memory that was read or written since the last barrier."""

    def __init__(self) -> None:
        self.reads: list[_Range] = []
        self.writes: list[_Range] = []

    def add(self, reads: list[_Range], writes: list[_Range]) -> None:
        self.reads += reads
        self.writes += writes

    def conflicts(self, reads: list[_Range], writes: list[_Range]) -> bool:
        after_write = any(r.overlaps(w) for r in (*reads, *writes) for w in self.writes)
        return after_write or any(w.overlaps(r) for w in writes for r in self.reads)

    def clear(self) -> None:
        self.reads.clear()
        self.writes.clear()
