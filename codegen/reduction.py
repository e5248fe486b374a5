"""Reductions, with an optional elementwise prologue, over any set of dimensions.

Adjacent dimensions are merged first, so what is left alternates between kept and reduced ones. If
the innermost is reduced, each task makes one output from contiguous rows, several vectors at a
time. If it is kept, each task makes a block of neighbouring outputs, one per lane, row by row.

Sums of float32 are taken in chunks of a fixed size which are added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UnsupportedError
from ..ir.graph import Graph, Node, Value
from ..ir.types import (
    DType,
    Extent,
    Shape,
    TensorType,
    bool_,
    float32,
    float64,
    int32,
    int64,
    numel,
    uint8,
)
from .accumulators import Accumulator, argument, extremum, quantifier
from .body import lower_nodes
from .emitter import Lane, VectorEmitter, memory_type
from .iteration import broadcast_strides, merged
from .kernel import Kernel, TaskCount
from .loops import (
    Lanes,
    Position,
    add_all,
    fold,
    lane_indices,
    sums,
    sweep,
    widen,
)
from .sizes import (
    Size,
    plus,
    times,
    unravel,
)
from .target import Target
from .writer import (
    KernelWriter,
    for_each_column_block,
    vectors_per_block,
)

SUMS = ("sum", "mean")
ARGUMENTS = ("argmax", "argmin")
REDUCTIONS = (*SUMS, *ARGUMENTS, "amax", "amin", "all", "any")


def emit_reduction(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for a reduction, or for a ``fused`` node of kind ``reduction``.

    The body of the latter is elementwise nodes followed by one reduction, its only output.
    """
    w = KernelWriter("reduce", node, graph, target)
    reduction = node
    shape = w.inputs[0].shape if w.inputs else ()
    dtype = w.inputs[0].dtype if w.inputs else node.type.dtype
    if node.op == "fused":
        body: Graph = node.attrs["body"]
        reduction = body.node(next(iter(body.outputs.values())))
        if len(body.outputs) != 1 or reduction.op not in REDUCTIONS:
            return None
        if any(n.op == "uniform" for n in body.nodes):
            return None  # needs the linear index, which merged axes do not have
        reduced = body.type(reduction.operands[0])
        shape, dtype = reduced.shape, reduced.dtype
    if dtype is bool_ and reduction.op not in ("all", "any"):
        return None
    if reduction.op == "mean" and not dtype.is_float:
        return None
    try:
        return _Reduction(w, reduction, shape, dtype).emit()
    except UnsupportedError:
        return None


# ---- the iteration space


@dataclass(frozen=True)
class Axis:
    """A loop: its extent, whether it is kept, and the stride of each operand, in elements."""

    extent: Extent
    kept: bool
    strides: tuple[Extent, ...]


def _axes(shape: Shape, reduced: Sequence[int], operands: Sequence[Shape]) -> list[Axis]:
    """The loops over ``shape``, outermost first; operands are broadcast to it (stride 0).

    The result is seen as one more operand, which does not move along reduced dimensions: that
    keeps kept and reduced dimensions apart.
    """
    result = tuple(1 if d in reduced else extent for d, extent in enumerate(shape))
    strides = [broadcast_strides(s, shape) for s in (*operands, result)]
    return [Axis(a.extent, a.strides[-1] != 0, a.strides[:-1]) for a in merged(shape, strides)]


# ---- emission


