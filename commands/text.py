"""Text for people: aligned tables, warnings without source lines; and numbers from people."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import LintWarning


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as columns; the columns whose numbers are in ``right`` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def size_text(count: int) -> str:
    """``12.5 KiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def counts(text: str) -> list[int]:
    """Reads ``1,64`` as an option's value; ArgumentTypeError for anything else."""
    parts = text.split(",")
    if not all(p.isascii() and p.isdecimal() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(
            f"expected numbers of at least 1 joined by commas, such as 1,64; got {text!r}"
        )
    return [int(p) for p in parts]


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Prints warnings as ``warning: ...`` on stderr, each text once, unless Python was told
    (``-W``, PYTHONWARNINGS) what to do with them."""
    seen: set[str] = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        text = str(message)
        if text not in seen:
            seen.add(text)
            print(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("always", LintWarning)
        warnings.showwarning = show
        yield
