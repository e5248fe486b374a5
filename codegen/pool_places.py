"""Max pooling with places, and the routing of its gradient, in a loop with elementwise operators.

The windows tile the image (``ir/ops/pool_places.py``), so that every pixel belongs to one of them
and is computed once. Lanes are neighbouring channels; a task is one row of windows. What there is
one of per channel stays in registers along the row. In a region of kind ``pooling``, elementwise
operators in front compute the operand of the pooling, and those behind a scattered gradient take it
from a register.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..errors import UnsupportedError
from ..ir.graph import Graph, Node, Value
from ..ir.types import DType, TensorType, fixed, float32, float64, int32, int64, numel
from .body import PASSED_THROUGH, lower_nodes, split_by_motion
from .emitter import Lane, memory_type
from .kernel import Kernel, TaskCount
from .loops import Position
from .sizes import Size, plus, times, unravel
from .target import Target
from .transpose import Matrix, transpose_tile
from .writer import KernelWriter, column_blocks, in_column_block

POOLING = ("max_pool2d", "max_pool2d_with_places")
GATHER, SCATTER = "max_pool2d_gather", "max_pool2d_scatter"
PLACES = ("max_pool2d_with_places", GATHER, SCATTER)

# Elements of the largest window, whose loop is unrolled.
UNROLLED = 16


def emit_pool_places(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """A kernel for one of ``PLACES``, or for a ``fused`` region around one or ``max_pool2d``.

    In a region, a ``permute`` of the maxima, to channels first, is written from scratch memory.
    """
    types = [graph.type(v) for v in node.operands]
    body = node.attrs["body"] if node.op == "fused" else _as_body(node, types)
    anchor = next(n for n in body.nodes if n.op in (*POOLING, SCATTER, GATHER))
    # A pixel of the image is read and written at once (``passes/in_place.py``).
    w = KernelWriter("poolplaces", node, graph, target, in_place=anchor.op == SCATTER)
    height, width = anchor.attrs["kernel_size"]
    if height * width > UNROLLED or anchor.type.dtype not in (float32, float64):
        return None
    try:
        made = _Windows(w, body, anchor)
        tasks = made.scatter() if anchor.op == SCATTER else made.pool()
    except UnsupportedError:
        return None
    work = sum(n.op not in PASSED_THROUGH for n in body.nodes)
    return w.finish(tasks, flops=numel(made.image.shape) * work, scratch_bytes=made.scratch_bytes)


def _as_body(node: Node, types: list[TensorType]) -> Graph:
    body = Graph("pooling")
    operands = [body.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    found = body.add(node.op, *operands, **node.attrs)
    values = (found,) if isinstance(found, Value) else found
    body.outputs = {str(i): v for i, v in enumerate(values)}
    return body


def _size(kind: TensorType) -> tuple[int, int]:
    """Rows and columns of an image."""
    _, height, width, _ = kind.shape
    return fixed(height), fixed(width)


class _Windows:
    """One kernel being written.

    ``image`` is the large side of the pooling and ``map`` the small one; ``size`` and ``windows``
    are their rows and columns.
    """

    def __init__(self, w: KernelWriter, body: Graph, anchor: Node) -> None:
        self.w, self.fn, self.body, self.anchor = w, w.fn, body, anchor
        source = body.type(anchor.operands[0])
        self.image = anchor.type if anchor.op == SCATTER else source
        self.map = source if anchor.op == SCATTER else anchor.type
        self.dtype: DType = anchor.type.dtype
        self.kernel: tuple[int, int] = anchor.attrs["kernel_size"]
        self.size, self.windows = (_size(t) for t in (self.image, self.map))
        self.channels = fixed(self.image.shape[3])
        self.e = w.emitter(self.dtype, self.channels)
        self.scratch_bytes = 0
        # Places are compared and selected by masks of the image's elements, so they are as wide.
        self.place_type = int32 if self.dtype is float32 else int64

    def taps(self) -> Iterator[tuple[int, int, int]]:
        """(place, row, column) of the elements of a window."""
        height, width = self.kernel
        return ((kh * width + kw, kh, kw) for kh in range(height) for kw in range(width))

    def rows_of_windows(self, body: Callable[[Size, Size, Position], None]) -> TaskCount:
        """``body(image, row of windows, channels)`` for all of them."""
        fn, e, height = self.fn, self.e, self.windows[0]
        images = self.image.shape[0]
        blocks = column_blocks(e, self.channels, 1)
        with fn.loop("%end", "%begin") as task:
            n, oh = unravel(fn, task.index, [self.w.size(images), height])

            def block(at: list[Position]) -> None:
                body(n, oh, at[0])

            if blocks == 1:
                in_column_block(e, self.channels, 1, 0, block)
            else:
                with fn.loop(blocks) as b:
                    in_column_block(e, self.channels, 1, b.index, block)
        return TaskCount(images * height)

    # -- places in memory

    def pixel(self, kind: TensorType, n: Size, h: Size, w: Size) -> Size:
        """The first element of a pixel of the image or the map."""
        fn, (height, width) = self.fn, _size(kind)
        row = plus(fn, times(fn, n, height), h)
        return times(fn, plus(fn, times(fn, row, width), w), self.channels)

    def load(self, at: Position, path: str, pixel: Size) -> Lane:
        dtype = self.w.inputs[int(path)].dtype
        return at.load(self.fn.element(f"%in{path}", memory_type(dtype), pixel), dtype)

    def load_place(self, at: Position, value: Value, pixel: Size) -> Lane:
        return self.e.cast(self.load(at, self._path(value), pixel), self.place_type)

    def _path(self, value: Value) -> str:
        node = self.body.node(value)
        if node.op != "input":
            raise UnsupportedError(f"%{node.name} is computed in the region of {self.anchor.op}")
        return str(node.attrs["path"])

    def store(self, at: Position, value: Value, v: Lane, pixel: Size) -> None:
        """Writes a value if it is a result of the kernel."""
        for k, out in enumerate(self.body.outputs.values()):
            if out == value:
                found = self.e.cast(v, self.body.type(value).dtype)
                at.store(found, self.fn.element(f"%out{k}", memory_type(found.dtype), pixel))

    # -- elementwise operators

    def fixed(self, at: Position, nodes: list[Node]) -> dict[Value, Any]:
        """What does not change along a row."""
        env: dict[Value, Any] = {}

        def load(path: str) -> Lane:
            kind = self.w.inputs[int(path)]
            if numel(kind.shape) == 1:
                return self.e.load_splat(f"%in{path}", kind.dtype)
            return self.load(at, path, 0)

        lower_nodes(self.e, nodes, env, {}, load)
        return env

    def compute(
        self, at: Position, nodes: list[Node], env: dict[Value, Any], pixel: Size
    ) -> dict[Value, Any]:
        """``env`` and the values of ``nodes`` at a pixel of the image."""
        made = dict(env)
        lower_nodes(self.e, nodes, made, {}, lambda path: self.load(at, path, pixel))
        return made

    def _split(self, nodes: list[Node], moving: tuple[Value, ...]) -> tuple[list[Node], list[Node]]:
        return split_by_motion(nodes, self.image.shape, moving)

    # -- kernels

    def pool(self) -> TaskCount:
        """Pooling, gathers at its places, or gathers at places from memory."""
        fn, e, body = self.fn, self.e, self.body
        gathers = [n for n in body.nodes if n.op == GATHER]
        permutes = [n for n in body.nodes if n.op == "permute"]
        ends = {n.name for n in (self.anchor, *gathers, *permutes)}
        known = None if self.anchor.op in POOLING else self.anchor.operands[1]
        nodes = [n for n in body.nodes if n.name not in ends and n.value != known]
        moving, still = self._split(nodes, ())
        # What is chosen of each window, and the value that it becomes.
        chosen_of = {g.value: g.operands[0] for g in gathers}
        if known is None:
            chosen_of = {self.anchor.value: self.anchor.operands[0], **chosen_of}

        def row(n: Size, oh: Size, at: Position) -> None:
            constants = self.fixed(at, still)
            height, width = self.kernel
            first = self.pixel(self.image, n, times(fn, oh, height), 0)
            to = self.pixel(self.map, n, oh, 0)
            with fn.loop(self.windows[1]) as loop:
                corner = plus(fn, first, times(fn, loop.index, width * self.channels))
                out = plus(fn, to, times(fn, loop.index, self.channels))
                place = None if known is None else self.load_place(at, known, out)
                found = e.constant(0, self.place_type)
                chosen: list[Lane] = []
                for k, kh, kw in self.taps():
                    offset = (kh * self.size[1] + kw) * self.channels
                    env = self.compute(at, moving, constants, plus(fn, corner, offset))
                    values = [env[v] for v in chosen_of.values()]
                    if not k:
                        chosen = values
                        continue
                    number = e.constant(k, self.place_type)
                    if place is None:
                        hit = self._is_larger(values[0], chosen[0])
                        found = e.select(hit, number, found)
                    else:
                        hit = e.eq(place, number)
                    pairs = zip(values, chosen, strict=True)
                    chosen = [e.select(hit, v, c) for v, c in pairs]
                for value, v in zip(chosen_of, chosen, strict=True):
                    self.store(at, value, v, out)
                if self.anchor.op == "max_pool2d_with_places":
                    self.store(at, self.anchor.values[1], found, out)
                if permutes:
                    e.store(chosen[0], self._kept(loop.index))
            for node in permutes:
                self._reorder(n, oh, at, node)

        return self.rows_of_windows(row)

    def _kept(self, ow: Size) -> str:
        """Where the maxima of one window are, until those of a row are complete."""
        lanes, kind = self.e.lanes, memory_type(self.dtype)
        self.scratch_bytes = self.windows[1] * lanes * self.dtype.itemsize
        return self.fn.element("%scratch", kind, times(self.fn, ow, lanes))

    def _reorder(self, n: Size, oh: Size, at: Position, node: Node) -> None:
        """Writes the maxima of a row with the channels in front: (N, C, OH, OW)."""
        fn, (rows, columns) = self.fn, self.windows
        kind, lanes = memory_type(self.dtype), self.e.lanes
        count = lanes if at.active is None else self.channels % lanes
        plane = plus(fn, times(fn, n, self.channels), at.at)
        first = times(fn, plus(fn, times(fn, plane, rows), oh), columns)
        place = list(self.body.outputs.values()).index(node.value)
        out = Matrix(fn.element(f"%out{place}", kind, first), rows * columns)
        source = Matrix("%scratch", lanes)
        transpose_tile(fn, self.dtype, self.w.target, out, source, count, columns)

    def _is_larger(self, v: Lane, best: Lane) -> Lane:
        """Whether ``v`` takes the place of ``best``: it is larger, or NaN."""
        return self.e.logical_or(self.e.gt(v, best), self.e.isnan(v))

    def scatter(self) -> TaskCount:
        """The gradient at its places, zeros elsewhere, and what is computed of that."""
        fn, e, body, anchor = self.fn, self.e, self.body, self.anchor
        apart = {anchor.name, *(v.node for v in anchor.operands)}
        moving, still = self._split([n for n in body.nodes if n.name not in apart], (anchor.value,))
        zero = e.constant(0, self.dtype)
        (height, width), (rows, columns) = self.kernel, self.windows
        h_end, w_end = self.size
        g_path = self._path(anchor.operands[0])

        def row(n: Size, oh: Size, at: Position) -> None:
            constants = self.fixed(at, still)

            def write(g: Lane, pixel: Size) -> None:
                env = self.compute(at, moving, {**constants, anchor.value: g}, pixel)
                for value in dict.fromkeys(body.outputs.values()):
                    self.store(at, value, env[value], pixel)

            def zeros(h: Size, start: int) -> None:
                """What no window reaches of a row, from a column on."""
                line = self.pixel(self.image, n, h, 0)
                if start < w_end:
                    with fn.loop(w_end, start) as loop:
                        write(zero, plus(fn, line, times(fn, loop.index, self.channels)))

            top = times(fn, oh, height)
            first = self.pixel(self.image, n, top, 0)
            of = self.pixel(self.map, n, oh, 0)
            with fn.loop(columns) as loop:
                corner = plus(fn, first, times(fn, loop.index, width * self.channels))
                source = plus(fn, of, times(fn, loop.index, self.channels))
                g = self.load(at, g_path, source)
                place = self.load_place(at, anchor.operands[1], source)
                for k, kh, kw in self.taps():
                    offset = (kh * w_end + kw) * self.channels
                    hit = e.eq(place, e.constant(k, self.place_type))
                    write(e.select(hit, g, zero), plus(fn, corner, offset))
            for kh in range(height):
                zeros(plus(fn, top, kh), columns * width)
            if rows * height < h_end:
                last = fn.emit(f"icmp eq i64 {oh}, {rows - 1}")
                with fn.when(last), fn.loop(h_end, rows * height) as rest:
                    zeros(rest.index, 0)

        return self.rows_of_windows(row)
