"""Reading and adding at indices: embedding, gather, and their gradients.

An index out of range is reported in the status words; its element reads as zero or adds nothing. In
the gradients a task owns a block of columns and adds in the order of the indices, so there are no
atomics and the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node
from ..ir.types import DType, Extent, bool_, int32, int64, numel
from .emitter import VectorEmitter, memory_type, scalar_type
from .kernel import Kernel, TaskCount
from .loops import (
    Lanes,
    Position,
    sweep,
)
from .sizes import (
    Size,
    least,
    plus,
    times,
    unravel,
)
from .target import Target
from .text import Function
from .writer import (
    KernelWriter,
    for_each_column_block,
    report_bad_index,
    vectors_per_block,
)

INDEXING = ("embedding", "embedding_grad", "gather", "scatter_add_grad")

# Elements per task of gather, and columns per task of its gradient.
ELEMENTS = 1024
COLUMNS = 16


def emit_indexing(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for ``embedding``, ``gather`` or the gradient of one; none for ``argsort``."""
    if node.op not in INDEXING:
        return None
    w = KernelWriter("index", node, graph, target)
    at = 0 if node.op == "embedding" else 1
    if w.inputs[at].dtype not in (int32, int64) or w.inputs[1 - at].dtype is bool_:
        return None
    emit: dict[str, Callable[[KernelWriter], TaskCount]] = {
        "embedding": _embedding,
        "embedding_grad": _embedding_grad,
        "gather": _gather,
    }
    tasks = emit.get(node.op, _scatter_add)(w)
    return w.finish(tasks, flops=0 if at == 0 or node.op == "gather" else numel(w.inputs[0].shape))


def _index(fn: Function, base: str, dtype: DType, place: Size, size: Size) -> tuple[str, str]:
    """(the index at ``place``, or 0 if it is out of range; whether it is in range)."""
    kind = scalar_type(dtype)
    index = fn.load(kind, fn.element(base, kind, place), dtype.itemsize)
    if dtype is not int64:
        index = fn.emit(f"sext {kind} {index} to i64")
    inside = fn.emit(f"icmp ult i64 {index}, {size}")
    with fn.when(fn.emit(f"xor i1 {inside}, true")):
        report_bad_index(fn, index)
    return fn.emit(f"select i1 {inside}, i64 {index}, i64 0"), inside


# ---- embedding


def _embedding(w: KernelWriter) -> TaskCount:
    """Copies one row of the weight per index."""
    fn, (indices, weight) = w.fn, w.inputs
    num, features = (w.size(d) for d in weight.shape)
    dtype, kind = weight.dtype, memory_type(weight.dtype)
    e = w.emitter(dtype, weight.shape[1])
    with fn.loop("%end", "%begin") as task:
        index, inside = _index(fn, "%in0", indices.dtype, task.index, num)
        out = fn.element("%out0", kind, times(fn, task.index, features))
        row = fn.element("%in1", kind, times(fn, index, features))

        def copy(at: Position, acc: Lanes) -> Lanes:
            at.store(at.load(row, dtype), out)
            return ()

        def clear(at: Position, acc: Lanes) -> Lanes:
            at.store(e.constant(0, dtype), out)
            return ()

        with fn.when(inside):
            sweep(e, features, copy)
        with fn.when(fn.emit(f"xor i1 {inside}, true")):
            sweep(e, features, clear)
    return TaskCount(numel(indices.shape))


def _embedding_grad(w: KernelWriter) -> TaskCount:
    """Adds the rows of the gradient, in order, to the rows of their indices."""
    fn, (gradient, indices) = w.fn, w.inputs
    num, features = w.node.type.shape
    dtype, kind = gradient.dtype, memory_type(gradient.dtype)
    e = w.emitter(dtype, features)
    padding = w.node.attrs["padding_idx"]
    stride, rows = w.size(features), w.size(num)

    def block(_: Size, columns: list[Position]) -> None:
        zero = e.constant(0, dtype)

        def row(base: str, index: Size) -> str:
            return fn.element(base, kind, times(fn, index, stride))

        with fn.loop(rows) as loop:
            for at in columns:
                at.store(zero, row("%out0", loop.index))
        with fn.loop(w.size(numel(indices.shape))) as loop:
            index, inside = _index(fn, "%in1", indices.dtype, loop.index, rows)
            if padding is not None:
                other = fn.emit(f"icmp ne i64 {index}, {padding}")
                inside = fn.emit(f"and i1 {inside}, {other}")
            with fn.when(inside):
                g, dw = row("%in0", loop.index), row("%out0", index)
                for at in columns:
                    at.store(e.add(at.load(dw, dtype), at.load(g, dtype)), dw)

    group = max(1, vectors_per_block(w.target, e, features))
    return for_each_column_block(w, e, 1, features, block, group)


