"""Loops that kernels share: sweeps over vectors with masked tails, accurate sums, folds, tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..ir.graph import Graph, Node
from ..ir.types import Dim, DType, Extent, TensorType, float32, float64, int64
from .emitter import Lane, VectorEmitter, memory_type
from .iteration import total
from .kernel import STATUS_INDEX_OUT_OF_RANGE, Kernel, TaskCount, symbol_for
from .target import Target
from .text import Function

Size = str | int
Lanes = tuple[Lane, ...]

# Longest row, in registers, that is written without a loop and kept in registers.
STRAIGHT = 8
# Steps whose float32 sums are taken before they are added up in float64.
CHUNK_STEPS = 16


class KernelWriter:
    """A kernel being written: its function, operand types and the parts of the ABI.

    Outputs must not overlap inputs (``noalias``): these kernels read elements again after they
    wrote others.
    """

    def __init__(self, prefix: str, node: Node, graph: Graph, target: Target) -> None:
        self.node, self.target = node, target
        self.inputs: list[TensorType] = [graph.type(v) for v in node.operands]
        self.prefix = prefix
        params = [("ptr noalias", f"out{i}") for i in range(len(node.types))]
        params += [("ptr noalias readonly", f"in{i}") for i in range(len(self.inputs))]
        params += [("ptr noalias", "scratch"), ("ptr", "status")]
        params += [("i64", "N"), ("i64", "begin"), ("i64", "end")]
        self.fn = Function(prefix, params)

    def emitter(self, dtype: DType, extent: Extent) -> VectorEmitter:
        """Vectors of ``dtype`` for a loop over ``extent``, no wider than it needs."""
        lanes = self.target.lanes(dtype)
        if isinstance(extent, int):
            while lanes > 1 and lanes // 2 >= extent:
                lanes //= 2
        return VectorEmitter(self.fn, lanes, dtype)

    def size(self, extent: Extent) -> Size:
        """An extent as a number or as the i64 that holds it."""
        if isinstance(extent, Dim):
            return times(self.fn, "%N", extent.coef)
        return extent

    def finish(self, tasks: TaskCount, flops: Extent = 0) -> Kernel:
        """The kernel; its traffic is the batch-dependent part of its operands, if there is one."""
        types = [*self.inputs, *self.node.types]
        self.fn.name = symbol_for(self.prefix, self.fn.render(), tasks)
        return Kernel(
            symbol=self.fn.name,
            text=self.fn.render(),
            declarations=frozenset(self.fn.declarations),
            tasks=tasks,
            flops=flops,
            bytes=total([t.size * t.dtype.itemsize for t in types]),
        )


# ---- integers: SSA names or numbers


def plus(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0 or b == 0:
        return b if a == 0 else a
    return fn.emit(f"add nsw i64 {a}, {b}")


def minus(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else fn.emit(f"sub nsw i64 {a}, {b}")


def times(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if a == 1 or b == 1:
        return b if a == 1 else a
    if a == 0 or b == 0:
        return 0
    return fn.emit(f"mul nsw i64 {a}, {b}")


def quotient(fn: Function, a: Size, b: Size) -> Size:
    """Floor of ``a / b`` for a >= 0, b > 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return a if b == 1 else fn.emit(f"udiv i64 {a}, {b}")


