"""Warnings as lines for people, without source lines; and numbers from people."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LintWarning


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
