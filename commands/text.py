"""Warnings as lines for people, without source lines."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LintWarning


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
