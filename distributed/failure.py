"""A rank that fails ends the job: the others would wait for it forever.

A process that is killed is noticed by ``mpirun``, which ends the others.
"""

from __future__ import annotations

import atexit
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .process_group import Group

_FORWARDING_SECONDS = 0.5
"""Between a message and the end: mpirun does not forward what it has not read by then."""

_group: Group | None = None
_hook_before: Any = None


def watch(group: Group) -> None:
    """From here on an uncaught exception of this process aborts all; so does leaving alone."""
    global _group, _hook_before
    _group, _hook_before = group, sys.excepthook
    sys.excepthook = _on_exception
    atexit.register(_leave_together)


def unwatch() -> None:
    """Undoes `watch`."""
    global _group
    if _group is not None:
        sys.excepthook = _hook_before
        atexit.unregister(_leave_together)
    _group = None


def abort(code: int, reason: str) -> None:
    """Ends all processes of the job, this one included; does nothing if there is one."""
    if _group is None:
        return
    sys.stdout.flush()
    print(
        f"netwright.distributed: rank {_group.rank} of {_group.size} {reason}; the job ends",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(_FORWARDING_SECONDS)
    _group.comm.Abort(code)


def _on_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    _hook_before(kind, error, trace)
    sys.stderr.flush()
    abort(1, f"has failed with {kind.__name__}")


def _leave_together() -> None:
    """At exit, waits for the others: one that leaves early, say by sys.exit(), would make them wait
    for it until they run out of time."""
    if _group is None:
        return
    try:
        _group.wait([_group.farewell.Ibarrier()], "the end of the program")
    except RuntimeError as error:
        abort(1, f"has ended before the others ({error})")
