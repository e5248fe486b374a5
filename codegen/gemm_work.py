"""Parts of the work of a matrix product, while its kernel is emitted: sizes are SSA values."""

from __future__ import annotations

from dataclasses import dataclass

from .sizes import Size


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
