"""How the rows of a weight's gradient are divided among register tiles and threads.

A row is one (input channel, kernel row, kernel column) of one group, in this order: that of the
weight. A unit is a run of neighbouring rows that one thread computes and writes:

- some channels with all their kernel elements, one tile per element. The rows of a tile are
  neighbours in the images, so tiles of one height are all the same code;
- where there are too few channels for a tile, any rows, in one tile; or, if these would be too many
  different tiles, rows of one kernel row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from .image import WeightGradient, even_chunks
from .target import Target
from .tile import register_rows

# Multiply-adds of all tiles that differ, unrolled four times.
_TILES = 400
# Accumulators that hide the latency of multiply-add; where there are more in a tile than that, and
# few tiles, tiles are cut so that there are units for ...
_ENOUGH_SUMS = 12
# ... this many threads.
_THREADS = 4


@dataclass(frozen=True)
class Units:
    """The units of one group. Tile t of a unit has every ``tiles``-th of its rows from t on.

    starts, heights: first row and number of rows of each unit; kinds: which of the ``patterns`` its
    tiles have, the offsets of a tile's rows in the input from its first; origins: where the first
    row of each tile of each unit is in the input.
    """

    tiles: int
    starts: tuple[int, ...]
    heights: tuple[int, ...]
    kinds: tuple[int, ...]
    patterns: tuple[tuple[int, ...], ...]
    origins: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.starts)

    @property
    def most_rows(self) -> int:
        return max(self.heights)


@dataclass(frozen=True)
class Source:
    """Where the input is in memory, in elements: steps from row to row and from column to column of
    an image; channels that are neighbours, and the step from one such part to the next."""

    row: int
    column: int
    channels: int
    part: int


def plan_units(
    spec: WeightGradient, source: Source, panel: int, target: Target, shared: bool = True
) -> Units:
    """The units for panels of output channels of this width; ``shared`` by threads, or all of them
    for one."""
    vectors = panel // target.lanes(spec.dtype)
    tallest = register_rows(target)[vectors]
    # So many panels that no tile is cut for the threads' sake.
    panels = spec.groups * -(-spec.group_outputs // panel) if shared else _THREADS
    channels, (kernel_rows, kernel_columns) = spec.group_inputs, spec.kernel
    across = [kw * spec.dilation[1] * source.column for kw in range(kernel_columns)]
    taps = [kh * spec.dilation[0] * source.row + at for kh in range(kernel_rows) for at in across]
    count = channels * len(taps)
    if channels < tallest and count * vectors * 4 <= _TILES:
        offsets = [i + tap for i in range(channels) for tap in taps]
        return _units(offsets, _chunks(count, tallest, vectors, panels))
    if channels < min(tallest, kernel_columns):
        offsets = [i + tap for i in range(channels) for tap in taps]
        heights = even_chunks(kernel_columns, tallest) * (channels * kernel_rows)
        return _units(offsets, heights)
    parts = -(-channels // source.channels)
    in_part = _chunks(min(channels, source.channels), tallest, vectors, panels * parts)
    units = _units([k * source.part + i for k in range(parts) for i in range(sum(in_part))],
                   in_part * parts)  # fmt: skip
    return replace(
        units,
        tiles=len(taps),
        starts=tuple(a * len(taps) for a in units.starts),
        heights=tuple(h * len(taps) for h in units.heights),
        origins=tuple(a + tap for a in units.origins for tap in taps),
    )


def _chunks(count: int, tallest: int, vectors: int, panels: int) -> list[int]:
    """Heights of tiles: the tallest, or lower ones so that several threads have some."""
    least = -(-_ENOUGH_SUMS // vectors)
    wanted = -(-count * panels // _THREADS)
    return even_chunks(count, min(tallest, max(least, wanted)))


def _units(offsets: Sequence[int], heights: Sequence[int]) -> Units:
    """Units of one tile each, for rows with these offsets in the input."""
    starts = tuple(accumulate(heights, initial=0))[:-1]
    rows = [offsets[a : a + h] for a, h in zip(starts, heights, strict=True)]
    patterns = [tuple(o - r[0] for o in r) for r in rows]
    different = tuple(dict.fromkeys(patterns))
    kinds = tuple(different.index(p) for p in patterns)
    return Units(1, starts, tuple(heights), kinds, different, tuple(r[0] for r in rows))
