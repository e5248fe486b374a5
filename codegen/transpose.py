"""Copies whose last dimension changes: square blocks transposed in registers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..ir.types import Dim, DType, Extent, numel
from .emitter import memory_type
from .iteration import Axis
from .iteration import times as extents
from .kernel import Kernel, TaskCount, symbol_for
from .sizes import Size, plus, times
from .target import LINE, Target
from .text import Function


@dataclass(frozen=True)
class Plan:
    """out[.., a, .., b] = in[.., b, .., a]: the two axes that change places, and the others.

    ``a`` is contiguous in the input, ``b`` in the output. Strides are (output, input) elements.
    """

    a: Axis
    b: Axis
    others: tuple[Axis, ...]


def transpose_plan(axes: Sequence[Axis], dtype: DType, target: Target) -> Plan | None:
    """The plan for a copy over ``axes`` (strides: output, input), if blocks of it can be
    transposed in registers: 4- or 8-byte elements, both extents at least one block."""
    last = axes[-1]
    contiguous = [x for x in axes[:-1] if x.strides[1] == 1]
    if len(contiguous) != 1 or last.strides[1] in (0, 1) or dtype.itemsize not in (4, 8):
        return None
    block = block_size(dtype, target)
    if any(isinstance(x.extent, int) and x.extent < block for x in (contiguous[0], last)):
        return None
    return Plan(contiguous[0], last, tuple(x for x in axes[:-1] if x is not contiguous[0]))


def block_size(dtype: DType, target: Target) -> int:
    """Rows and columns of a block: a register's lanes, at most 8."""
    return min(8, target.lanes(dtype))


