"""The benchmark programs as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import netwright

FOLDER = Path(netwright.__file__).resolve().parent / "benchmarks"
EXAMPLES = FOLDER.parent / "examples"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """``program("peers")`` imports benchmarks/peers.py as a run of it would; it and its neighbours
    are forgotten afterwards, because they have names that others use, too."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or ".").parent in (FOLDER, EXAMPLES):
            del sys.modules[name]
