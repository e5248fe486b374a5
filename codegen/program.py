"""From a planned graph to native entries: which kernels run, in which order, on which memory.

An entry is ``void @name(ptr args, i64 N, i64 tid, i64 nthreads, ptr ticket)``, run by every thread
(SPMD). ``args`` is the table of pointers named by ``Program.slots``. Each kernel's tasks are cut
into chunks that the threads claim (``spmd.py``, ``sharing.py``); they wait for all work so far
where a kernel touches memory that another kernel has touched since the last wait. Kernels are
visible outside of the module, so that the timed form of a program (``timed_program.py``) can call
them.

A thread may still be in an entry when the call is long over. Outside of the chunks that it claims
it therefore reads nothing but the argument table and the status words, which the runtime keeps
until all threads have left, and it writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ..ir.graph import Graph, Node, Value
from ..ir.plan import Location, Plan, Step
from ..ir.types import Dim, Extent, TensorType
from .joint import MOST_WORK, Member, call_members, is_fixed
from .kernel import Kernel, TaskCount
from .llvm import module_text
from .select import select_kernel
from .sharing import Cost, close_entry, cuts_for, entry_function, shared
from .spmd import SHARING_DECLARATIONS, SHARING_IR
from .target import Target
from .text import Function
from .touched import Range, Touched, bytes_of, ranges_of

STATUS, SCRATCH = "status", "scratch"


@dataclass(frozen=True)
class Native:
    """A run of kernels and copies in one entry."""

    entry: str
    steps: tuple[Launch | Move | Joint, ...] = ()


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
    cuts: int
    cuts_from: int
    length: int | None = None

    @property
    def cost(self) -> Cost:
        """A rough time on one core."""
        return Cost.of(self.flops, self.bytes)


@dataclass(frozen=True)
class Joint:
    """Kernels that run in one round (``joint.py``)."""

    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Move:
    """A copy at the end of a run, to a result or to state (see ``passes/commits.py``)."""

    value: Value
    target: Location


@dataclass
class Program:
    """Everything that the runtime needs to link and run a graph.

    text: one LLVM module with all entries; slots: names of the pointers in the argument table;
    prepare and run: segments in order; ready: for each group of updates that `emit_program` was
    given, the number of run segments after which it is written; scratch_bytes: private memory per
    thread.
    """

    name: str
    text: str = ""
    slots: list[str] = field(default_factory=list)
    prepare: list[Segment] = field(default_factory=list)
    run: list[Segment] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    fallbacks: list[Node] = field(default_factory=list)
    scratch_bytes: int = 0
    batch_bytes: int = 0
    fixed_bytes: int = 0
    prepared_bytes: int = 0


def emit_program(
    graph: Graph, plan: Plan, target: Target, groups: Sequence[Collection[str]] = ()
) -> Program:
    """The program of a graph with its memory plan.

    groups: paths of updates; the program is cut where all of a group and of those before it have
    been written, so that the caller can go on with them meanwhile.
    """
    return _KernelEmitter(graph, plan, target, groups).run()


_Planned = tuple[Step, Launch | Move]


@dataclass
class _Round:
    """Steps whose work is shared at once, and the memory that they touch."""

    steps: list[_Planned] = field(default_factory=list)
    touched: Touched = field(default_factory=Touched)

    @property
    def commits(self) -> bool:
        """Whether they write to state: all or none do, since errors are looked for in between."""
        return self.steps[0][0].commits

    @property
    def what(self) -> Launch | Move | Joint:
        """What runs, for reports."""
        if len(self.steps) > 1:
            return Joint(tuple(what for _, what in self.steps if isinstance(what, Launch)))
        return self.steps[0][1]

    def takes(
        self, step: Step, what: Launch | Move, reads: list[Range], writes: list[Range]
    ) -> bool:
        """Whether one more step can share the round."""
        return (
            step.commits == self.commits
            and _may_share(*self.steps[-1])
            and _may_share(step, what)
            and not self.touched.conflicts(reads, writes)
        )


def _may_share(step: Step, what: Launch | Move) -> bool:
    """Whether a step is little work whatever the batch, on memory at places that are known."""
    if isinstance(what, Move) or what.cost.per_sample or what.cost.fixed > MOST_WORK:
        return False
    places = (*step.results, *step.operands)
    return isinstance(what.tasks.extent, int) and all(map(is_fixed, places))


class EntryEmitter:
    """Writes entries: steps on planned memory, rounds of shared work, waits between them.

    Subclasses say where kernels come from (``launch_of``) and may add code (``opened``, ``done``).
    """

    def __init__(self, graph: Graph, plan: Plan, slots: Sequence[str]) -> None:
        self.graph = graph
        self.program = Program(
            graph.name,
            batch_bytes=plan.batch_bytes,
            fixed_bytes=plan.fixed_bytes,
            prepared_bytes=plan.prepared_bytes,
        )
        self.slots = {name: i for i, name in enumerate(slots)}
        self.entries: list[str] = []
        self.declarations: set[str] = set(SHARING_DECLARATIONS)

    def launch_of(self, step: Step, node: Node, phase: str) -> Launch | None:
        """The kernel of a step's node; None if there is none."""
        raise NotImplementedError

    def opened(self, fn: Function) -> None:
        """Writes what an entry does before its first step."""

    def done(self, fn: Function, touched: Touched) -> None:
        """Writes what an entry does after each step."""

    def segments(
        self, phase: str, steps: Sequence[Step], last: Sequence[int] = ()
    ) -> list[Segment]:
        """Entries for the steps, cut where an operator has no kernel and behind the steps with the
        numbers ``last``, for each of which ``program.ready`` gets the number of segments."""
        segments: list[Segment] = []
        pending: list[tuple[Step, Launch | Move]] = []

        def flush() -> None:
            if pending:
                name = f"{phase}{len(self.entries)}"
                rounds = self._rounds(pending)
                self.entries.append(self._entry(name, rounds))
                segments.append(Native(name, tuple(r.what for r in rounds)))
                pending.clear()

        for number, step in enumerate(steps):
            what = self.launch_of(step, step.node, phase) if step.node else _move(step)
            if what is not None:
                pending.append((step, what))
            elif step.node is not None:
                flush()
                segments.append(self._fallback(step.node, step))
            if number in last:
                flush()
                self.program.ready += [len(segments)] * last.count(number)
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

    def _rounds(self, steps: Sequence[_Planned]) -> list[_Round]:
        """The rounds of an entry: neighbours that are small and independent share one."""
        rounds: list[_Round] = []
        for step, what in steps:
            reads, writes = ranges_of(step, self.graph)
            if not (rounds and rounds[-1].takes(step, what, reads, writes)):
                rounds.append(_Round())
            rounds[-1].steps.append((step, what))
            rounds[-1].touched.add(reads, writes)
        return rounds

    def _entry(self, name: str, rounds: Sequence[_Round]) -> str:
        fn = entry_function(name)
        pointers: dict[Location, str] = {}
        status = self._pointer(fn, pointers, Location(STATUS))
        scratch_base = self._pointer(fn, pointers, Location(SCRATCH))
        shift = fn.emit(f"mul i64 %tid, {STRIDE}")
        scratch = fn.emit(f"getelementptr i8, ptr {scratch_base}, i64 {shift}")
        private = [f"ptr {scratch}", f"ptr {status}"]
        touched = Touched()
        committed = False
        self.opened(fn)
        for each in rounds:
            reads, writes = each.touched.reads, each.touched.writes
            first_commit = each.commits and not committed
            if first_commit or touched.conflicts(reads, writes):
                fn.do(ARRIVE)
                touched.clear()
            first = not touched
            if first_commit:
                committed = True
                self._stop_on_error(fn, status, len(rounds))
            touched.add(reads, writes)
            if len(each.steps) > 1:
                self._call_joint(fn, each.steps, private, first)
            else:
                self._call(fn, *each.steps[0], pointers, private, first)
            self.done(fn, touched)
        self.declarations |= fn.declarations
        return close_entry(fn)

    def _call(
        self,
        fn: Function,
        step: Step,
        what: Launch | Move,
        pointers: dict[Location, str],
        private: Sequence[str],
        first: bool,
    ) -> None:
        """A round of one kernel, or a copy."""
        places = [self._pointer(fn, pointers, loc) for loc in (*step.results, *step.operands)]
        if isinstance(what, Move):
            self._copy(fn, what, places[0], places[1], first)
            return
        cuts = cuts_for(what.cost, what.cuts, what.cuts_from)
        with shared(fn, _count(fn, what.tasks), cuts, first) as (begin, end):
            n = "%N" if what.length is None else what.length
            args = [*(f"ptr {p}" for p in places), *private]
            args += [f"i64 {x}" for x in (n, begin, end)]
            fn.do(f"call void @{what.symbol}({', '.join(args)})")

    def _call_joint(
        self, fn: Function, steps: Sequence[_Planned], private: Sequence[str], first: bool
    ) -> None:
        """A round of several kernels."""
        launches = [what for _, what in steps if isinstance(what, Launch)]
        members = [
            Member(
                launch.symbol,
                launch.tasks.at(0),
                launch.length,
                tuple((self._slot(x.slot), x.offset) for x in (*step.results, *step.operands)),
            )
            for (step, _), launch in zip(steps, launches, strict=True)
        ]
        cost = Cost(sum(launch.cost.fixed for launch in launches))
        cuts = cuts_for(cost, min(launch.cuts for launch in launches))
        with shared(fn, sum(m.tasks for m in members), cuts, first) as (begin, end):
            call_members(fn, members, begin, end, private)

    def _pointer(self, fn: Function, known: dict[Location, str], location: Location) -> str:
        if location in known:
            return known[location]
        if location.pitch:
            whole = self._pointer(fn, known, Location(location.slot, location.offset))
            known[location] = fn.element(whole, "i8", location.start)
        elif location.offset:
            base = self._pointer(fn, known, Location(location.slot))
            offset = str(location.offset)
            if location.slot == "batch":
                offset = fn.emit(f"mul i64 %N, {offset}")
            known[location] = fn.emit(f"getelementptr i8, ptr {base}, i64 {offset}")
        else:
            address = fn.element("%args", "ptr", self._slot(location.slot))
            # Atomic: a thread that is late may read while the next call writes the table.
            known[location] = fn.emit(f"load atomic ptr, ptr {address} unordered, align 8")
        return known[location]

    def _copy(self, fn: Function, move: Move, target: str, source: str, first: bool) -> None:
        size = _extent(fn, bytes_of(self.graph.type(move.value)))
        with shared(fn, 1, 0, first):
            fn.call(
                "void",
                "llvm.memmove.p0.p0.i64",
                ("ptr", target),
                ("ptr", source),
                ("i64", size),
                ("i1", "false"),
            )

    def _stop_on_error(self, fn: Function, status: str, rounds: int) -> None:
        """State is not touched once a kernel has met a bad index."""
        code = fn.emit(f"load atomic i64, ptr {status} monotonic, align 8")
        bad = fn.emit(f"icmp ne i64 {code}, 0")
        stop, go = fn.fresh("stop")[1:], fn.fresh("go")[1:]
        fn.do(f"br i1 {bad}, label %{stop}, label %{go}")
        fn.label(stop)
        fn.do(f"call void @nw_stop(ptr %ticket, i64 {rounds})")
        fn.do("ret void")
        fn.label(go)


