"""Kernels that move elements: permute, broadcast_to, slice, slice_grad, cat, pad, and plain copies.

Elements are moved as bits. A reshape moves nothing: the memory planner gives both names one buffer;
where it cannot, ``reshape`` is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import UnsupportedError
from ..ir.graph import Graph, Node
from ..ir.types import Dim, DType, Extent, TensorType, bool_, numel, uint8
from .emitter import Lane, VectorEmitter, literal, memory_type
from .interleave import emit_interleave, interleave_plan
from .iteration import Axis, broadcast_strides, merged, times, total
from .kernel import Kernel, TaskCount, symbol_for
from .strided_loop import CHUNK, StridedLoop
from .target import Target
from .text import Function
from .transpose import emit_transpose, transpose_plan


def emit_movement(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of a node of kind shape, or None where there is no native form."""
    write = _WRITERS.get(node.op)
    if write is None:
        return None
    try:
        return write(node, [graph.type(v) for v in node.operands], target)
    except UnsupportedError:
        return None


# ---- strided copies


def _strided_copy(
    dtype: DType,
    shape: Sequence[Extent],
    strides: Sequence[Extent],
    target: Target,
    base: Extent = 0,
) -> Kernel:
    """out (row-major, of ``shape``) = in at element ``base`` + the sum of index * stride."""
    shape = tuple(shape)
    rows = merged(shape, [broadcast_strides(shape, shape), tuple(strides)])
    if base == 0:
        planes = interleave_plan(rows, dtype)
        if planes is not None and target.lanes(dtype) > 1:
            return emit_interleave(planes, dtype, target)
        plan = transpose_plan(rows, dtype, target)
        if plan is not None:
            return emit_transpose(plan, dtype, target)
    kind = uint8 if dtype is bool_ else dtype
    result = TensorType(kind, shape)
    body = Graph("body")
    body.outputs["0"] = body.add("input", path="0", type=result)
    space = [Axis(x.extent, x.strides[1:]) for x in rows]
    return StridedLoop(
        body, space, [result], [result], frozenset(), target, {0: base} if base else {}, "copy"
    ).kernel()


def _copy(node: Node, types: list[TensorType], target: Target) -> Kernel:
    return _strided_copy(types[0].dtype, (types[0].size,), (1,), target)


def _permute(node: Node, types: list[TensorType], target: Target) -> Kernel:
    strides = _row_major(types[0].shape)
    dims = node.attrs["dims"]
    return _strided_copy(types[0].dtype, node.type.shape, [strides[d] for d in dims], target)


def _broadcast_to(node: Node, types: list[TensorType], target: Target) -> Kernel:
    shape = node.type.shape
    return _strided_copy(types[0].dtype, shape, broadcast_strides(types[0].shape, shape), target)


def _slice(node: Node, types: list[TensorType], target: Target) -> Kernel:
    dim, start, step = node.attrs["dim"], node.attrs["start"], node.attrs.get("step", 1)
    strides = list(_row_major(types[0].shape, types[0].pitch))
    base = times(start, strides[dim])
    strides[dim] = times(strides[dim], step)
    return _strided_copy(types[0].dtype, node.type.shape, strides, target, base)


def _row_major(shape: Sequence[Extent], pitch: Extent | None = None) -> tuple[Extent, ...]:
    """Strides of every dimension (also those of size 1, which are never stepped); rows are
    ``pitch`` elements apart, if that is not their length."""
    out: list[Extent] = []
    step: Extent = 1
    for extent in reversed(shape):
        out.append(step)
        step = pitch if pitch is not None and len(out) == 1 else times(step, extent)
    return tuple(reversed(out))


# ---- kernels made of runs of consecutive elements


