"""Layer normalisation over the last dimensions, and its gradient.

A row is read from memory once and then from cache or registers: mean, centred squares, result. The
gradients of weight and bias are sums over rows; each of the gradient's tasks owns a block of their
columns and a share of the rows, so all results come from one parallel phase.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.types import DType, Extent, float32, float64, numel
from .emitter import Lane, VectorEmitter, memory_type
from .kernel import Kernel, TaskCount
from .loops import (
    Lanes,
    Position,
    Row,
    sums,
    widen,
)
from .sizes import (
    Size,
    plus,
    quotient,
    times,
)
from .target import Target
from .writer import (
    KernelWriter,
    column_blocks,
    in_column_block,
    vectors_per_block,
)

LAYER_NORM = ("layer_norm", "layer_norm_grad")

# The gradient has at least so many tasks, for rows to be shared where there are few columns.
LEAST_TASKS = 8


def emit_layer_norm(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for ``layer_norm`` or ``layer_norm_grad``."""
    w = KernelWriter("layernorm", node, graph, target)
    x = w.inputs[0]
    split = x.rank - node.attrs["ndim"]
    length, rows = numel(x.shape[split:]), numel(x.shape[:split])
    if x.dtype not in (float32, float64) or not isinstance(length, int):
        return None
    norm = _LayerNorm(w, x.dtype, rows, length)
    tasks = norm.forward() if node.op == "layer_norm" else norm.gradient()
    return w.finish(tasks, flops=numel(x.shape) * 8)


