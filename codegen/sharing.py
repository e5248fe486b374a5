"""How a kernel's work is shared: into how many chunks it is cut, and the loop that claims them.

More chunks than threads let the others do the work of one that lost its CPU; fewer cost less. The
decision is made at run time, from an estimate of the work at the batch size of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..ir.types import Dim, Extent
from .chunks import MAX_CUTS, TAPERED
from .spmd import ENTRY_PARAMS
from .text import Function

# What one core does, roughly: operations and bytes per nanosecond.
ASSUMED_FLOPS = 50
ASSUMED_BYTES = 10

TOO_SMALL = 3_000
"""Nanoseconds of work that are not worth sharing: handing out a chunk and waiting for it takes a
few tenths of a microsecond, and operands in another core's cache more."""

WORTH_A_CHUNK = 30_000
"""Nanoseconds of work from which a thread's part of a kernel is cut again."""


@dataclass(frozen=True)
class Cost:
    """Estimated nanoseconds of work on one core: ``fixed + per_sample * N``."""

    fixed: int
    per_sample: int = 0

    @classmethod
    def of(cls, flops: Extent, bytes: Extent) -> Cost:
        """Of a kernel that does so many operations and moves so many bytes."""
        work = [(flops, ASSUMED_FLOPS), (bytes, ASSUMED_BYTES)]
        return cls(
            sum(-(-n // rate) for n, rate in work if isinstance(n, int)),
            sum(-(-n.coef // rate) for n, rate in work if isinstance(n, Dim)),
        )

    def at(self, n: int) -> int:
        """Nanoseconds for batch size ``n``."""
        return self.fixed + self.per_sample * n


def entry_function(name: str) -> Function:
    """An entry under construction: its rounds are written with `shared`; `close_entry` ends it."""
    fn = Function(name, ENTRY_PARAMS, linkage="")
    fn.emit("icmp eq ptr %ticket, null", "%alone")
    return fn


def close_entry(fn: Function) -> str:
    """The text of an entry."""
    fn.do("call void @nw_leave(ptr %ticket)")
    return fn.render()


@contextmanager
def shared(
    fn: Function,
    tasks: str | int,
    cuts: Callable[[Function], str] | int = 1,
    first: bool = True,
) -> Iterator[tuple[str, str]]:
    """A round of an entry: what is written in the block runs for ranges of the ``tasks``.

    Yields (begin, end). Alone, the block runs once, for all tasks. ``cuts`` is the number of chunks
    per thread, or writes the code that computes it; 0 is one chunk in all. ``first`` says that the
    round is the first one after a wait: a single chunk is then thread 0's, which has what it needs
    in its cache.
    """
    tag = fn.fresh("round")[1:]
    claim, work, finish, after = (f"{tag}.{part}" for part in ("claim", "work", "finish", "after"))
    before = fn.block
    fn.do(f"br i1 %alone, label %{work}, label %{tag}")
    fn.label(tag)
    per = cuts(fn) if callable(cuts) else cuts
    fn.do(f"call void @nw_round(ptr %ticket, i64 {tasks}, i64 {per}, i64 {int(not first)})")
    fn.do(f"br label %{claim}")
    fn.label(claim)
    chunk = fn.emit("call {i64, i64} @nw_claim(ptr %ticket)")
    start = fn.emit(f"extractvalue {{i64, i64}} {chunk}, 0")
    stop = fn.emit(f"extractvalue {{i64, i64}} {chunk}, 1")
    none = fn.emit(f"icmp slt i64 {start}, 0")
    fn.do(f"br i1 {none}, label %{after}, label %{work}")
    fn.label(work)
    begin = fn.emit(f"phi i64 [0, %{before}], [{start}, %{claim}]")
    end = fn.emit(f"phi i64 [{tasks}, %{before}], [{stop}, %{claim}]")
    yield begin, end
    fn.do(f"br i1 %alone, label %{after}, label %{finish}")
    fn.label(finish)
    fn.do("call void @nw_finish(ptr %ticket)")
    fn.do(f"br label %{claim}")
    fn.label(after)


def cuts_for(cost: Cost, most: int, since: int = 0) -> Callable[[Function], str] | int:
    """Chunks per thread for a kernel of this cost, in the form that `shared` takes.

    None of less than TOO_SMALL is shared; no thread's part is cut into more than ``most`` (up to
    MAX_CUTS) equal chunks, nor into chunks of less than WORTH_A_CHUNK, nor into several for batches
    of less than ``since``. If ``most`` is MAX_CUTS, the last of these ends in small ones.
    """
    if cost.per_sample == 0 and cost.fixed < TOO_SMALL:
        return 0

    def emit(fn: Function) -> str:
        work = str(cost.fixed)
        if cost.per_sample:
            grown = fn.emit(f"mul i64 %N, {cost.per_sample}")
            work = fn.emit(f"add i64 {grown}, {cost.fixed}")
        cuts, least = "1", 2
        while least <= min(most, MAX_CUTS):
            enough = fn.emit(f"mul i64 %nthreads, {least * WORTH_A_CHUNK}")
            much = fn.emit(f"icmp uge i64 {work}, {enough}")
            cuts = fn.emit(f"select i1 {much}, i64 {least}, i64 {cuts}")
            least *= 2
        if most >= MAX_CUTS:
            enough = fn.emit(f"mul i64 %nthreads, {WORTH_A_CHUNK}")
            much = fn.emit(f"icmp uge i64 {work}, {enough}")
            tapered = fn.emit(f"or i64 {cuts}, {TAPERED}")
            cuts = fn.emit(f"select i1 {much}, i64 {tapered}, i64 {cuts}")
        if since > 1 and most > 1:
            several = fn.emit(f"icmp uge i64 %N, {since}")
            cuts = fn.emit(f"select i1 {several}, i64 {cuts}, i64 1")
        if not cost.per_sample:
            return cuts
        small = fn.emit(f"icmp ult i64 {work}, {TOO_SMALL}")
        return fn.emit(f"select i1 {small}, i64 0, i64 {cuts}")

    return emit
