"""i64 arithmetic in emitted code: a size is a number, or the SSA name of a value."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.types import Dim, Extent
from .text import Function

Size = str | int


def extent(f: Function, size: Extent) -> Size:
    """An extent as a number or as the i64 that holds it."""
    return times(f, "%N", size.coef) if isinstance(size, Dim) else size


def plus(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0 or b == 0:
        return b if a == 0 else a
    return fn.emit(f"add nsw i64 {a}, {b}")


def minus(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else fn.emit(f"sub nsw i64 {a}, {b}")


def times(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if a == 1 or b == 1:
        return b if a == 1 else a
    if a == 0 or b == 0:
        return 0
    return fn.emit(f"mul nsw i64 {a}, {b}")


def quotient(fn: Function, a: Size, b: Size) -> Size:
    """Floor of ``a / b`` for a >= 0, b > 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    return a if b == 1 else fn.emit(f"udiv i64 {a}, {b}")


def remainder(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    return 0 if b == 1 else fn.emit(f"urem i64 {a}, {b}")


def least(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return fn.call("i64", "llvm.smin.i64", ("i64", str(a)), ("i64", str(b)))


def greatest(fn: Function, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return fn.call("i64", "llvm.smax.i64", ("i64", str(a)), ("i64", str(b)))


def unravel(fn: Function, index: Size, extents: Sequence[Size]) -> list[Size]:
    """The row-major coordinates of a linear index."""
    coordinates: list[Size] = []
    for extent in reversed(extents[1:]):
        coordinates.append(remainder(fn, index, extent))
        index = quotient(fn, index, extent)
    return [index, *reversed(coordinates)] if extents else []
