"""Measuring a profile: whole calls alternate with calls in which every kernel is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from .. import compiler
from ..codegen.program import Fallback, Joint, Launch, Move
from ..compilation import Compilation
from ..errors import NetwrightError
from ..frontend.random import default_generator
from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from ..ir.types import extent_at
from ..runtime import pool, probe, settings
from ..runtime.timed import Recorder
from .compile_report import CompileReport
from .memory_use import MemoryUse
from .profile import Limits, Profile, Row

_MIN_RUNS = 5
_WARM_UP_RUNS = 2
_PROBE_SECONDS = 0.15


def check_enabled(method: str = "profile") -> None:
    """NetwrightError, in the name of a method, if the environment says that nothing is compiled."""
    if settings.disabled():
        raise NetwrightError(
            f"{method}(): {settings.DISABLE} is set, so there are no kernels; unset it"
        )


def measure(
    made: Compilation,
    phases: Mapping[str, str],
    call: Callable[[], None],
    n: int,
    mode: str,
    seconds: float,
) -> Profile:
    """The profile of ``call``, which runs the executables of a compilation at batch size ``n``.

    ``phases`` names the stages whose executables it runs, in order, and how they are called in the
    profile. ``call`` must not count writes to state as modifications, because they go to copies
    here. Random numbers are afterwards what they were before.
    """
    if not seconds > 0:
        raise ValueError(f"profile(): seconds must be positive, got {seconds}")
    recorders = {phase: compiler.recorder(made, stage) for stage, phase in phases.items()}
    with ExitStack() as stack:
        stack.callback(default_generator.set_state, default_generator.get_state())
        restores = [
            stack.enter_context(made.executables[stage].on_copies(made.stages[stage].updates))
            for stage in phases
        ]
        runs = _Runs(call, list(recorders.values()), restores)
        runs.both()  # now it is known how many threads they use
        before = _probe(recorders, seconds)
        rate = runs.repeat(seconds)
        after = _probe(recorders, seconds)
    limits = {
        phase: Limits(one[0], (one[1], other[1]), (one[2], other[2]))
        for phase, one, other in zip(recorders, before, after, strict=True)
    }
    times = np.array(runs.samples) / rate * 1e3
    outside = np.array(runs.timed) * 1e3 - times.sum(axis=1)
    return Profile(
        made.traced.graph.name,
        mode,
        n,
        tuple(_rows(made, phases, recorders, limits, np.median(times, axis=0), n)),
        limits,
        len(runs.samples),
        statistics.median(runs.plain) * 1e3,
        statistics.median(runs.timed) * 1e3,
        float(np.median(outside)),
        MemoryUse.of(made, n),
        CompileReport.of(made),
    )


class _Runs:
    """A call, run without and with recorders in turns.

    plain, timed: seconds of the runs without and with recorders; samples: of each run with
    recorders, the ticks of every kernel, in the order of the recorders.
    """

    def __init__(
        self,
        call: Callable[[], None],
        recorders: Sequence[Recorder],
        restores: Sequence[Callable[[], None]],
    ) -> None:
        self._call, self._recorders, self._restores = call, recorders, restores
        self.samples: list[np.ndarray] = []
        self.plain: list[float] = []
        self.timed: list[float] = []

    def both(self) -> None:
        """One run without and one with recorders."""
        self.plain.append(self._once([]))
        self.timed.append(self._once(self._recorders))
        self.samples.append(np.concatenate([r.ticks() for r in self._recorders]))

    def _once(self, recorders: Sequence[Recorder]) -> float:
        for restore in self._restores:
            restore()
        with ExitStack() as recording:
            for recorder in recorders:
                recording.enter_context(recorder.recording())
            start = time.perf_counter()
            self._call()
            return time.perf_counter() - start

    def repeat(self, seconds: float) -> float:
        """Runs for so many seconds, after a few runs that are forgotten; the ticks per second."""
        for _ in range(_WARM_UP_RUNS):
            self.both()
        for found in (self.plain, self.timed, self.samples):
            found.clear()
        clock = pool.clock()
        start, ticks = time.perf_counter(), clock()
        while len(self.samples) < _MIN_RUNS or time.perf_counter() - start < seconds:
            self.both()
        return (clock() - ticks) / (time.perf_counter() - start)


def _probe(recorders: Mapping[str, Recorder], seconds: float) -> list[tuple[int, float, float]]:
    """For each phase its threads, and the FMA peak and bandwidth with as many."""
    each = min(_PROBE_SECONDS, seconds / 4)
    known: dict[int, tuple[int, float, float]] = {}
    for recorder in recorders.values():
        threads = recorder.threads
        if threads not in known:
            peak = probe.peak_gflops(threads, each)
            known[threads] = threads, peak, probe.bandwidth_gbs(threads, seconds=each)
    return [known[recorder.threads] for recorder in recorders.values()]


def _rows(
    made: Compilation,
    phases: Mapping[str, str],
    recorders: Mapping[str, Recorder],
    limits: Mapping[str, Limits],
    ms: np.ndarray,
    n: int,
) -> Iterator[Row]:
    total = max(float(ms.sum()), 1e-9)
    order = 0
    for stage, phase in phases.items():
        graph = made.stages[stage]
        for step in recorders[phase].steps:
            flops, moved, tasks = _work(graph, step, n)
            spent = float(ms[order])
            bound, of_limit = limits[phase].judge(flops, moved, spent)
            kernel, node, operators, modules = _names(graph, step)
            yield Row(
                order,
                phase,
                kernel,
                node,
                operators,
                modules,
                spent,
                spent / total,
                flops,
                moved,
                bound,
                of_limit,
                tasks,
            )
            order += 1


def _names(
    graph: Graph, step: Launch | Move | Joint | Fallback
) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """The kernel, the node, its operators and their modules."""
    if isinstance(step, Joint):
        each = [_names(graph, launch) for launch in step.launches]
        operators = tuple(dict.fromkeys(o for names in each for o in names[2]))
        modules = tuple(dict.fromkeys(m for names in each for m in names[3]))
        return f"{len(each)} kernels", " ".join(names[1] for names in each), operators, modules
    if isinstance(step, Move):
        node = graph.node(step.value)
        return "copy", node.name, (f"copy to {step.target.slot}",), module_paths(node)
    kernel = step.symbol if isinstance(step, Launch) else "numpy"
    operators = tuple(node.op for node in _operations(step.node))
    return kernel, step.node.name, operators, module_paths(step.node)


def module_paths(node: Node) -> tuple[str, ...]:
    """The modules that a node and the operators in its body come from, without those that contain
    another of them: the ReLU that ``layer1.0`` calls is part of what ``layer1.0.conv1`` became."""
    sources = [node, *_operations(node)]
    paths = list(dict.fromkeys(n.source.module for n in sources if n.source.module))
    return tuple(p for p in paths if not any(other.startswith(p + ".") for other in paths))


def _operations(node: Node) -> list[Node]:
    """The node, or those that its bodies consist of."""
    bodies = [a for a in node.attrs.values() if isinstance(a, Graph)]
    inner = [n for body in bodies for n in body.nodes if n.operands]
    return [o for n in inner for o in _operations(n)] if bodies else [node]


def _work(graph: Graph, step: Launch | Move | Joint | Fallback, n: int) -> tuple[int, int, int]:
    """Floating-point operations, bytes moved, tasks."""
    if isinstance(step, Joint):
        works = [_work(graph, launch, n) for launch in step.launches]
        return sum(w[0] for w in works), sum(w[1] for w in works), sum(w[2] for w in works)
    if isinstance(step, Move):
        return 0, 2 * graph.type(step.value).bytes_at(n), 0
    moved = _bytes_moved(graph, step.node, n)
    if isinstance(step, Launch):
        return extent_at(step.flops, n), moved, step.tasks.at(n)
    return 0, moved, 0


def _bytes_moved(graph: Graph, node: Node, n: int) -> int:
    """Each operand is read once and each result written once.

    Of an operand of an operator that only picks elements (a slice, a table of embeddings), no more
    is read than is written.
    """
    written = sum(kind.bytes_at(n) for kind in node.types)
    read = [graph.type(v).bytes_at(n) for v in dict.fromkeys(node.operands)]
    if node.op != "fused" and get(node.op).kind in ("shape", "index"):
        read = [min(size, written) for size in read]
    return written + sum(read)
