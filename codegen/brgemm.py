"""The micro-kernel generator: a batch-reduce matrix product of one register tile.

``acc[i][j] += sum over the reduction of broadcast(A[row_i + k]) * B[k][vector j]``: rows of A are
broadcast, vectors of B are loaded, the tile stays in registers over the whole reduction. The
reduction is a nest of loops (Georganas et al., "High-Performance Deep Learning via a Single
Building Block", arXiv:1906.06440), which makes one generator serve matrix products, convolutions
and their gradients: they differ in row offsets and steps only.

Every output element has one accumulator that takes the products in the order of the reduction, so
its bits do not depend on the tile that computed it. Long reductions are summed in blocks, whose
sums are then added in memory: the rounding error of one long sum would be several times that of
other libraries, which do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol, runtime_checkable

from .emitter import Lane, VectorEmitter, scalar_type
from .sizes import greatest, least
from .target import LINE
from .text import Function, Loop
from .tile import Reduction, Tile, constant_trips

# Multiply-adds in a row, without a loop. In longer rows LLVM moves so many loads up that it spills.
_UNROLLED = 48
# Steps of a block of a sum that is cut into blocks.
_BLOCK_STEPS = (128, 384)


class Epilogue(Protocol):
    """What becomes of the accumulators."""

    def params(self) -> list[tuple[str, str]]:
        """Extra parameters of the micro-kernel: (type, name)."""

    def initial(self, e: VectorEmitter, tile: Tile) -> list[Lane | None]:
        """What the accumulators start from, row by row, or one row if all start from the same;
        None is zero."""

    def finish(self, e: VectorEmitter, tile: Tile, values: list[list[Lane]]) -> None:
        """Stores the tile ``values[row][vector]``."""


@runtime_checkable
class Interleaved(Epilogue, Protocol):
    """An epilogue with work for the time in which the tile is computed."""

    def between(self, e: VectorEmitter, tile: Tile, row: str) -> None:
        """Emits what to do for a row; called once per micro-kernel, in a loop over the rows."""


def micro_kernel(
    symbol: str, tile: Tile, epilogue: Epilogue, counts: Sequence[str] = ()
) -> Function:
    """``void @symbol(ptr a, ptr b, <epilogue's parameters>, i64 counts..., [ptr copy], [ptr sums],
    [i64 0])``.

    ``copy`` is where a tile with ``b_copy`` writes the rows of B.
    ``sums`` is private memory for a tile whose reduction is ``blocked``. The zero is there if the
    rows of the tile overlap in memory. Otherwise LLVM would find out that one row reads elements
    that another has read, and would keep all of them in registers that the accumulators need; added
    to an address, the zero hides this.
    """
    if tile.b_copy and (len(tile.loops) != 1 or tile.steps is None):
        raise ValueError(f"a tile copies B in one loop of a known length, not in {tile.loops}")
    params = [("ptr noalias readonly", "a"), ("ptr noalias readonly", "b")]
    params += epilogue.params()
    params += [("i64", name) for name in counts]
    if tile.b_copy:
        params.append(("ptr noalias", "copy"))
    if tile.blocked:
        params.append(("ptr noalias", "sums"))
    if tile.overlap:
        params.append(("i64", "nothing"))
    f = Function(symbol, params, attributes="noinline nounwind")
    e = VectorEmitter(f, tile.lanes, tile.dtype)
    zero = e.constant(0.0, tile.dtype)
    start = [lane or zero for lane in epilogue.initial(e, tile)]
    sums = [lane.text for lane in start] * (tile.rows * tile.vectors // len(start))
    if tile.loops:
        product = _Product(f, e, tile)
        if isinstance(epilogue, Interleaved):
            between = partial(epilogue.between, e, tile)
            if len(tile.loops) == 1 and not tile.blocked:
                sums = product.in_parts(sums, between)
            else:
                with f.loop(tile.rows) as loop:
                    between(loop.index)
                sums = product.in_blocks(sums) if tile.blocked else product.whole(sums)
        elif tile.blocked:
            sums = product.in_blocks(sums)
        else:
            sums = product.whole(sums)
    lanes = [Lane(text, tile.dtype) for text in sums]
    rows = [lanes[i * tile.vectors : (i + 1) * tile.vectors] for i in range(tile.rows)]
    epilogue.finish(e, tile, rows)
    return f


class _Product:
    """Emits the reduction of one tile. ``sums`` are the accumulators, row by row."""

    def __init__(self, f: Function, e: VectorEmitter, tile: Tile) -> None:
        self.f = f
        self.e = e
        self.tile = tile
        self.kind = e.type(tile.dtype)
        self.scalar = scalar_type(tile.dtype)
        self.size = tile.dtype.itemsize
        self.fma = e.intrinsic("fma", tile.dtype)
        self.work = tile.rows * tile.vectors
        self.copy = ""  # where the row of B at the present address goes
        # The scheduler for AArch64 moves loads up until it spills; smaller blocks stop it.
        self.straightest = _UNROLLED if tile.lanes * self.size > 16 else _UNROLLED // 2
        f.declare(f"declare {self.kind} @{self.fma}({', '.join([self.kind] * 3)})")

    def whole(self, sums: list[str]) -> list[str]:
        """The whole reduction in registers."""
        return self.nest(self.tile.loops, "%a", "%b", sums)

    def in_blocks(self, start: list[str]) -> list[str]:
        """The whole reduction, in blocks that are added up in the memory at ``%sums``."""
        for k, value in enumerate(start):
            self.f.store(self.kind, value, self._at("%sums", k * self.tile.lanes), self.size)
        self._blocks(self.tile.loops, "%a", "%b")
        return [self._sum(k) for k in range(len(start))]

    def in_parts(self, sums: list[str], between: Callable[[str], None]) -> list[str]:
        """The whole reduction, which is one loop, in as many parts as the tile has rows;
        ``between`` emits what comes before the part of a row."""
        f, rows, loop = self.f, self.tile.rows, self.tile.loops[0]
        size = f.emit(f"add i64 {loop.count}, {rows - 1}")
        size = f.emit(f"udiv i64 {size}, {rows}")
        with self._loop(rows, "%a", "%b", sums) as part:
            a, b, *sums = part.carried
            between(part.index)
            start = f.emit(f"mul i64 {part.index}, {size}")
            left = greatest(f, f.emit(f"sub i64 {loop.count}, {start}"), 0)
            here = least(f, size, left)
            inner = Reduction(str(here), loop.a_step, loop.b_step)
            a, b, sums = self.innermost_from(inner, a, b, sums)
            part.next = [a, b, *sums]
        return part.results[2:]

    def _blocks(self, loops: Sequence[Reduction], a: str, b: str) -> None:
        """The loops around the blocks, and the blocks."""
        low, high = _BLOCK_STEPS
        head, inner = loops[0], loops[1:]
        total = int(head.count) * (constant_trips(inner) or 0)
        if not inner and total > high:
            size, blocks, rest = sum_blocks(total)
            step = Reduction(blocks, size * head.a_step, size * head.b_step)
            body = Reduction(size, head.a_step, head.b_step)
            self._blocks([step, body], a, b)
            if rest:
                a, b = self._at(a, blocks * step.a_step), self._at(b, blocks * step.b_step)
                self._block([Reduction(rest, head.a_step, head.b_step)], a, b)
        elif not inner or (total // int(head.count) < low and total <= high):
            self._block(loops, a, b)
        elif head.count == 1:
            self._blocks(inner, a, b)
        else:
            with self._loop(head.count, a, b, []) as loop:
                a, b = loop.carried
                if total // int(head.count) <= high:
                    self._block(inner, a, b)
                else:
                    self._blocks(inner, a, b)
                loop.next = [self._at(a, head.a_step), self._at(b, head.b_step)]

    def _block(self, loops: Sequence[Reduction], a: str, b: str) -> None:
        """Adds the sum over the loops to the memory at ``%sums``."""
        zero = self.e.constant(0.0, self.tile.dtype).text
        sums = self.nest(loops, a, b, [zero] * self.work)
        for k, value in enumerate(sums):
            total = self.f.emit(f"fadd {self.kind} {self._sum(k)}, {value}")
            self.f.store(self.kind, total, self._at("%sums", k * self.tile.lanes), self.size)

    def _sum(self, k: int) -> str:
        return self.f.load(self.kind, self._at("%sums", k * self.tile.lanes), self.size)

    def nest(self, loops: Sequence[Reduction], a: str, b: str, sums: list[str]) -> list[str]:
        """The loops from the given one inwards, starting at the addresses ``a`` and ``b``."""
        total = constant_trips(loops)
        if total is not None and total * self.work <= self.straightest:
            self.copy = self._copy_at(a)
            return self.straight(loops, a, b, sums)
        head, inner = loops[0], loops[1:]
        if not inner:
            return self.innermost(head, a, b, sums)
        if head.count == 1:
            return self.nest(inner, a, b, sums)
        with self._loop(head.count, a, b, sums) as loop:
            a, b, *sums = loop.carried
            sums = self.nest(inner, a, b, sums)
            loop.next = [self._at(a, head.a_step), self._at(b, head.b_step), *sums]
        return loop.results[2:]

    def straight(
        self,
        loops: Sequence[Reduction],
        a: str,
        b: str,
        sums: list[str],
        at: tuple[int, int] = (0, 0),
    ) -> list[str]:
        """All iterations without a loop."""
        if not loops:
            return self.step(a, b, at, sums)
        for k in range(int(loops[0].count)):
            there = at[0] + k * loops[0].a_step, at[1] + k * loops[0].b_step
            sums = self.straight(loops[1:], a, b, sums, there)
        return sums

    def innermost(self, loop: Reduction, a: str, b: str, sums: list[str]) -> list[str]:
        """The innermost loop, unrolled; the iterations that are left over follow."""
        return self.innermost_from(loop, a, b, sums)[2]

    def innermost_from(
        self, loop: Reduction, a: str, b: str, sums: list[str]
    ) -> tuple[str, str, list[str]]:
        """``innermost``, with the addresses after it."""
        unroll = self._unroll(loop.count)
        block = Reduction(unroll, loop.a_step, loop.b_step)
        trips: int | str
        if isinstance(loop.count, int):
            trips, rest = divmod(loop.count, unroll)
        else:
            trips = self.f.emit(f"udiv i64 {loop.count}, {unroll}")
            left = self.f.emit(f"urem i64 {loop.count}, {unroll}")
        copy = [("ptr", self._copy_at(a))] if self.tile.b_copy else []
        with self._loop(trips, a, b, sums, copy) as main:
            a, b, *sums = main.carried
            if copy:
                self.copy = sums.pop()
            sums = self.straight([block], a, b, sums)
            step = unroll * loop.a_step, unroll * loop.b_step
            main.next = [self._at(a, step[0]), self._at(b, step[1]), *sums]
            if copy:
                main.next.append(self._at(self.copy, unroll * self.tile.b_copy))
        a, b, *sums = main.results
        if copy:
            self.copy = sums.pop()
        if isinstance(loop.count, int):
            return a, b, self.straight([Reduction(rest, loop.a_step, loop.b_step)], a, b, sums)
        if unroll == 1:
            return a, b, sums
        with self._loop(left, a, b, sums) as tail:
            a, b, *sums = tail.carried
            sums = self.step(a, b, (0, 0), sums)
            tail.next = [self._at(a, loop.a_step), self._at(b, loop.b_step), *sums]
        a, b, *sums = tail.results
        return a, b, sums

    def step(self, a: str, b: str, at: tuple[int, int], sums: list[str]) -> list[str]:
        """One index of the reduction: the outer product of a column of A and a row of B."""
        tile, kind = self.tile, self.kind
        vectors = [self._load_b(b, at[1], j) for j in range(tile.vectors)]
        if tile.b_copy:
            row = at[1] // tile.loops[0].b_step * tile.b_copy
            for j, vector in enumerate(vectors):
                self.f.store(kind, vector, self._at(self.copy, row + j * tile.lanes), self.size)
        result = []
        for i, row in enumerate(tile.a_rows):
            element = self.f.load(self.scalar, self._at(self._hidden(a, i), row + at[0]), self.size)
            splat = self.f.splat(kind, element)
            for j, vector in enumerate(vectors):
                old = sums[i * tile.vectors + j]
                operands = f"{kind} {splat}, {kind} {vector}, {kind} {old}"
                result.append(self.f.emit(f"call {kind} @{self.fma}({operands})"))
        return result

    def _copy_at(self, a: str) -> str:
        """Where the row of B that belongs to the step at ``a`` is copied; empty without a copy."""
        tile, f = self.tile, self.f
        if not tile.b_copy:
            return ""
        start, here = f.emit("ptrtoint ptr %a to i64"), f.emit(f"ptrtoint ptr {a} to i64")
        moved = f.emit(f"sub i64 {here}, {start}")
        steps = f.emit(f"sdiv exact i64 {moved}, {tile.loops[0].a_step * self.size}")
        at = f.emit(f"mul i64 {steps}, {tile.b_copy * self.size}")
        return f.emit(f"getelementptr inbounds i8, ptr %copy, i64 {at}")

    def _load_b(self, b: str, offset: int, vector: int) -> str:
        places = self.tile.b_vectors
        address = self._at(b, offset + (places[vector] if places else vector * self.tile.lanes))
        if self.tile.b_ahead and vector * self.tile.lanes * self.size % LINE == 0:
            self.f.prefetch(self._at(address, self.tile.b_ahead), level=2)
        mask = None if self.tile.padded else self.tile.active(vector)
        if mask is None:
            return self.f.load(self.kind, address, self.size)
        return self.e.load_masked(address, self.tile.dtype, mask).text

    def _hidden(self, a: str, row: int) -> str:
        """``a`` plus a multiple of zero that x86 can scale in an address, another for each row."""
        overlap = self.tile.overlap
        which = row % overlap if overlap else 0
        if not which:
            return a
        scaled = self.f.emit(f"shl i64 %nothing, {which - 1}")
        return self.f.emit(f"getelementptr inbounds i8, ptr {a}, i64 {scaled}")

    def _at(self, base: str, elements: int) -> str:
        """The address ``elements`` after ``base``; a constant offset folds into the access."""
        if elements == 0:
            return base
        return self.f.emit(f"getelementptr inbounds i8, ptr {base}, i64 {elements * self.size}")

    def _loop(
        self,
        count: int | str,
        a: str,
        b: str,
        sums: list[str],
        copy: Sequence[tuple[str, str]] = (),
    ) -> AbstractContextManager[Loop]:
        carry = [("ptr", a), ("ptr", b), *((self.kind, s) for s in sums), *copy]
        return self.f.loop(count, carry=carry)

    def _unroll(self, count: int | str) -> int:
        """Iterations per trip: a power of two, or a near divisor of the count.

        More than four (two if four rows of B leave no registers for A) make the scheduler for
        AArch64 hold so many rows of B that it spills. With AVX-512, two rows of B next to the
        largest tile leave no register for elements of A: LLVM loads both first and spills sums, for
        some steps of A. One iteration is as fast. Stores to a copy of B are moved, too.
        """
        wide = self.tile.lanes * self.size == 64
        if self.tile.b_copy or (wide and self.work + 2 * self.tile.vectors >= 32):
            return 1
        most = min(4, _UNROLLED // self.work)
        if self.tile.lanes * self.size == 16 and self.work + 4 * self.tile.vectors > 27:
            most = min(most, 2)
        unroll = 1
        while 2 * unroll <= most:
            unroll *= 2
        if isinstance(count, int):
            for near in (unroll, unroll - 1):
                if near > 1 and count % near == 0:
                    return near
        return unroll


def sum_blocks(total: int) -> tuple[int, int, int]:
    """The blocks in which so many steps are summed: steps of a block, blocks, and the steps that
    are left for a last one. A block is a divisor if there is one that is not too small or large."""
    low, high = _BLOCK_STEPS
    size = total // -(-total // high)
    for divisor in range(high, low - 1, -1):
        if total % divisor == 0 and divisor % 4 == 0:
            size = divisor
            break
    return size, *divmod(total, size)


class MicroKernels:
    """The micro-kernels of one kernel, each generated once."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.functions: list[Function] = []
        self._names: dict[tuple[Tile, Epilogue, tuple[str, ...]], str] = {}

    def name(self, tile: Tile, epilogue: Epilogue, counts: tuple[str, ...] = ()) -> str:
        """The symbol of a micro-kernel."""
        key = (tile, epilogue, counts)
        if key not in self._names:
            self._names[key] = f"{self.prefix}_{len(self._names)}"
            self.functions.append(micro_kernel(self._names[key], tile, epilogue, counts))
        return self._names[key]
