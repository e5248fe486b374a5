"""Batch normalisation in steps (``ir/ops/batch_norm_parts.py``): sums of parts, then statistics.

Lanes are neighbouring channels. A task sums one part of the rows for up to CHANNELS channels, block
of rows by block of rows, so that memory is read in its order. A block's sums are taken in the dtype
of the operands and added to those of the part in float64. For the moments a block is read twice,
the second time from cache: around its own mean, a large mean does not spoil the variance.

In a region, elementwise operators compute what is summed; their results are written on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedError
from ..ir.graph import Graph, Node, Value
from ..ir.types import Dim, DType, Extent, TensorType, fixed, float32, float64, numel
from .body import PASSED_THROUGH, lower_nodes, split_by_motion
from .emitter import Lane, memory_type
from .kernel import Kernel, TaskCount
from .loops import Lanes, Position, add_all, sweep, widen
from .moments import merged, row_count
from .sizes import Size, greatest, least, minus, plus, quotient, times, unravel
from .target import LINE, Target
from .writer import KernelWriter, column_blocks, for_each_column_block, in_column_block

SUMS = ("batch_norm_moments", "batch_norm_grad_sums")
STATISTICS = ("batch_norm_statistics", "batch_norm_grad_factors")
PARTS = (*SUMS, *STATISTICS)

# Elements that are added up before their sum is added to others in float64.
TERMS = 32
# Channels per task: 1 KiB of a row of float32.
CHANNELS = 256
# Bytes that memory hands over at a time.


def emit_batch_norm_sums(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for the sums, alone or with elementwise operators in front of them (``fused``)."""
    w = KernelWriter("batchnormsums", node, graph, target)
    body = node.attrs["body"] if node.op == "fused" else _as_body(node, w.inputs)
    sums = next(n for n in body.nodes if n.op in SUMS)
    x = body.type(sums.operands[0])
    if x.dtype not in (float32, float64):
        return None
    try:
        made = _Sums(w, body, sums, x)
        tasks = made.emit()
    except UnsupportedError:
        return None
    work = sum(n.op not in PASSED_THROUGH for n in body.nodes)
    return w.finish(tasks, flops=numel(x.shape) * (work + 3))


