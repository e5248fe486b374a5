"""How a command ends badly, and the border between netwright and a user's own code."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from ..errors import NetwrightError
from ..runtime import settings

FAILED = 1
MISUSE = 2
INTERRUPTED = 130


class Failure(Exception):
    """The command could not do what it was asked; exit code 1."""

    code = FAILED


class Misuse(Failure):
    """The command was asked for something that makes no sense; exit code 2."""

    code = MISUSE


def require_compiler() -> None:
    """Failure if the environment says that nothing is to be compiled."""
    if settings.disabled():
        raise Failure(f"{settings.DISABLE} is set, so nothing is compiled; unset it")


_EXPECTED = (NetwrightError, TypeError, ValueError, RuntimeError, IndexError, AttributeError)


@contextmanager
def imported(file: Path) -> Iterator[None]:
    """Runs a user's file; what it raises is shown with its own lines, without ours."""
    try:
        yield
    except SystemExit:
        raise Failure(
            f"{file} exits when it is imported; put what it does as a program under "
            "if __name__ == '__main__':"
        ) from None
    except Exception as error:  # a user's file may raise anything
        if settings.debug():
            raise
        frames = _frames_from(error.__traceback__, file)
        shown = "".join(traceback.format_exception(type(error), error, frames))
        raise Failure(f"{file} cannot be imported:\n{shown.rstrip()}") from error


@contextmanager
def user_code(doing: str, file: Path) -> Iterator[None]:
    """Runs code that calls a user's; an error becomes one line that names the user's line.

    An error of another kind that was not raised by the user's file is a bug of ours, and keeps its
    traceback; so does everything with NETWRIGHT_DEBUG.
    """
    try:
        yield
    except Failure:
        raise
    except Exception as error:  # a user's file may raise anything
        place = _innermost(error.__traceback__, file)
        if settings.debug() or not (isinstance(error, _EXPECTED) or place):
            raise
        kind = "" if isinstance(error, NetwrightError) else f"{type(error).__name__}: "
        where = f" (at {place})" if place and place.partition(",")[0] not in str(error) else ""
        raise Failure(f"{doing}: {kind}{error}{where}") from error


def _frames_from(trace: TracebackType | None, file: Path) -> TracebackType | None:
    """The part of a traceback that starts in a file; nothing if it never gets there."""
    while trace is not None and not _is_in(trace.tb_frame, file):
        trace = trace.tb_next
    return trace


def _innermost(trace: TracebackType | None, file: Path) -> str:
    """``model.py:12, in forward`` for the last frame of a file, or nothing."""
    found = ""
    while trace is not None:
        if _is_in(trace.tb_frame, file):
            found = f"{file}:{trace.tb_lineno}, in {trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return found


def _is_in(frame: FrameType, file: Path) -> bool:
    return Path(frame.f_code.co_filename).resolve() == file.resolve()