class _KernelEmitter(EntryEmitter):
    """Writes the kernels, too: one function for all equal ones."""

    def __init__(
        self, graph: Graph, plan: Plan, target: Target, groups: Sequence[Collection[str]]
    ) -> None:
        super().__init__(graph, plan, (STATUS, SCRATCH))
        self.groups = groups
        self.plan = plan
        self.target = target
        self.kernels: dict[str, Kernel] = {}

    def launch_of(self, step: Step, node: Node, phase: str) -> Launch | None:
        widths = step.widths([self.graph.type(v) for v in node.operands])
        kernel = select_kernel(node, self.graph, self.target, widths)
        if kernel is None:
            return None
        self.kernels.setdefault(kernel.symbol, kernel)
        launch = Launch(
            node, kernel.symbol, phase, kernel.tasks, kernel.flops, kernel.bytes, kernel.cuts,
            kernel.cuts_from, kernel.length,
        )  # fmt: skip
        self.program.launches.append(launch)
        return launch

    def run(self) -> Program:
        program = self.program
        program.prepare = self.segments("prepare", self.plan.prepare)
        program.run = self.segments("run", self.plan.steps, _last_writers(self.plan, self.groups))
        program.slots = list(self.slots)
        program.scratch_bytes = max(
            (-(-k.scratch_bytes // 64) * 64 for k in self.kernels.values()), default=0
        )
        helpers = dict(h for k in self.kernels.values() for h in k.helpers)
        bodies = [*helpers.values()]
        bodies += [k.text.replace(*_visible(k)) for k in self.kernels.values()]
        for kernel in self.kernels.values():
            self.declarations |= kernel.declarations
        # The scratch stride is known only now.
        entries = [e.replace(STRIDE, str(program.scratch_bytes)) for e in self.entries]
        program.text = module_text([SHARING_IR, *bodies, *entries], self.declarations)
        return program


STRIDE = "SCRATCHSTRIDE"
ARRIVE = "call void @nw_arrive(ptr %ticket)"


def _visible(kernel: Kernel) -> tuple[str, str]:
    """How the head of a kernel reads, and how it must for other modules to call it."""
    return f"define internal void @{kernel.symbol}(", f"define void @{kernel.symbol}("


def _last_writers(plan: Plan, groups: Sequence[Collection[str]]) -> list[int]:
    """For each group, the step after which its updates and those of earlier groups are written."""
    writer = {
        result.slot: number for number, step in enumerate(plan.steps) for result in step.results
    }
    found: list[int] = []
    for group in groups:
        numbers = [writer[slot] for path in group if (slot := "state:" + path) in writer]
        found.append(max([*numbers, *found[-1:]], default=0))
    return found


def _move(step: Step) -> Move:
    if step.copied is None:
        raise ValueError("a step without a node must say what it copies")
    return Move(step.copied, step.results[0])


def _count(fn: Function, tasks: TaskCount) -> str:
    total = _extent(fn, tasks.extent)
    if tasks.per == 1:
        return total
    rounded = fn.emit(f"add i64 {total}, {tasks.per - 1}")
    return fn.emit(f"udiv i64 {rounded}, {tasks.per}")


def _extent(fn: Function, extent: Extent) -> str:
    if isinstance(extent, Dim):
        return "%N" if extent.coef == 1 else fn.emit(f"mul i64 %N, {extent.coef}")
    return str(extent)
