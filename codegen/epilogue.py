"""What happens to a finished tile of a contraction: bias, elementwise operators, stores.

A ``fused`` node of kind ``contraction`` has a body that starts with the contraction (its anchor);
the elementwise operators after it are applied to the accumulators while they are in registers. The
last operator may be a pooling, whose windows the tile then holds as a whole (``window_pool.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.graph import Node, Value
from ..ir.types import DType, int64
from .body import lower_node
from .emitter import Lane, VectorEmitter, memory_type
from .moments import Sums
from .sizes import Size
from .target import LINE
from .text import Function
from .tile import Tile
from .window_pool import WindowPool

# Rough instruction counts of elementwise operators; one that is not here costs one.
_COSTS = {
    "exp": 12, "expm1": 16, "log": 16, "log1p": 20, "tanh": 18, "sigmoid": 16, "erf": 25,
    "gelu": 30, "silu": 16, "softplus": 30, "elu": 16, "sin": 25, "cos": 25, "pow": 40,
    "uniform": 80, "binary_cross_entropy": 40,
}  # fmt: skip
ALL_ONES = "-1"
# Tiles whose reduction is at least this long ask for their part of the result before it.
_LONG_REDUCTION = 64
# A body of more instructions than this is not repeated for every register of the tile.
_INLINE_INSTRUCTIONS = 150


@dataclass(frozen=True)
class Operand:
    """An operand of the elementwise operators: pointer ``%in{source}`` of the kernel.

    ``kind`` is how it lies against the rows and columns of the result: ``full`` (same shape),
    ``column`` (one element per column), ``row`` (one per row), ``scalar``, or ``key`` (the
    i64 pair of a random number generator).
    """

    source: int
    kind: str
    dtype: DType


@dataclass(frozen=True)
class TileEpilogue:
    """Bias, elementwise body and stores of a tile.

    ``outputs`` are the dtypes of the results, all of the anchor's shape. ``bias`` is the number of
    the kernel's input with one element per column. ``results`` are the values of ``body`` that are
    stored; without a body the tile itself is stored. ``accumulate`` first adds the tile to what the
    first output holds, if the last argument (see ``arguments``) says so. ``in_place``: an output
    may be the memory of a ``full`` operand, so each element is read before it is written, and
    written once. With ``pool``, rows of a tile that have the same place in the result are a window,
    of which one element per column is stored. With ``sums``, the sums over the rows of the first
    result are handed back to whoever makes the tile (see ``finish_summed``). With ``moments``, the
    first result is added to the sums that the last argument points to.
    """

    outputs: tuple[DType, ...]
    bias: int | None = None
    accumulate: bool = False
    operands: tuple[Operand, ...] = ()
    body: Body | None = None
    in_place: bool = False
    pool: WindowPool | None = None
    sums: bool = False
    moments: Sums | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What the code depends on."""
        body = self.body.key if self.body is not None else ""
        tail = self.in_place, self.pool, self.sums, self.moments
        return self.outputs, self.bias, self.accumulate, self.operands, body, tail

    # -- in the kernel

    def arguments(
        self,
        f: Function,
        row: Size,
        column: Size,
        pitch: int,
        keep: str = ALL_ONES,
        sums: str = "",
    ) -> list[tuple[str, str]]:
        """What to pass for ``params()`` if the tile starts at (row, column) and rows are ``pitch``
        elements apart. ``keep`` is -1 to add the tile to what is there, 0 to begin with the bias;
        ``sums`` is the address of the ``moments``' sums.
        """
        start = f.emit(f"mul nsw i64 {row}, {pitch}")
        linear = f.emit(f"add nsw i64 {start}, {column}")
        args = [f.element(f"%out{k}", memory_type(d), linear) for k, d in enumerate(self.outputs)]
        if self.bias is not None:
            args.append(f.element(f"%in{self.bias}", memory_type(self.outputs[0]), column))
        places = {"full": linear, "column": column, "row": row}
        for operand in self.operands:
            base = f"%in{operand.source}"
            at = places.get(operand.kind)
            args.append(base if at is None else f.element(base, memory_type(operand.dtype), at))
        result = [("ptr", a) for a in args]
        if self._needs_index:
            result.append(("i64", linear))
        if self.accumulate:
            result.append(("i64", keep))
        if self.moments is not None:
            result.append(("ptr", sums))
        return result

    @property
    def _needs_index(self) -> bool:
        return self.body is not None and self.body.needs_index

    # -- in the micro-kernel

    def params(self) -> list[tuple[str, str]]:
        params = [("ptr noalias", f"c{k}") for k in range(len(self.outputs))]
        if self.bias is not None:
            params.append(("ptr noalias readonly", "bias"))
        params += [("ptr noalias readonly", f"e{k}") for k in range(len(self.operands))]
        if self._needs_index:
            params.append(("i64", "index"))
        if self.accumulate:
            params.append(("i64", "keep"))
        if self.moments is not None:
            params.append(("ptr noalias", "moments"))
        return params

    def initial(self, e: VectorEmitter, tile: Tile) -> list[Lane | None]:
        self._prefetch(e, tile)
        if self.in_memory(tile):
            count = tile.rows * tile.vectors
            e.fn.emit(f"alloca [{count} x {e.type(tile.dtype)}], align 64", _TILE)
        if self.accumulate:
            e.fn.emit("xor i64 %keep, -1", "%begins")
        if self.bias is None:
            return [None] * tile.vectors
        start: list[Lane | None] = []
        for j in range(tile.vectors):
            at = offset(e.fn, "%bias", j * tile.lanes, tile.dtype)
            bias = load(e, at, tile.dtype, tile.active(j))
            start.append(only_if(e, "%begins", bias) if self.accumulate else bias)
        return start

    def _prefetch(self, e: VectorEmitter, tile: Tile) -> None:
        """Asks for all that ``finish`` reads and writes, so that it comes during the reduction.

        Rows of a tile with gaps between them are streams too short for the hardware to foresee.
        """
        short = tile.steps is not None and tile.steps < _LONG_REDUCTION
        if not tile.loops or tile.rows < 2:
            return
        # Sums for the moments come right behind the stores, and wait for memory with them.
        if self.moments is None and (short or tile.c_rows[1] - tile.c_rows[0] <= tile.width):
            return
        streams = [(f"%c{k}", dtype, True) for k, dtype in enumerate(self.outputs)]
        streams += [
            (f"%e{k}", o.dtype, False) for k, o in enumerate(self.operands) if o.kind == "full"
        ]
        for base, dtype, write in streams:
            for start in tile.c_rows:
                for column in range(0, tile.width, LINE // dtype.itemsize):
                    e.fn.prefetch(offset(e.fn, base, start + column, dtype), write)

    def finish(self, e: VectorEmitter, tile: Tile, values: list[list[Lane]]) -> None:
        if not self.in_memory(tile):
            stored = [
                self.finish_column(e, tile, j, [row[j] for row in values])
                for j in range(tile.vectors)
            ]
            if self.moments is not None:
                self.moments.add(e, "%moments", stored)
            return
        self._keep(e, tile, values)
        apart = (tile.c_rows[1] - tile.c_rows[0]) // tile.c_pitch
        self.finish_rows(e, tile, _TILE, tile.rows, apart)

    def finish_rows(
        self, e: VectorEmitter, tile: Tile, source: str, rows: Size, apart: int = 1
    ) -> None:
        """Finishes ``rows`` rows of ``tile.vectors`` vectors each that are in memory at ``source``
        and are ``apart`` rows of the result apart."""
        with e.fn.loop(rows) as loop:
            for j in range(tile.vectors):
                self._kept(e, tile, source, loop.index, apart, j)

    def finish_column(self, e: VectorEmitter, tile: Tile, j: int, values: list[Lane]) -> list[Lane]:
        """Finishes one column of vectors: a value for each row of the tile. The elements of the
        first result, in the order in which they are stored."""
        columns = self.columns(e, tile, j)
        if self.pool is not None:
            return self._windows(e, tile, j, values, columns, self.pool)
        return [
            self.element(e, tile, start, start // tile.c_pitch, j, value, columns)
            for start, value in zip(tile.c_rows, values, strict=True)
        ]

    def finish_summed(self, e: VectorEmitter, tile: Tile, values: list[list[Lane]]) -> list[Lane]:
        """Stores a tile whose body is applied in memory (see ``in_memory``); the sums over its rows
        of the first result, by column of vectors."""
        self._keep(e, tile, values)
        apart = (tile.c_rows[1] - tile.c_rows[0]) // tile.c_pitch
        zero = e.constant(0.0, self.outputs[0])
        carry = [(e.type(zero.dtype), zero.text)]
        totals = []
        # One loop per column: the body's constants leave few registers for sums.
        for j in range(tile.vectors):
            with e.fn.loop(tile.rows, carry=carry) as loop:
                value = self._kept(e, tile, _TILE, loop.index, apart, j)
                loop.next = [e.add(Lane(loop.carried[0], zero.dtype), value).text]
            totals.append(Lane(loop.results[0], zero.dtype))
        return totals

    def _windows(
        self, e: VectorEmitter, tile: Tile, j: int, values: list[Lane], columns: Mapping[int, Any],
        pool: WindowPool,
    ) -> list[Lane]:  # fmt: skip
        """Finishes one column of vectors of whole windows."""
        windows: dict[int, list[list[Lane]]] = {}
        for start, value in zip(tile.c_rows, values, strict=True):
            results = [value]
            if self.body is not None:
                results = self.body.emit(e, value, columns)
            windows.setdefault(start, []).append(results)
        stored = []
        for start, members in windows.items():
            pooled = [pool.combine(e, taps) for taps in zip(*members, strict=True)]
            self._store(e, tile, start, j, pooled)
            stored.append(pooled[0])
        return stored

    def _keep(self, e: VectorEmitter, tile: Tile, values: list[list[Lane]]) -> None:
        """Writes the tile to memory, where the long body is applied to it row by row."""
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                at = offset(e.fn, _TILE, (i * tile.vectors + j) * tile.lanes, tile.dtype)
                e.store(value, at, tile.lanes * tile.dtype.itemsize)

    def _kept(
        self, e: VectorEmitter, tile: Tile, source: str, row: str, apart: int, j: int
    ) -> Lane:
        """Finishes a vector that is in memory."""
        f, lanes = e.fn, tile.lanes
        start = f.emit(f"mul nsw i64 {row}, {apart * tile.c_pitch}")
        number = f.emit(f"mul nsw i64 {row}, {apart}")
        line = f.emit(f"mul nsw i64 {row}, {tile.vectors * lanes}")
        here = f.element(source, memory_type(tile.dtype), line)
        at = offset(f, here, j * lanes, tile.dtype)
        value = e.load(at, tile.dtype, lanes * tile.dtype.itemsize)
        return self.element(e, tile, start, number, j, value, self.columns(e, tile, j))

    def in_memory(self, tile: Tile) -> bool:
        """Whether the body is applied in a loop over the rows instead of to each register."""
        if self.body is None or tile.rows < 2 or self.pool is not None:
            return False
        steps = {b - a for a, b in zip(tile.c_rows, tile.c_rows[1:], strict=False)}
        return len(steps) == 1 and self.body.cost * tile.rows * tile.vectors > _INLINE_INSTRUCTIONS

    def columns(self, e: VectorEmitter, tile: Tile, j: int) -> dict[int, Any]:
        """The operands that are the same for all rows."""
        found: dict[int, Any] = {}
        for k, operand in enumerate(self.operands):
            if operand.kind == "column":
                at = offset(e.fn, f"%e{k}", j * tile.lanes, operand.dtype)
                found[k] = load(e, at, operand.dtype, tile.active(j))
            elif operand.kind == "scalar":
                found[k] = e.load_splat(f"%e{k}", operand.dtype)
            elif operand.kind == "key":
                second = offset(e.fn, f"%e{k}", 1, operand.dtype)
                found[k] = tuple(e.load_splat(a, operand.dtype) for a in (f"%e{k}", second))
        return found

    def element(
        self,
        e: VectorEmitter,
        tile: Tile,
        start: int | str,
        row: int | str,
        j: int,
        value: Lane,
        columns: Mapping[int, Any],
    ) -> Lane:
        """Finishes one vector: column ``j`` of row ``row``, which starts at element ``start``. Its
        elements of the first result."""
        f, active = e.fn, tile.active(j)
        if self.accumulate:
            at = _place(f, "%c0", start, j * tile.lanes, tile.dtype)
            value = e.add(only_if(e, "%keep", load(e, at, tile.dtype, active)), value)
        results = [value]
        if self.body is not None:
            operands = dict(columns)
            for k, operand in enumerate(self.operands):
                if operand.kind == "full":
                    at = _place(f, f"%e{k}", start, j * tile.lanes, operand.dtype)
                    operands[k] = load(e, at, operand.dtype, active)
                elif operand.kind == "row":
                    at = f.element(f"%e{k}", memory_type(operand.dtype), row)
                    operands[k] = e.load_splat(at, operand.dtype)
            index = f"add nsw i64 %index, {start}"
            if self._needs_index:
                e.index = f.emit(f"add nsw i64 {f.emit(index)}, {j * tile.lanes}")
            results = self.body.emit(e, value, operands)
        self._store(e, tile, start, j, results)
        return results[0]

    def _store(
        self, e: VectorEmitter, tile: Tile, start: int | str, j: int, results: Sequence[Lane]
    ) -> None:
        """Stores one vector of each result."""
        active = tile.active(j)
        for k, (result, dtype) in enumerate(zip(results, self.outputs, strict=True)):
            at = _place(e.fn, f"%c{k}", start, j * tile.lanes, dtype)
            if active is None:
                e.store(result, at)
            else:
                e.store_masked(result, at, active)


_TILE = "%tile"


def only_if(e: VectorEmitter, mask: str, v: Lane) -> Lane:
    """``v`` if the i64 ``mask`` is -1, zeros (even for NaN) if it is 0."""
    f, bits = e.fn, e.bits(v)
    word = mask if bits.dtype is int64 else f.emit(f"trunc i64 {mask} to i32")
    return e.unbits(e.op("and", bits, e.splat(word, bits.dtype)))


def _place(f: Function, base: str, start: int | str, column: int, dtype: DType) -> str:
    return offset(f, f.element(base, memory_type(dtype), start), column, dtype)


def offset(f: Function, base: str, elements: int, dtype: DType) -> str:
    if elements == 0:
        return base
    return f.emit(f"getelementptr inbounds i8, ptr {base}, i64 {elements * dtype.itemsize}")


def load(e: VectorEmitter, address: str, dtype: DType, active: str | None) -> Lane:
    return e.load(address, dtype) if active is None else e.load_masked(address, dtype, active)


@dataclass(frozen=True)
class Body:
    """The elementwise operators after the anchor: nodes in order, and which values are stored.

    ``leaves`` are the values that ``operands`` of the epilogue stand for.
    """

    anchor: Value
    nodes: tuple[Node, ...]
    leaves: tuple[Value, ...]
    results: tuple[Value, ...]

    @property
    def cost(self) -> int:
        """Instructions per vector, roughly."""
        return sum(_COSTS.get(n.op, 1) for n in self.nodes)

    @property
    def key(self) -> str:
        """The body without the names of its nodes, so that equal bodies make equal kernels."""
        numbers = {v: k for k, v in enumerate([self.anchor, *self.leaves])}
        text = []
        for node in self.nodes:
            operands = [numbers[v] for v in node.operands]
            text.append(f"{node.op} {operands} {sorted(node.attrs.items())} {node.types}")
            numbers |= {v: len(numbers) + k for k, v in enumerate(node.values)}
        return "; ".join([*text, str([numbers[v] for v in self.results])])

    @property
    def needs_index(self) -> bool:
        return any(n.op == "uniform" for n in self.nodes)

    def emit(self, e: VectorEmitter, value: Lane, operands: Mapping[int, Any]) -> list[Lane]:
        """The results for an accumulator ``value``."""
        env: dict[Value, Any] = {self.anchor: value}
        env |= {self.leaves[k]: lane for k, lane in operands.items()}
        for node in self.nodes:
            env[node.value] = lower_node(e, node, [env[v] for v in node.operands])
        return [env[v] for v in self.results]
