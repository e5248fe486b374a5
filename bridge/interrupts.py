"""Keeping Ctrl-C out of what must happen as a whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class uninterrupted:
    """``with uninterrupted():`` a SIGINT during the block takes effect at its end.

    Python runs signal handlers between any two instructions, so KeyboardInterrupt could otherwise
    come between a native call that changed the weights and the line that counts the step. Other
    threads than the main one get no KeyboardInterrupt.
    """

    __slots__ = ("_came", "_handler")

    def __enter__(self) -> None:
        self._came: tuple[int, FrameType | None] | None = None
        self._handler: Any = None
        if threading.get_ident() == _MAIN:
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                signal.signal(signal.SIGINT, self._note)
                self._handler = handler

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = number, frame

    def __exit__(self, *failure: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._came is not None:
                self._handler(*self._came)


_MAIN = threading.main_thread().ident
