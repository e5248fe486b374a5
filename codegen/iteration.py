"""Iteration spaces: row-major loops over a shape, with neighbouring dimensions merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..ir.types import Dim, Extent, Shape


@dataclass(frozen=True)
class Axis:
    """One loop: its extent, and per operand how many elements one step moves."""

    extent: Extent
    strides: tuple[Extent, ...]


def iteration_space(
    shape: Shape, operands: Sequence[Shape], skip: frozenset[int] = frozenset()
) -> list[Axis]:
    """Loops over ``shape``, outermost first, with as many dimensions merged as possible.

    Operands are row-major and broadcast to ``shape``; those in ``skip`` are not indexed. The
    innermost strides are 0 or 1. There is always at least one loop.
    """
    strides = [
        (0,) * len(shape) if i in skip else broadcast_strides(s, shape)
        for i, s in enumerate(operands)
    ]
    return merged(shape, strides)


def merged(shape: Shape, strides: Sequence[tuple[Extent, ...]]) -> list[Axis]:
    """Loops over ``shape`` for operands of the given element strides, as few as possible."""
    axes: list[Axis] = []
    for d in reversed(range(len(shape))):
        if shape[d] == 1:
            continue
        axis = Axis(shape[d], tuple(s[d] for s in strides))
        both = _merge(axis, axes[-1]) if axes else None
        if both is not None:
            axes[-1] = both
        else:
            axes.append(axis)
    return axes[::-1] or [Axis(1, (0,) * len(strides))]


def broadcast_strides(shape: Shape, to: Shape) -> tuple[Extent, ...]:
    """Element strides of a row-major array of ``shape`` seen as ``to`` (0 where it repeats)."""
    out: list[Extent] = [0] * len(to)
    step: Extent = 1
    for i in range(1, len(shape) + 1):
        extent = shape[-i]
        if extent != 1:
            out[-i] = step
        step = times(step, extent)
    return tuple(out)


def times(a: Extent, b: Extent) -> Extent:
    """The product; UnsupportedError for N * N, which is no extent."""
    if isinstance(a, Dim) and isinstance(b, Dim):
        raise UnsupportedError(f"an extent of {a} x {b} is not a multiple of the batch")
    if a == 0 or b == 0:
        return 0
    return b * a if isinstance(b, Dim) else a * b


def total(extents: Sequence[Extent]) -> Extent:
    """The sum; next to multiples of the batch, plain numbers (parameters) are left out."""
    multiples = [x.coef for x in extents if isinstance(x, Dim)]
    if multiples:
        return Dim(sum(multiples))
    return sum(x for x in extents if isinstance(x, int))


def _merge(outer: Axis, inner: Axis) -> Axis | None:
    """One loop over both, if every operand steps evenly through them."""
    try:
        extent = times(outer.extent, inner.extent)
        steps = tuple(times(s, inner.extent) for s in inner.strides)
    except UnsupportedError:
        return None
    return Axis(extent, inner.strides) if steps == outer.strides else None
