"""Iteration spaces: row-major loops over a shape, with neighbouring dimensions merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError
from ..ir.types import Dim, Extent, Shape, TensorType


@dataclass(frozen=True)
class Axis:
    """One loop: its extent, and per operand how many elements one step moves."""

    extent: Extent
    strides: tuple[Extent, ...]


def iteration_space(
    results: Sequence[TensorType],
    operands: Sequence[TensorType],
    skip: frozenset[int] = frozenset(),
) -> list[Axis]:
    """Loops over the results, outermost first, with as many dimensions merged as possible.

    Results have one shape; the innermost loop of several is not longer than their rows if these are
    parts of wider ones. Operands are broadcast to it; those in ``skip`` are not indexed. The
    innermost strides are 0 or 1, or the pitch of an operand with one column. There is always at
    least one loop.
    """
    shape = results[0].shape
    strides = [
        (0,) * len(shape) if i in skip else broadcast_strides(t.shape, shape, t.pitch)
        for i, t in enumerate(operands)
    ]
    places = [broadcast_strides(t.shape, shape, t.pitch) for t in results]
    return [Axis(a.extent, a.strides[: len(operands)]) for a in merged(shape, [*strides, *places])]


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


def broadcast_strides(shape: Shape, to: Shape, pitch: Extent | None = None) -> tuple[Extent, ...]:
    """Element strides of a row-major array of ``shape`` seen as ``to`` (0 where it repeats); its
    rows are ``pitch`` elements apart, if that is not their length."""
    out: list[Extent] = [0] * len(to)
    step: Extent = 1
    for i in range(1, len(shape) + 1):
        extent = shape[-i]
        if extent != 1:
            out[-i] = step
        step = pitch if i == 1 and pitch is not None else times(step, extent)
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