class _Reduction:
    """One reduction being written."""

    def __init__(self, w: KernelWriter, node: Node, shape: Shape, dtype: DType) -> None:
        self.w, self.fn, self.node = w, w.fn, node
        self.out: TensorType = node.type
        dims = (node.attrs["dim"],) if node.op in ARGUMENTS else node.attrs["dims"]
        self.count = numel([shape[d] for d in dims])
        self.axes = _axes(shape, dims, [t.shape for t in w.inputs])
        if all(a.kept for a in self.axes):
            self.axes.append(Axis(1, False, (0,) * len(w.inputs)))
        # Elements are accumulated in this dtype: integers are summed in that of the result.
        self.dtype = uint8 if dtype is bool_ else self.out.dtype if node.op in SUMS else dtype
        narrow = isinstance(self.count, int) and self.count < 2**31 and dtype is float32
        self.index = int32 if narrow else int64
        self.size = numel(shape)

    def emit(self) -> Kernel:
        inner = self.axes[-1]
        lane_dtype = float32 if self.dtype is uint8 else self.dtype
        e = self.w.emitter(lane_dtype, inner.extent)
        tasks = self._columns(e) if inner.kept else self._rows(e)
        return self.w.finish(tasks, flops=self.size)

    # -- the innermost axis is reduced: one output per task

    def _rows(self, e: VectorEmitter) -> TaskCount:
        kept = [a for a in self.axes if a.kept]
        reduced = [a for a in self.axes if not a.kept]
        inner = reduced[-1]
        outputs = numel([a.extent for a in kept])
        with self.fn.loop("%end", "%begin") as task:
            bases = self._bases(kept, task.index)

            def leaf(bases: list[str], carried: Lanes) -> Lanes:
                def element(at: Position) -> Lane:
                    values = [
                        at.load(base, t.dtype) if stride else at.e.load_splat(base, t.dtype)
                        for base, stride, t in zip(bases, inner.strides, self.w.inputs, strict=True)
                    ]
                    return self._value(at.e, values)

                return self._accumulate(e, self.w.size(inner.extent), element, carried)

            result = fold(e, self._nest(e, reduced[:-1], bases, leaf), self._accumulator.merge)
            scalar = VectorEmitter(self.fn, 1, self.dtype)
            address = self.fn.element("%out0", memory_type(self.out.dtype), task.index)
            scalar.store(self._finish(scalar, result), address)
        return TaskCount(outputs)

    # -- the innermost axis is kept: one output per lane

    def _columns(self, e: VectorEmitter) -> TaskCount:
        inner = self.axes[-1]
        kept = [a for a in self.axes[:-1] if a.kept]
        reduced = [a for a in self.axes if not a.kept]
        rows = reduced[-1]
        outer = numel([a.extent for a in kept])

        def block(o: Size, columns: list[Position]) -> None:
            bases = self._bases(kept, o)

            def leaf(bases: list[str], carried: Lanes) -> Lanes:
                return self._accumulate_rows(e, rows, inner, bases, columns, carried)

            found = self._nest(e, reduced[:-1], bases, leaf, len(columns))
            size = len(found) // len(columns)
            offset = times(self.fn, o, self.w.size(inner.extent))
            for k, column in enumerate(columns):
                result = self._finish(e, found[k * size : (k + 1) * size])
                place = Position(e, plus(self.fn, offset, column.at), column.active)
                place.store(result, "%out0")

        group = max(1, min(self._most_vectors(), vectors_per_block(self.w.target, e, inner.extent)))
        return for_each_column_block(self.w, e, outer, inner.extent, block, group)

    def _most_vectors(self) -> int:
        """Vectors of neighbouring outputs whose accumulators, two of each, fit in registers."""
        registers = self.w.target.registers
        if self.node.op not in ARGUMENTS:
            return registers // 4
        # A value and its index, which may be wider, take half of the registers.
        return registers // 4 // (1 + self.index.itemsize // self.dtype.itemsize)

    def _accumulate_rows(
        self,
        e: VectorEmitter,
        rows: Axis,
        inner: Axis,
        bases: list[str],
        columns: list[Position],
        carried: Lanes,
    ) -> Lanes:
        """Over the rows of one block; ``carried`` holds one state per column vector."""
        elements = self._row_elements(e, rows, inner, bases, columns)
        length = self.w.size(rows.extent)
        unroll = 4 if len(columns) == 1 and self.node.op not in ARGUMENTS else 2
        if self.node.op in SUMS:
            zeros = [e.constant(0, self.dtype)] * len(columns)
            found = sums(
                e,
                length,
                lambda row, acc: add_all(e, acc, tuple(elements(row))),
                zeros,
                width=1,
                unroll=unroll,
                wide=bool(carried),
            )
            return add_all(e, carried, found) if carried else found
        accumulator = self._accumulator
        size = len(accumulator.init(e))

        def each(acc: Lanes, change: Callable[[int, Lanes], Lanes]) -> Lanes:
            parts = [change(k, acc[k * size : (k + 1) * size]) for k in range(len(columns))]
            return tuple(v for part in parts for v in part)

        def step(row: Position, acc: Lanes) -> Lanes:
            values = elements(row)
            index = lane_indices(VectorEmitter(self.fn, 1), row.at, self.index)
            where = e.splat(index.text, self.index)
            return each(acc, lambda k, part: accumulator.step(e, part, values[k], where))

        def merge(e: VectorEmitter, a: Lanes, b: Lanes) -> Lanes:
            return each(
                a, lambda k, part: tuple(accumulator.merge(e, part, b[k * size : (k + 1) * size]))
            )

        start = accumulator.init(e) * len(columns)
        found = sweep(e, length, step, start, merge, width=1, unroll=unroll)
        return merge(e, carried, found) if carried else found

    def _row_elements(
        self,
        e: VectorEmitter,
        rows: Axis,
        inner: Axis,
        bases: list[str],
        columns: list[Position],
    ) -> Callable[[Position], list[Lane]]:
        """A function that loads what is reduced of one row, one value per column vector."""
        strides = [self.w.size(s) for s in rows.strides]

        def elements(row: Position) -> list[Lane]:
            places = [
                self.fn.element(base, memory_type(t.dtype), times(self.fn, row.at, stride))
                for base, stride, t in zip(bases, strides, self.w.inputs, strict=True)
            ]
            operands = list(zip(places, inner.strides, self.w.inputs, strict=True))
            return [
                self._value(
                    e,
                    [
                        column.load(place, t.dtype) if stride else e.load_splat(place, t.dtype)
                        for place, stride, t in operands
                    ],
                )
                for column in columns
            ]

        return elements

    # -- shared

    @property
    def _accumulator(self) -> Accumulator:
        op = self.node.op
        if op in SUMS:
            return Accumulator(
                init=lambda e: (e.constant(0, _total(self.dtype)),),
                step=lambda e, acc, x, index: (e.add(acc[0], x),),
                merge=add_all,
            )
        if op in ARGUMENTS:
            return argument(self.dtype, self.index, op == "argmax")
        if op in ("all", "any"):
            return quantifier(op == "all")
        return extremum(self.dtype, op == "amax")

    def _bases(self, axes: Sequence[Axis], index: Size) -> list[str]:
        """The operands' addresses at a linear index over ``axes``."""
        return self._advanced(
            [f"%in{k}" for k in range(len(self.w.inputs))],
            axes,
            unravel(self.fn, index, [self.w.size(a.extent) for a in axes]),
        )

    def _advanced(
        self, bases: Sequence[str], axes: Sequence[Axis], coordinates: Sequence[Size]
    ) -> list[str]:
        found = []
        for k, base in enumerate(bases):
            offset: Size = 0
            for axis, coordinate in zip(axes, coordinates, strict=True):
                step = times(self.fn, coordinate, self.w.size(axis.strides[k]))
                offset = plus(self.fn, offset, step)
            kind = memory_type(self.w.inputs[k].dtype)
            found.append(base if offset == 0 else self.fn.element(base, kind, offset))
        return found

    def _nest(
        self,
        e: VectorEmitter,
        axes: Sequence[Axis],
        bases: list[str],
        leaf: Callable[[list[str], Lanes], Lanes],
        columns: int = 1,
    ) -> Lanes:
        """``leaf`` under loops over the outer reduced ``axes``, which carry its results."""
        if not axes:
            return leaf(bases, ())

        def level(axes: Sequence[Axis], bases: list[str], carried: Lanes) -> Lanes:
            if not axes:
                return leaf(bases, carried)
            kinds = [(e.type(v.dtype), v.text) for v in carried]
            with self.fn.loop(self.w.size(axes[0].extent), carry=kinds) as loop:
                inside = tuple(
                    Lane(text, v.dtype) for text, v in zip(loop.carried, carried, strict=True)
                )
                moved = self._advanced(bases, axes[:1], [loop.index])
                loop.next = [v.text for v in level(axes[1:], moved, inside)]
            return tuple(Lane(text, v.dtype) for text, v in zip(loop.results, carried, strict=True))

        return level(axes, bases, self._accumulator.init(e) * columns)

    def _accumulate(
        self,
        e: VectorEmitter,
        length: Size,
        element: Callable[[Position], Lane],
        carried: Lanes,
    ) -> Lanes:
        """Over one contiguous row; inactive lanes take no part."""
        if self.node.op in SUMS:
            found = sums(
                e,
                length,
                lambda at, acc: [e.add(acc[0], at.only(element(at)))],
                [e.constant(0, self.dtype)],
                wide=bool(carried),
            )
            return add_all(e, carried, found) if carried else found
        accumulator = self._accumulator
        neutral = accumulator.init(e)[0].number or 0

        def step(at: Position, acc: Lanes) -> Lanes:
            index = None
            if self.node.op in ARGUMENTS:
                index = lane_indices(e, at.at, self.index)
            return accumulator.step(e, acc, at.only(element(at), neutral), index)

        found = sweep(e, length, step, accumulator.init(e), accumulator.merge)
        return tuple(accumulator.merge(e, carried, found)) if carried else found

    def _value(self, e: VectorEmitter, operands: list[Lane]) -> Lane:
        """The element that is reduced, of the dtype that is accumulated."""
        value = operands[0]
        if self.w.node.op == "fused":
            nodes = [n for n in self.w.node.attrs["body"].nodes if n.name != self.node.name]
            env: dict[Value, Lane] = {}
            lower_nodes(e, nodes, env, {str(k): v for k, v in enumerate(operands)})
            value = env[self.node.operands[0]]
        return e.cast(value, self.dtype)

    def _finish(self, e: VectorEmitter, found: Lanes) -> Lane:
        """The output from what was accumulated."""
        if self.node.op in ARGUMENTS:
            # No element was better than -inf: all are equal to it, and the first one wins.
            nowhere = e.constant(int(np.iinfo(self.index.np).max), self.index)
            none = e.eq(found[1], nowhere)
            return e.cast(e.select(none, e.constant(0, self.index), found[1]), int64)
        if self.node.op == "mean":
            total = widen(e, found[0])
            return e.cast(e.div(total, self._divisor(e)), self.out.dtype)
        return e.cast(found[0], self.out.dtype)

    def _divisor(self, e: VectorEmitter) -> Lane:
        if isinstance(self.count, int):
            return e.constant(self.count, float64)
        # Opaque: otherwise the vector would wait in a register while the sums need them.
        size = self.fn.opaque("i64", str(self.w.size(self.count)))
        return e.splat(self.fn.emit(f"sitofp i64 {size} to double"), float64)


def _total(dtype: DType) -> DType:
    return float64 if dtype is float32 else dtype
