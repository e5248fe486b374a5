"""Cross entropy of logits (rows, classes) and class indices, and its gradient.

No probabilities are stored: the forward kernel keeps a row's maximum and the sum of its
exponentials, the gradient recomputes them, unless both are made in one sweep. Sums over rows are
float64 in row order, so they do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir.graph import Graph, Node
from ..ir.types import DType, Extent, float32, float64, numel
from .emitter import Lane, VectorEmitter, memory_type
from .kernel import Kernel, TaskCount
from .loops import (
    Lanes,
    Position,
    Row,
)
from .sizes import (
    times,
)
from .softmax import exponentials
from .target import Target
from .writer import (
    KernelWriter,
    report_bad_index,
)


def emit_cross_entropy(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for ``cross_entropy``, ``cross_entropy_grad``, or both: ``cross_entropy_rows``.

    A label outside [0, classes) that is not ``ignore_index`` is reported in the status words and
    its row is treated as ignored.
    """
    w = KernelWriter("xent", node, graph, target)
    grad = node.op != "cross_entropy"
    logits = w.inputs[1 if grad else 0]
    classes = logits.shape[1]
    if logits.dtype not in (float32, float64) or not isinstance(classes, int) or classes == 0:
        return None
    loss = _CrossEntropy(w, logits.dtype, logits.shape[0], classes, 1 if grad else 0)
    if grad:
        tasks = loss.gradient()
    elif node.attrs["reduction"] == "none":
        tasks = loss.losses()
    else:
        tasks = loss.total()
    return w.finish(tasks, flops=numel(logits.shape))


