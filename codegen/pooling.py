"""Pooling in two dimensions and its gradients.

Everything is written for channels last: lanes are neighbouring channels. An NCHW image is the same
memory as N * C channels-last images of one channel, so it needs no code of its own (its loops are
scalar). A window that lies inside the input is unrolled; others loop over the taps they reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Graph, Node
from ..ir.ops.spatial import image
from ..ir.types import DType, Extent, bool_, fixed, float64, int32, int64, numel
from .emitter import Lane, VectorEmitter, memory_type
from .kernel import Kernel, TaskCount
from .loops import Lanes, Position, largest, widen
from .pool_windows import Adaptive, Axis, Window
from .sizes import (
    Size,
    minus,
    plus,
    times,
    unravel,
)
from .target import Target
from .writer import (
    KernelWriter,
    column_blocks,
    in_column_block,
)

POOLS = (
    "max_pool2d",
    "max_pool2d_grad",
    "avg_pool2d",
    "avg_pool2d_grad",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_grad",
)

# Largest window that is unrolled, in taps.
UNROLLED = 16
# Independent parts of one image that are worth cutting it into, such as a global average.
_PARTS = 4


def emit_pool(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for a pooling operator or the gradient of one."""
    w = KernelWriter("pool", node, graph, target)
    if w.inputs[0].dtype is bool_:
        return None
    pool = _Pool(w)
    if node.op == "max_pool2d":
        tasks = pool.maximum()
    elif node.op == "max_pool2d_grad":
        tasks = pool.maximum_gradient()
    elif node.op.endswith("_grad"):
        tasks = pool.average_gradient()
    else:
        tasks = pool.average()
    return w.finish(tasks, flops=numel(node.type.shape) * pool.taps)


