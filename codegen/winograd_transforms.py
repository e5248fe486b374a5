"""Winograd's transforms in vector code: constant matrices times squares of lanes.

A transform is the product ``down X across^T`` of a square X, whose elements are vectors of
channels, with two constant matrices of small numbers. Sums that several rows share are computed
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .emitter import Lane, VectorEmitter

Matrix = Sequence[Sequence[float]]

# Registers of a transform besides the half-transformed tile.
_TEMPORARIES = 10


def row_groups(matrix: Matrix, size: int, registers: int) -> list[range]:
    """The rows of ``matrix`` that are applied together: all, if their products with a square of
    ``size`` rows fit the registers, or a few at a time, which loads the square more than once.

    Each group needs a function of its own: in one, LLVM would keep what two groups load.
    """
    if len(matrix) * size + _TEMPORARIES <= registers:
        return [range(len(matrix))]
    return _pairs(matrix)


def transform_2d(
    e: VectorEmitter,
    down: Matrix,
    across: Matrix,
    rows: range,
    load: Callable[[int, int], Lane],
    store: Callable[[int, list[Lane]], None],
) -> None:
    """Stores some ``rows`` of ``down X across^T``."""
    size = len(down[0])
    some = [down[r] for r in rows]
    columns = [_column(e, some, [partial(load, r, c) for r in range(size)]) for c in range(size)]
    for k, r in enumerate(rows):
        store(r, _transform(e, across, [column[k] for column in columns]))


def _column(e: VectorEmitter, rows: Matrix, loads: Sequence[Callable[[], Lane]]) -> list[Lane]:
    """The product of ``rows`` and one column, of which only what is needed is loaded."""
    used = [k for k in range(len(loads)) if any(row[k] for row in rows)]
    return _transform(e, [[row[k] for k in used] for row in rows], [loads[k]() for k in used])


def _pairs(matrix: Matrix) -> list[range]:
    """The rows in order, with those together that share their sums (``_even_and_odd``)."""
    found, r = [], 0
    while r < len(matrix):
        both = r + 1 < len(matrix) and _even_and_odd(matrix[r], matrix[r + 1]) is not None
        found.append(range(r, r + 1 + both))
        r += 1 + both
    return found


def _transform(e: VectorEmitter, matrix: Matrix, values: Sequence[Lane]) -> list[Lane]:
    """The product of a constant matrix and a vector of lanes."""
    matrix, values = _butterflies(e, matrix, values)
    results: list[Lane] = []
    for rows in _pairs(matrix):
        parts: list[Sequence[float]] = [matrix[rows[0]]]
        if len(rows) == 2:
            parts = [*(_even_and_odd(*(matrix[r] for r in rows)) or ())]
        sums = [_combination(e, part, values) for part in parts]
        results += [e.add(*sums), e.sub(*sums)] if len(sums) == 2 else sums
    return results


def _butterflies(
    e: VectorEmitter, matrix: Matrix, values: Sequence[Lane]
) -> tuple[list[list[float]], list[Lane]]:
    """The same product with sums and differences of neighbouring values, where every row has
    either the sum or the difference of the two."""
    rows, result = [list(row) for row in matrix], list(values)
    for k in range(1, len(values) - 1, 2):
        pairs = [(row[k], row[k + 1]) for row in rows]
        plain = all(abs(a) == abs(b) for a, b in pairs)
        if plain and {a == b for a, b in pairs if a} == {True, False}:
            both = result[k], result[k + 1]
            result[k : k + 2] = [e.add(*both), e.sub(*both)]
            for row, (a, b) in zip(rows, pairs, strict=True):
                row[k : k + 2] = [a, 0] if a == b else [0, a]
    return rows, result


def _even_and_odd(
    a: Sequence[float], b: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]] | None:
    """p and q with a = p + q and b = p - q, if they share no value and neither is zero."""
    if any(abs(x) != abs(y) for x, y in zip(a, b, strict=True)):
        return None
    even = [x if x == y else 0 for x, y in zip(a, b, strict=True)]
    odd = [0 if x == y else x for x, y in zip(a, b, strict=True)]
    return (even, odd) if any(even) and any(odd) else None


def _combination(e: VectorEmitter, row: Sequence[float], values: Sequence[Lane]) -> Lane:
    """A sum of multiples; the terms that need no product come first."""
    terms = [(c, v) for c, v in zip(row, values, strict=True) if c]
    terms.sort(key=lambda term: (abs(term[0]) != 1, term[0] < 0))
    factor, total = terms[0]
    if factor != 1:
        total = e.mul(e.const(factor, total), total)
    for factor, value in terms[1:]:
        if factor == 1:
            total = e.add(total, value)
        elif factor == -1:
            total = e.sub(total, value)
        else:
            total = e.fma(e.const(factor, value), value, total)
    return total
