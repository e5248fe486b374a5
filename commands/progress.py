"""A progress bar on stderr; plain lines where stderr is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_WIDTH = 28
_REDRAW_SECONDS = 0.05


class Progress:
    """Shows how far a loop of ``total`` steps is; ``done`` replaces the bar by a final line."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self._label, self._total = label, total
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._drawn = 0.0

    def update(self, step: int, text: str = "") -> None:
        """Step ``step`` of ``total`` is finished."""
        now = time.perf_counter()
        if not self._live or (now - self._drawn < _REDRAW_SECONDS and step < self._total):
            return
        self._drawn = now
        filled = _WIDTH * step // max(self._total, 1)
        bar = "#" * filled + "." * (_WIDTH - filled)
        self._write(f"{self._label} [{bar}] {step}/{self._total} {text}")

    def done(self, text: str) -> None:
        """The loop has ended."""
        if self._live:
            self._write(f"{self._label} {text}")
        else:
            self._stream.write(f"{self._label} {text}")
        self._stream.write("\n")
        self._stream.flush()

    def _write(self, line: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + line[:columns].ljust(columns))
        self._stream.flush()