class _Runs:
    """A kernel under construction that copies and fills runs of elements."""

    def __init__(self, name: str, dtype: DType, operands: int, target: Target) -> None:
        self.dtype = uint8 if dtype is bool_ else dtype
        self.name, self.kind = name, memory_type(dtype)
        names = ["out0", *(f"in{k}" for k in range(operands)), "scratch", "status"]
        params = [("ptr", p) for p in names] + [("i64", p) for p in ("N", "begin", "end")]
        self.fn = Function(name, params)
        self.wide = VectorEmitter(self.fn, target.lanes(self.dtype))
        self.narrow = VectorEmitter(self.fn, 1)

    def number(self, extent: Extent) -> str:
        if isinstance(extent, Dim):
            return self.fn.emit(f"mul nsw i64 %N, {extent.coef}")
        return str(extent)

    def mul(self, a: str, b: Extent) -> str:
        return self.fn.emit(f"mul nsw i64 {a}, {self.number(b)}")

    def add(self, a: str, b: str) -> str:
        return self.fn.emit(f"add nsw i64 {a}, {b}")

    def copy(self, out: str, source: str, count: str) -> None:
        """``count`` elements from address ``source`` to ``out``."""
        self._run(count, lambda e, at: e.load(self.at(source, at), self.dtype), out)

    def fill(self, out: str, bits: str, count: str) -> None:
        """``count`` times the constant with LLVM text ``bits`` to address ``out``."""
        self._run(count, lambda e, at: e.splat(bits, self.dtype), out)

    def _run(self, count: str, value: Callable[[VectorEmitter, str], Lane], out: str) -> None:
        lanes = self.wide.lanes
        last = self.fn.emit(f"sub nsw i64 {count}, {lanes - 1}")
        with self.fn.loop(last, 0, lanes) as loop:
            self.wide.store(value(self.wide, loop.index), self.at(out, loop.index))
        with self.fn.loop(count, loop.index) as rest:
            self.narrow.store(value(self.narrow, rest.index), self.at(out, rest.index))

    def at(self, base: str, index: str) -> str:
        return self.fn.element(base, self.kind, index)

    def per_task(self, units: Extent, size: Extent, body: Callable[[str], None]) -> TaskCount:
        """Calls ``body`` for every unit of about ``size`` elements; about CHUNK of them a task."""
        per = max(1, CHUNK // size) if isinstance(size, int) and size else 1
        with self.fn.loop("%end", "%begin") as task:
            first = self.mul(task.index, per)
            after = self.add(first, str(per))
            arguments = ("i64", after), ("i64", self.number(units))
            stop = self.fn.call("i64", "llvm.smin.i64", *arguments)
            with self.fn.loop(stop, first) as unit:
                body(unit.index)
        return TaskCount(units, per)

    def kernel(self, tasks: TaskCount, moved: Extent) -> Kernel:
        symbol = symbol_for(self.name, self.fn.render(), tasks)
        self.fn.name = symbol
        return Kernel(
            symbol,
            self.fn.render(),
            frozenset(self.fn.declarations),
            tasks,
            bytes=times(moved, 2 * self.dtype.itemsize),
        )


_PARTS = 16


def _cat(node: Node, types: list[TensorType], target: Target) -> Kernel:
    """One row per index of the dimensions before ``dim``; without such, pieces cut in parts."""
    dim = node.attrs["dim"]
    inner = numel(node.type.shape[dim + 1 :])
    rows = numel(node.type.shape[:dim])
    lengths = [times(t.shape[dim], inner) for t in types]
    row, steps = times(node.type.shape[dim], inner), lengths
    if dim == node.type.rank - 1:
        row, steps = node.type.pitch, [t.pitch for t in types]
    runs = _Runs("cat", node.type.dtype, len(types), target)
    fn = runs.fn

    def copy_pieces(index: str) -> None:
        start = runs.mul(index, row)
        for k, (length, step) in enumerate(zip(lengths, steps, strict=True)):
            source = runs.mul(index, step)
            count = runs.number(length)
            runs.copy(runs.at("%out0", start), runs.at(f"%in{k}", source), count)
            start = runs.add(start, count)

    def copy_parts(part: str) -> None:
        start, following = "0", runs.add(part, "1")
        for k, length in enumerate(lengths):
            whole = runs.number(length)
            first, last = (
                fn.emit(f"sdiv i64 {fn.emit(f'mul nsw i64 {whole}, {p}')}, {_PARTS}")
                for p in (part, following)
            )
            out = runs.at("%out0", runs.add(start, first))
            count = fn.emit(f"sub nsw i64 {last}, {first}")
            runs.copy(out, runs.at(f"%in{k}", first), count)
            start = runs.add(start, whole)

    if rows == 1:
        tasks = runs.per_task(_PARTS, CHUNK, copy_parts)
    else:
        tasks = runs.per_task(rows, row, copy_pieces)
    return runs.kernel(tasks, node.type.size)


def _pad(node: Node, types: list[TensorType], target: Target) -> Kernel:
    low, high = node.attrs["low"], node.attrs["high"]
    return _padded(types[0], low, high, node.attrs.get("value", 0.0), target)


def _slice_grad(node: Node, types: list[TensorType], target: Target) -> Kernel:
    dim, start, step = node.attrs["dim"], node.attrs["start"], node.attrs.get("step", 1)
    g = types[0]
    if step != 1:
        return _spread(node, g, dim, start, step, target)
    low: list[Extent] = [0] * g.rank
    high: list[Extent] = [0] * g.rank
    low[dim] = start
    high[dim] = _minus(_minus(node.attrs["size"], start), g.shape[dim])
    return _padded(g, low, high, 0.0, target)


def _minus(a: Extent, b: Extent) -> Extent:
    if isinstance(a, Dim) and isinstance(b, Dim):
        return Dim(a.coef - b.coef) if a.coef != b.coef else 0
    if b == 0:
        return a
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    raise UnsupportedError(f"{a} - {b} is not a multiple of the batch")


def _padded(
    x: TensorType, low: Sequence[Extent], high: Sequence[Extent], value: float, target: Target
) -> Kernel:
    """One unit per output row: a run of the input between two fills, or all fill."""
    groups = _padded_groups(x.shape, low, high)
    runs = _Runs("pad", x.dtype, 1, target)
    fn = runs.fn
    bits = literal(value, runs.dtype)
    width, left, right = groups[-1]
    out_width = _sum([left, width, right])
    outer = groups[:-1]
    out_extents = [_sum([p, e, q]) for e, p, q in outer]
    rows = numel(out_extents)

    def row(index: str) -> None:
        rest, inside, source, step = index, "true", "0", "1"
        for (extent, before, _), size in zip(reversed(outer), reversed(out_extents), strict=True):
            count = runs.number(size)
            at = fn.emit(f"srem i64 {rest}, {count}")
            rest = fn.emit(f"sdiv i64 {rest}, {count}")
            within = fn.emit(f"sub nsw i64 {at}, {runs.number(before)}")
            # Unsigned: a row before the input wraps around to a large number.
            fits = fn.emit(f"icmp ult i64 {within}, {runs.number(extent)}")
            inside = fn.emit(f"and i1 {inside}, {fits}")
            source = runs.add(source, fn.emit(f"mul i64 {within}, {step}"))
            step = fn.emit(f"mul i64 {step}, {runs.number(extent)}")
        out = runs.at("%out0", runs.mul(index, out_width))
        with fn.when(inside):
            runs.fill(out, bits, runs.number(left))
            at = runs.at(out, runs.number(left))
            runs.copy(at, runs.at("%in0", runs.mul(source, width)), runs.number(width))
            runs.fill(runs.at(at, runs.number(width)), bits, runs.number(right))
        with fn.when(fn.emit(f"xor i1 {inside}, true")):
            runs.fill(out, bits, runs.number(out_width))

    tasks = runs.per_task(rows, out_width, row)
    return runs.kernel(tasks, times(rows, out_width))


def _sum(extents: Sequence[Extent]) -> Extent:
    """The sum; UnsupportedError for a sum such as N + 1."""
    present = [x for x in extents if x != 0]
    if any(isinstance(x, Dim) for x in present) and not all(isinstance(x, Dim) for x in present):
        raise UnsupportedError(f"the sum of {present} is not a multiple of the batch")
    return total(present)


def _padded_groups(
    shape: Sequence[Extent], low: Sequence[Extent], high: Sequence[Extent]
) -> list[tuple[Extent, Extent, Extent]]:
    """(extent, low, high) per dimension, unpadded dimensions merged into the next outer one."""
    groups: list[tuple[Extent, Extent, Extent]] = []
    for item in zip(shape, low, high, strict=True):
        extent, before, after = item
        if groups and before == 0 and after == 0:
            try:
                a, p, q = groups[-1]
                groups[-1] = times(a, extent), times(p, extent), times(q, extent)
                continue
            except UnsupportedError:
                pass
        groups.append((extent, before, after))
    return groups or [(1, 0, 0)]


def _spread(
    node: Node, g: TensorType, dim: int, start: Extent, step: int, target: Target
) -> Kernel:
    """Zeros, with row j of ``g`` at start + j step: one unit per index up to ``dim``."""
    inner = numel(g.shape[dim + 1 :])
    size, count = node.attrs["size"], g.shape[dim]
    outer = numel(g.shape[:dim])
    runs = _Runs("spread", g.dtype, 1, target)
    fn = runs.fn
    zero = literal(0, runs.dtype)

    def plane(index: str) -> None:
        out = runs.at("%out0", runs.mul(index, times(size, inner)))
        source = runs.at("%in0", runs.mul(index, times(count, inner)))
        runs.fill(out, zero, runs.number(times(size, inner)))
        first = runs.at(out, runs.number(times(start, inner)))
        with fn.loop(runs.number(count)) as j:
            at = runs.at(first, runs.mul(j.index, times(inner, step)))
            runs.copy(at, runs.at(source, runs.mul(j.index, inner)), runs.number(inner))

    tasks = runs.per_task(outer, times(size, inner), plane)
    return runs.kernel(tasks, node.type.size)


_WRITERS = {
    "reshape": _copy,
    "permute": _permute,
    "broadcast_to": _broadcast_to,
    "slice": _slice,
    "slice_grad": _slice_grad,
    "cat": _cat,
    "pad": _pad,
}
