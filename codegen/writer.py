"""A kernel being written, and the ways to cut its work into tasks."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node
from ..ir.types import Dim, DType, Extent, TensorType
from .emitter import VectorEmitter
from .iteration import total
from .kernel import STATUS_INDEX_OUT_OF_RANGE, Kernel, TaskCount, symbol_for
from .loops import Position, mask_of
from .sizes import Size, minus, plus, times, unravel
from .target import Target
from .text import Function


class KernelWriter:
    """A kernel being written: its function, operand types and the parts of the ABI.

    Outputs must not overlap inputs (``noalias``): these kernels read elements again after they
    wrote others. Those that do not, and may write over an operand, say so (``in_place``).
    """

    def __init__(
        self, prefix: str, node: Node, graph: Graph, target: Target, in_place: bool = False
    ) -> None:
        self.node, self.target = node, target
        self.inputs: list[TensorType] = [graph.type(v) for v in node.operands]
        self.prefix = prefix
        out, operand = ("ptr", "ptr") if in_place else ("ptr noalias", "ptr noalias readonly")
        params = [(out, f"out{i}") for i in range(len(node.types))]
        params += [(operand, f"in{i}") for i in range(len(self.inputs))]
        params += [("ptr noalias", "scratch"), ("ptr", "status")]
        params += [("i64", "N"), ("i64", "begin"), ("i64", "end")]
        self.fn = Function(prefix, params)

    def emitter(self, dtype: DType, extent: Extent) -> VectorEmitter:
        """Vectors of ``dtype`` for a loop over ``extent``, no wider than it needs."""
        lanes = self.target.lanes(dtype)
        if isinstance(extent, int):
            while lanes > 1 and lanes // 2 >= extent:
                lanes //= 2
        return VectorEmitter(self.fn, lanes, dtype, registers=self.target.registers)

    def size(self, extent: Extent) -> Size:
        """An extent as a number or as the i64 that holds it."""
        if isinstance(extent, Dim):
            return times(self.fn, "%N", extent.coef)
        return extent

    def finish(self, tasks: TaskCount, flops: Extent = 0, scratch_bytes: int = 0) -> Kernel:
        """The kernel; its traffic is the batch-dependent part of its operands, if there is one."""
        types = [*self.inputs, *self.node.types]
        self.fn.name = symbol_for(self.prefix, self.fn.render(), tasks)
        return Kernel(
            symbol=self.fn.name,
            text=self.fn.render(),
            declarations=frozenset(self.fn.declarations),
            tasks=tasks,
            scratch_bytes=scratch_bytes,
            flops=flops,
            bytes=total([t.size * t.dtype.itemsize for t in types]),
        )


def report_bad_index(fn: Function, index: str) -> None:
    """Stores an index out of range in the status words."""
    fn.store("i64", str(STATUS_INDEX_OUT_OF_RANGE), "%status", 8)
    fn.store("i64", index, fn.element("%status", "i64", 1), 8)


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
    if inner == 0:
        return
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
