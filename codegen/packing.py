"""Packing weights into column panels, and choosing the width of the panels.

The formats are those of ``ir/ops/packing.py``: panels of ``panel`` columns, one row of the panel
after the other, the last panel filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.types import DType, TensorType, fixed, is_fixed
from .emitter import Lane, VectorEmitter, scalar_type
from .kernel import Kernel, TaskCount, assembled, kernel_params, symbol_for
from .sizes import Size, least, minus, plus, quotient, remainder, times
from .target import Target
from .text import Function
from .tile import register_rows

# The part of a row that goes into a panel is a stream too short for the hardware to foresee.
_ROWS_AHEAD = 16
# Fewer panels than this are cut into pieces, so that threads get equal shares of them.
_EVEN = 8
_SQUARE = 16  # the most lanes of a register: pieces of so many rows have no remainders


def choose_panel(columns: int, target: Target, dtype: DType) -> int:
    """Columns per panel for a matrix of ``columns`` columns: the register tile's width.

    A tile of r rows and v vectors takes r + v loads for r * v multiply-adds. Narrow tiles are used
    only for the columns that would otherwise be padding; among equals, with 32 registers the widest
    tile wins, which reads A least often, and with 16 the one of two vectors.
    """
    lanes = target.lanes(dtype)
    vectors = -(-columns // lanes)
    rows = register_rows(target)

    def cost(v: int) -> float:
        """Machine cycles per row of A: the busier of two multiply-add and two load units."""
        last = vectors - (vectors - 1) // v * v
        tiles = [v] * ((vectors - 1) // v) + [last]
        return sum(max(rows[w] * w, 4 + rows[w] + w) / rows[w] for w in tiles)

    best = 4 if target.registers >= 32 else 2
    widths = [v for v in rows if v <= max(1, vectors)]
    return lanes * min(widths, key=lambda v: (round(cost(v), 6), abs(v - best)))


@dataclass(frozen=True)
class PanelSource:
    """A matrix that becomes panels: element (row (outer, r), column c) is at
    ``outer * outer_step + c * column_step + r * row_step`` of the source, in elements.

    One of ``column_step`` and ``row_step`` is 1 (or the other extent is 1). The row (outer, r) of
    the panel is ``outer * outer_row + r * inner_row + first_row``.
    """

    dtype: DType
    columns: int
    panel: int
    inner: int | str
    row_step: int
    column_step: int
    outer: int = 1
    outer_step: int = 0
    outer_row: int = 0
    inner_row: int = 1
    first_row: int = 0

    @property
    def panels(self) -> int:
        return -(-self.columns // self.panel)


def pack_function(symbol: str, source: PanelSource, target: Target) -> list[Function]:
    """``void @symbol(ptr panel, ptr matrix, i64 index, i64 inner)`` packs panel ``index``.

    ``panel`` is the address of that panel. The first function is the one to call; it calls one that
    all matrices of the same dtype and direction share, which takes the geometry at run time:
    packing is a small part of the time of a model, and would be a large part of its code.
    """
    # Panels narrower than a register are packed with narrower vectors (always powers of two).
    lanes = target.lanes(source.dtype)
    while source.panel % lanes:
        lanes //= 2
    by_rows = source.column_step == 1
    params = [("ptr", "panel"), ("ptr", "matrix"), ("i64", "index"), ("i64", "inner")]
    f = Function(symbol, params, attributes="noinline nounwind")
    size = source.dtype.itemsize
    at = f.emit(f"mul nsw i64 %index, {source.panel * source.column_step * size}")
    first = f.emit(f"getelementptr inbounds i8, ptr %matrix, i64 {at}")
    before = f.emit(f"mul nsw i64 %index, {source.panel}")
    left = f.emit(f"sub nsw i64 {source.columns}, {before}")
    width = f.call("i64", "llvm.smin.i64", ("i64", left), ("i64", str(source.panel)))
    geometry = (
        width, source.panel, "%inner", source.row_step if by_rows else source.column_step,
        source.outer, source.outer_step, source.outer_row, source.inner_row, source.first_row,
    )  # fmt: skip
    return [f, call_pack(f, "%panel", first, geometry, source.dtype, lanes, by_rows)]


_GEOMETRY = (
    "width", "pitch", "inner", "step", "outer", "outer_step", "outer_row", "inner_row", "first_row",
)  # fmt: skip


def call_pack(
    f: Function,
    panel: str,
    first: str,
    geometry: Sequence[Size],
    dtype: DType,
    lanes: int,
    by_rows: bool,
) -> Function:
    """Calls the function that packs a panel to the address ``panel``; returns that function.

    ``first`` is the address of the panel's first column in the source; ``geometry`` is what
    `_pack_panel` describes.
    """
    name = f"nw_pack_{'rows' if by_rows else 'columns'}_{dtype.short}x{lanes}"
    args = ", ".join([f"ptr {panel}", f"ptr {first}", *(f"i64 {g}" for g in geometry)])
    f.do(f"call void @{name}({args})")
    return _pack_panel(name, dtype, lanes, by_rows)


def _pack_panel(symbol: str, dtype: DType, lanes: int, by_rows: bool) -> Function:
    """``void @symbol(ptr panel, ptr first, i64 width, i64 pitch, ...)`` packs ``width`` columns.

    The geometry is that of `PanelSource`; ``pitch`` is the panel's width, ``step`` the step between
    rows of the source (``by_rows``: columns are neighbours) or between columns.
    """
    params = [("ptr noalias", "panel"), ("ptr noalias readonly", "first")]
    f = Function(symbol, [*params, *(("i64", g) for g in _GEOMETRY)], shared=True)
    e = VectorEmitter(f, lanes, dtype)
    with f.loop("%outer") as outer:
        step = f.emit(f"mul nsw i64 {outer.index}, %outer_step")
        block = f.element("%first", scalar_type(dtype), step)
        base = f.emit(f"mul nsw i64 {outer.index}, %outer_row")
        row0 = f.emit(f"add nsw i64 {base}, %first_row")
        (_copy_rows if by_rows else _transpose_rows)(e, dtype, block, row0)
    return f


def _scalar(source: PanelSource) -> str:
    return scalar_type(source.dtype)


def _row_address(e: VectorEmitter, dtype: DType, row0: str, r: str, column: str) -> str:
    """The address of a column in a row of the panel."""
    f = e.fn
    inner = f.emit(f"mul nsw i64 {r}, %inner_row")
    row = f.emit(f"add nsw i64 {row0}, {inner}")
    at = f.emit(f"add nsw i64 {f.emit(f'mul nsw i64 {row}, %pitch')}, {column}")
    return f.element("%panel", scalar_type(dtype), at)


def lanes_below(e: VectorEmitter, first: str, limit: str) -> str:
    """The mask of the lanes k with ``first + k < limit``."""
    f, kind = e.fn, f"<{e.lanes} x i64>"
    left = f.emit(f"sub nsw i64 {limit}, {first}")
    steps = "<" + ", ".join(f"i64 {k}" for k in range(e.lanes)) + ">"
    return f.emit(f"icmp slt {kind} {steps}, {f.splat(kind, left)}")


def _copy_rows(e: VectorEmitter, dtype: DType, block: str, row0: str) -> None:
    """Columns are neighbours: whole vectors are copied, groups of them without tests."""
    f, scalar = e.fn, scalar_type(dtype)
    group = e.lanes * (4 if e.lanes * dtype.itemsize == 64 else 2)
    ahead = f.emit(f"mul nsw i64 %step, {_ROWS_AHEAD}")
    in_groups = f.emit(f"sub nsw i64 %width, {group - 1}")
    with f.loop("%inner") as row:
        start = f.emit(f"mul nsw i64 {row.index}, %step")
        line = f.element(block, scalar, start)
        into = _row_address(e, dtype, row0, row.index, "0")
        with f.loop(in_groups, step=group) as many:
            for k in range(0, group, e.lanes):
                at = f.emit(f"add nsw i64 {many.index}, {k}")
                here = f.element(line, scalar, at)
                f.prefetch(f.element(here, scalar, ahead))
                e.store(e.load(here, dtype), f.element(into, scalar, at))
        with f.loop("%pitch", many.index, e.lanes) as column:
            here = f.element(line, scalar, column.index)
            f.prefetch(f.element(here, scalar, ahead))
            there = f.element(into, scalar, column.index)
            whole = f.emit(f"icmp sle i64 {f.emit(f'add i64 {column.index}, {e.lanes}')}, %width")
            with f.when(whole):
                e.store(e.load(here, dtype), there)
            with f.when(f.emit(f"xor i1 {whole}, true")):
                if e.lanes == 1:
                    e.store(e.constant(0.0, dtype), there)
                else:
                    mask = lanes_below(e, column.index, "%width")
                    e.store(e.load_masked(here, dtype, mask), there)


def _transpose_rows(e: VectorEmitter, dtype: DType, block: str, row0: str) -> None:
    """Rows are neighbours: squares of lanes x lanes elements are transposed in registers."""
    f, lanes, scalar = e.fn, e.lanes, scalar_type(dtype)
    with f.loop("%pitch", step=lanes) as column:
        start = f.emit(f"mul nsw i64 {column.index}, %step")
        here = f.element(block, scalar, start)
        after = f.emit(f"add nsw i64 {column.index}, {lanes}")
        fits = f.emit(f"icmp sle i64 {after}, %width")
        whole = f.emit(f"sub nsw i64 %inner, {lanes - 1}")
        stop = f.emit(f"select i1 {fits}, i64 {whole}, i64 0")
        with f.loop(stop, step=lanes) as row:
            square = f.element(here, scalar, row.index)
            rows = [e.load(_column(e, square, dtype, c), dtype) for c in range(lanes)]
            for k, value in enumerate(transpose(e, rows)):
                r = f.emit(f"add nsw i64 {row.index}, {k}")
                e.store(value, _row_address(e, dtype, row0, r, column.index))
        with f.loop("%inner", row.index, lanes) as part:
            square = f.element(here, scalar, part.index)
            _transpose_part(e, dtype, square, row0, part.index, column.index)


def _transpose_part(
    e: VectorEmitter, dtype: DType, here: str, row0: str, row: str, column: str
) -> None:
    """A square of which some rows or columns are outside of the matrix; columns become zeros.

    Nothing is read where a column is not: a masked load at an address without memory is as slow
    as a page fault that the processor handles itself.
    """
    f, lanes = e.fn, e.lanes
    if lanes == 1:
        e.store(e.constant(0.0, dtype), _row_address(e, dtype, row0, row, column))
        return
    inside, kind = lanes_below(e, row, "%inner"), f"<{lanes} x i1>"
    rows = []
    for c in range(lanes):
        exists = f.emit(f"icmp slt i64 {f.emit(f'add nsw i64 {column}, {c}')}, %width")
        mask = f.emit(f"select i1 {exists}, {kind} {inside}, {kind} zeroinitializer")
        address = f.emit(f"select i1 {exists}, ptr {_column(e, here, dtype, c)}, ptr %first")
        rows.append(e.load_masked(address, dtype, mask))
    for k, value in enumerate(transpose(e, rows)):
        r = f.emit(f"add nsw i64 {row}, {k}")
        with f.when(f.emit(f"icmp slt i64 {r}, %inner")):
            e.store(value, _row_address(e, dtype, row0, r, column))


def _column(e: VectorEmitter, here: str, dtype: DType, c: int) -> str:
    """The address ``c`` columns after ``here``."""
    if c == 0:
        return here
    return e.fn.element(here, scalar_type(dtype), e.fn.emit(f"mul nsw i64 %step, {c}"))


def transpose(e: VectorEmitter, rows: list[Lane]) -> list[Lane]:
    """Transposes a square of registers: log2(lanes) rounds that exchange blocks (Eklundh 1972)."""
    lanes, kind = e.lanes, e.type(rows[0].dtype)
    block = lanes // 2
    while block:
        low = ", ".join(f"i32 {k if not k & block else lanes + k - block}" for k in range(lanes))
        high = ", ".join(f"i32 {k + block if not k & block else lanes + k}" for k in range(lanes))
        result = list(rows)
        for i in range(lanes):
            if not i & block:
                pair = f"{kind} {rows[i].text}, {kind} {rows[i + block].text}"
                for at, order in ((i, low), (i + block, high)):
                    text = f"shufflevector {pair}, <{lanes} x i32> <{order}>"
                    result[at] = Lane(e.fn.emit(text), rows[i].dtype)
        rows = result
        block //= 2
    return rows


def matrix_source(
    dtype: DType, rows: int, columns: int, panel: int, transposed: bool
) -> PanelSource:
    """Panels of a (rows, columns) matrix, which is in memory as (columns, rows) if transposed."""
    steps = (1, rows) if transposed else (columns, 1)
    return PanelSource(dtype, columns, panel, rows, *steps)


def conv_source(w: TensorType, panel: int, flip: bool, groups: int) -> tuple[PanelSource, int, int]:
    """Panels of one group of an OIHW weight; its elements in the source; how many groups."""
    o, i, kh, kw = map(fixed, w.shape)
    taps = kh * kw
    depthwise = groups > 1 and i == 1 and o == groups
    if depthwise:
        step, first = (-1, taps - 1) if flip else (1, 0)
        source = PanelSource(w.dtype, o, panel, taps, 1, taps, inner_row=step, first_row=first)
        return source, 0, 1
    o //= groups
    if taps == 1:
        return (
            matrix_source(w.dtype, *((o, i, panel, False) if flip else (i, o, panel, True))),
            (o * i),
            groups,
        )
    if flip:
        # Row (kernel element, o), column i; the kernel elements in reverse order.
        source = PanelSource(w.dtype, i, panel, taps, 1, taps, o, i * taps, 1, -o, (taps - 1) * o)
    else:
        source = PanelSource(w.dtype, o, panel, taps, 1, i * taps, i, taps, 1, i)
    return source, o * i * taps, groups


def pack_matrix(b: TensorType, panel: int, transposed: bool, target: Target) -> Kernel | None:
    """The kernel of ``pack_matrix``: one task per panel."""
    rows, columns = b.shape[::-1] if transposed else b.shape
    if not isinstance(rows, int) or not isinstance(columns, int):
        return None
    source = matrix_source(b.dtype, rows, columns, panel, transposed)
    return _pack_kernel("pack_matrix", source, rows, 0, 1, target)


def pack_conv(w: TensorType, panel: int, flip: bool, groups: int, target: Target) -> Kernel | None:
    """The kernel of ``pack_conv``: one task per panel of each group."""
    if not is_fixed(w.shape):
        return None
    source, group_elements, blocks = conv_source(w, panel, flip, groups)
    rows = int(source.inner) * source.outer
    return _pack_kernel("pack_conv", source, rows, group_elements, blocks, target)


def _pack_kernel(
    prefix: str, source: PanelSource, rows: int, group_elements: int, blocks: int, target: Target
) -> Kernel:
    """A task is a panel of a group; few panels of plain matrices are cut into pieces."""
    symbol = symbol_for(prefix, source, group_elements, blocks, target)
    f = Function(symbol, kernel_params(1, 1))
    kind = _scalar(source)
    pieces, length = 1, rows
    if source.outer == 1 and source.inner_row == 1:
        wanted = -(-_EVEN // max(1, source.panels * blocks))
        length = max(1, -(-rows // (wanted * _SQUARE))) * _SQUARE  # also without any rows
        pieces = max(1, -(-rows // length))
    per_group = max(1, source.panels * pieces)
    with f.loop("%end", start="%begin") as task:
        group = quotient(f, task.index, per_group)
        place = remainder(f, task.index, per_group)
        index, piece = quotient(f, place, pieces), remainder(f, place, pieces)
        row = times(f, piece, length)
        count = least(f, minus(f, rows, row), length) if pieces > 1 else source.inner
        panel = plus(f, times(f, group, source.panels), index)
        into = plus(f, times(f, panel, rows * source.panel), times(f, row, source.panel))
        first = plus(f, times(f, group, group_elements), times(f, row, source.row_step))
        args = f"ptr {f.element('%out0', kind, into)}, ptr {f.element('%in0', kind, first)}"
        f.do(f"call void @{symbol}_panel({args}, i64 {index}, i64 {count})")
    parts = pack_function(f"{symbol}_panel", source, target)
    moved = (source.columns + source.panels * source.panel) * rows * blocks * source.dtype.itemsize
    return assembled([*parts, f], TaskCount(source.panels * pieces * blocks), bytes=moved)
