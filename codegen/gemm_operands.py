"""Where the operands of a matrix product are while its kernel is emitted: addresses in A and B,
copies of blocks of A, packs of panels of B, and what is asked for ahead of its use."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.types import Extent
from .emitter import scalar_type
from .gemm_blocking import Blocking
from .gemm_work import Following, Line, Run
from .packing import PanelSource, pack_function
from .sizes import Size, extent, least, plus, quotient, remainder, times
from .target import LINE
from .text import Function


class Operands:
    """A and B of the product whose kernel ``f`` is.

    ``pointers`` are the kernel's parameters of both. ``packs`` are the functions that pack.
    """

    def __init__(self, f: Function, blocking: Blocking, pointers: tuple[str, str]) -> None:
        self.f, self.blocking, self.spec = f, blocking, blocking.spec
        self.a, self.b = pointers
        self.scalar = scalar_type(self.spec.dtype)
        self.packs: list[Function] = []

    def block_of_a(
        self, item: Size, line: Line, top: Size, rows: Size, k: Size, count: Size
    ) -> str:
        """The address of row ``top`` of A from step k on, or of a copy with short steps."""
        f, spec = self.f, self.spec
        at = plus(f, times(f, top, spec.a_row), times(f, k, spec.a_k))
        at = plus(f, self._offsets(item, line)[0], at)
        source = f.element(self.a, self.scalar, at)
        if not self.blocking.a_pitch:
            return source
        copy = f.element("%scratch", "i8", self.blocking.copy_at)
        # Whatever is a row in memory (a row or a column of A) is copied as one.
        lines, length, step = rows, count, spec.a_row
        if spec.a_k != 1:
            lines, length, step = count, rows, spec.a_k
        size = times(f, length, spec.dtype.itemsize)
        with f.loop(lines) as loop:
            into = f.element(copy, self.scalar, times(f, loop.index, self.blocking.a_pitch))
            here = f.element(source, self.scalar, times(f, loop.index, step))
            f.call(
                "void", "llvm.memcpy.p0.p0.i64",
                ("ptr", into), ("ptr", here), ("i64", str(size)), ("i1", "false"),
            )  # fmt: skip
        return copy

    def matrix_of_b(self, item: Size, line: Line) -> str:
        """The address of B of one product of the batch."""
        return self.f.element(self.b, self.scalar, self._offsets(item, line)[1])

    def panel_of_b(self, run: Run, k: Size, count: Size) -> str:
        """The address of rows [k, k + count) of the panel, in ``self.blocking.b_mode``."""
        f, spec = self.f, self.spec
        if self.blocking.b_mode == "packed":
            depth = spec.k if isinstance(spec.k, int) else 0
            line = plus(f, times(f, run.panel, depth), k)
            return f.element(run.b, self.scalar, times(f, line, spec.panel))
        if self.blocking.b_mode == "direct":
            at = plus(f, times(f, k, spec.n), times(f, run.panel, spec.panel))
            return f.element(run.b, self.scalar, at)
        by_rows = spec.b == "rows"
        depth = spec.k if isinstance(spec.k, int) else 0
        steps = (spec.n, 1) if by_rows else (1, depth)
        source = PanelSource(spec.dtype, spec.n, spec.panel, spec.block, *steps)
        name = f"{self.f.name}_pack"
        if not self.packs:
            self.packs = pack_function(name, source, self.blocking.target)
        matrix = f.element(run.b, self.scalar, times(f, k, spec.n if by_rows else 1))
        args = f"ptr %scratch, ptr {matrix}, i64 {run.panel}, i64 {count}"
        f.do(f"call void @{name}({args})")
        return "%scratch"

    def later(self, b: str, k: Size, first: Size, following: Following) -> str:
        """The address of what is packed next: the ``following`` panel if there is one, else the
        ``first`` one for the next block of the reduction. Empty if nothing is asked for ahead.

        Packing waits for memory. The operands of a weight gradient come from there, and each part
        is packed once; of other products B stays in a cache for many blocks of rows.
        """
        f, spec = self.f, self.spec
        packs = self.blocking.b_mode == "scratch" and spec.b == "rows"
        if not packs or spec.a_k == 1 or not spec.blocked:
            return ""
        more = following.there
        row = f.emit(f"select i1 {more}, i64 {k}, i64 {plus(f, k, spec.block)}")
        panel = f.emit(f"select i1 {more}, i64 {following.panel}, i64 {first}")
        at = plus(f, times(f, row, spec.n), times(f, panel, spec.panel))
        return f.element(b, self.scalar, at)

    def ask(self, later: str, number: Size, share: Size, count: Size) -> None:
        """Asks for the share of tile ``number`` in the rows at ``later``, while tiles compute."""
        f, spec = self.f, self.spec
        start = times(f, number, share)
        stop = least(f, count, plus(f, start, share))
        with f.loop(stop, start=start) as row:
            here = f.element(later, self.scalar, times(f, row.index, spec.n))
            for at in range(0, min(spec.panel, spec.n) * spec.dtype.itemsize, LINE):
                f.prefetch(f.element(here, "i8", at), level=2)

    def _offsets(self, item: Size, line: Line) -> tuple[Size, Size]:
        """Elements of A and B before the matrices of one product of the batch."""
        f, spec = self.f, self.spec
        m, k = line.m, line.k
        offsets: list[Size] = []
        for shape, size in ((spec.a_batch, times(f, m, k)), (spec.b_batch, times(f, k, spec.n))):
            if all(d == 1 for d in shape):
                offsets.append(0)
            elif shape == spec.batch:
                offsets.append(times(f, item, size))
            else:
                offsets.append(self._broadcast_offset(item, shape, size))
        return offsets[0], offsets[1]

    def _broadcast_offset(self, item: Size, shape: Sequence[Extent], size: Size) -> Size:
        f = self.f
        total: Size = 0
        for d, full in zip(reversed(shape), reversed(self.spec.batch), strict=True):
            count = extent(f, full)
            if d != 1:
                total = plus(f, total, times(f, remainder(f, item, count), size))
                size = times(f, size, count)
            item = quotient(f, item, count)
        return total
