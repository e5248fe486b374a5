"""What a reduction accumulates: extrema, their indices, all and any.

The sums, whose order of addition matters, are in ``loops.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..ir.types import DType, uint8
from .emitter import Lane, VectorEmitter
from .loops import Lanes, Merge


@dataclass(frozen=True)
class Accumulator:
    """How partial results start, take one element, and merge."""

    init: Callable[[VectorEmitter], Lanes]
    step: Callable[[VectorEmitter, Lanes, Lane, Lane | None], Lanes]
    merge: Merge


def extremum(dtype: DType, largest: bool) -> Accumulator:
    """Maximum or minimum; NaN if there is one."""

    def merge(e: VectorEmitter, a: Lanes, b: Lanes) -> Lanes:
        return ((e.maximum if largest else e.minimum)(a[0], b[0]),)

    return Accumulator(
        init=lambda e: (e.constant(_worst(dtype, largest), dtype),),
        step=lambda e, acc, x, index: merge(e, (x,), acc),
        merge=merge,
    )


def _worst(dtype: DType, largest: bool) -> float:
    """What every element beats or equals: -inf or the smallest integer for a maximum."""
    if dtype.is_float:
        return -math.inf if largest else math.inf
    limits = np.iinfo(dtype.np)
    return int(limits.min if largest else limits.max)


def argument(dtype: DType, index: DType, largest: bool) -> Accumulator:
    """The best value and its index; the first of equals wins, and a NaN beats all numbers."""
    nowhere = int(np.iinfo(index.np).max)

    def beats(e: VectorEmitter, x: Lane, best: Lane) -> Lane:
        order = e.gt(x, best) if largest else e.lt(x, best)
        if not dtype.is_float:
            return order
        return e.logical_or(order, e.logical_and(e.isnan(x), e.logical_not(e.isnan(best))))

    def step(e: VectorEmitter, acc: Lanes, x: Lane, at: Lane | None) -> Lanes:
        best, where = acc
        take = beats(e, x, best)
        return e.select(take, x, best), where if at is None else e.select(take, at, where)

    def merge(e: VectorEmitter, a: Lanes, b: Lanes) -> Lanes:
        takes_b = beats(e, b[0], a[0])
        same = e.logical_not(e.logical_or(takes_b, beats(e, a[0], b[0])))
        take = e.logical_or(takes_b, e.logical_and(same, e.lt(b[1], a[1])))
        return e.select(take, b[0], a[0]), e.select(take, b[1], a[1])

    return Accumulator(
        init=lambda e: (e.constant(_worst(dtype, largest), dtype), e.constant(nowhere, index)),
        step=step,
        merge=merge,
    )


def quantifier(every: bool) -> Accumulator:
    """``all`` or ``any`` over bytes 0 and 1."""

    def merge(e: VectorEmitter, a: Lanes, b: Lanes) -> Lanes:
        return (e.op("and" if every else "or", a[0], b[0]),)

    return Accumulator(
        init=lambda e: (e.constant(every, uint8),),
        step=lambda e, acc, x, index: merge(e, (x,), acc),
        merge=merge,
    )