@dataclass
class _Pool:
    """One kernel being written. ``x`` is the large side of the pooling, ``y`` the small one."""

    w: KernelWriter

    def __post_init__(self) -> None:
        w, node = self.w, self.w.node
        self.fn, self.attrs = w.fn, node.attrs
        layout = self.attrs["layout"]
        grad = node.op.endswith("_grad")
        # The gradient's result has the shape of the input.
        large = image(node.op, node.type if grad else w.inputs[0], layout)
        small = image(node.op, w.inputs[0] if grad else node.type, layout)
        self.dtype: DType = node.type.dtype
        self.kind = memory_type(self.dtype)
        # Numbers are compared and selected by masks of the image's elements, so they are as wide.
        self.counts = int64 if self.dtype is float64 else int32
        nchw = layout == "NCHW"
        self.images: Extent = large.n * large.c if nchw else large.n
        self.channels = 1 if nchw else large.c
        # Elements from pixel to pixel.
        pitches = [1 if nchw else fixed(t.pitch) for t in (w.inputs[0], node.type)]
        self.x_pitch, self.y_pitch = pitches[:: -1 if grad else 1]
        self.e = w.emitter(self.dtype, self.channels)
        make = self._adaptive_axis if "output_size" in self.attrs else self._window_axis
        self.rows, self.columns = (make(i, large.size[i], small.size[i]) for i in (0, 1))
        self.taps = self.rows.kernel * self.columns.kernel
        self.unrolled = self.taps <= UNROLLED

    def _adaptive_axis(self, i: int, size: int, out: int) -> Axis:
        if size % out:
            return Adaptive(size, out, -(-size // out) + 1)
        return Window(size, out, size // out, size // out)

    def _window_axis(self, i: int, size: int, out: int) -> Axis:
        a = self.attrs
        dilation = a["dilation"][i] if "dilation" in a else 1
        low, high = a["padding"][i]
        return Window(size, out, a["kernel_size"][i], a["stride"][i], low, high, dilation)

    # -- places

    def x_pixel(self, base: str, n: Size, h: Size, w: Size) -> str:
        return self._pixel(base, n, h, w, self.rows.size, self.columns.size, self.x_pitch)

    def y_pixel(self, base: str, n: Size, h: Size, w: Size) -> str:
        return self._pixel(base, n, h, w, self.rows.out, self.columns.out, self.y_pitch)

    def _pixel(
        self, base: str, n: Size, h: Size, w: Size, height: int, width: int, pitch: int
    ) -> str:
        fn = self.fn
        row = plus(fn, times(fn, n, height), h)
        index = plus(fn, times(fn, row, width), w)
        return fn.element(base, self.kind, times(fn, index, pitch))

    def each_channel_block(self, group: int, body: Callable[[list[Position]], None]) -> None:
        blocks = column_blocks(self.e, self.channels, group)
        if blocks == 1:
            in_column_block(self.e, self.channels, group, 0, body)
            return
        with self.fn.loop(blocks) as b:
            in_column_block(self.e, self.channels, group, b.index, body)

    # -- windows

    def each_output(self, oh: Size, body: Callable[[Size, bool], None]) -> None:
        """``body(ow, inside)`` for the outputs of row ``oh``; ``inside`` windows are unrolled."""
        fn, rows, columns = self.fn, self.rows, self.columns

        def span(start: int, stop: int, inside: bool) -> None:
            if start < stop:
                with fn.loop(stop, start) as ow:
                    body(ow.index, inside)

        def by_column() -> None:
            low, high = columns.interior()
            span(0, low, False)
            span(low, high, True)
            span(max(low, high), columns.out, False)

        low, high = rows.interior()
        if not self.unrolled or low >= high:
            span(0, columns.out, False)
        elif (low, high) == (0, rows.out):
            by_column()
        else:
            offset = minus(fn, oh, low)
            inside = fn.emit(f"icmp ult i64 {offset}, {high - low}")
            with fn.when(inside):
                by_column()
            with fn.when(fn.emit(f"xor i1 {inside}, true")):
                span(0, columns.out, False)

    def each_tap(
        self,
        n: Size,
        oh: Size,
        ow: Size,
        inside: bool,
        bases: tuple[str, ...],
        carried: Lanes,
        body: Callable[[list[str], Lanes], Lanes],
        join: tuple[Lanes, Callable[[Lanes, Lanes], Lanes]] | None = None,
    ) -> Lanes:
        """Folds ``body(addresses of the tap's pixel in bases, carried)`` over a window's taps.

        With ``join = (total, function)``, each row of a window that is not inside starts from
        ``carried`` again, and ``function(total, row)`` is folded over the rows.
        """
        fn, rows, columns = self.fn, self.rows, self.columns
        h0, w0 = rows.start(fn, oh), columns.start(fn, ow)
        if inside:
            corners = [self.x_pixel(base, n, h0, w0) for base in bases]
            for kh in range(rows.kernel):
                for kw in range(columns.kernel):
                    pixel = kh * rows.dilation * columns.size + kw * columns.dilation
                    places = [
                        fn.element(c, self.kind, pixel * self.x_pitch) if pixel else c
                        for c in corners
                    ]
                    carried = body(places, carried)
            return carried

        def over(
            axis: Axis, o: Size, carried: Lanes, each: Callable[[Size, Lanes], Lanes]
        ) -> Lanes:
            first, last = axis.taps(fn, o)
            kinds = [(self.e.type(v.dtype), v.text) for v in carried]
            with fn.loop(last, first, carry=kinds) as loop:
                state = tuple(Lane(t, v.dtype) for t, v in zip(loop.carried, carried, strict=True))
                loop.next = [v.text for v in each(loop.index, state)]
            return tuple(Lane(t, v.dtype) for t, v in zip(loop.results, carried, strict=True))

        def row(kh: Size, state: Lanes) -> Lanes:
            h = plus(fn, h0, times(fn, kh, rows.dilation))

            def tap(kw: Size, state: Lanes) -> Lanes:
                w = plus(fn, w0, times(fn, kw, columns.dilation))
                return body([self.x_pixel(base, n, h, w) for base in bases], state)

            if join is not None:
                return join[1](state, over(columns, ow, carried, tap))
            return over(columns, ow, state, tap)

        return over(rows, oh, carried if join is None else join[0], row)

    # -- maximum

    def maximum(self) -> TaskCount:
        fn = self.fn
        with fn.loop("%end", "%begin") as task:
            n, oh = unravel(fn, task.index, [self.w.size(self.images), self.rows.out])

            def output(ow: Size, inside: bool) -> None:
                y = self.y_pixel("%out0", n, oh, ow)

                def block(at: list[Position]) -> None:
                    best = self.best(n, oh, ow, inside, at, "%in0")
                    for place, v in zip(at, best, strict=True):
                        place.store(v, y)

                self.each_channel_block(2 if inside else 4, block)

            self.each_output(oh, output)
        return TaskCount(self.images * self.rows.out)

    def best(self, n: Size, oh: Size, ow: Size, inside: bool, at: list[Position], x: str) -> Lanes:
        """The maximum of a window, NaN if it holds one, per vector of channels."""
        e = self.e
        if inside:
            seen: list[list[Lane]] = [[] for _ in at]

            def collect(places: list[str], carried: Lanes) -> Lanes:
                for values, p in zip(seen, at, strict=True):
                    values.append(p.load(places[0], self.dtype))
                return carried

            self.each_tap(n, oh, ow, inside, (x,), (), collect)
            return tuple(largest(e, values) for values in seen)
        lowest = -math.inf if self.dtype.is_float else int(np.iinfo(self.dtype.np).min)

        def tap(places: list[str], carried: Lanes) -> Lanes:
            values = [p.load(places[0], self.dtype) for p in at]
            return tuple(e.maximum(v, b) for v, b in zip(values, carried, strict=True))

        start = (e.constant(lowest, self.dtype),) * len(at)
        return self.each_tap(n, oh, ow, inside, (x,), start, tap)

    def maximum_gradient(self) -> TaskCount:
        """Each window gives its gradient to its first maximum, or to its last NaN, as in PyTorch.
        The result starts as zeros.

        Windows that do not overlap are separate tasks by row; others are one task per image.
        """
        fn, rows, columns = self.fn, self.rows, self.columns
        separate = rows.separate and columns.separate
        exact = rows.exact and columns.exact
        images = self.w.size(self.images)
        with fn.loop("%end", "%begin") as task:
            if separate:
                n, oh = unravel(fn, task.index, [images, rows.out])
                if not exact:
                    self.clear(n, *rows.owned(fn, oh))
                self.route(n, oh, add=False)
            else:
                self.clear(task.index, 0, rows.size)
                with fn.loop(rows.out) as loop:
                    self.route(task.index, loop.index, add=True)
        return TaskCount(self.images * rows.out if separate else self.images)

    def clear(self, n: Size, first: Size, last: Size) -> None:
        """Zeros in the rows [first, last) of an image of the result."""
        fn = self.fn
        size = times(fn, minus(fn, last, first), self.columns.size * self.channels)
        self.fn.call(
            "void",
            "llvm.memset.p0.i64",
            ("ptr", self.x_pixel("%out0", n, first, 0)),
            ("i8", "0"),
            ("i64", str(times(fn, size, self.dtype.itemsize))),
            ("i1", "false"),
        )

    def route(self, n: Size, oh: Size, add: bool) -> None:
        """Gives the gradients of one row of windows to their maxima."""
        e = self.e
        count, zero = e.constant(0, self.counts), e.constant(0, self.dtype)

        def output(ow: Size, inside: bool) -> None:
            g = self.y_pixel("%in0", n, oh, ow)

            def block(at: list[Position]) -> None:
                (place,) = at
                chosen = self.place_of_maximum(n, oh, ow, inside, place)
                gradient = place.load(g, self.dtype)

                def tap(places: list[str], carried: Lanes) -> Lanes:
                    (number,) = carried
                    given = e.select(e.eq(number, chosen), gradient, zero)
                    if add:
                        given = e.add(place.load(places[0], self.dtype), given)
                    place.store(given, places[0])
                    return (e.add(number, e.constant(1, self.counts)),)

                self.each_tap(n, oh, ow, inside, ("%out0",), (count,), tap)

            self.each_channel_block(1, block)

        self.each_output(oh, output)

    def place_of_maximum(self, n: Size, oh: Size, ow: Size, inside: bool, place: Position) -> Lane:
        """The number, among the taps that the window reaches, of its first maximum or last NaN."""
        e = self.e

        def tap(places: list[str], carried: Lanes) -> Lanes:
            best, chosen, number = carried
            x = place.load(places[0], self.dtype)
            hit = e.logical_or(e.gt(x, best), e.isnan(x))
            found = e.select(hit, x, best), e.select(hit, number, chosen)
            return (*found, e.add(number, e.constant(1, self.counts)))

        count = e.constant(0, self.counts)
        start = (e.constant(-math.inf, self.dtype), count, count)
        return self.each_tap(n, oh, ow, inside, ("%in1",), start, tap)[1]

    # -- average

    def average(self) -> TaskCount:
        """A task is a row of windows or, if images have few of them, some channels of one."""
        fn, e = self.fn, self.e
        zero = e.constant(0, self.dtype)
        group = max(1, min(4, self.channels // (_PARTS * e.lanes)))
        blocks = column_blocks(e, self.channels, group) if self.rows.out < _PARTS else 1
        with fn.loop("%end", "%begin") as task:
            extents = [self.w.size(self.images), self.rows.out, blocks]
            n, oh, part = unravel(fn, task.index, extents)

            def output(ow: Size, inside: bool) -> None:
                y = self.y_pixel("%out0", n, oh, ow)
                share = self.share(oh, ow, inside)

                def block(at: list[Position]) -> None:
                    def tap(places: list[str], carried: Lanes) -> Lanes:
                        values = [p.load(places[0], self.dtype) for p in at]
                        return tuple(e.add(c, v) for c, v in zip(carried, values, strict=True))

                    def row(total: Lanes, sums: Lanes) -> Lanes:
                        pairs = zip(total, sums, strict=True)
                        return tuple(e.add(t, widen(e, v)) for t, v in pairs)

                    # A window may be a whole image: its rows are added up in float64.
                    start, total = (zero,) * len(at), (e.constant(0, float64),) * len(at)
                    found = self.each_tap(n, oh, ow, inside, ("%in0",), start, tap, (total, row))
                    for place, v in zip(at, found, strict=True):
                        place.store(e.mul(e.cast(v, self.dtype), share), y)

                if blocks > 1:
                    in_column_block(e, self.channels, group, part, block)
                else:
                    self.each_channel_block(2 if inside else 4, block)

            self.each_output(oh, output)
        return TaskCount(self.images * self.rows.out * blocks)

    def share(self, oh: Size, ow: Size, inside: bool) -> Lane:
        """One over the divisor of a window, in every lane."""
        override = self.attrs.get("divisor_override")
        padded = self.attrs.get("count_include_pad", False)
        if override is not None:
            return self.e.constant(1 / override, self.dtype)
        divisor: Size = self.taps
        if not inside:
            height = self.rows.count(self.fn, oh, padded)
            divisor = times(self.fn, height, self.columns.count(self.fn, ow, padded))
        if isinstance(divisor, int):
            return self.e.constant(1 / divisor if divisor else math.inf, self.dtype)
        scalar = VectorEmitter(self.fn, 1, self.dtype)
        number = Lane(self.fn.emit(f"sitofp i64 {divisor} to {self.kind}"), self.dtype)
        return self.e.splat(scalar.div(scalar.constant(1, self.dtype), number).text, self.dtype)

    def average_gradient(self) -> TaskCount:
        """Each input collects from the windows that cover it: tasks write to rows of their own."""
        fn, e, rows, columns = self.fn, self.e, self.rows, self.columns
        zero = e.constant(0, self.dtype)
        with fn.loop("%end", "%begin") as task:
            n, h = unravel(fn, task.index, [self.w.size(self.images), rows.size])
            oh0, oh1 = rows.covering(fn, h)
            with fn.loop(columns.size) as column:
                w = column.index
                ow0, ow1 = columns.covering(fn, w)

                def block(at: list[Position]) -> None:
                    start = [(e.type(self.dtype), zero.text)] * len(at)
                    with fn.loop(oh1, oh0, carry=start) as by_row:
                        inner = [(e.type(self.dtype), v) for v in by_row.carried]
                        with fn.loop(ow1, ow0, carry=inner) as by_column:
                            oh, ow = by_row.index, by_column.index
                            share = self.share(oh, ow, False)
                            g = self.y_pixel("%in0", n, oh, ow)
                            by_column.next = [
                                e.fma(p.load(g, self.dtype), share, Lane(v, self.dtype)).text
                                for p, v in zip(at, by_column.carried, strict=True)
                            ]
                        by_row.next = list(by_column.results)
                    dx = self.x_pixel("%out0", n, h, w)
                    for place, v in zip(at, by_row.results, strict=True):
                        place.store(Lane(v, self.dtype), dx)

                self.each_channel_block(4, block)
        return TaskCount(self.images * rows.size)
