"""Loops that kernels share: sweeps over vectors with masked tails, accurate sums, folds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..ir.types import DType, bool_, float32, float64, int64
from .emitter import Lane, VectorEmitter, memory_type
from .sizes import Size, greatest, least, minus, plus
from .text import Function

Lanes = tuple[Lane, ...]

# Steps whose float32 sums are taken before they are added up in float64.
CHUNK_STEPS = 16


# ---- one step of a loop


@dataclass(frozen=True)
class Position:
    """Elements ``at`` and following of a loop, one per lane; ``active`` masks a partial vector."""

    e: VectorEmitter
    at: Size
    active: str | None = None

    def address(self, base: str, dtype: DType) -> str:
        return self.e.fn.element(base, memory_type(dtype), self.at)

    def load(self, base: str, dtype: DType) -> Lane:
        """The elements at this position of the array at ``base``; inactive lanes are 0."""
        if self.active is None:
            return self.e.load(self.address(base, dtype), dtype)
        return self.e.load_masked(self.address(base, dtype), dtype, self.active)

    def store(self, v: Lane, base: str) -> None:
        if self.active is None:
            self.e.store(v, self.address(base, v.dtype))
        else:
            self.e.store_masked(v, self.address(base, v.dtype), self.active)

    def only(self, v: Lane, otherwise: float = 0) -> Lane:
        """``v`` with ``otherwise`` in the inactive lanes."""
        if self.active is None:
            return v
        kind, mask = self.e.type(v.dtype), self.e.type(bool_)
        other = self.e.constant(otherwise, v.dtype).text
        text = self.e.fn.emit(f"select {mask} {self.active}, {kind} {v.text}, {kind} {other}")
        return Lane(text, v.dtype)


def mask_of(e: VectorEmitter, count: Size) -> str:
    """The i1 vector whose first ``count`` lanes are set (``count`` may exceed the lanes)."""
    if isinstance(count, int):
        return "<" + ", ".join(f"i1 {str(k < count).lower()}" for k in range(e.lanes)) + ">"
    kind = f"<{e.lanes} x i32>"
    clamped = least(e.fn, greatest(e.fn, count, 0), e.lanes)
    word = e.fn.emit(f"trunc i64 {clamped} to i32")
    iota = "<" + ", ".join(f"i32 {k}" for k in range(e.lanes)) + ">"
    return e.fn.emit(f"icmp ult {kind} {iota}, {e.fn.splat(kind, word)}")


def lane_indices(e: VectorEmitter, at: Size, dtype: DType) -> Lane:
    """``at + k`` in lane k, as integers of ``dtype``."""
    if isinstance(at, int):
        first = e.constant(at, dtype)
    else:
        kind = memory_type(dtype)
        narrow = at if dtype is int64 else e.fn.emit(f"trunc i64 {at} to {kind}")
        first = e.splat(narrow, dtype)
    return first if e.lanes == 1 else e.add(first, e.iota(dtype))


# ---- loops over contiguous elements


def longest_straight(e: VectorEmitter) -> int:
    """Longest row, in vectors, that is written without a loop and kept in registers."""
    return e.registers // 4


Body = Callable[[Position, Lanes], Sequence[Lane]]
Merge = Callable[[VectorEmitter, Lanes, Lanes], Sequence[Lane]]


def add_all(e: VectorEmitter, a: Lanes, b: Lanes) -> Lanes:
    """Merges partial sums."""
    return tuple(e.add(x, y) for x, y in zip(a, b, strict=True))


def sweep(
    e: VectorEmitter,
    stop: Size,
    body: Body,
    init: Sequence[Lane] = (),
    merge: Merge = add_all,
    *,
    start: Size = 0,
    width: int | None = None,
    unroll: int = 4,
) -> Lanes:
    """Runs ``body(position, carried)`` over ``start .. start + stop`` and merges what it carries.

    ``unroll`` independent sets of carried values hide latency; they are merged pairwise in a
    fixed order, so the result depends on nothing but ``stop``. A last partial vector is masked.
    With ``width`` 1 a step is one element (a row, say) and there is no tail.
    """
    fn = e.fn
    width = e.lanes if width is None else width
    sets: list[Lanes] = [tuple(init)] * unroll
    group = width * unroll

    def run(at: Size, count: Size, carried: Lanes) -> Lanes:
        partial = not isinstance(count, int) or count < width
        where = Position(e, plus(fn, start, at), mask_of(e, count) if partial else None)
        return tuple(body(where, carried))

    if isinstance(stop, int) and -(-stop // width) <= longest_straight(e):
        for k, at in enumerate(range(0, stop, width)):
            sets[k % unroll] = run(at, min(width, stop - at), sets[k % unroll])
        return _merged(e, sets[: max(1, -(-stop // width))], merge)

    main = stop // group * group if isinstance(stop, int) else fn.emit(f"and i64 {stop}, -{group}")
    if main != 0:
        with fn.loop(main, step=group, carry=_typed(e, sets)) as loop:
            carried = _split(loop.carried, sets)
            for k in range(unroll):
                carried[k] = run(plus(fn, loop.index, k * width), width, carried[k])
            loop.next = [v.text for group_ in carried for v in group_]
        sets = _split(loop.results, sets)
    if isinstance(stop, int) and isinstance(main, int):
        for k, at in enumerate(range(main, stop, width)):
            sets[k] = run(at, min(width, stop - at), sets[k])
        return _merged(e, sets, merge)
    if unroll > 1:
        whole = stop if width == 1 else fn.emit(f"and i64 {stop}, -{width}")
        with fn.loop(whole, start=main, step=width, carry=_typed(e, sets[:1])) as loop:
            (one,) = _split(loop.carried, sets[:1])
            loop.next = [v.text for v in run(loop.index, width, one)]
        sets[0] = _split(loop.results, sets[:1])[0]
        main = whole
    if width > 1:
        sets[0] = run(main, minus(fn, stop, main), sets[0])
    return _merged(e, sets, merge)


def _typed(e: VectorEmitter, sets: Sequence[Lanes]) -> list[tuple[str, str]]:
    return [(e.type(v.dtype), v.text) for one in sets for v in one]


def _split(names: Sequence[str], like: Sequence[Lanes]) -> list[Lanes]:
    left = iter(names)
    return [tuple(Lane(next(left), v.dtype) for v in one) for one in like]


def _merged(e: VectorEmitter, sets: Sequence[Lanes], merge: Merge) -> Lanes:
    while len(sets) > 1:
        half = (len(sets) + 1) // 2
        sets = [
            tuple(merge(e, sets[k], sets[k + half])) if k + half < len(sets) else sets[k]
            for k in range(half)
        ]
    return sets[0]


def sums(
    e: VectorEmitter,
    stop: Size,
    body: Body,
    zeros: Sequence[Lane],
    *,
    width: int | None = None,
    unroll: int = 4,
    wide: bool | None = None,
) -> Lanes:
    """Sums over a loop: ``body(position, sums)`` adds its terms; one vector per sum comes back.

    Long loops are cut into chunks of a fixed size whose sums, in the dtype of the elements, are
    added up in float64, so the error does not grow with the length. The result is float64 then
    (or if ``wide``), else it has the dtype of the elements.
    """
    width = e.lanes if width is None else width
    chunk = width * unroll * CHUNK_STEPS
    zeros = tuple(zeros)

    def part(start: Size, length: Size) -> Lanes:
        return sweep(e, length, body, zeros, start=start, width=width, unroll=unroll)

    if isinstance(stop, int) and stop <= chunk:
        found = part(0, stop)
        return tuple(widen(e, v) for v in found) if wide else found
    total: Lanes = tuple(e.constant(0, _wide(z.dtype)) for z in zeros)
    fn = e.fn
    whole = stop // chunk * chunk if isinstance(stop, int) else stop
    with fn.loop(whole, step=chunk, carry=_typed(e, [total])) as loop:
        (carried,) = _split(loop.carried, [total])
        length: Size = chunk
        if not isinstance(stop, int):
            length = least(fn, minus(fn, stop, loop.index), chunk)
        found = part(loop.index, length)
        loop.next = [e.add(c, widen(e, v)).text for c, v in zip(carried, found, strict=True)]
    (total,) = _split(loop.results, [total])
    if isinstance(stop, int) and isinstance(whole, int) and stop > whole:
        rest = part(whole, stop - whole)
        total = tuple(e.add(c, widen(e, v)) for c, v in zip(total, rest, strict=True))
    return total


def _wide(dtype: DType) -> DType:
    return float64 if dtype is float32 else dtype


def widen(e: VectorEmitter, v: Lane) -> Lane:
    """float32 as float64; other dtypes as they are."""
    return e.cast(v, _wide(v.dtype))


# ---- from lanes to one value


def fold(e: VectorEmitter, values: Sequence[Lane], merge: Merge) -> Lanes:
    """Merges the lanes of ``values``, halving the vectors; scalars come back."""
    lanes, current = e.lanes, tuple(values)
    while lanes > 1:
        lanes //= 2
        half = VectorEmitter(e.fn, lanes, e.default, registers=e.registers)
        low, high = _halves(e.fn, current, lanes, 0), _halves(e.fn, current, lanes, lanes)
        current = tuple(merge(half, low, high))
    return current


def _halves(fn: Function, values: Lanes, lanes: int, first: int) -> Lanes:
    found = []
    for v in values:
        kind = f"<{2 * lanes} x {memory_type(v.dtype)}>"
        if lanes == 1:
            text = fn.emit(f"extractelement {kind} {v.text}, i64 {first}")
        else:
            order = ", ".join(f"i32 {k}" for k in range(first, first + lanes))
            picked = f"<{lanes} x i32> <{order}>"
            text = fn.emit(f"shufflevector {kind} {v.text}, {kind} poison, {picked}")
        found.append(Lane(text, v.dtype))
    return tuple(found)


def greater(e: VectorEmitter, a: Lane, b: Lane) -> Lane:
    """The greater one in a single instruction; ``b`` if either is NaN."""
    return e.select(e.gt(a, b), a, b)


def greater_all(e: VectorEmitter, a: Lanes, b: Lanes) -> Lanes:
    return tuple(greater(e, x, y) for x, y in zip(a, b, strict=True))


def largest(e: VectorEmitter, values: list[Lane]) -> Lane:
    """The maximum, NaN if there is one: one comparison finds a NaN in either of two values."""
    dtype = values[0].dtype
    top = values[0]
    for v in values[1:]:
        top = greater(e, v, top)
    if not dtype.is_float:
        return top
    kind, mask = e.type(dtype), e.type(bool_)
    found: Lane | None = None
    for a, b in zip(values[::2], [*values[1::2], values[-1]], strict=False):
        pair = Lane(e.fn.emit(f"fcmp uno {kind} {a.text}, {b.text}"), bool_)
        found = pair if found is None else e.logical_or(found, pair)
    nan = e.constant(math.nan, dtype).text
    if found is None:
        return top
    text = e.fn.emit(f"select {mask} {found.text}, {kind} {nan}, {kind} {top.text}")
    return Lane(text, dtype)


@dataclass
class Row:
    """A contiguous row that is swept several times; a short one stays in registers."""

    e: VectorEmitter
    length: Size
    _held: dict[tuple[str, Size], Lane] = field(default_factory=dict)

    @property
    def short(self) -> bool:
        return isinstance(self.length, int) and -(-self.length // self.e.lanes) <= longest_straight(
            self.e
        )

    def load(self, at: Position, base: str, dtype: DType) -> Lane:
        """The row's elements of the array at ``base``, loaded once if the row is short."""
        held = self._held.get((base, at.at))
        if held is None:
            held = at.load(base, dtype)
            if self.short:
                self._held[base, at.at] = held
        return held

    def again(self, base: str) -> str:
        """The array at ``base`` for another sweep, which loads a long row again.

        LLVM would keep the last vectors of a row in registers, which the sweep needs.
        """
        return base if self.short else self.e.fn.opaque("ptr", base)

    def keep(self, at: Position, v: Lane, base: str) -> None:
        """Keeps a value for later sweeps: in registers, or in the array at ``base``."""
        if self.short:
            self._held[base, at.at] = v
        else:
            at.store(v, base)

    def sweep(
        self,
        body: Body,
        init: Sequence[Lane] = (),
        merge: Merge = add_all,
        unroll: int = 4,
    ) -> Lanes:
        return sweep(self.e, self.length, body, init, merge, unroll=unroll)

    def sums(self, body: Body, count: int, dtype: DType) -> Lanes:
        """``count`` sums over the row as scalars (float64 if the row is long)."""
        zeros = [self.e.constant(0, dtype)] * count
        return fold(self.e, sums(self.e, self.length, body, zeros), add_all)

    def greatest(self, body: Callable[[Position], Lane], dtype: DType) -> Lane:
        """The largest value over the row, a scalar; NaNs may be ignored."""
        lowest = [self.e.constant(-float("inf"), dtype)]
        found = self.sweep(
            lambda at, best: [greater(self.e, at.only(body(at), -float("inf")), best[0])],
            lowest,
            greater_all,
        )
        return fold(self.e, found, greater_all)[0]
