"""A linked program with its memory: binds state, fills the argument table, calls the entry."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..ir.interpreter import run_node
from ..ir.plan import Location
from ..ir.types import TensorType, shape_at
from . import jit, pool, settings
from .memory import address, allocate
from .native_call import native_call

if TYPE_CHECKING:
    from ..codegen.program import Fallback, Program, Segment
    from ..codegen.target import Target

WORTH_A_THREAD = 10_000
"""A program of fewer nanoseconds of work runs on the caller alone: waking the others costs it a few
microseconds, and they come 50 to 60 us later."""

INDEXED = ("cross_entropy", "cross_entropy_rows", "embedding", "gather")
"""Operators whose kernels check indices or labels."""

Repeat = Callable[[Sequence[object]], np.ndarray | None]

_alive: weakref.WeakSet[Executable] = weakref.WeakSet()


class Executable:
    """Runs a program. ``state`` arrays are bound once and read (and updated) in place.

    Calls from several Python threads take turns: the arena is one.
    """

    def __init__(
        self, program: Program, target: Target, constants: Mapping[str, np.ndarray]
    ) -> None:
        self.program = program
        self.seconds: dict[str, float] = {}
        """Where the time of getting the machine code went, see `jit.load`."""
        self.library = jit.load(program.text, target, {"graph": program.name}, seconds=self.seconds)
        self._lock = threading.RLock()
        self._slots = {name: i for i, name in enumerate(program.slots)}
        self._table = np.zeros(len(program.slots) + 1, np.uint64)  # the last: see `recorded`
        self.table_address = address(self._table)
        self._recorder: Callable[[int, int], None] | None = None
        self._status = np.zeros(2, np.int64)
        weakref.finalize(self, pool.retire, self._table, self._status).atexit = False
        self._bases: dict[str, np.ndarray] = {}
        self._capacity = -1
        self._scratch_threads = 0
        self._is_short: dict[int, bool] = {}
        self._prepared_for: object = None
        self._prepare = self._linked(program.prepare)
        self._run = self._linked(program.run)
        self._set("status", self._status)
        self._set("prepared", allocate(program.prepared_bytes))
        for name, array in constants.items():
            self._set("constant:" + name, np.ascontiguousarray(array))
        _alive.add(self)

    @property
    def lock(self) -> threading.RLock:
        """Held during a run and while what it reads is changed."""
        return self._lock

    @property
    def fallbacks(self) -> int:
        """How many operators run through numpy."""
        return len(self.program.fallbacks)

    def arena_bytes(self, n: int) -> int:
        """Working memory for batch size ``n``, in bytes."""
        p = self.program
        return p.batch_bytes * n + p.fixed_bytes + p.prepared_bytes

    @property
    def scratch_bytes(self) -> int:
        """Private memory of all threads that runs had so far, in bytes."""
        return self.program.scratch_bytes * self._scratch_threads

    def bind(self, state: Mapping[str, np.ndarray]) -> None:
        """Uses these C-contiguous arrays as parameters and buffers by path."""
        with self._lock:
            for path, array in state.items():
                self._set("state:" + path, array)
            self._prepared_for = None

    def run(
        self,
        n: int,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        version: object = None,
        ready: Callable[[int], None] | None = None,
    ) -> None:
        """One call: reads ``inputs`` and state, writes ``outputs`` and updated state.

        All arrays are C-contiguous and of the graph's types at batch size ``n``. What depends on
        state alone is computed again when ``version`` differs from the last call's (or is None).
        ready: is called with the number of each group of updates (`emit_program`) between two
        segments, as soon as the group is written (after all segments while `recorded`); not after a
        bad index. Raises IndexError if a kernel met a label or index out of range; state is
        unchanged then.
        """
        with self._lock:
            available = settings.num_threads()
            self._reserve(n, available)
            for path, array in inputs.items():
                self._set("input:" + path, array)
            for name, array in outputs.items():
                self._set("output:" + name, array)
            self._status[0] = 0
            if self._prepare and (version is None or version != self._prepared_for):
                self._run_segments(self._prepare, n, available)
                self._prepared_for = version
            threads = 1 if self._short(n) else available
            if self._recorder is None:
                self._run_segments(self._run, n, threads, ready)
            else:
                self._recorder(n, threads)
                if ready is not None and not self._status[0]:
                    for group in range(len(self.program.ready)):
                        ready(group)
            if self._status[0]:
                raise self._bad_index()

    def repeat(
        self,
        n: int,
        inputs: Sequence[tuple[str, tuple[int, ...], np.dtype]],
        output: tuple[str, tuple[int, ...], np.dtype],
    ) -> Repeat | None:
        """A function for runs like the last one, or None if runs are not one native call.

        It takes the arrays for ``inputs`` (path, shape, dtype) in this order and returns a new
        array, ``output``; None if an argument is no readable C-contiguous array of that kind. It
        trusts its caller: that batch size, state, number of threads, other inputs and results are
        those of the last `run`. Raises IndexError as `run` does.
        """
        if len(self._run) != 1 or not isinstance(self._run[0], int):
            return None
        with self._lock:
            threads = 1 if self._short(n) else settings.num_threads()
        if any("input:" + path not in self._slots for path, _, _ in inputs):
            return None
        if "output:" + output[0] not in self._slots:
            return None
        call = native_call(
            self._run[0],
            self.table_address,
            n,
            address(self._status),
            [(self._slots["input:" + path], shape, dtype) for path, shape, dtype in inputs],
            (self._slots["output:" + output[0]], *output[1:]),
        )
        if call is None:
            return None
        lend = pool.shared.lend

        def run(arrays: Sequence[object]) -> np.ndarray | None:
            with self._lock:
                found: np.ndarray | Literal[False] | None = lend(threads, call, arrays)
                if found is False:
                    raise self._bad_index()
            return found

        return run

    @contextmanager
    def recorded(self, recorder: Callable[[int, int], None], times: np.ndarray) -> Iterator[None]:
        """Until the end of the block, ``recorder(n, threads)`` runs in the place of the ``run``
        segments, on the same memory; ``times`` is in the slot after the program's. Other threads
        wait."""
        with self._lock:
            self._table[-1] = address(times)
            self._recorder = recorder
            try:
                yield
            finally:
                self._recorder = None
                self._table[-1] = 0

    @contextmanager
    def on_copies(self, paths: Iterable[str]) -> Iterator[Callable[[], None]]:
        """Until the end of the block, runs change copies of the state ``paths`` and not the state.
        The value is a function that gives the copies the state's values again. Other threads wait.
        """
        with self._lock:
            state = {s: self._bases[s] for s in map("state:{}".format, paths) if s in self._bases}
            copies = {slot: array.copy() for slot, array in state.items()}

            def restore() -> None:
                for slot, array in state.items():
                    copies[slot][...] = array

            for slot, array in copies.items():
                self._set(slot, array)
            try:
                yield restore
            finally:
                for slot, array in state.items():
                    self._set(slot, array)

    def _linked(self, segments: Sequence[Segment]) -> list[int | Fallback]:
        """The address of a native segment's code; a fallback as it is."""
        from ..codegen.program import Native  # imports LLVM, which importing this module must not

        return [self.library.address(s.entry) if isinstance(s, Native) else s for s in segments]

    def _run_segments(
        self,
        segments: Sequence[int | Fallback],
        n: int,
        threads: int,
        ready: Callable[[int], None] | None = None,
    ) -> None:
        group, ends = 0, self.program.ready if ready else []
        for done, segment in enumerate(segments, start=1):
            if isinstance(segment, int):
                pool.run(segment, self.table_address, n, threads)
            else:
                self.run_fallback(segment, n)
            while group < len(ends) and ends[group] <= done and not self._status[0]:
                assert ready is not None
                ready(group)
                group += 1

    def run_fallback(self, segment: Fallback, n: int) -> None:
        """Runs an operator without a kernel, unless it would change state after a bad index."""
        if segment.commits and self._status[0]:
            return
        operands = [self._view(loc, kind, n) for loc, kind in segment.operands]
        with np.errstate(all="ignore"):
            results = run_node(segment.node, operands, n)
        for result, (loc, kind) in zip(results, segment.results, strict=True):
            self._view(loc, kind, n)[...] = result

    def _view(self, location: Location, kind: TensorType, n: int) -> np.ndarray:
        """The array at a place of the memory plan."""
        shape = shape_at(kind.shape, n)
        dtype = kind.dtype.np
        if 0 in shape:
            return np.empty(shape, dtype)
        base = self._bases[location.slot]
        if base.dtype != np.uint8 or base.ndim != 1:
            base = base.reshape(-1).view(np.uint8)
        start = location.offset * (n if location.slot == "batch" else 1) + location.start
        return np.ndarray(shape, dtype, base, start, location.strides(shape, dtype.itemsize))

    def _set(self, slot: str, array: np.ndarray) -> None:
        index = self._slots.get(slot)
        if index is not None:
            self._bases[slot] = array
            self._table[index] = address(array)

    def _reserve(self, n: int, threads: int) -> None:
        """Grows the arenas for batch size ``n`` and the scratch memory for ``threads``."""
        if n > self._capacity:
            self._set("batch", allocate(self.program.batch_bytes * max(n, 1)))
            if self._capacity < 0:
                self._set("fixed", allocate(self.program.fixed_bytes))
            self._capacity = n
        if threads > self._scratch_threads:
            self._set("scratch", allocate(self.program.scratch_bytes * threads))
            self._scratch_threads = threads

    def _short(self, n: int) -> bool:
        """Whether a run is too little work for a second thread."""
        if n not in self._is_short:
            launches = (x for x in self.program.launches if x.phase == "run")
            self._is_short[n] = sum(x.cost.at(n) for x in launches) < WORTH_A_THREAD
        return self._is_short[n]

    def _bad_index(self) -> IndexError:
        """The error for the status that a run has left."""
        value = int(self._status[1])
        suspects = [
            f"{launch.node.op} ({launch.node.source})"
            if str(launch.node.source)
            else launch.node.op
            for launch in self.program.launches
            if launch.node.op in INDEXED
        ]
        where = ", ".join(dict.fromkeys(suspects)) or self.program.name
        return IndexError(
            f"Target {value} is out of bounds: an index or label does not fit the table or the "
            f"number of classes, in {where}. No parameter was changed"
        )


def _after_fork() -> None:
    """In the child: a lock may be held by a thread of the parent that does not exist here."""
    for executable in _alive:
        executable._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