def emit_cross_entropy_total(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for ``cross_entropy_total``: the reduction of what ``cross_entropy_rows`` leaves."""
    w = KernelWriter("xent_total", node, graph, target)
    losses = w.inputs[0]
    if losses.dtype not in (float32, float64):
        return None
    loss = _CrossEntropy(w, losses.dtype, losses.shape[0], node.attrs["classes"], 0)
    return w.finish(loss.total_of_rows(), flops=numel(losses.shape))


@dataclass
class _CrossEntropy:
    """One kernel being written; ``first`` is the operand number of the logits."""

    w: KernelWriter
    dtype: DType
    rows: Extent
    classes: int
    first: int

    def __post_init__(self) -> None:
        self.fn = self.w.fn
        self.e = self.w.emitter(self.dtype, self.classes)
        self.scalar = VectorEmitter(self.fn, 1, self.dtype)
        self.wide = VectorEmitter(self.fn, 1, float64)
        self.logits, self.target = f"%in{self.first}", f"%in{self.first + 1}"
        weighted = len(self.w.inputs) > self.first + 2
        self.weight = f"%in{self.first + 2}" if weighted else None
        attrs = self.w.node.attrs
        self.ignore: int = attrs["ignore_index"]
        self.smoothing: float = attrs.get("label_smoothing", 0.0)
        self.reduction: str = attrs["reduction"]
        self.with_losses = self.w.node.op == "cross_entropy_rows"
        self.dx = "%out1" if self.with_losses else "%out0"

    # -- the kernels

    def losses(self) -> TaskCount:
        """One loss per row."""
        kind = memory_type(self.dtype)
        mass = self._weight_mass()
        with self.fn.loop("%end", "%begin") as task:
            loss, _ = self._loss(task.index, mass)
            self.scalar.store(loss, self.fn.element("%out0", kind, task.index))
        return TaskCount(self.rows)

    def total(self) -> TaskCount:
        """The sum over the rows, or the mean over those that count, as one task."""
        mass = self._weight_mass()
        return self._total(lambda index: self._loss(index, mass))

    def total_of_rows(self) -> TaskCount:
        """`total` of losses that are there already."""

        def loss(index: str) -> tuple[Lane, Lane]:
            kind, scalar = memory_type(self.dtype), self.scalar
            label, valid = self._label(index)
            weight = scalar.constant(1, self.dtype)
            if self.weight:
                weight = scalar.load(self.fn.element(self.weight, kind, label), self.dtype)
            found = scalar.load(self.fn.element(self.logits, kind, index), self.dtype)
            return found, self._if(scalar, valid, weight)

        return self._total(loss)

    def _total(self, loss: Callable[[str], tuple[Lane, Lane]]) -> TaskCount:
        """Sums what ``loss(row)`` gives: the loss and the weight of the row."""
        fn, wide = self.fn, self.wide
        zero = wide.constant(0, float64)
        with fn.loop("%end", "%begin"):
            carry = [("double", zero.text)] * 2
            with fn.loop(self.w.size(self.rows), carry=carry) as loop:
                found = loss(loop.index)
                loop.next = [
                    wide.add(Lane(old, float64), wide.cast(new, float64)).text
                    for old, new in zip(loop.carried, found, strict=True)
                ]
            total, count = (Lane(text, float64) for text in loop.results)
            if self.reduction == "mean":
                total = wide.div(total, count)
            wide.store(wide.cast(total, self.dtype), "%out0")
        return TaskCount(1)

    def gradient(self) -> TaskCount:
        """``scale ((1 - s) w[t] (p - onehot) + s / C (p sum(w) - w))`` per row, and the losses if
        they are wanted, from the same exponentials."""
        fn, scalar = self.fn, self.scalar
        scale = None if self.reduction == "none" else scalar.load("%in0", self.dtype)
        if self.reduction == "mean" and scale is not None:
            scale = scalar.div(scale, scalar.cast(self._count(), self.dtype))
        mass = self._weight_mass()
        with fn.loop("%end", "%begin") as task:
            self._row_gradient(task.index, scale, mass)
        return TaskCount(self.rows)

    def _row_gradient(self, index: str, scale: Lane | None, mass: Lane | None) -> None:
        fn, e, scalar, dtype = self.fn, self.e, self.scalar, self.dtype
        kind = memory_type(dtype)
        label, valid = self._label(index, report=True)
        offset_of_row = times(fn, index, self.classes)
        x, out = (fn.element(base, kind, offset_of_row) for base in (self.logits, self.dx))
        if scale is None:
            scale = scalar.load(fn.element("%in0", kind, index), dtype)
        direct = scale
        if self.weight:
            direct = scalar.mul(scale, scalar.load(fn.element(self.weight, kind, label), dtype))
        if self.smoothing > 0:
            direct = scalar.mul(direct, scalar.constant(1 - self.smoothing, dtype))
        factor, smooth = direct, None
        if self.smoothing > 0 and mass is not None:
            smooth = scalar.mul(scale, scalar.constant(self.smoothing / self.classes, dtype))
            factor = scalar.fma(smooth, mass, direct)
        row = Row(e, self.classes)
        top, total = exponentials(row, x, dtype, out)
        if self.with_losses:
            loss, _ = self._loss_of(row, x, label, valid, top, total, mass)
            scalar.store(loss, fn.element("%out0", kind, index))
        factor = scalar.div(factor, scalar.cast(total, dtype))
        spread = e.splat(factor.text, dtype)
        offset = e.splat(smooth.text, dtype) if smooth else None

        def write(at: Position, acc: Lanes) -> Lanes:
            p = row.load(at, out, dtype)
            if offset is None:
                dx = e.mul(p, spread)
            elif self.weight:
                dx = e.fma(p, spread, e.neg(e.mul(offset, at.load(self.weight, dtype))))
            else:
                dx = e.fma(p, spread, e.neg(offset))
            at.store(self._if(e, valid, dx), out)
            return ()

        row.sweep(write)
        place = fn.element(out, kind, label)
        direct = self._if(scalar, valid, direct)
        scalar.store(scalar.sub(scalar.load(place, dtype), direct), place)

    # -- parts

    def _loss(self, index: str, mass: Lane | None) -> tuple[Lane, Lane]:
        """(loss of a row, weight of its class) as scalars; both 0 if the row does not count."""
        label, valid = self._label(index, report=True)
        kind, offset = memory_type(self.dtype), times(self.fn, index, self.classes)
        x = self.fn.element(self.logits, kind, offset)
        row = Row(self.e, self.classes)
        top, total = exponentials(row, x, self.dtype, None)
        return self._loss_of(row, x, label, valid, top, total, mass)

    def _loss_of(
        self, row: Row, x: str, label: str, valid: str, top: Lane, total: Lane, mass: Lane | None
    ) -> tuple[Lane, Lane]:
        """`_loss` of a row at ``x`` with its largest logit and the sum of its exponentials."""
        fn, e, scalar, dtype = self.fn, self.e, self.scalar, self.dtype
        kind = memory_type(dtype)
        log = scalar.log(scalar.cast(total, dtype))
        picked = scalar.load(fn.element(x, kind, label), dtype)
        # -log p[t]; in this order the first difference is exact near the maximum
        loss = scalar.sub(log, scalar.sub(picked, top))
        weight = scalar.constant(1, dtype)
        if self.weight:
            weight = scalar.load(fn.element(self.weight, kind, label), dtype)
            loss = scalar.mul(weight, loss)
        if self.smoothing > 0 and mass is not None:
            shift, x = e.splat(top.text, dtype), row.again(x)

            def term(at: Position, acc: Lanes) -> Lanes:
                centred = e.sub(row.load(at, x, dtype), shift)
                if self.weight:
                    centred = e.mul(centred, at.load(self.weight, dtype))
                return (e.add(acc[0], at.only(centred)),)

            sums = scalar.cast(row.sums(term, 1, dtype)[0], dtype)
            smooth = scalar.sub(scalar.mul(mass, log), sums)
            share = scalar.constant(self.smoothing / self.classes, dtype)
            rest = scalar.mul(loss, scalar.constant(1 - self.smoothing, dtype))
            loss = scalar.fma(share, smooth, rest)
        return self._if(scalar, valid, loss), self._if(scalar, valid, weight)

    def _weight_mass(self) -> Lane | None:
        """Sum of the class weights, where label smoothing needs it."""
        if not self.smoothing > 0:
            return None
        if self.weight is None:
            return self.scalar.constant(self.classes, self.dtype)
        row, weight = Row(self.e, self.classes), self.weight

        def term(at: Position, acc: Lanes) -> Lanes:
            return (self.e.add(acc[0], at.load(weight, self.dtype)),)

        return self.scalar.cast(row.sums(term, 1, self.dtype)[0], self.dtype)

    def _count(self) -> Lane:
        """The sum of the weights of all rows that count, in row order, in float64."""
        fn, wide = self.fn, self.wide
        zero = wide.constant(0, float64)
        with fn.loop(self.w.size(self.rows), carry=[("double", zero.text)]) as loop:
            label, valid = self._label(loop.index)
            weight = wide.constant(1, float64)
            if self.weight:
                address = fn.element(self.weight, memory_type(self.dtype), label)
                weight = wide.cast(self.scalar.load(address, self.dtype), float64)
            counted = self._if(wide, valid, weight)
            loop.next = [wide.add(Lane(loop.carried[0], float64), counted).text]
        return Lane(loop.results[0], float64)

    def _label(self, index: str, report: bool = False) -> tuple[str, str]:
        """(label of a row, or 0 if the row does not count; whether it does)."""
        fn = self.fn
        label = fn.load("i64", fn.element(self.target, "i64", index), 8)
        kept = fn.emit(f"icmp ne i64 {label}, {self.ignore}")
        outside = fn.emit(f"icmp uge i64 {label}, {self.classes}")
        if report:
            with fn.when(fn.emit(f"and i1 {kept}, {outside}")):
                report_bad_index(fn, label)
        valid = fn.emit(f"select i1 {outside}, i1 false, i1 {kept}")
        return fn.emit(f"select i1 {valid}, i64 {label}, i64 0"), valid

    def _if(self, e: VectorEmitter, condition: str, v: Lane) -> Lane:
        """``v``, or zeros unless the scalar ``condition`` holds."""
        kind, zero = e.type(v.dtype), e.constant(0, v.dtype).text
        text = self.fn.emit(f"select i1 {condition}, {kind} {v.text}, {kind} {zero}")
        return Lane(text, v.dtype)
