"""Scaled dot-product attention on top of the micro-kernel, and its weights alone.

A task is a block of query rows of one head. Its scores are a strip in private memory: products of
the queries with the packed panels of K^T, scaled and masked as they leave the registers; the
softmax of each row; then the products of the strip with the packed panels of V. Keys and values are
packed once per head by each thread that has rows of it. Queries, keys, values and results are read
and written with any steps between batch, head and row, so that heads that are columns of a
projection need no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..ir.graph import Graph, Node
from ..ir.types import DType, Extent, TensorType, numel
from .attention_scores import ScoreEpilogue, softmax_function
from .brgemm import LONGEST_SUM, Epilogue, MicroKernels, Reduction, Tile, register_rows
from .emitter import memory_type
from .epilogue import TileEpilogue
from .kernel import Kernel, TaskCount, assembled, kernel_params, symbol_for, traffic
from .packing import PanelSource, choose_panel, pack_function
from .sizes import Size, least, minus, plus, times, unravel
from .target import Target
from .text import Function

_LINE = 64  # bytes of a cache line
# Keys whose products with the weights are summed in one go; more are summed block by block.
_BLOCK = 256
# A block of query rows has at least this many tiles, so that panels are not read for a few rows.
_FEWEST_TILES = 2


@dataclass(frozen=True)
class Place:
    """Where the rows of a head are: element 0, and the steps of batch, head and row in elements."""

    start: int
    batch: int
    head: int
    row: int


@dataclass(frozen=True)
class Attention:
    """One attention: its sizes, where the operands are, and what happens to the scores.

    ``mask`` has the steps of batch, head, query and key in the mask, 0 where it repeats.
    ``value`` and ``value_dim`` are None and 0 if the weights are the result, at ``out``.
    """

    dtype: DType
    batch: Extent
    heads: int
    rows: int
    keys: int
    dim: int
    value_dim: int
    scale: float
    causal: bool
    query: Place
    key: Place
    value: Place | None
    out: Place
    mask: tuple[int, int, int, int] | None


def emit_attention(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of ``attention`` or ``attention_weights``; None for empty matrices."""
    operands = [graph.type(v) for v in node.operands]
    spec = _spec(node, operands)
    if min(spec.heads, spec.rows, spec.keys, spec.dim) < 1 or (spec.value and not spec.value_dim):
        return None
    kernel = _AttentionWriter(node.op, spec, len(operands), target).kernel()
    return replace(kernel, bytes=traffic([*operands, *node.types]))


def _spec(node: Node, operands: Sequence[TensorType]) -> Attention:
    attrs = node.attrs
    heads, dim, starts = attrs["heads"], attrs["head_dim"], attrs["starts"]
    value_dim = attrs.get("value_dim", 0)
    q, k, *rest = operands
    value = None
    if node.op == "attention":
        value = _place(rest.pop(0), value_dim, starts[2])
    rows, keys = _fixed(q.shape[-2:])[0], _fixed(k.shape[-2:])[0]
    return Attention(
        q.dtype,
        q.shape[0],
        heads,
        rows,
        keys,
        dim,
        value_dim,
        attrs["scale"],
        attrs["causal"],
        _place(q, dim, starts[0]),
        _place(k, dim, starts[1]),
        value,
        _place(node.type, value_dim, 0),
        _mask_steps(rest[0]) if rest else None,
    )


def _place(x: TensorType, dim: int, start: int) -> Place:
    sizes = _fixed(x.shape[1:])
    if x.rank == 3:
        rows, features = sizes
        return Place(start, rows * features, dim, features)
    heads, rows, columns = sizes
    return Place(start, heads * rows * columns, rows * columns, columns)


def _mask_steps(mask: TensorType) -> tuple[int, int, int, int]:
    heads, rows, keys = _fixed(mask.shape[1:])
    steps = (heads * rows * keys, rows * keys, keys, 1)
    batch, head, query, key = (
        0 if extent == 1 else step for extent, step in zip(mask.shape, steps, strict=True)
    )
    return batch, head, query, key


def _fixed(shape: Sequence[Extent]) -> list[int]:
    """Extents that the record's shape rule has found to be numbers."""
    return [d for d in shape if isinstance(d, int)]