class _LayerNorm:
    """One kernel being written."""

    def __init__(self, w: KernelWriter, dtype: DType, rows: Extent, length: int) -> None:
        self.w, self.fn, self.dtype, self.rows, self.length = w, w.fn, dtype, rows, length
        self.kind = memory_type(dtype)
        self.e = w.emitter(dtype, length)
        self.scalar = VectorEmitter(w.fn, 1, dtype)

    def row_of(self, base: str, index: Size) -> str:
        return self.fn.element(base, self.kind, times(self.fn, index, self.length))

    def mean_of(self, total: Lane) -> Lane:
        """A sum over a row divided by its length, in float64."""
        count = self.scalar.constant(self.length, float64)
        return self.scalar.div(widen(self.scalar, total), count)

    def splat(self, v: Lane) -> Lane:
        """A scalar as the elements' dtype in every lane."""
        return self.e.splat(self.scalar.cast(v, self.dtype).text, self.dtype)

    def forward(self) -> TaskCount:
        fn, e, scalar, dtype = self.fn, self.e, self.scalar, self.dtype
        weight = "%in1" if len(self.w.inputs) > 1 else None
        bias = "%in2" if len(self.w.inputs) > 2 else None
        with fn.loop("%end", "%begin") as task:
            x, y = self.row_of("%in0", task.index), self.row_of("%out0", task.index)
            row = Row(e, self.length)
            (total,) = row.sums(lambda at, acc: [e.add(acc[0], row.load(at, x, dtype))], 1, dtype)
            mean = self.mean_of(total)
            shift = self.splat(mean)

            def centred(at: Position, acc: Lanes) -> Lanes:
                d = at.only(e.sub(row.load(at, x, dtype), shift))
                return (e.fma(d, d, acc[0]),)

            (squares,) = row.sums(centred, 1, dtype)
            eps = scalar.constant(self.w.node.attrs["eps"], float64)
            root = scalar.sqrt(scalar.add(self.mean_of(squares), eps))
            rstd = scalar.div(scalar.constant(1, float64), root)
            scale = self.splat(rstd)

            def write(at: Position, acc: Lanes) -> Lanes:
                v = e.mul(e.sub(row.load(at, x, dtype), shift), scale)
                if weight and bias:
                    v = e.fma(v, at.load(weight, dtype), at.load(bias, dtype))
                elif weight:
                    v = e.mul(v, at.load(weight, dtype))
                at.store(v, y)
                return ()

            row.sweep(write)
            for name, v in (("%out1", mean), ("%out2", rstd)):
                scalar.store(scalar.cast(v, dtype), fn.element(name, self.kind, task.index))
        return TaskCount(self.rows)

    def gradient(self) -> TaskCount:
        fn = self.fn
        if len(self.w.inputs) < 5:
            with fn.loop("%end", "%begin") as task:
                self.gradient_row(task.index, None)
            return TaskCount(self.rows)
        # Each vector of columns has two sums, twice for latency, in registers.
        most = self.w.target.registers // 8
        group = max(1, min(most, vectors_per_block(self.w.target, self.e, self.length)))
        blocks = column_blocks(self.e, self.length, group)
        tasks = max(blocks, LEAST_TASKS)
        rows = self.w.size(self.rows)
        with fn.loop("%end", "%begin") as task:
            first = quotient(fn, times(fn, task.index, rows), tasks)
            following = plus(fn, task.index, 1)
            last = quotient(fn, times(fn, following, rows), tasks)
            with fn.loop(last, first) as share:
                self.gradient_row(share.index, "%in4")
            with fn.when(fn.emit(f"icmp slt i64 {task.index}, {blocks}")):
                in_column_block(self.e, self.length, group, task.index, self.parameter_gradients)
        return TaskCount(tasks)

    def gradient_row(self, index: Size, weight: str | None) -> None:
        """dx = rstd (gw - mean(gw) - xhat mean(gw xhat)) for one row."""
        e, scalar, dtype = self.e, self.scalar, self.dtype
        g, x, dx = (self.row_of(base, index) for base in ("%in0", "%in1", "%out0"))
        shift, scale = self.row_statistics(index)
        row = Row(e, self.length)

        def both(at: Position) -> Lanes:
            gradient = row.load(at, g, dtype)
            if weight:
                gradient = e.mul(gradient, row.load(at, weight, dtype))
            return gradient, e.mul(e.sub(row.load(at, x, dtype), shift), scale)

        def term(at: Position, acc: Lanes) -> Lanes:
            gradient, xhat = both(at)
            return e.add(acc[0], gradient), e.fma(gradient, at.only(xhat), acc[1])

        found = row.sums(term, 2, dtype)
        offset, slope = (self.splat(scalar.cast(self.mean_of(v), dtype)) for v in found)

        def write(at: Position, acc: Lanes) -> Lanes:
            gradient, xhat = both(at)
            inside = e.fma(e.neg(xhat), slope, e.sub(gradient, offset))
            at.store(e.mul(inside, scale), dx)
            return ()

        row.sweep(write)

    def row_statistics(self, index: Size) -> tuple[Lane, Lane]:
        """(mean, rstd) of a row in every lane."""
        mean, rstd = (self.fn.element(base, self.kind, index) for base in ("%in2", "%in3"))
        return self.e.load_splat(mean, self.dtype), self.e.load_splat(rstd, self.dtype)

    def parameter_gradients(self, columns: list[Position]) -> None:
        """dw = sum over rows of g xhat, db = sum of g, for a block of columns."""
        e, dtype, width = self.e, self.dtype, len(columns)

        def term(at: Position, acc: Lanes) -> Lanes:
            g, x = self.row_of("%in0", at.at), self.row_of("%in1", at.at)
            shift, scale = self.row_statistics(at.at)
            dw, db = [], []
            for k, column in enumerate(columns):
                gradient = column.load(g, dtype)
                xhat = e.mul(e.sub(column.load(x, dtype), shift), scale)
                dw.append(e.fma(gradient, xhat, acc[k]))
                db.append(e.add(acc[width + k], gradient))
            return (*dw, *db)

        zeros = [e.constant(0, dtype)] * (2 * width)
        found = sums(e, self.w.size(self.rows), term, zeros, width=1, unroll=2)
        for k, column in enumerate(columns):
            column.store(e.cast(found[k], dtype), "%out1")
            column.store(e.cast(found[width + k], dtype), "%out2")
