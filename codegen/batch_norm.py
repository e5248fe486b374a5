"""Batch normalisation: evaluation, training with its statistics, and the gradient.

The operand is seen as (outer, channels, inner). With inner = 1 (channels last, or (N, C)) a vector
holds neighbouring channels and the loops run over rows; otherwise it holds neighbouring elements of
one plane. In training a task owns its channels for all rows, so nothing is shared between tasks.

Statistics: each block of rows (or plane) gives the sums of d and d^2 for d = x - its own mean, in
the dtype of x; they are combined in float64 (T. Chan et al., "Updating Formulae and a Pairwise
Algorithm for Computing Sample Variances", 1979), so a large mean does not spoil the variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.graph import Graph, Node
from ..ir.types import Dim, DType, Extent, float32, float64, numel
from .emitter import Lane, VectorEmitter, memory_type
from .kernel import Kernel, TaskCount
from .loops import (
    CHUNK_STEPS,
    Lanes,
    Position,
    add_all,
    fold,
    sums,
    sweep,
    widen,
)
from .sizes import (
    Size,
    least,
    minus,
    plus,
    times,
    unravel,
)
from .target import Target
from .writer import (
    KernelWriter,
    column_blocks,
    for_each_column_block,
    in_column_block,
    vectors_per_block,
)

BATCH_NORM = ("batch_norm", "batch_norm_train", "batch_norm_grad")

# Rows per task of the evaluation form, and per block of the statistics.
ROWS = 4 * CHUNK_STEPS


def emit_batch_norm(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for ``batch_norm``, ``batch_norm_train`` or ``batch_norm_grad``."""
    w = KernelWriter("batchnorm", node, graph, target)
    x = w.inputs[0]
    dim = node.attrs["channel_dim"]
    channels = x.shape[dim]
    if x.dtype not in (float32, float64) or isinstance(channels, Dim):
        return None
    outer, inner = numel(x.shape[:dim]), numel(x.shape[dim + 1 :])
    kind = _Columns if inner == 1 else _Planes
    norm = kind(w, x.dtype, outer, channels, inner)
    emit = {"batch_norm": norm.apply, "batch_norm_train": norm.train}
    tasks = emit.get(node.op, norm.gradient)()
    return w.finish(tasks, flops=numel(x.shape) * (2 if node.op == "batch_norm" else 6))


@dataclass
class _State:
    """Sums of d = x - shift and d^2 in float64; ``shift`` is the mean of the first block."""

    shift: Lane
    total: Lane
    squares: Lane

    @property
    def lanes(self) -> Lanes:
        return self.shift, self.total, self.squares


def _combined(e: VectorEmitter, state: _State, first: str, count: Lane, block: Lanes) -> _State:
    """``state`` with a block: (its mean, sum of x - mean, sum of (x - mean)^2)."""
    mean, total, squares = (widen(e, v) for v in block)
    kind = e.type(float64)
    shift = Lane(
        e.fn.emit(f"select i1 {first}, {kind} {mean.text}, {kind} {state.shift.text}"), float64
    )
    delta = e.sub(mean, shift)
    moved = e.mul(count, delta)
    cross = e.mul(delta, e.add(e.add(total, total), moved))
    return _State(
        shift,
        e.add(state.total, e.add(total, moved)),
        e.add(state.squares, e.add(squares, cross)),
    )


def _moments(e: VectorEmitter, state: _State, count: Lane, eps: float) -> Lanes:
    """(mean, biased variance, 1 / sqrt(variance + eps)) in float64."""
    mean = e.div(state.total, count)
    variance = e.sub(e.div(state.squares, count), e.mul(mean, mean))
    variance = e.maximum(variance, e.constant(0, float64))
    root = e.sqrt(e.add(variance, e.constant(eps, float64)))
    return e.add(state.shift, mean), variance, e.div(e.constant(1, float64), root)


