"""The work of a matrix product, while its kernel is emitted: its parts, and how it is divided.

Sizes are SSA values.
"""

from __future__ import annotations

from dataclasses import dataclass

from .gemm_blocking import Blocking
from .sizes import Size, greatest, least, minus, plus, quotient, remainder, times
from .text import Function


@dataclass(frozen=True)
class Line:
    """Units [first, stop) of the work; how many units of rows there are; the extents m and k."""

    first: Size
    stop: Size
    units: Size
    m: Size
    k: Size


@dataclass(frozen=True)
class Run:
    """Rows [row, end) of a block of A at ``a``, whose row 0 is row ``base`` of the result, and a
    panel of the matrix B at ``b``. What is packed after that panel begins at ``later``, if that is
    to be asked for."""

    a: str
    b: str
    base: Size
    row: Size
    end: Size
    panel: Size
    later: str = ""


@dataclass(frozen=True)
class Chunk:
    """``rows`` rows from row ``top`` of product ``item`` on, and some panels from ``first`` on."""

    item: Size
    line: Line
    top: Size
    rows: Size
    first: Size


@dataclass(frozen=True)
class Following:
    """The panel after one, if the condition ``there`` says that there is one."""

    panel: Size
    there: str


def unit_at(f: Function, blocking: Blocking, cost: Size, units: Size) -> Size:
    """The unit up to which the line costs ``cost``, so that ranges of tasks cost the same: the
    units of a narrow last panel cost less than the others. ``units`` are those of rows."""
    panels = blocking.spec.panels
    wide, last = blocking.panel_vectors
    if wide == last or panels == 1:
        return quotient(f, cost, last)
    per_row = blocking.row_cost
    per_item = greatest(f, times(f, units, per_row), 1)  # without rows there is no cost either
    item, left = quotient(f, cost, per_item), remainder(f, cost, per_item)
    block = quotient(f, left, blocking.row_block * per_row)
    top = times(f, block, blocking.row_block)
    inside = minus(f, left, times(f, top, per_row))
    height = least(f, minus(f, units, top), blocking.row_block)
    of_wide = times(f, height, panels - 1)
    narrow = minus(f, inside, times(f, of_wide, wide))
    # Before the last panel ``narrow`` is negative, and the second term 0.
    narrow = greatest(f, narrow, 0)
    found = plus(f, least(f, quotient(f, inside, wide), of_wide), quotient(f, narrow, last))
    start = plus(f, times(f, item, units), top)
    return plus(f, times(f, start, panels), found)
