"""Epilogue of a weight gradient whose kernel updates the weight: the update of one tile runs while
the next one is computed.

An update reads and writes the weight and the optimizer's state, megabytes that wait in the third
level cache, and may take square roots and quotients, which occupy a unit of their own for many
cycles. Right behind a tile both would stand between two reductions, and the processor looks ahead
over less than one tile. So a tile leaves its sums in private memory. The reduction of the next one,
right below it, is cut into as many parts as there are rows; before each part one row of the waiting
sums goes through the update, and one row of what the tile's own update will touch is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from .emitter import Lane, VectorEmitter, memory_type
from .epilogue import TileEpilogue, load, offset, only_if
from .sizes import Size, times
from .target import LINE
from .text import Function
from .tile import Tile


@dataclass(frozen=True)
class DeferredUpdate:
    """The epilogue of the tiles of a gradient's last (or only) block of the reduction.

    ``update`` is what becomes of the gradient; its outputs may be the memory of its ``full``
    operands. ``partial``: the sums of the blocks before have rows so many elements apart, 0 if
    there are never any.
    """

    update: TileEpilogue
    partial: int = 0

    # -- in the kernel

    def arguments(
        self,
        f: Function,
        row: Size,
        column: Size,
        pitch: int,
        waiting: str,
        pending: str,
        sums: tuple[str, str] = ("", ""),
    ) -> list[tuple[str, str]]:
        """What to pass for ``params()`` if the tile starts at (row, column).

        ``waiting`` is the memory in which tiles leave their sums; ``pending`` is 1 if those of the
        tile above wait there, else 0. ``sums`` are the address of the sums of earlier blocks and
        -1, or 0 if there are none.
        """
        args = self.update.arguments(f, row, column, pitch)
        args += [("ptr", waiting), ("i64", pending)]
        if self.partial:
            args += [("ptr", sums[0]), ("i64", sums[1])]
        return args

    def flush(self, symbol: str, tile: Tile) -> Function:
        """``void @symbol(<the update's parameters>, ptr waiting, i64 rows)``: updates the rows of
        a tile whose sums wait; ``tile`` is one of as many columns."""
        params = [*self._shared(), ("ptr noalias", "waiting"), ("i64", "rows")]
        f = Function(symbol, params, attributes="noinline nounwind")
        e = VectorEmitter(f, tile.lanes, tile.dtype)
        with f.loop("%rows") as loop:
            self._update_row(e, tile, loop.index, loop.index)
        return f

    # -- in the micro-kernel

    def params(self) -> list[tuple[str, str]]:
        # Without earlier blocks the waiting sums are passed for those of earlier blocks, too.
        waiting = "ptr" if self.partial else "ptr noalias"
        params = [*self._shared(), (waiting, "waiting"), ("i64", "pending")]
        if self.partial:
            params += [("ptr readonly", "partial"), ("i64", "keep")]
        return params

    def _shared(self) -> list[tuple[str, str]]:
        """The update's parameters, of which pointers may be the same memory: no constant of the
        update is loaded once and kept in a register that the tile needs."""
        return [(kind.split()[0], name) for kind, name in self.update.params()]

    def initial(self, e: VectorEmitter, tile: Tile) -> list[Lane | None]:
        return [None] * tile.vectors

    def between(self, e: VectorEmitter, tile: Tile, row: str) -> None:
        f = e.fn
        start = f.emit(f"mul nsw i64 {row}, {tile.c_pitch}")
        for k, operand in enumerate(self.update.operands):
            if operand.kind == "full":
                there = f.element(f"%e{k}", memory_type(operand.dtype), start)
                for at in range(0, tile.width * operand.dtype.itemsize, LINE):
                    f.prefetch(f.element(there, "i8", at), level=2)
        with f.when(f.emit("icmp ne i64 %pending, 0")):
            self._update_row(e, tile, row, f.emit(f"sub nsw i64 {row}, {tile.rows}"))

    def _update_row(self, e: VectorEmitter, tile: Tile, row: str, place: str) -> None:
        """Updates row ``place`` of the results from row ``row`` of the waiting sums."""
        f = e.fn
        line = f.element("%waiting", e.type(tile.dtype), times(f, row, tile.vectors))
        start = f.emit(f"mul nsw i64 {place}, {tile.c_pitch}")
        for j in range(tile.vectors):
            value = e.load(offset(f, line, j * tile.lanes, tile.dtype), tile.dtype)
            constants = self.update.columns(e, tile, j)
            self.update.element(e, tile, start, place, j, value, constants)

    def finish(self, e: VectorEmitter, tile: Tile, values: list[list[Lane]]) -> None:
        f = e.fn
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if self.partial:
                    there = offset(f, "%partial", i * self.partial + j * tile.lanes, tile.dtype)
                    before = load(e, there, tile.dtype, tile.active(j))
                    value = e.add(only_if(e, "%keep", before), value)
                at = offset(f, "%waiting", (i * tile.vectors + j) * tile.lanes, tile.dtype)
                e.store(value, at)
