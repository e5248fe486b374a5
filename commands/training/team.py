"""The processes that train together: one, or those that ``mpirun`` has started."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from ...errors import LintWarning, NetwrightError
from ...runtime.settings import debug
from ..failure import FAILED, Failure, Misuse

if TYPE_CHECKING:
    from ...bridge.step import CompiledStep
    from ...distributed.process_group import Group

# What the launchers of Open MPI, MPICH (and Intel MPI) and MVAPICH tell their processes.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_PATIENCE_SECONDS = 2.0


class Alone:
    """One process. Each method of `Team` is called by all of its processes together."""

    rank = 0
    size = 1

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """An exception in the block ends all processes."""
        yield

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        return value

    def total(self, values: list[float]) -> list[float]:
        """The sums over all processes."""
        return values

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        return [value]

    def shared(self, step: CompiledStep) -> Any:
        """The step, averaging gradients over all processes."""
        return step

    def agree_on_buffers(self, step: Any) -> None:
        """Gives all processes rank 0's running statistics."""

    def progress_stream(self) -> TextIO | None:
        """Where this process shows its progress; None: stderr."""
        return None


class Team(Alone):
    """The processes of an MPI job."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.rank, self.size = group.rank, group.size
        self._nowhere = open(os.devnull, "w") if self.rank else None  # noqa: SIM115
        if self.rank:
            warnings.simplefilter("ignore", LintWarning)  # rank 0 shows them

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        from ...distributed import failure

        try:
            yield
        except BaseException as error:
            # What is wrong on all ranks is said once: rank 0 ends the others before they speak.
            time.sleep(_PATIENCE_SECONDS if self.rank else 0)
            if isinstance(error, (Failure, NetwrightError)) and not debug():
                print(f"netwright train: error: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            failure.abort(getattr(error, "code", FAILED), "has failed")
            raise

    def largest(self, value: int) -> int:
        from ...distributed.collectives import gather_numbers

        return int(gather_numbers(self._group, [value], "the beginning of a step").max())

    def total(self, values: list[float]) -> list[float]:
        from ...distributed.collectives import gather_numbers

        found: list[float] = (
            gather_numbers(self._group, values, "the results of an epoch").sum(axis=0).tolist()
        )
        return found

    def gathered(self, value: Any) -> list[Any]:
        from ...distributed.collectives import gather_objects

        return gather_objects(self._group, value, "the checkpoint")

    def shared(self, step: CompiledStep) -> Any:
        from ...distributed import DataParallel

        return DataParallel(step)

    def agree_on_buffers(self, step: Any) -> None:
        step.sync_buffers()

    def progress_stream(self) -> TextIO | None:
        return self._nowhere


def join(distributed: bool) -> Alone:
    """The team that ``--distributed`` asks for.

    Misuse if it does not fit how the process was started; Failure without MPI.
    """
    started = max((int(s) for v in _SIZES if (s := os.environ.get(v, "")).isdecimal()), default=1)
    if not distributed:
        if started > 1:
            raise Misuse(
                f"this is one of {started} processes, and each would train for itself; add "
                "--distributed"
            )
        return Alone()
    from ...distributed import process_group

    try:
        process_group.init_process_group()
    except RuntimeError as error:
        raise Failure(str(error)) from error
    group = process_group.current()
    if group.size == 1:
        raise Misuse(
            "--distributed: this is the only process; start several, such as mpirun -n 2 netwright "
            "train ... --distributed"
        )
    return Team(group)