@dataclass
class _BatchNorm:
    """One kernel being written."""

    w: KernelWriter
    dtype: DType
    outer: Extent
    channels: int
    inner: Extent

    def __post_init__(self) -> None:
        self.fn = self.w.fn
        self.kind = memory_type(self.dtype)

    def count(self, e: VectorEmitter, extent: Extent) -> Lane:
        """An element count in every lane, in float64."""
        if isinstance(extent, int):
            return e.constant(extent, float64)
        return self.converted(e, self.w.size(extent))

    def converted(self, e: VectorEmitter, number: Size) -> Lane:
        if isinstance(number, int):
            return e.constant(number, float64)
        # Opaque: otherwise the vector would wait in a register while the sums need them.
        number = self.fn.opaque("i64", number)
        return e.splat(self.fn.emit(f"sitofp i64 {number} to double"), float64)

    def zero_state(self, e: VectorEmitter) -> _State:
        return _State(*(e.constant(0, float64),) * 3)

    def scale(self, e: VectorEmitter, gamma: Lane, var: Lane) -> Lane:
        """gamma / sqrt(var + eps)."""
        eps = e.constant(self.w.node.attrs["eps"], float64)
        root = e.sqrt(e.add(widen(e, var), eps))
        return e.cast(e.div(widen(e, gamma), root), self.dtype)

    def gradient_factors(
        self, e: VectorEmitter, gamma: Lane, rstd: Lane, found: Sequence[Lane], count: Lane
    ) -> Lanes:
        """(scale, offset, slope, dgamma, dbeta): dx = scale (g - offset - slope (x - mean)).

        ``found`` is sum(g) and sum(g (x - mean)) in float64.
        """
        wide = widen(e, rstd)
        dgamma = e.mul(found[1], wide)
        values = (
            e.mul(widen(e, gamma), wide),
            e.div(found[0], count),
            e.div(e.mul(dgamma, wide), count),
            dgamma,
            found[0],
        )
        return tuple(e.cast(v, self.dtype) for v in values)


