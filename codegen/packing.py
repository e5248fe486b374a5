"""Packing weights into column panels, and choosing the width of the panels.

The formats are those of ``ir/ops/packing.py``: panels of ``panel`` columns, one row of the panel
after the other, the last panel filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ir.types import DType, TensorType
from .brgemm import register_rows, tail_mask
from .emitter import Lane, VectorEmitter
from .kernel import Kernel, TaskCount, assembled, symbol_for
from .target import Target
from .text import Function


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


def pack_function(
    symbol: str, source: PanelSource, target: Target, fixed: bool = False
) -> list[Function]:
    """``void @symbol(ptr panel, ptr source, i64 index, i64 inner)`` packs panel ``index``.

    ``panel`` is the address of that panel, ``source`` of the matrix. The first function is the one
    to call; the others are for full panels and for the last one. ``fixed`` says that ``inner`` is
    always that of ``source``.
    """
    count = source.panels
    rest = source.columns - (count - 1) * source.panel
    params = [("ptr", "panel"), ("ptr", "matrix"), ("i64", "index"), ("i64", "inner")]
    f = Function(symbol, params, attributes="noinline nounwind")
    at = f.emit(f"mul nsw i64 %index, {source.panel * source.column_step * source.dtype.itemsize}")
    first = f.emit(f"getelementptr inbounds i8, ptr %matrix, i64 {at}")
    parts = []
    if count > 1:
        parts.append((f"{symbol}_full", f"icmp slt i64 %index, {count - 1}", source.panel))
    parts.append((f"{symbol}_last", f"icmp eq i64 %index, {count - 1}", rest))
    functions = [f]
    for name, condition, width in parts:
        with f.when(f.emit(condition)):
            f.do(f"call void @{name}(ptr %panel, ptr {first}, i64 %inner)")
        functions.append(_pack_width(name, source, width, target, fixed))
    return functions


def _pack_width(
    symbol: str, source: PanelSource, width: int, target: Target, fixed: bool
) -> Function:
    """``void @symbol(ptr panel, ptr first, i64 inner)`` packs a panel with ``width`` columns."""
    params = [("ptr noalias", "panel"), ("ptr noalias readonly", "first"), ("i64", "inner")]
    f = Function(symbol, params, attributes="noinline nounwind")
    # Panels narrower than a register are packed with narrower vectors (always powers of two).
    lanes = target.lanes(source.dtype)
    while source.panel % lanes:
        lanes //= 2
    e = VectorEmitter(f, lanes, source.dtype)
    with f.loop(source.outer) as outer:
        step = f.emit(f"mul nsw i64 {outer.index}, {source.outer_step}")
        block = f.element("%first", e.type(source.dtype).split()[-1].rstrip(">"), step)
        base = f.emit(f"mul nsw i64 {outer.index}, {source.outer_row}")
        row0 = f.emit(f"add nsw i64 {base}, {source.first_row}")
        if source.column_step == 1:
            _copy_rows(e, source, width, block, row0)
        else:
            _transpose_rows(e, source, width, block, row0, fixed)
    return f


def _scalar(source: PanelSource) -> str:
    return "float" if source.dtype.itemsize == 4 else "double"


def _row_address(e: VectorEmitter, source: PanelSource, row0: str, r: str | int) -> str:
    """The address of a row of the panel."""
    f = e.fn
    inner = f.emit(f"mul nsw i64 {r}, {source.inner_row}")
    row = f.emit(f"add nsw i64 {row0}, {inner}")
    at = f.emit(f"mul nsw i64 {row}, {source.panel}")
    return f.element("%panel", _scalar(source), at)


def _offset(e: VectorEmitter, base: str, elements: int, dtype: DType) -> str:
    return e.fn.emit(f"getelementptr inbounds i8, ptr {base}, i64 {elements * dtype.itemsize}")


def _copy_rows(e: VectorEmitter, source: PanelSource, width: int, block: str, row0: str) -> None:
    """Columns are neighbours: whole vectors are copied."""
    f, dtype, lanes = e.fn, source.dtype, e.lanes
    with f.loop("%inner") as loop:
        start = f.emit(f"mul nsw i64 {loop.index}, {source.row_step}")
        here = f.element(block, _scalar(source), start)
        there = _row_address(e, source, row0, loop.index)
        for j in range(source.panel // lanes):
            at = _offset(e, here, j * lanes, dtype)
            value = _load_part(e, at, dtype, width - j * lanes)
            e.store(value, _offset(e, there, j * lanes, dtype))


def _load_part(e: VectorEmitter, address: str, dtype: DType, active: int | str) -> Lane:
    """The first ``active`` elements at an address and zeros; an i1 vector selects them, too."""
    if isinstance(active, int):
        if active <= 0:
            return e.constant(0.0, dtype)
        if active >= e.lanes:
            return e.load(address, dtype)
        active = tail_mask(e.lanes, active)
    return e.load_masked(address, dtype, active)


_StoreSquare = Callable[[str, "str | int", list[Lane]], None]


def _transpose_rows(
    e: VectorEmitter, source: PanelSource, width: int, block: str, row0: str, fixed: bool
) -> None:
    """Rows are neighbours: squares of lanes x lanes elements are transposed in registers."""
    f, dtype, lanes = e.fn, source.dtype, e.lanes
    if lanes == 1:
        with f.loop("%inner") as loop:
            here = f.element(block, _scalar(source), loop.index)
            there = _row_address(e, source, row0, loop.index)
            for c in range(source.panel):
                at = _offset(e, here, c * source.column_step, dtype)
                value = e.load(at, dtype) if c < width else e.constant(0.0, dtype)
                e.store(value, _offset(e, there, c, dtype))
        return
    whole, rest = divmod(width, lanes)

    def square(r: str, first: str | int, columns: int, mask: str | None) -> list[Lane]:
        """Rows r and following of the panel, its columns ``first`` and following."""
        step = f.emit(f"mul nsw i64 {first}, {source.column_step}")
        here = f.element(block, _scalar(source), f.emit(f"add nsw i64 {r}, {step}"))
        rows = []
        for c in range(lanes):
            at = _offset(e, here, c * source.column_step, dtype)
            inside: int | str = lanes if mask is None else mask
            rows.append(_load_part(e, at, dtype, inside if c < columns else 0))
        return transpose(e, rows)

    def pack(r: str, mask: str | None, store: _StoreSquare) -> None:
        if whole:
            with f.loop(whole * lanes, step=lanes) as columns:
                store(r, columns.index, square(r, columns.index, lanes, mask))
        if rest:
            store(r, whole * lanes, square(r, whole * lanes, rest, mask))
        for first in range(-(-width // lanes) * lanes, source.panel, lanes):
            store(r, first, [e.constant(0.0, dtype)] * lanes)

    def store_row(r: str, k: int, first: str | int, value: Lane) -> None:
        row = _row_address(e, source, row0, f.emit(f"add nsw i64 {r}, {k}"))
        e.store(value, f.element(row, _scalar(source), first))

    def store_all(r: str, first: str | int, values: list[Lane]) -> None:
        for k, value in enumerate(values):
            store_row(r, k, first, value)

    def store_left(r: str, first: str | int, values: list[Lane]) -> None:
        for k, value in enumerate(values):
            with f.when(f.emit(f"icmp sgt i64 {left}, {k}")):
                store_row(r, k, first, value)

    limit = f.emit(f"mul nsw i64 {f.emit(f'sdiv i64 %inner, {lanes}')}, {lanes}")
    left = f.emit(f"sub nsw i64 %inner, {limit}")
    with f.loop(limit, step=lanes) as loop:
        pack(loop.index, None, store_all)
    if fixed and int(source.inner) % lanes == 0:
        return
    with f.when(f.emit(f"icmp sgt i64 {left}, 0")):
        kind = f"<{lanes} x i64>"
        steps = "<" + ", ".join(f"i64 {k}" for k in range(lanes)) + ">"
        mask = f.emit(f"icmp slt {kind} {steps}, {f.splat(kind, left)}")
        pack(limit, mask, store_left)


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
    o, i, kh, kw = (int(d) for d in w.shape)  # type: ignore[arg-type]
    taps = kh * kw
    depthwise = groups > 1 and i == 1 and o == groups
    if depthwise:
        step, first = (-1, taps - 1) if flip else (1, 0)
        source = PanelSource(
            w.dtype, o, panel, taps, 1, taps, inner_row=step, first_row=first
        )
        return source, 0, 1
    o //= groups
    if taps == 1:
        return matrix_source(w.dtype, *((o, i, panel, False) if flip else (i, o, panel, True))), (
            o * i
        ), groups
    if flip:
        # Row (kernel element, o), column i; the kernel elements in reverse order.
        source = PanelSource(
            w.dtype, i, panel, taps, 1, taps, o, i * taps, 1, -o, (taps - 1) * o
        )
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
    if not all(isinstance(d, int) for d in w.shape):
        return None
    source, group_elements, blocks = conv_source(w, panel, flip, groups)
    rows = int(source.inner) * source.outer
    return _pack_kernel("pack_conv", source, rows, group_elements, blocks, target)


def _pack_kernel(
    prefix: str, source: PanelSource, rows: int, group_elements: int, blocks: int, target: Target
) -> Kernel:
    symbol = symbol_for(prefix, source, group_elements, blocks, target)
    params = [("ptr", "out0"), ("ptr", "in0"), ("ptr", "scratch"), ("ptr", "status")]
    params += [("i64", "N"), ("i64", "begin"), ("i64", "end")]
    f = Function(symbol, params)
    kind = _scalar(source)
    with f.loop("%end", start="%begin") as task:
        group = f.emit(f"sdiv i64 {task.index}, {source.panels}")
        index = f.emit(f"srem i64 {task.index}, {source.panels}")
        at = f.emit(f"mul nsw i64 {task.index}, {rows * source.panel}")
        panel = f.element("%out0", kind, at)
        matrix = f.element("%in0", kind, f.emit(f"mul nsw i64 {group}, {group_elements}"))
        args = f"ptr {panel}, ptr {matrix}, i64 {index}, i64 {source.inner}"
        f.do(f"call void @{symbol}_panel({args})")
    parts = pack_function(f"{symbol}_panel", source, target, fixed=True)
    moved = (source.columns + source.panels * source.panel) * rows * blocks * source.dtype.itemsize
    return assembled(
        [*parts, f],
        TaskCount(source.panels * blocks),
        bytes=moved,
    )
