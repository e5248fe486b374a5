"""Rounds of many kernels: what is small and independent is shared among the threads at once.

The tasks of a joint round are those of its kernels, one after the other. Handing out a chunk takes
about as long as the update of a bias, so a round for each parameter would cost more than the
updates do, and code for each more than a kernel. A round has a table instead, with a row for each
launch: its tasks and the places of its pointers; launches of one kernel are a loop over rows. The
optimizer's updates of all small parameters are one call of one kernel in such a loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.plan import Location
from .text import Function

MOST_WORK = 30_000
"""Nanoseconds of work of a kernel from which it has a round of its own: what threads have to do for
a round is nothing beside that, and its tasks need not wait behind others."""


@dataclass(frozen=True)
class Member:
    """A launch in a joint round: its kernel, its tasks, what the kernel takes as ``N`` (None: the
    batch size), the argument table's slot and the offset in bytes of each result and operand."""

    symbol: str
    tasks: int
    length: int | None
    places: tuple[tuple[int, int], ...]


def is_fixed(location: Location) -> bool:
    """Whether a place does not depend on the batch size, and rows there follow each other."""
    return location.slot != "batch" and not location.pitch


def call_members(
    fn: Function, members: Sequence[Member], begin: str, end: str, last: Sequence[str]
) -> None:
    """Calls, for the tasks [begin, end) of a joint round, the kernels that have some of them.

    last: the arguments between the pointers and ``N``.
    """
    first = 0
    rows: dict[tuple[str, bool], list[tuple[int, ...]]] = {}
    for m in members:
        flat = [number for place in m.places for number in place]
        row = (first, first + m.tasks, m.length or 0, *flat)
        rows.setdefault((m.symbol, m.length is None), []).append(row)
        first += m.tasks
    for (symbol, by_batch), table in rows.items():
        _call_rows(fn, symbol, table, begin, end, [*last, "i64 %N"] if by_batch else last)


def _call_rows(
    fn: Function,
    symbol: str,
    table: Sequence[tuple[int, ...]],
    begin: str,
    end: str,
    last: Sequence[str],
) -> None:
    width = len(table[0])
    place = _constant(fn, [number for row in table for number in row])
    with fn.loop(len(table)) as loop:
        at = fn.emit(f"mul nsw i64 {loop.index}, {width}")
        row = fn.element(place, "i64", at)

        def field(k: int) -> str:
            return fn.load("i64", fn.element(row, "i64", k), 8)

        start = field(0)
        low = fn.call("i64", "llvm.smax.i64", ("i64", begin), ("i64", start))
        high = fn.call("i64", "llvm.smin.i64", ("i64", end), ("i64", field(1)))
        with fn.when(fn.emit(f"icmp slt i64 {low}, {high}")):
            arguments = []
            for k in range(3, width, 2):
                slot = fn.element("%args", "ptr", field(k))
                # Atomic: as for other pointers of the table (`EntryEmitter`).
                base = fn.emit(f"load atomic ptr, ptr {slot} unordered, align 8")
                arguments.append(f"ptr {fn.element(base, 'i8', field(k + 1))}")
            arguments += last
            if not last[-1].endswith("%N"):
                arguments.append(f"i64 {field(2)}")
            tasks = (fn.emit(f"sub nsw i64 {bound}, {start}") for bound in (low, high))
            arguments += [f"i64 {bound}" for bound in tasks]
            fn.do(f"call void @{symbol}({', '.join(arguments)})")


def _constant(fn: Function, numbers: Sequence[int]) -> str:
    """A table of i64 in the module."""
    values = ", ".join(f"i64 {n}" for n in numbers)
    name = f"@rows_{hashlib.sha256(values.encode()).hexdigest()[:16]}"
    kind = f"[{len(numbers)} x i64]"
    fn.declare(f"{name} = private unnamed_addr constant {kind} [{values}], align 64")
    return name
