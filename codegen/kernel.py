"""What a kernel generator hands over: one native function and how to run it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.types import Dim, Extent, TensorType
from .chunks import MAX_CUTS
from .sizes import Size
from .text import Function


@dataclass(frozen=True)
class TaskCount:
    """``ceil(extent / per)`` tasks, where ``extent`` may be a multiple of the batch."""

    extent: Extent
    per: int = 1

    def at(self, n: int) -> int:
        """The number of tasks for batch size ``n``."""
        total = self.extent.at(n) if isinstance(self.extent, Dim) else self.extent
        return -(-total // self.per)


@dataclass(frozen=True)
class Kernel:
    """One kernel: its symbol, the LLVM IR that defines it, and its parallel extent.

    The function is ``void @symbol(ptr out0.., ptr in0.., ptr scratch, ptr status, i64 N,
    i64 begin, i64 end)``. It does the tasks ``begin <= task < end``; every result is the same
    bits however the tasks are split. ``scratch`` is ``scratch_bytes`` of private memory, 64-byte
    aligned. ``status`` points to two i64: a kernel that meets an index out of range stores 1 and
    the index and goes on without touching memory outside its operands. ``helpers`` are the names
    and definitions of functions that other kernels use, too. ``cuts`` is into how many ranges one
    thread's part of the tasks may be cut: few where a range costs something of its own, and one for
    batches of less than ``cuts_from`` samples. ``length``, if it is not None, is what takes the
    place of ``N``: loops over tensors of fixed size share one function.
    """

    symbol: str
    text: str
    declarations: frozenset[str]
    tasks: TaskCount
    scratch_bytes: int = 0
    flops: Extent = 0
    bytes: Extent = 0
    helpers: tuple[tuple[str, str], ...] = ()
    cuts: int = MAX_CUTS
    cuts_from: int = 0
    length: int | None = None

    @property
    def code(self) -> str:
        """All that a module with this kernel alone needs to define."""
        return "\n".join([*(text for _, text in self.helpers), self.text])


STATUS_INDEX_OUT_OF_RANGE = 1

# Ranges into which work can be cut; many divisors, so that few threads get equal shares.
MAX_TASKS = 240


def tasks_for(units: Size) -> int:
    """Into how many tasks so many units of work are cut; many if their number is known to the
    running kernel only."""
    return max(1, min(MAX_TASKS, units)) if isinstance(units, int) else MAX_TASKS


class LocalFunctions:
    """The functions of one kernel that are made when they are first used."""

    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._made: dict[str, Function] = {}

    @property
    def functions(self) -> list[Function]:
        return list(self._made.values())

    def name(self, key: str, make: Callable[[str], Function]) -> str:
        """The symbol of the function ``key``, which ``make(symbol)`` writes."""
        symbol = f"{self._symbol}_{key}"
        if key not in self._made:
            self._made[key] = make(symbol)
        return symbol


def symbol_for(prefix: str, *key: object) -> str:
    """A name made from everything that a kernel depends on, so that equal kernels are shared."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    return f"{prefix}_{digest}"


def kernel_params(outputs: int, inputs: int) -> list[tuple[str, str]]:
    """The parameters of a kernel (see ``Kernel``)."""
    params = [("ptr", f"out{i}") for i in range(outputs)]
    params += [("ptr", f"in{i}") for i in range(inputs)]
    params += [("ptr", "scratch"), ("ptr", "status")]
    return [*params, ("i64", "N"), ("i64", "begin"), ("i64", "end")]


def assembled(
    functions: Sequence[Function],
    tasks: TaskCount,
    scratch_bytes: int = 0,
    flops: Extent = 0,
    bytes: Extent = 0,
    tables: Sequence[str] = (),
    cuts: int = MAX_CUTS,
    cuts_from: int = 0,
) -> Kernel:
    """The kernel whose function is the last of ``functions``, with those that it calls before it.

    ``tables`` are definitions of constants.
    """
    return Kernel(
        functions[-1].name,
        "\n".join([*tables, *(f.render() for f in functions if not f.shared)]),
        frozenset().union(*(f.declarations for f in functions)),
        tasks,
        scratch_bytes,
        flops,
        bytes,
        tuple({f.name: f.render() for f in functions if f.shared}.items()),
        cuts,
        cuts_from,
    )


def traffic(types: Sequence[TensorType]) -> Extent:
    """Bytes of tensors that are read or written once: those that grow with the batch, if any do."""
    sizes = [(t.size, t.dtype.itemsize) for t in types]
    per_sample = sum(n.coef * item for n, item in sizes if isinstance(n, Dim))
    return Dim(per_sample) if per_sample else sum(n * i for n, i in sizes if isinstance(n, int))
