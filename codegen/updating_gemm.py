"""The product of a weight's gradient that also updates the weight.

As a product (``gemm.py``), with two differences. A tile's sums become an update only once, because
the results are written over the operands of the update: if the reduction has several blocks, all
of them are done for one panel and a run of rows, with the sums in private memory. And the update of
a tile runs while the tile below it is computed (``deferred_update.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..ir.types import TensorType
from .brgemm import Epilogue
from .deferred_update import DeferredUpdate
from .epilogue import TileEpilogue
from .gemm import GemmWriter
from .gemm_blocking import Gemm
from .gemm_work import Chunk, Following, Line, Run
from .kernel import Kernel
from .sizes import Size, greatest, least, minus, plus, times
from .target import LINE, Target
from .tile import Tile

# `python benchmarks/decisions.py updating_gemm` times whole steps with and without it. In three
# runs with two cores (Zen 4) they were 0.87 to 1.16 times as fast with an update that reads two
# arrays (SGD with momentum), a gain of a percent in the median; 0.75 to 1.02 times with three
# (Adam), a loss of 15 %. A tile touches a few lines of each row of every array, where a loop of its
# own reads whole rows, which the hardware foresees.
_MOST_ARRAYS = 2
_LONGEST_ROW = 4


def is_faster(weight: TensorType, arrays: int) -> bool:
    """Whether the gradient's kernel should do an update that reads so many arrays of the weight's
    size, the weight included."""
    rows, columns = weight.shape
    if not isinstance(rows, int) or not isinstance(columns, int):
        return False
    return arrays <= _MOST_ARRAYS and columns <= _LONGEST_ROW * rows


def updating_gemm_kernel(
    prefix: str,
    spec: Gemm,
    update: TileEpilogue,
    pointers: tuple[str, str],
    inputs: int,
    target: Target,
) -> Kernel:
    """``gemm_kernel`` of an epilogue whose outputs may be the memory of its operands."""
    return _UpdatingGemmWriter(prefix, spec, update, pointers, inputs, target).kernel()


class _UpdatingGemmWriter(GemmWriter):
    packs_in_tiles = False  # each tile leaves its sums to the next one of its loop

    def __init__(
        self,
        prefix: str,
        spec: Gemm,
        update: TileEpilogue,
        pointers: tuple[str, str],
        inputs: int,
        target: Target,
    ) -> None:
        super().__init__(prefix, spec, update, pointers, inputs, target)
        self.waiting_at = -(-self.scratch // LINE) * LINE
        tile = max(rows * vectors for vectors, rows in self.blocking.rows.items())
        self.partial_at = self.waiting_at + tile * target.vector_bytes
        rows = self.blocking.row_block * self.blocking.unit if spec.blocked else 0
        self.scratch = self.partial_at + rows * spec.panel * spec.dtype.itemsize
        self.sums_at = -(-self.scratch // LINE) * LINE
        self.last = DeferredUpdate(update, spec.panel if spec.blocked else 0)
        self.flushes: dict[int, str] = {}

    def _work(self, line: Line) -> None:
        """The first block of A is copied once for all panels."""
        self._units(line, 0, least(self.f, line.k, self.spec.block), [])

    def _panel(
        self,
        run: Run,
        chunk: Chunk,
        following: Following,
        k: Size,
        count: Size,
        epilogues: Sequence[tuple[Epilogue, str]],
    ) -> None:
        """All blocks of the reduction; an empty one is a block, too."""
        f, spec = self.f, self.spec
        if not spec.blocked:
            self._run(run, 0, count, [(self.last, "true")])
            return
        middle = TileEpilogue((spec.dtype,), accumulate=True)
        with f.loop(greatest(f, chunk.line.k, 1), step=spec.block) as loop:
            count = least(f, minus(f, chunk.line.k, loop.index), spec.block)
            after = plus(f, loop.index, spec.block)
            final = f.emit(f"icmp sge i64 {after}, {chunk.line.k}")
            more = f.emit(f"xor i1 {final}, true")
            a = self._again(run, chunk, loop.index, count)
            here = replace(run, a=a, later=self._next(run, following, after, final))
            self._run(here, loop.index, count, [(middle, more), (self.last, final)])

    def _again(self, run: Run, chunk: Chunk, k: Size, count: Size) -> str:
        """The block of A from step k on; its copy is made again if there are several blocks."""
        f = self.f
        place = chunk.item, chunk.line, chunk.top, chunk.rows
        if not self.blocking.a_pitch:
            return self.operands.block_of_a(*place, k, count)
        with f.when(f.emit(f"icmp sgt i64 {chunk.line.k}, {self.spec.block}")):
            self.operands.block_of_a(*place, k, count)
        return run.a

    def _next(self, run: Run, following: Following, after: Size, final: str) -> str:
        """The address of what is packed next: the next block of the panel, if this is not the
        final one, else the first block of the panel after it. Empty if B is not packed."""
        f, spec = self.f, self.spec
        if self.blocking.b_mode != "scratch":
            return ""
        panel = f.emit(f"select i1 {following.there}, i64 {following.panel}, i64 {run.panel}")
        panel = f.emit(f"select i1 {final}, i64 {panel}, i64 {run.panel}")
        row = f.emit(f"select i1 {final}, i64 0, i64 {after}")
        at = plus(f, times(f, row, spec.n), times(f, panel, spec.panel))
        return f.element(run.b, self.scalar, at)

    def _finish(
        self,
        tile: Tile,
        epilogue: Epilogue,
        run: Run,
        start: Size,
        row: Size,
        column: Size,
        keep: str,
    ) -> tuple[Tile, list[tuple[str, str]]]:
        f, spec = self.f, self.spec
        waiting = f.element("%scratch", "i8", self.waiting_at)
        sums = waiting
        if spec.blocked:
            sums = f.element("%scratch", "i8", self.partial_at)
            sums = f.element(sums, self.scalar, times(f, row, spec.panel))
        if epilogue is not self.last:
            rows = tuple(i * spec.panel for i in range(tile.rows))
            return replace(tile, c_rows=rows, c_pitch=spec.panel), [("ptr", sums), ("i64", keep)]
        # Without earlier blocks the sums are memory that no cache need hold.
        begun = f.emit(f"icmp ne i64 {keep}, 0")
        sums = f.emit(f"select i1 {begun}, ptr {sums}, ptr {waiting}")
        pending = f.emit(f"icmp sgt i64 {row}, {start}")
        pending = f.emit(f"zext i1 {pending} to i64")
        at = plus(f, run.base, row)
        args = self.last.arguments(f, at, column, spec.c_pitch, waiting, pending, (sums, keep))
        return tile, args

    def _finished(
        self, tile: Tile, epilogue: Epilogue, run: Run, start: Size, row: Size, column: Size
    ) -> None:
        """The update of the last tile, if there was one."""
        if epilogue is not self.last:
            return
        f = self.f
        if tile.width not in self.flushes:
            name = self.flushes[tile.width] = f"{self.symbol}_flush_{tile.width}"
            self.helpers.append(self.last.flush(name, tile))
        with f.when(f.emit(f"icmp sgt i64 {row}, {start}")):
            at = plus(f, run.base, minus(f, row, tile.rows))
            waiting = f.element("%scratch", "i8", self.waiting_at)
            args = self.last.update.arguments(f, at, column, self.spec.c_pitch)
            args += [("ptr", waiting), ("i64", str(tile.rows))]
            f.do(f"call void @{self.flushes[tile.width]}({', '.join(f'{t} {v}' for t, v in args)})")