class _Columns(_BatchNorm):
    """Channels are contiguous: lanes are channels, loops run over rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.e = self.w.emitter(self.dtype, self.channels)
        # Each vector of channels has two sums, twice for latency, and its mean in registers.
        most = self.w.target.registers // 8
        self.group = max(1, min(most, vectors_per_block(self.w.target, self.e, self.channels)))

    def row(self, base: str, index: Size) -> str:
        return self.fn.element(base, self.kind, times(self.fn, index, self.channels))

    def over_rows(self, start: Size, count: Size, body: Callable[[Size], None]) -> None:
        def step(at: Position, acc: Lanes) -> Lanes:
            body(at.at)
            return ()

        sweep(self.e, count, step, start=start, width=1, unroll=2)

    def per_channel(self, columns: list[Position], *operands: int) -> list[Lanes]:
        """For each vector of channels, its elements of the per-channel operands."""
        return [tuple(c.load(f"%in{k}", self.dtype) for k in operands) for c in columns]

    def apply(self) -> TaskCount:
        fn, e, rows = self.fn, self.e, self.w.size(self.outer)
        with fn.loop("%end", "%begin") as task:
            start = times(fn, task.index, ROWS)
            count = least(fn, minus(fn, rows, start), ROWS)

            def block(columns: list[Position]) -> None:
                known = [
                    (mean, self.scale(e, gamma, var), beta)
                    for gamma, beta, mean, var in self.per_channel(columns, 1, 2, 3, 4)
                ]
                self.normalise(start, count, columns, known)

            blocks = column_blocks(e, self.channels, self.group)
            with fn.loop(blocks) as b:
                in_column_block(e, self.channels, self.group, b.index, block)
        return TaskCount(self.outer, ROWS)

    def normalise(
        self, start: Size, count: Size, columns: list[Position], known: Sequence[Lanes]
    ) -> None:
        """y = (x - mean) scale + beta over rows; ``known`` is (mean, scale, beta) per vector."""
        e = self.e

        def row(index: Size) -> None:
            x, y = self.row("%in0", index), self.row("%out0", index)
            for at, (mean, scale, beta) in zip(columns, known, strict=True):
                at.store(e.fma(e.sub(at.load(x, self.dtype), mean), scale, beta), y)

        self.over_rows(start, count, row)

    def train(self) -> TaskCount:
        e = self.e
        eps = self.w.node.attrs["eps"]

        def block(_: Size, columns: list[Position]) -> None:
            count = self.count(e, self.outer)
            known = []
            states = self.statistics(columns)
            for at, state, (gamma, beta) in zip(
                columns, states, self.per_channel(columns, 1, 2), strict=True
            ):
                moments = _moments(e, state, count, eps)
                mean, variance, rstd = (e.cast(v, self.dtype) for v in moments)
                for k, v in enumerate((mean, variance, rstd)):
                    at.store(v, f"%out{k + 1}")
                known.append((mean, e.mul(gamma, rstd), beta))
            self.normalise(0, self.w.size(self.outer), columns, known)

        return for_each_column_block(self.w, e, 1, self.channels, block, self.group)

    def statistics(self, columns: list[Position]) -> list[_State]:
        """Of all rows, per vector of channels."""
        fn, e, rows = self.fn, self.e, self.w.size(self.outer)
        width = len(columns)
        unroll = 4 if width == 1 else 2
        zeros = [e.constant(0, self.dtype)] * width
        start = self.zero_state(e).lanes * width
        carry = [(e.type(v.dtype), v.text) for v in start]
        with fn.loop(rows, step=ROWS, carry=carry) as loop:
            count = least(fn, minus(fn, rows, loop.index), ROWS)
            number = self.converted(e, count)
            first = fn.emit(f"icmp eq i64 {loop.index}, 0")

            def load(at: Position) -> list[Lane]:
                row = self.row("%in0", at.at)
                return [c.load(row, self.dtype) for c in columns]

            found = sweep(
                e,
                count,
                lambda at, acc: add_all(e, acc, tuple(load(at))),
                zeros,
                start=loop.index,
                width=1,
                unroll=unroll,
            )
            means = [e.cast(e.div(widen(e, v), number), self.dtype) for v in found]

            def centred(at: Position, acc: Lanes) -> Lanes:
                d = [e.sub(x, mean) for x, mean in zip(load(at), means, strict=True)]
                totals = [e.add(a, v) for a, v in zip(acc[:width], d, strict=True)]
                return (*totals, *(e.fma(v, v, a) for a, v in zip(acc[width:], d, strict=True)))

            around = sweep(e, count, centred, zeros * 2, start=loop.index, width=1, unroll=unroll)
            following: list[Lane] = []
            for k, mean in enumerate(means):
                state = _State(*(Lane(v, float64) for v in loop.carried[3 * k : 3 * k + 3]))
                block = (mean, around[k], around[width + k])
                following += _combined(e, state, first, number, block).lanes
            loop.next = [v.text for v in following]
        ends = [Lane(v, float64) for v in loop.results]
        return [_State(*ends[k : k + 3]) for k in range(0, len(ends), 3)]

    def gradient(self) -> TaskCount:
        e, rows = self.e, self.w.size(self.outer)

        def block(_: Size, columns: list[Position]) -> None:
            width = len(columns)
            means = [mean for (mean,) in self.per_channel(columns, 3)]

            def term(at: Position, acc: Lanes) -> Lanes:
                g, x = self.row("%in0", at.at), self.row("%in1", at.at)
                gs = [c.load(g, self.dtype) for c in columns]
                ds = [
                    e.sub(c.load(x, self.dtype), mean)
                    for c, mean in zip(columns, means, strict=True)
                ]
                firsts = [e.add(a, v) for a, v in zip(acc[:width], gs, strict=True)]
                pairs = zip(gs, ds, acc[width:], strict=True)
                return (*firsts, *(e.fma(v, d, a) for v, d, a in pairs))

            zeros = [e.constant(0, self.dtype)] * (2 * width)
            unroll = 4 if width == 1 else 2
            found = sums(e, rows, term, zeros, width=1, unroll=unroll, wide=True)
            count = self.count(e, self.outer)
            factors = []
            scales = self.per_channel(columns, 2, 4)
            for k, (at, (gamma, rstd)) in enumerate(zip(columns, scales, strict=True)):
                pair = (found[k], found[width + k])
                *factor, dgamma, dbeta = self.gradient_factors(e, gamma, rstd, pair, count)
                at.store(dgamma, "%out1")
                at.store(dbeta, "%out2")
                factors.append(factor)

            def row(index: Size) -> None:
                g, x, dx = (self.row(base, index) for base in ("%in0", "%in1", "%out0"))
                for at, (scale, offset, slope), mean in zip(columns, factors, means, strict=True):
                    d = e.sub(at.load(x, self.dtype), mean)
                    inside = e.sub(at.load(g, self.dtype), offset)
                    at.store(e.mul(scale, e.fma(e.neg(d), slope, inside)), dx)

            self.over_rows(0, rows, row)

        return for_each_column_block(self.w, e, 1, self.channels, block, self.group)


class _Planes(_BatchNorm):
    """Elements of a channel are contiguous: lanes are neighbouring elements of a plane."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.e = self.w.emitter(self.dtype, self.inner)
        self.scalar = VectorEmitter(self.fn, 1, self.dtype)
        self.length = self.w.size(self.inner)

    def plane(self, base: str, sample: Size, channel: Size) -> str:
        fn = self.fn
        index = plus(fn, times(fn, sample, self.channels), channel)
        return fn.element(base, self.kind, times(fn, index, self.length))

    def per_channel(self, channel: Size, *operands: int) -> Lanes:
        return tuple(
            self.scalar.load(self.fn.element(f"%in{k}", self.kind, channel), self.dtype)
            for k in operands
        )

    def splats(self, values: Sequence[Lane]) -> list[Lane]:
        return [self.e.splat(v.text, self.dtype) for v in values]

    def total(self) -> Lane:
        """Elements per channel."""
        samples = self.count(self.scalar, self.outer)
        return self.scalar.mul(samples, self.count(self.scalar, self.inner))

    def apply(self) -> TaskCount:
        fn = self.fn
        with fn.loop("%end", "%begin") as task:
            sample, channel = unravel(fn, task.index, [self.w.size(self.outer), self.channels])
            gamma, beta, mean, var = self.per_channel(channel, 1, 2, 3, 4)
            known = self.splats((mean, self.scale(self.scalar, gamma, var), beta))
            self.normalise(sample, channel, known)
        return TaskCount(self.outer * self.channels)

    def normalise(self, sample: Size, channel: Size, known: Sequence[Lane]) -> None:
        """y = (x - mean) scale + beta over a plane; ``known`` is (mean, scale, beta)."""
        e = self.e
        mean, scale, beta = known
        x, y = (self.plane(base, sample, channel) for base in ("%in0", "%out0"))

        def step(at: Position, acc: Lanes) -> Lanes:
            at.store(e.fma(e.sub(at.load(x, self.dtype), mean), scale, beta), y)
            return ()

        sweep(e, self.length, step)

    def train(self) -> TaskCount:
        fn, scalar = self.fn, self.scalar
        with fn.loop("%end", "%begin") as task:
            channel = task.index
            gamma, beta = self.per_channel(channel, 1, 2)
            state = self.statistics(channel)
            moments = _moments(scalar, state, self.total(), self.w.node.attrs["eps"])
            mean, variance, rstd = (scalar.cast(v, self.dtype) for v in moments)
            for k, v in enumerate((mean, variance, rstd)):
                scalar.store(v, fn.element(f"%out{k + 1}", self.kind, channel))
            known = self.splats((mean, scalar.mul(gamma, rstd), beta))
            with fn.loop(self.w.size(self.outer)) as samples:
                self.normalise(samples.index, channel, known)
        return TaskCount(self.channels)

    def statistics(self, channel: Size) -> _State:
        """Of all planes of a channel."""
        fn, e, scalar = self.fn, self.e, self.scalar
        zero = e.constant(0, self.dtype)
        number = self.count(scalar, self.inner)
        carry = [("double", v.text) for v in self.zero_state(scalar).lanes]
        with fn.loop(self.w.size(self.outer), carry=carry) as loop:
            x = self.plane("%in0", loop.index, channel)
            found = sums(
                e, self.length, lambda at, acc: [e.add(acc[0], at.load(x, self.dtype))], [zero]
            )
            (total,) = fold(e, found, add_all)
            mean = scalar.cast(scalar.div(widen(scalar, total), number), self.dtype)
            (shift,) = self.splats([mean])

            def centred(at: Position, acc: Lanes) -> Lanes:
                d = at.only(e.sub(at.load(x, self.dtype), shift))
                return e.add(acc[0], d), e.fma(d, d, acc[1])

            around = fold(e, sums(e, self.length, centred, [zero] * 2), add_all)
            state = _State(*(Lane(v, float64) for v in loop.carried))
            first = fn.emit(f"icmp eq i64 {loop.index}, 0")
            combined = _combined(scalar, state, first, number, (mean, *around))
            loop.next = [v.text for v in combined.lanes]
        return _State(*(Lane(v, float64) for v in loop.results))

    def gradient(self) -> TaskCount:
        fn, e, scalar = self.fn, self.e, self.scalar
        with fn.loop("%end", "%begin") as task:
            channel = task.index
            gamma, mean, rstd = self.per_channel(channel, 2, 3, 4)
            (shift,) = self.splats([mean])
            zeros = [e.constant(0, self.dtype)] * 2
            carry = [(e.type(float64), e.constant(0, float64).text)] * 2
            with fn.loop(self.w.size(self.outer), carry=carry) as loop:
                g, x = (self.plane(base, loop.index, channel) for base in ("%in0", "%in1"))

                def term(at: Position, acc: Lanes) -> Lanes:
                    gradient = at.load(g, self.dtype)
                    d = at.only(e.sub(at.load(x, self.dtype), shift))
                    return e.add(acc[0], gradient), e.fma(gradient, d, acc[1])

                found = sums(e, self.length, term, zeros, wide=True)
                loop.next = [
                    e.add(Lane(a, float64), v).text
                    for a, v in zip(loop.carried, found, strict=True)
                ]
            pair = fold(e, [Lane(v, float64) for v in loop.results], add_all)
            *factors, dgamma, dbeta = self.gradient_factors(scalar, gamma, rstd, pair, self.total())
            scalar.store(dgamma, fn.element("%out1", self.kind, channel))
            scalar.store(dbeta, fn.element("%out2", self.kind, channel))
            scale, offset, slope = self.splats(factors)
            with fn.loop(self.w.size(self.outer)) as samples:
                g, x, dx = (
                    self.plane(base, samples.index, channel) for base in ("%in0", "%in1", "%out0")
                )

                def step(at: Position, acc: Lanes) -> Lanes:
                    d = e.sub(at.load(x, self.dtype), shift)
                    inside = e.sub(at.load(g, self.dtype), offset)
                    at.store(e.mul(scale, e.fma(e.neg(d), slope, inside)), dx)
                    return ()

                sweep(e, self.length, step)
        return TaskCount(self.channels)
