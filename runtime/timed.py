"""How long each kernel of an executable takes: runs of the timed form of its program.

The timed form (`codegen.timed_program`) calls the kernels of the executable itself, on the same
memory; thread 0 reads the cycle counter when all threads are done with each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from . import jit, pool

if TYPE_CHECKING:
    from ..codegen.program import Fallback, Joint, Launch, Move, Program
    from ..codegen.target import Target
    from .executable import Executable


class Recorder:
    """Runs the timed form of an executable's program in its place.

    steps: the kernels, copies and numpy calls of a run in order; threads: with how many threads the
    last recorded run was.
    """

    def __init__(self, executable: Executable, program: Program, target: Target) -> None:
        """``program`` is the timed form of the executable's."""
        from ..codegen.program import Native
        from ..codegen.timed_program import marks

        if program.slots[:-1] != executable.program.slots:
            raise ValueError(f"{program.name}: not the timed form of the executable's program")
        self.executable = executable
        kernels = {x.symbol: executable.library.address(x.symbol) for x in program.launches}
        parts = {"graph": program.name, "timed": "True"}
        self.library = jit.load(program.text, target, parts, imports=kernels)
        self.steps: list[Launch | Move | Joint | Fallback] = []
        self._segments: list[tuple[int, int] | Fallback] = []
        for segment in program.run:
            if isinstance(segment, Native):
                self.steps += segment.steps
                self._segments.append((self.library.address(segment.entry), marks(segment)))
            else:
                self.steps.append(segment)
                self._segments.append(segment)
        count = sum(s[1] for s in self._segments if isinstance(s, tuple))
        self._times = np.zeros(max(count, 1), np.int64)
        self._in_numpy: list[int] = []
        self.threads = 1

    @contextmanager
    def recording(self) -> Iterator[None]:
        """In this block, runs of the executable are timed; other threads wait for its end."""
        with self.executable.recorded(self._run, self._times):
            yield

    def ticks(self) -> np.ndarray:
        """What each step took in the last recorded run, in ticks of `pool.clock`, int64."""
        in_numpy = iter(self._in_numpy)
        found, mark = [], 0
        for segment in self._segments:
            if isinstance(segment, tuple):
                found.append(np.diff(self._times[mark : mark + segment[1]]))
                mark += segment[1]
            else:
                found.append(np.array([next(in_numpy)]))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def _run(self, n: int, threads: int) -> None:
        """Like `Executable.run`'s own, without more work than that has."""
        table, clock = self.executable.table_address, pool.clock()
        self._in_numpy.clear()
        for segment in self._segments:
            if isinstance(segment, tuple):
                self.threads = pool.run(segment[0], table, n, threads)
            else:
                start = clock()
                self.executable.run_fallback(segment, n)
                self._in_numpy.append(clock() - start)