def _as_body(node: Node, types: Sequence[TensorType]) -> Graph:
    body = Graph("reduction")
    operands = [body.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    body.outputs["0"] = body.add(node.op, *operands, **node.attrs)
    return body


def _per_part(fn: Any, rows: Size, parts: Size) -> Size:
    """`rows_per_part` in emitted code."""
    parts = greatest(fn, parts, 1)  # of no sample there are none
    return greatest(fn, quotient(fn, plus(fn, rows, minus(fn, parts, 1)), parts), 1)


@dataclass
class _Column:
    """One vector of channels, and what does not change along the rows there."""

    at: Position
    fixed: dict[Value, Any]


class _Sums:
    """One kernel of sums being written."""

    def __init__(self, w: KernelWriter, body: Graph, sums: Node, x: TensorType) -> None:
        self.w, self.fn, self.body, self.sums = w, w.fn, body, sums
        self.dtype: DType = x.dtype
        self.channels = fixed(x.shape[-1])
        self.rows: Extent = numel(x.shape[:-1])
        self.parts = w.size(sums.attrs["parts"])
        self.e = w.emitter(x.dtype, self.channels)
        self.moving, self.still = split_by_motion(body.nodes, x.shape)
        self.streams = [int(n.attrs["path"]) for n in self.moving if n.op == "input"]
        self.outputs = list(body.outputs.values())
        self.place = self.outputs.index(sums.value)
        held = len(
            {v for n in self.moving for v in n.operands}
            & {n.value for n in self.still if n.op != "constant"}
        )
        self.group, self.unroll = self._shape(max(1, held))
        self.block = TERMS * self.unroll

    def _shape(self, held: int) -> tuple[int, int]:
        """(vectors of channels at a time, rows at a time).

        Each vector has two sums per row of the step, and ``held`` values that stay in registers.
        More rows only hide the latency of the additions, which several vectors do, too.
        """
        free = self.w.target.registers - 8
        width = -(-self.channels // self.e.lanes)
        for group, unroll in ((4, 1), (2, 2), (2, 1), (1, 4), (1, 2)):
            if group <= width and group * (2 * unroll + held) <= free:
                return group, unroll
        return 1, 1

    def emit(self) -> TaskCount:
        fn, e = self.fn, self.e
        rows = self.w.size(self.rows)
        per = _per_part(fn, rows, self.parts)
        blocks = column_blocks(e, self.channels, self.group)
        per_task = max(1, CHANNELS // (e.lanes * self.group))
        splits = -(-blocks // per_task)
        with fn.loop("%end", "%begin") as task:
            part, split = unravel(fn, task.index, [self.parts, splits])
            first = times(fn, part, per)
            stop = least(fn, plus(fn, first, per), rows)
            low = times(fn, split, per_task)
            high = least(fn, plus(fn, low, per_task), blocks)
            self.clear(part, low, high)
            with fn.loop(str(stop), first, self.block) as block:
                count = least(fn, minus(fn, stop, block.index), self.block)
                before = minus(fn, block.index, first)

                def columns(positions: list[Position]) -> None:
                    made = [_Column(p, self._fixed(p)) for p in positions]
                    if self.sums.op == "batch_norm_moments":
                        self.moments(part, made, block.index, count, before)
                    else:
                        self.products(part, made, block.index, count)

                if blocks == 1:
                    in_column_block(e, self.channels, self.group, 0, columns)
                else:
                    with fn.loop(high, low) as b:
                        in_column_block(e, self.channels, self.group, b.index, columns)
        return TaskCount(self.sums.attrs["parts"] * splits)

    def sum_row(self, part: Size, which: int) -> str:
        """The first of the sums of a kind (0 or 1) of a part."""
        row = plus(self.fn, times(self.fn, part, 2), which)
        return self.fn.element(f"%out{self.place}", "double", times(self.fn, row, self.channels))

    def clear(self, part: Size, low: Size, high: Size) -> None:
        """Zeros for the sums of the column blocks low .. high - 1 of a part."""
        fn, width = self.fn, self.e.lanes * self.group
        first = times(fn, low, width)
        last = least(fn, times(fn, high, width), self.channels)
        size = times(fn, minus(fn, last, first), 8)
        for which in range(2):
            start = fn.element(self.sum_row(part, which), "double", first)
            fn.call(
                "void", "llvm.memset.p0.i64",
                ("ptr", start), ("i8", "0"), ("i64", str(size)), ("i1", "false"),
            )  # fmt: skip

    # -- values

    def _fixed(self, at: Position) -> dict[Value, Any]:
        env: dict[Value, Any] = {}

        def load(path: str) -> Lane:
            kind = self.w.inputs[int(path)]
            if numel(kind.shape) == 1:
                return self.e.load_splat(f"%in{path}", kind.dtype)
            return at.load(f"%in{path}", kind.dtype)

        lower_nodes(self.e, self.still, env, {}, load)
        return env

    def values(self, column: _Column, row: Size, store: bool) -> Lanes:
        """The operands of the sums at a row; also writes the other results if ``store``."""
        e, at = self.e, column.at
        env = dict(column.fixed)

        def load(path: str) -> Lane:
            dtype = self.w.inputs[int(path)].dtype
            return at.load(self._row(f"%in{path}", dtype, row), dtype)

        lower_nodes(e, [n for n in self.moving if n is not self.sums], env, {}, load)
        for k, value in enumerate(self.outputs):
            if store and k != self.place:
                found = e.cast(env[value], self.body.type(value).dtype)
                at.store(found, self._row(f"%out{k}", found.dtype, row))
        return tuple(env[v] for v in self.sums.operands)

    def _row(self, base: str, dtype: DType, row: Size) -> str:
        offset = times(self.fn, row, self.channels)
        return self.fn.element(base, memory_type(dtype), offset)

    def _over(self, start: Size, count: Size, body: Any, zeros: Sequence[Lane]) -> Lanes:
        return sweep(self.e, count, body, zeros, start=start, width=1, unroll=self.unroll)

    def _fetch(self, columns: list[_Column], row: Size) -> None:
        """Asks for what the next block of rows will read in these columns.

        Rows are read in pieces, some of them twice: the hardware's own prefetching cannot follow.
        """
        fn = self.fn
        ahead = plus(fn, row, self.block)
        for path in self.streams:
            dtype = self.w.inputs[path].dtype
            base = self._row(f"%in{path}", dtype, ahead)
            line = -1
            for c, column in enumerate(columns):
                at = c * self.e.lanes * dtype.itemsize // LINE
                if at != line:
                    line = at
                    fn.call(
                        "void", "llvm.prefetch.p0", ("ptr", column.at.address(base, dtype)),
                        ("i32", "0"), ("i32", "3"), ("i32", "1"),
                    )  # fmt: skip

    # -- sums of a block, added to those of the part

    def moments(
        self, part: Size, columns: list[_Column], start: Size, count: Size, before: Size
    ) -> None:
        fn, e, width = self.fn, self.e, len(columns)
        zeros = [e.constant(0, self.dtype)] * width

        def plain(at: Position, acc: Lanes) -> Lanes:
            return add_all(e, acc, tuple(self.values(c, at.at, True)[0] for c in columns))

        totals = self._over(start, count, plain, zeros)
        number = row_count(fn, e, count)
        means = [e.cast(e.div(widen(e, v), number), self.dtype) for v in totals]

        def around(at: Position, acc: Lanes) -> Lanes:
            self._fetch(columns, at.at)
            d = [
                e.sub(self.values(c, at.at, False)[0], mean)
                for c, mean in zip(columns, means, strict=True)
            ]
            firsts = [e.add(a, v) for a, v in zip(acc[:width], d, strict=True)]
            return (*firsts, *(e.fma(v, v, a) for a, v in zip(acc[width:], d, strict=True)))

        found = self._over(start, count, around, zeros * 2)
        old = row_count(fn, e, before)
        places = [self.sum_row(part, which) for which in range(2)]
        for k, c in enumerate(columns):
            off = e.div(widen(e, found[k]), number)
            mean = e.add(widen(e, means[k]), off)
            squares = e.sub(widen(e, found[width + k]), e.mul(off, e.mul(off, number)))
            known = [c.at.load(p, float64) for p in places]
            together = merged(e, known, (mean, squares), old, number)
            for value, place in zip(together, places, strict=True):
                c.at.store(value, place)

    def products(self, part: Size, columns: list[_Column], start: Size, count: Size) -> None:
        e, width = self.e, len(columns)
        zeros = [e.constant(0, self.dtype)] * (2 * width)

        def term(at: Position, acc: Lanes) -> Lanes:
            if self.channels > e.lanes:  # shorter rows are one stream, which the hardware follows
                self._fetch(columns, at.at)
            found = [self.values(c, at.at, True) for c in columns]
            firsts = [e.add(a, v[0]) for a, v in zip(acc[:width], found, strict=True)]
            pairs = zip(acc[width:], found, strict=True)
            return (*firsts, *(e.fma(g, e.sub(x, mean), a) for a, (g, x, mean) in pairs))

        sums = self._over(start, count, term, zeros)
        for which in range(2):
            place = self.sum_row(part, which)
            for c, v in zip(columns, sums[which * width :], strict=False):
                c.at.store(e.add(c.at.load(place, float64), widen(e, v)), place)


# -- from the sums of all parts to what there is one of per channel --------------------------------


def emit_batch_norm_statistics(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for ``batch_norm_statistics`` or ``batch_norm_grad_factors``."""
    w = KernelWriter("batchnormstatistics", node, graph, target)
    dtype = node.type.dtype
    channels = node.type.shape[0]
    if dtype not in (float32, float64) or isinstance(channels, Dim):
        return None
    made = _Statistics(w, dtype, channels)
    body = made.forward if node.op == "batch_norm_statistics" else made.gradient
    tasks = for_each_column_block(w, made.e, 1, channels, lambda _, at: body(at[0]))
    return w.finish(tasks, flops=numel(w.inputs[0].shape) * 3)


class _Statistics:
    """One kernel of statistics being written: a task is a vector of channels."""

    def __init__(self, w: KernelWriter, dtype: DType, channels: int) -> None:
        self.w, self.fn, self.dtype, self.channels = w, w.fn, dtype, channels
        self.e = w.emitter(dtype, channels)
        parts, rows = w.inputs[0].shape[0], w.node.attrs["rows"]
        self.parts, self.rows = w.size(parts), w.size(rows)
        self.per: Size
        self.used: Size
        self.equal = isinstance(parts, Dim) and isinstance(rows, Dim) and not rows.coef % parts.coef
        if self.equal:
            self.per, self.used = int(rows // parts), self.parts
            return
        self.per = _per_part(w.fn, self.rows, self.parts)
        self.used = quotient(w.fn, plus(w.fn, self.rows, minus(w.fn, self.per, 1)), self.per)

    def sums(self, at: Position, part: Size) -> Lanes:
        """Both sums of a part in float64."""
        dtype = self.w.inputs[0].dtype
        row = times(self.fn, times(self.fn, part, 2), self.channels)
        places = (row, plus(self.fn, row, self.channels))
        bases = [self.fn.element("%in0", memory_type(dtype), place) for place in places]
        return tuple(widen(self.e, at.load(base, dtype)) for base in bases)

    def total(self, parts: Size, body: Any, count: int) -> Lanes:
        zeros = [self.e.constant(0, float64)] * count
        return sweep(self.e, parts, body, zeros, width=1, unroll=2)

    def store(self, at: Position, values: Sequence[Lane]) -> None:
        for k, v in enumerate(values):
            at.store(self.e.cast(v, self.dtype), f"%out{k}")

    def forward(self, at: Position) -> None:
        fn, e = self.fn, self.e

        def size(part: Size) -> Lane:
            if self.equal:
                return row_count(fn, e, self.per)
            left = minus(fn, self.rows, times(fn, part, self.per))
            return row_count(fn, e, least(fn, left, self.per))

        def weighted(part: Position, acc: Lanes) -> Lanes:
            return (e.fma(size(part.at), self.sums(at, part.at)[0], acc[0]),)

        number = row_count(fn, e, self.rows)
        mean = e.div(self.total(self.used, weighted, 1)[0], number)

        def around(part: Position, acc: Lanes) -> Lanes:
            own, squares = self.sums(at, part.at)
            d = e.sub(own, mean)
            return (e.add(acc[0], e.fma(e.mul(d, d), size(part.at), squares)),)

        variance = e.div(self.total(self.used, around, 1)[0], number)
        root = e.sqrt(e.add(variance, e.constant(self.w.node.attrs["eps"], float64)))
        rstd = e.div(e.constant(1, float64), root)
        gamma = widen(e, at.load("%in1", self.dtype))
        self.store(at, (mean, variance, rstd, e.mul(gamma, rstd)))

    def gradient(self, at: Position) -> None:
        e = self.e
        # All parts: fewer rows than ``rows`` may have been summed, cut into parts of another size.
        dbeta, product = self.total(
            self.parts, lambda part, acc: add_all(e, acc, self.sums(at, part.at)), 2
        )
        gamma, rstd = (widen(e, at.load(f"%in{k}", self.dtype)) for k in (1, 2))
        number = row_count(self.fn, e, self.rows)
        dgamma, scale = e.mul(product, rstd), e.mul(gamma, rstd)
        offset = e.cast(e.div(dbeta, number), self.dtype)
        slope = e.div(e.mul(dgamma, rstd), number)
        total = e.mul(scale, e.sub(dbeta, e.mul(number, widen(e, offset))))
        self.store(at, (dgamma, dbeta, scale, offset, slope, total))
