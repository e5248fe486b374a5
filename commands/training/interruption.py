"""CTRL-C between steps."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """``signal`` is the number of the signal that asks the training to end, or 0."""

    signal = 0

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        print(
            "\ninterrupted: the checkpoint is written after this step; again: ends at once",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def watched() -> Iterator[Interruption]:
    """Turns SIGINT and SIGTERM into a mark; the second one raises KeyboardInterrupt."""
    found = Interruption()
    before = {number: signal.signal(number, found._ask) for number in _SIGNALS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
