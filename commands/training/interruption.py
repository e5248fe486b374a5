"""CTRL-C between steps."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2


class Interruption:
    """``signal`` is the number of the signal that asks the training to end, or 0."""

    signal = 0

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        # Not print(): the signal may have come while stderr's buffer was written to.
        os.write(
            _STDERR,
            b"\ninterrupted: the checkpoint is written after this step; again: ends at once\n",
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
