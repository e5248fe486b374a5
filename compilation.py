"""What a compilation makes, and where its time goes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from .frontend.trace import Traced
from .ir.graph import Graph
from .ir.plan import Plan
from .passes.rewriting import Ledger
from .runtime.executable import Executable
from .runtime.timed import Recorder

PHASES = ("trace", "passes", "plan", "emit", "llvm", "cache", "link")
"""Where the time of a compilation goes: ``llvm`` parses, optimises and emits object code, ``cache``
looks for it on disk and stores it, ``link`` loads it and lays out tables and memory."""


@dataclass
class Compilation:
    """Everything that was made for one mode and one kind of input: graphs of all stages, what the
    passes did, the plan, the executable, and where the time went.

    batch: the batch size of the call that it was made for.
    seconds: by phase, in order (PHASES); pass_seconds: the phase ``passes`` by stage; recorders:
    what times the kernels of an executable, once somebody has asked for it.
    """

    traced: Traced
    stages: dict[str, Graph]
    ledger: Ledger
    batch: int = 1
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    pass_seconds: dict[str, float] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    executables: dict[str, Executable] = field(default_factory=dict)
    recorders: dict[str, Recorder] = field(default_factory=dict)

    @property
    def fallbacks(self) -> list[Any]:
        """Nodes that run through numpy."""
        return [n for e in self.executables.values() for n in e.program.fallbacks]


@contextmanager
def timed(made: Compilation, phase: str, stage: str = "") -> Iterator[None]:
    """Counts the time of a block for a phase and, if it is a pass, for its stage."""
    start = time.perf_counter()
    yield
    spent = time.perf_counter() - start
    made.seconds[phase] += spent
    if stage:
        made.pass_seconds[stage] = made.pass_seconds.get(stage, 0.0) + spent


_Function = TypeVar("_Function", bound=Callable[..., Any])


def without_collections(function: _Function) -> _Function:
    """Puts garbage collection off until a phase is over: it makes many objects that live on, and a
    full collection walks through all that is imported (20 ms, half of a small model's time)."""

    @wraps(function)
    def phase(*args: Any, **kwargs: Any) -> Any:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            gc.enable()

    return phase  # type: ignore[return-value]