def emit_transpose(plan: Plan, dtype: DType, target: Target) -> Kernel:
    """The copy kernel. A task is a strip of ``a``, a cache line wide, over all of ``b``.

    Raises UnsupportedError for products of symbolic extents.
    """
    params = [("ptr", p) for p in ("out0", "in0", "scratch", "status")]
    fn = Function("transpose", [*params, *[("i64", p) for p in ("N", "begin", "end")]])
    writer = _Writer(fn, plan, dtype, target)
    others = numel(x.extent for x in plan.others)
    strip = max(writer.block, LINE // dtype.itemsize)
    if isinstance(plan.a.extent, Dim):
        tasks = TaskCount(plan.a.extent, strip)
        with fn.loop("%end", "%begin") as loop, fn.loop(writer.number(others)) as other:
            first = fn.emit(f"mul nsw i64 {loop.index}, {strip}")
            writer.strip(other.index, first, strip)
    else:
        strips = -(-plan.a.extent // strip)
        tasks = TaskCount(extents(others, strips))
        with fn.loop("%end", "%begin") as loop:
            other_index = fn.emit(f"udiv i64 {loop.index}, {strips}")
            piece = fn.emit(f"urem i64 {loop.index}, {strips}")
            writer.strip(other_index, fn.emit(f"mul nsw i64 {piece}, {strip}"), strip)
    symbol = symbol_for("transpose", fn.render(), tasks)
    fn.name = symbol
    moved = extents(extents(extents(others, plan.a.extent), plan.b.extent), 2 * dtype.itemsize)
    return Kernel(symbol, fn.render(), frozenset(fn.declarations), tasks, bytes=moved)


class _Writer:
    def __init__(self, fn: Function, plan: Plan, dtype: DType, target: Target) -> None:
        self.fn, self.plan, self.dtype = fn, plan, dtype
        self.kind = memory_type(dtype)
        self.block = block_size(dtype, target)
        self.vector = f"<{self.block} x {self.kind}>"
        if plan.b.strides[0] != 1 or plan.a.strides[1] != 1:
            raise UnsupportedError("a transpose needs one contiguous axis on each side")

    def number(self, extent: Extent) -> str:
        if isinstance(extent, Dim):
            return self.fn.emit(f"mul nsw i64 %N, {extent.coef}")
        return str(extent)

    def strip(self, other: str, first: str, width: int) -> None:
        """out[a, b] = in[b, a] for first <= a < first + width and all b."""
        fn = self.fn
        out, source = self._bases(other)
        self.out_step = self.number(self.plan.a.strides[0])
        self.in_step = self.number(self.plan.b.strides[1])
        rows, columns = self.number(self.plan.a.extent), self.number(self.plan.b.extent)
        after = fn.emit(f"add nsw i64 {first}, {width}")
        stop = fn.call("i64", "llvm.smin.i64", ("i64", after), ("i64", rows))
        last_a = fn.emit(f"sub nsw i64 {stop}, {self.block - 1}")
        last_b = fn.emit(f"sub nsw i64 {columns}, {self.block - 1}")
        with fn.loop(last_b, 0, self.block) as b:
            with fn.loop(last_a, first, self.block) as a:
                self._block(out, source, a.index, b.index)
            end = fn.emit(f"add nsw i64 {b.index}, {self.block}")
            self._elements(out, source, (a.index, stop), (b.index, end))
        self._elements(out, source, (first, stop), (b.index, columns))

    def _bases(self, other: str) -> tuple[str, str]:
        """Addresses of element (0, 0) of the plane with linear index ``other``."""
        fn, rest = self.fn, other
        offsets = ["0", "0"]
        for axis in reversed(self.plan.others):
            size = self.number(axis.extent)
            at = fn.emit(f"urem i64 {rest}, {size}")
            rest = fn.emit(f"udiv i64 {rest}, {size}")
            for side in (0, 1):
                step = fn.emit(f"mul nsw i64 {at}, {self.number(axis.strides[side])}")
                offsets[side] = fn.emit(f"add nsw i64 {offsets[side]}, {step}")
        return fn.element("%out0", self.kind, offsets[0]), fn.element("%in0", self.kind, offsets[1])

    def _address(self, base: str, major: str, step: str, minor: str) -> str:
        offset = self.fn.emit(f"mul nsw i64 {major}, {step}")
        return self.fn.element(base, self.kind, self.fn.emit(f"add nsw i64 {offset}, {minor}"))

    def _elements(
        self, out: str, source: str, a_range: tuple[str, str], b_range: tuple[str, str]
    ) -> None:
        fn, align = self.fn, self.dtype.itemsize
        with fn.loop(a_range[1], a_range[0]) as a, fn.loop(b_range[1], b_range[0]) as b:
            v = fn.load(self.kind, self._address(source, b.index, self.in_step, a.index), align)
            fn.store(self.kind, v, self._address(out, a.index, self.out_step, b.index), align)

    def _block(self, out: str, source: str, a: str, b: str) -> None:
        fn, align = self.fn, self.dtype.itemsize
        at = self._address(source, b, self.in_step, a)
        rows = []
        for k in range(self.block):
            if k:
                at = fn.element(at, self.kind, self.in_step)
            rows.append(fn.load(self.vector, at, align))
        at = self._address(out, a, self.out_step, b)
        for k, row in enumerate(transposed(fn, rows, self.vector, 16 // align)):
            if k:
                at = fn.element(at, self.kind, self.out_step)
            fn.store(self.vector, row, at, align)


@dataclass(frozen=True)
class Matrix:
    """Rows of contiguous elements: the address of the first, and their distance in elements."""

    address: str
    step: int


def transpose_tile(
    fn: Function, dtype: DType, target: Target, out: Matrix, source: Matrix, a: int, b: int
) -> None:
    """out[i, j] = source[j, i] for i < a and j < b, in blocks; the last ones may overlap others."""
    block, kind, align = block_size(dtype, target), memory_type(dtype), dtype.itemsize

    def at(of: Matrix, major: Size, minor: Size) -> str:
        return fn.element(of.address, kind, plus(fn, times(fn, major, of.step), minor))

    if min(a, b) < block or dtype.itemsize not in (4, 8):
        with fn.loop(a) as i, fn.loop(b) as j:
            value = fn.load(kind, at(source, j.index, i.index), align)
            fn.store(kind, value, at(out, i.index, j.index), align)
        return
    vector = f"<{block} x {kind}>"

    def blocks(j: Size) -> None:
        for i in dict.fromkeys([*range(0, a - block + 1, block), a - block]):
            rows = [fn.load(vector, at(source, plus(fn, j, k), i), align) for k in range(block)]
            for k, row in enumerate(transposed(fn, rows, vector, 16 // align)):
                fn.store(vector, row, at(out, i + k, j), align)

    whole = b // block * block
    with fn.loop(whole, 0, block) as loop:
        blocks(loop.index)
    if whole < b:
        blocks(b - block)


def transposed(fn: Function, rows: list[str], vector: str, quarter: int) -> list[str]:
    """The transpose of ``len(rows)`` registers of as many lanes.

    First blocks of ``quarter`` lanes (128 bits, within which x86 interleaves cheaply) are
    transposed, then the blocks change places.
    """
    count = len(rows)
    width = 1
    while width < min(quarter, count):
        rows = _interleave(fn, rows, vector, width, quarter)
        width *= 2
    # Halving the lanes first leaves the columns of a block in bit-reversed order: 0, 2, 1, 3.
    if width == 4:
        rows = [rows[k & ~3 | (k & 1) << 1 | (k & 2) >> 1] for k in range(count)]
    while width < count:
        rows = _swap_blocks(fn, rows, vector, width)
        width *= 2
    return rows


def _interleave(fn: Function, rows: list[str], vector: str, width: int, quarter: int) -> list[str]:
    """One stage of the transpose inside 128-bit blocks: rows i and i + width are merged."""
    count = len(rows)
    block = min(quarter, count)
    out = [""] * count
    for i in range(count):
        if i & width:
            continue
        for high in (0, 1):
            picks = []
            for lane in range(count):
                start, p = lane - lane % block, lane % block
                # Groups of ``width`` lanes, alternately from row i and row i + width.
                group, inside = divmod(p, width)
                source = high * block // 2 + group // 2 * width + inside
                picks.append((group % 2) * count + start + source)
            out[i | high * width] = _shuffle(fn, vector, rows[i], rows[i | width], picks)
    return out


def _swap_blocks(fn: Function, rows: list[str], vector: str, width: int) -> list[str]:
    """Exchanges the off-diagonal blocks of ``width`` lanes of every 2 x 2 block of blocks."""
    count = len(rows)
    out = list(rows)
    for i in range(count):
        if i & width:
            continue
        for high in (0, 1):
            picks = []
            for lane in range(count):
                inside = lane & ~width | high * width
                picks.append(inside + (count if lane & width else 0))
            out[i | high * width] = _shuffle(fn, vector, rows[i], rows[i | width], picks)
    return out


def _shuffle(fn: Function, vector: str, a: str, b: str, picks: list[int]) -> str:
    mask = ", ".join(f"i32 {p}" for p in picks)
    return fn.emit(f"shufflevector {vector} {a}, {vector} {b}, <{len(picks)} x i32> <{mask}>")