# ---- gather


def _gather(w: KernelWriter) -> TaskCount:
    """One element per index, in tasks of ``ELEMENTS`` indices."""
    fn, (source, indices) = w.fn, w.inputs
    dim = w.node.attrs["dim"]
    scalar = VectorEmitter(fn, 1, source.dtype)
    kind = memory_type(source.dtype)
    total = numel(indices.shape)
    extents = [w.size(d) for d in indices.shape]
    strides = [w.size(numel(source.shape[d + 1 :])) for d in range(source.rank)]
    along = w.size(source.shape[dim]) if source.rank else 1
    with fn.loop("%end", "%begin") as task:
        start = times(fn, task.index, ELEMENTS)
        stop = least(fn, plus(fn, start, ELEMENTS), w.size(total))
        with fn.loop(stop, start) as loop:
            index, inside = _index(fn, "%in1", indices.dtype, loop.index, along)
            place: Size = 0
            for d, at in enumerate(unravel(fn, loop.index, extents)):
                place = plus(fn, place, times(fn, index if d == dim else at, strides[d]))
            # An empty source has nothing to read in place of a bad index.
            out = fn.element("%out0", kind, loop.index)
            scalar.store(scalar.constant(0, source.dtype), out)
            with fn.when(inside):
                scalar.store(scalar.load(fn.element("%in0", kind, place), source.dtype), out)
    return TaskCount(total, ELEMENTS)


def _scatter_add(w: KernelWriter) -> TaskCount:
    """Adds each element at its index; a task owns some columns of one outer index."""
    fn, (gradient, indices) = w.fn, w.inputs
    dim = w.node.attrs["dim"]
    shape = w.node.type.shape
    scalar = VectorEmitter(fn, 1, gradient.dtype)
    kind, dtype = memory_type(gradient.dtype), gradient.dtype
    outer: Extent = numel(shape[:dim])
    inner: Extent = numel(shape[dim + 1 :])
    size, length = w.size(shape[dim]) if shape else 1, w.size(gradient.shape[dim]) if shape else 1
    stride = w.size(inner)
    blocks = -(-inner // COLUMNS) if isinstance(inner, int) else 1

    def add(o: Size, first: Size, last: Size) -> None:
        base = times(fn, o, times(fn, size, stride))
        with fn.loop(size) as rows:
            row = plus(fn, base, times(fn, rows.index, stride))
            with fn.loop(last, first) as columns:
                place = fn.element("%out0", kind, plus(fn, row, columns.index))
                scalar.store(scalar.constant(0, dtype), place)
        with fn.loop(length) as rows:
            row = times(fn, plus(fn, times(fn, o, length), rows.index), stride)
            with fn.loop(last, first) as columns:
                source = plus(fn, row, columns.index)
                index, inside = _index(fn, "%in1", indices.dtype, source, size)
                with fn.when(inside):
                    value = scalar.load(fn.element("%in0", kind, source), dtype)
                    offset = plus(fn, times(fn, index, stride), columns.index)
                    place = fn.element("%out0", kind, plus(fn, base, offset))
                    scalar.store(scalar.add(scalar.load(place, dtype), value), place)

    with fn.loop("%end", "%begin") as task:
        o, b = unravel(fn, task.index, [w.size(outer), blocks])
        first = times(fn, b, COLUMNS)
        add(o, first, stride if blocks == 1 else least(fn, plus(fn, first, COLUMNS), stride))
    return TaskCount(outer * blocks)