def remainder(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return 0 if b == 1 else fn.emit(f"urem i64 {a}, {b}")


def least(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return fn.call("i64", "llvm.smin.i64", ("i64", str(a)), ("i64", str(b)))


def greatest(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return fn.call("i64", "llvm.smax.i64", ("i64", str(a)), ("i64", str(b)))


def unravel(fn: Function, index: Size, extents: Sequence[Size]) -> list[Size]:
    """The row-major coordinates of a linear index."""
    coordinates: list[Size] = []
    for extent in reversed(extents[1:]):
        coordinates.append(remainder(fn, index, extent))
        index = quotient(fn, index, extent)
    return [index, *reversed(coordinates)] if extents else []


def report_bad_index(fn: Function, index: str) -> None:
    """Stores an index out of range in the status words."""
    fn.store("i64", str(STATUS_INDEX_OUT_OF_RANGE), "%status", 8)
    fn.store("i64", index, fn.element("%status", "i64", 1), 8)


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
        kind, mask = self.e.type(v.dtype), self.e._shaped("i1")
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
    if e.lanes == 1:
        return first
    kind = memory_type(dtype)
    iota = "<" + ", ".join(f"{kind} {k}" for k in range(e.lanes)) + ">"
    return e.add(first, Lane(iota, dtype))


# ---- loops over contiguous elements

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
    straight: int = STRAIGHT,
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

    if isinstance(stop, int) and -(-stop // width) <= straight:
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
        loop.next = [
            e.add(c, widen(e, v)).text for c, v in zip(carried, found, strict=True)
        ]
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
        half = VectorEmitter(e.fn, lanes, e.default)
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


@dataclass
class Row:
    """A contiguous row that is swept several times; a short one stays in registers."""

    e: VectorEmitter
    length: Size
    _held: dict[tuple[str, Size], Lane] = field(default_factory=dict)

    @property
    def short(self) -> bool:
        return isinstance(self.length, int) and -(-self.length // self.e.lanes) <= STRAIGHT

    def load(self, at: Position, base: str, dtype: DType) -> Lane:
        """The row's elements of the array at ``base``, loaded once if the row is short."""
        held = self._held.get((base, at.at))
        if held is None:
            held = at.load(base, dtype)
            if self.short:
                self._held[base, at.at] = held
        return held

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


# ---- tasks over columns


def vectors_per_block(target: Target, e: VectorEmitter, inner: Extent) -> int:
    """Vectors of neighbouring columns per task: a cache line, more where there are many."""
    if not isinstance(inner, int):
        return 1
    line = max(1, 64 // target.vector_bytes)
    lines = -(-inner // (e.lanes * line))
    return min(4, line * (4 if lines >= 16 else 2 if lines >= 8 else 1), -(-inner // e.lanes))


def for_each_column_block(
    w: KernelWriter,
    e: VectorEmitter,
    outer: Extent,
    inner: Extent,
    body: Callable[[Size, list[Position]], None],
    group: int = 1,
) -> TaskCount:
    """Tasks over ``outer`` x blocks of ``inner``: ``body(outer index, positions in inner)``.

    A block is ``group`` vectors (one if ``inner`` is symbolic); the last one may be partial.
    """
    if isinstance(inner, Dim):
        return _for_symbolic_columns(w, e, outer, inner, body)
    blocks = column_blocks(e, inner, group)
    with w.fn.loop("%end", "%begin") as task:
        o, b = unravel(w.fn, task.index, [w.size(outer), blocks])
        in_column_block(e, inner, group, b, lambda columns: body(o, columns))
    return TaskCount(outer * blocks)


def column_blocks(e: VectorEmitter, inner: int, group: int) -> int:
    """The number of blocks of ``group`` vectors in ``inner`` columns (at least one)."""
    return max(1, -(-inner // (e.lanes * group)))


def in_column_block(
    e: VectorEmitter,
    inner: int,
    group: int,
    b: Size,
    body: Callable[[list[Position]], None],
) -> None:
    """Emits ``body(positions)`` for block number ``b``; the last block may be partial."""
    fn, lanes = e.fn, e.lanes
    block, blocks = lanes * group, column_blocks(e, inner, group)
    rest = inner - (blocks - 1) * block
    last = [
        Position(e, at, mask_of(e, rest - at) if rest - at < lanes else None)
        for at in range(0, rest, lanes)
    ]
    if blocks == 1:
        body(last)
        return
    first = times(fn, b, block)
    partial = [Position(e, plus(fn, first, p.at), p.active) for p in last]
    if rest == block:
        body(partial)
        return
    is_last = fn.emit(f"icmp eq i64 {b}, {blocks - 1}")
    with fn.when(is_last):
        body(partial)
    with fn.when(fn.emit(f"xor i1 {is_last}, true")):
        body([Position(e, plus(fn, first, k * lanes)) for k in range(group)])


def _for_symbolic_columns(
    w: KernelWriter,
    e: VectorEmitter,
    outer: Extent,
    inner: Dim,
    body: Callable[[Size, list[Position]], None],
) -> TaskCount:
    fn, lanes, size = w.fn, e.lanes, w.size(inner)

    def one(o: Size, at: Size) -> None:
        left = minus(fn, size, at)
        body(o, [Position(e, at, mask_of(e, left) if lanes > 1 else None)])

    with fn.loop("%end", "%begin") as task:
        if outer == 1:
            one(0, times(fn, task.index, lanes))
        else:
            with fn.loop(size, step=lanes) as columns:
                one(task.index, columns.index)
    return TaskCount(inner, lanes) if outer == 1 else TaskCount(outer)