class _AttentionWriter:
    def __init__(self, prefix: str, spec: Attention, inputs: int, target: Target) -> None:
        self.spec, self.target = spec, target
        self.symbol = symbol_for(prefix, spec, inputs, target)
        self.f = Function(self.symbol, kernel_params(1, inputs))
        self.micro = MicroKernels(f"{self.symbol}_tile")
        self.lanes = target.lanes(spec.dtype)
        self.kind = memory_type(spec.dtype)
        self.helpers: list[Function] = []
        self.scratch = 0
        self._plan_tiles()
        self._plan_scratch()

    def _plan_tiles(self) -> None:
        """Widths of the panels, the height of the tiles, the rows of a block."""
        spec, rows = self.spec, register_rows(self.target)
        widths = [choose_panel(spec.keys, self.target, spec.dtype)]
        columns = [spec.keys]
        if spec.value is not None:
            widths.append(choose_panel(spec.value_dim, self.target, spec.dtype))
            columns.append(spec.value_dim)
        self.key_panel, self.value_panel = widths[0], widths[-1]
        tallest = min(
            rows[-(-min(p, n) // self.lanes)] for p, n in zip(widths, columns, strict=True)
        )
        tiles = -(-spec.rows // tallest)
        self.unit = -(-spec.rows // tiles)
        self.rest = spec.rows % self.unit
        size = spec.dtype.itemsize
        if spec.value is None:
            self.pitch = spec.keys
        else:
            # An odd number of cache lines, so that rows do not fall into the same cache sets.
            self.pitch = (-(-spec.keys * size // _LINE) | 1) * _LINE // size
        fits = self.target.l1 // 2 // (self.unit * self.pitch * size)
        blocks = -(-tiles // max(_FEWEST_TILES, fits))
        self.block = -(-tiles // blocks) * self.unit
        self.blocks = -(-spec.rows // self.block)

    def _plan_scratch(self) -> None:
        """Places of the packed keys, packed values, the strip and the sums of long tiles."""
        spec = self.spec
        self.keys_at = self._room(self._panels(spec.keys, self.key_panel) * spec.dim)
        self.values_at = self.strip_at = 0
        if spec.value is not None:
            panels = self._panels(spec.value_dim, self.value_panel)
            self.values_at = self._room(panels * spec.keys)
            self.strip_at = self._room(self.block * self.pitch)
        self.sums_at = self.scratch

    @staticmethod
    def _panels(columns: int, panel: int) -> int:
        """Columns with those that fill the last panel."""
        return -(-columns // panel) * panel

    def _room(self, elements: int) -> int:
        at = self.scratch
        self.scratch += -(-elements * self.spec.dtype.itemsize // _LINE) * _LINE
        return at

    def kernel(self) -> Kernel:
        spec, f = self.spec, self.f
        softmax = f"{self.symbol}_softmax"
        limited = spec.causal and spec.value is not None
        self.helpers.append(
            softmax_function(
                softmax,
                spec.dtype,
                self._row_lanes(),
                None if limited else spec.keys,
                self.target.registers,
            )
        )
        with f.loop("%end", start="%begin") as task:
            batch, head, block = unravel(f, task.index, (0, spec.heads, self.blocks))
            self._pack(task.index, block, batch, head)
            first = times(f, block, self.block)
            count = least(f, minus(f, spec.rows, first), self.block)
            # Keys behind the last query of a causal block have the weight 0.
            limit = least(f, plus(f, first, count), spec.keys) if limited else spec.keys
            strip = self._strip(batch, head, first)
            self._scores(strip, batch, head, first, count, limit)
            with f.loop(count) as row:
                at = f.element(strip, self.kind, times(f, row.index, self.pitch))
                f.do(f"call void @{softmax}(ptr {at}, i64 {limit})")
            if spec.value is not None:
                out = self._address("%out0", spec.out, batch, head, first)
                self._values(strip, out, count, limit)
        flops = numel((spec.batch, spec.heads, spec.rows, spec.keys, spec.dim + spec.value_dim))
        tasks = numel((spec.batch, spec.heads, self.blocks))
        functions = [*self.helpers, *self.micro.functions, f]
        # Every range packs the keys and values of the head that it begins in.
        return assembled(functions, TaskCount(tasks), self.scratch, flops * 2, cuts=2)

    def _row_lanes(self) -> int:
        lanes = self.lanes
        while lanes > 1 and lanes // 2 >= self.spec.keys:
            lanes //= 2
        return lanes

    def _address(self, base: str, at: Place, batch: Size, head: Size, row: Size = 0) -> str:
        f = self.f
        offset = plus(f, times(f, batch, at.batch), times(f, head, at.head))
        offset = plus(f, offset, plus(f, times(f, row, at.row), at.start))
        return f.element(base, self.kind, offset)

    def _strip(self, batch: Size, head: Size, first: Size) -> str:
        """Where the scores of a block are."""
        if self.spec.value is None:
            return self._address("%out0", self.spec.out, batch, head, first)
        return self.f.element("%scratch", "i8", self.strip_at)

    def _pack(self, task: str, block: Size, batch: Size, head: Size) -> None:
        """Packs keys and values when the head is another one than that of the last task."""
        f, spec = self.f, self.spec
        columns = [(spec.key, "%in1", self.keys_at, spec.keys, self.key_panel, spec.dim, True)]
        if spec.value is not None:
            sizes = (spec.value_dim, self.value_panel, spec.keys)
            columns.append((spec.value, "%in2", self.values_at, *sizes, False))
        fresh = f.emit(f"icmp eq i64 {block}, 0")
        fresh = f.emit(f"or i1 {fresh}, {f.emit(f'icmp eq i64 {task}, %begin')}")
        with f.when(fresh):
            for place, base, at, count, panel, depth, transposed in columns:
                name = f"{self.symbol}_pack_{'keys' if transposed else 'values'}"
                steps = (1, place.row) if transposed else (place.row, 1)
                source = PanelSource(spec.dtype, count, panel, depth, *steps)
                self.helpers += pack_function(name, source, self.target)
                matrix = self._address(base, place, batch, head)
                packed = f.element("%scratch", "i8", at)
                with f.loop(source.panels) as loop:
                    into = f.element(packed, self.kind, times(f, loop.index, panel * depth))
                    args = f"ptr {into}, ptr {matrix}, i64 {loop.index}, i64 {depth}"
                    f.do(f"call void @{name}({args})")

    def _scores(
        self, strip: str, batch: Size, head: Size, first: Size, count: Size, limit: Size
    ) -> None:
        """The strip: queries times K^T, a panel of keys after the other."""
        f, spec, panel = self.f, self.spec, self.key_panel
        steps = spec.mask[2:] if spec.mask is not None else None
        epilogue = ScoreEpilogue(spec.scale, steps, spec.causal, spec.value is None)
        queries = self._address("%in0", spec.query, batch, head, first)
        keys = f.element("%scratch", "i8", self.keys_at)
        mask = ""
        if spec.mask is not None:
            place = Place(0, *spec.mask[:3])
            mask = self._address(f"%in{2 + (spec.value is not None)}", place, batch, head, first)

        def panel_of(column: Size, width: int) -> None:
            b = f.element(keys, self.kind, times(f, column, spec.dim))

            def tile_at(row: Size, height: int) -> None:
                a = f.element(queries, self.kind, times(f, row, spec.query.row))
                c = plus(f, times(f, row, self.pitch), column)
                args = [("ptr", a), ("ptr", b), ("ptr", f.element(strip, self.kind, c))]
                if steps is not None:
                    at = plus(f, times(f, row, steps[0]), times(f, column, steps[1]))
                    args.append(("ptr", f.element(mask, self.kind, at)))
                if spec.causal:
                    ahead = minus(f, plus(f, first, row), column)
                    args.append(("i64", str(ahead)))
                loop = Reduction(spec.dim, 1, panel)
                tile = self._tile(height, width, spec.query.row, self.pitch, loop)
                self._call(tile, epilogue, args)

            self._over_rows(count, tile_at)

        whole = spec.keys // panel * panel
        if whole:
            with f.loop(least(f, limit, whole), step=panel) as loop:
                panel_of(loop.index, panel)
        if whole < spec.keys:
            with f.when(f.emit(f"icmp sgt i64 {limit}, {whole}")):
                panel_of(whole, spec.keys - whole)

    def _values(self, strip: str, out: str, count: Size, limit: Size) -> None:
        """The result: the strip times V, a panel of columns after the other."""
        f, spec, panel = self.f, self.spec, self.value_panel
        plain = TileEpilogue((spec.dtype,))
        packed = f.element("%scratch", "i8", self.values_at)
        blocks = -(-spec.keys // _BLOCK) if spec.keys > LONGEST_SUM else 1
        length = -(-spec.keys // (8 * blocks)) * 8 if blocks > 1 else spec.keys
        whole = spec.value_dim // panel * panel
        widths = [(0, whole, panel), (whole, spec.value_dim, spec.value_dim - whole)]

        def block_of(key: Size, keys: Size, epilogue: TileEpilogue, keep: str) -> None:
            for start, stop, width in widths:
                if start < stop:
                    with f.loop(stop, start=start, step=panel) as loop:
                        line = plus(f, times(f, loop.index, spec.keys), times(f, key, panel))
                        b = f.element(packed, self.kind, line)
                        columns = f.element(out, self.kind, loop.index)
                        rows_of(key, keys, b, columns, width, epilogue, keep)

        def rows_of(
            key: Size, keys: Size, b: str, c: str, width: int, epilogue: TileEpilogue, keep: str
        ) -> None:
            def tile_at(row: Size, height: int) -> None:
                at = plus(f, times(f, row, self.pitch), key)
                there = f.element(c, self.kind, times(f, row, spec.out.row))
                args = [("ptr", f.element(strip, self.kind, at)), ("ptr", b), ("ptr", there)]
                if epilogue.accumulate:
                    args.append(("i64", keep))
                sum_over = Reduction(keys if isinstance(keys, int) else "%count", 1, panel)
                tile = self._tile(height, width, self.pitch, spec.out.row, sum_over)
                if isinstance(keys, int):
                    self._call(tile, epilogue, args)
                else:
                    self._call(tile, epilogue, [*args, ("i64", keys)], ("count",))

            self._over_rows(count, tile_at)

        if blocks == 1:
            block_of(0, limit, plain, "")
            return
        with f.loop(limit, step=length) as loop:
            started = f.emit(f"icmp sgt i64 {loop.index}, 0")
            keep = f.emit(f"sext i1 {started} to i64")
            keys = least(f, minus(f, limit, loop.index), length)
            block_of(loop.index, keys, replace(plain, accumulate=True), keep)

    def _over_rows(self, count: Size, body: Callable[[Size, int], None]) -> None:
        """``body(row, height)`` for tiles that cover the rows of a block."""
        f = self.f
        row: Size = 0
        for height in sorted({self.unit, self.rest} - {0}, reverse=True):
            with f.loop(minus(f, count, height - 1), start=row, step=height) as loop:
                body(loop.index, height)
            row = loop.index

    def _tile(self, height: int, width: int, a_row: int, c_row: int, loop: Reduction) -> Tile:
        vectors = -(-width // self.lanes)
        return Tile(
            self.spec.dtype,
            self.lanes,
            tuple(i * a_row for i in range(height)),
            tuple(i * c_row for i in range(height)),
            vectors,
            width - (vectors - 1) * self.lanes,
            (loop,),
            c_pitch=c_row,
        )

    def _call(
        self,
        tile: Tile,
        epilogue: Epilogue,
        args: list[tuple[str, str]],
        counts: tuple[str, ...] = (),
    ) -> None:
        if tile.blocked:
            args = [*args, ("ptr", self.f.element("%scratch", "i8", self.sums_at))]
            self.scratch = max(self.scratch, self.sums_at + tile.sums_bytes)
        if tile.overlap:
            args = [*args, ("i64", "0")]
        name = self.micro.name(tile, epilogue, counts)
        self.f.do(f"call void @{name}({', '.join(f'{t} {v}' for t, v in args)})")
