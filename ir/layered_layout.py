"""Places the boxes of an acyclic drawing in layers and routes the edges between them.

The method of K. Sugiyama, S. Tagawa and M. Toda, "Methods for visual understanding of hierarchical
system structures" (IEEE Trans. SMC 11, 1981): layers by longest path, order within a layer by
barycentres, then coordinates that are as close as the order allows to those of the neighbours.
Everything is deterministic.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP_X = 24.0
GAP_Y = 40.0
_ORDER_SWEEPS = 12
_PLACE_SWEEPS = 16
_STRAIGHT = 4.0
"""How much more a bend in a long edge weighs than a box that is not centred."""

Point = tuple[float, float]


@dataclass
class Layout:
    """Top left corners of the boxes; per edge its path through the layers; the drawing's size.

    A path is a list of vertical pieces, (x, top, bottom), from the lower side of the first box to
    the upper side of the second; between two pieces the edge bends.
    """

    corners: list[Point]
    paths: list[list[tuple[float, float, float]]]
    width: float
    height: float


@dataclass
class _Items:
    """Boxes, and after them one item for every layer that a long edge crosses."""

    widths: list[float]
    rank: list[int]
    above: list[list[int]] = field(default_factory=list)
    below: list[list[int]] = field(default_factory=list)

    def add_edge(self, a: int, b: int) -> list[int]:
        """Connects two boxes through new items; returns the chain."""
        chain = [a]
        for rank in range(self.rank[a] + 1, self.rank[b]):
            chain.append(len(self.widths))
            self.widths.append(0.0)
            self.rank.append(rank)
            self.above.append([])
            self.below.append([])
        chain.append(b)
        for upper, lower in pairwise(chain):
            self.below[upper].append(lower)
            self.above[lower].append(upper)
        return chain


def layered(
    sizes: Sequence[Point], edges: Sequence[tuple[int, int]], late: set[int] | None = None
) -> Layout:
    """The layout of boxes of these sizes (width, height); an edge (a, b) needs a < b.

    Boxes in ``late`` are placed just above their first user instead of as high as possible.
    """
    count = len(sizes)
    ranks = _ranks(count, edges, late or set())
    items = _Items(
        [w for w, _ in sizes], ranks, [[] for _ in range(count)], [[] for _ in range(count)]
    )
    chains = [items.add_edge(a, b) for a, b in edges]
    layers = _ordered(items)
    xs = _placed(items, layers)
    tops, bottoms, y = [], [], 0.0
    for layer in layers:
        tops.append(y)
        bottoms.append(y + max((sizes[i][1] for i in layer if i < count), default=0.0))
        y = bottoms[-1] + GAP_Y
    corners = [(xs[i] - sizes[i][0] / 2, tops[ranks[i]]) for i in range(count)]
    paths = [_path(chain, sizes, xs, items, tops, bottoms) for chain in chains]
    width = max((corners[i][0] + sizes[i][0] for i in range(count)), default=0.0)
    width = max([width, *(x for path in paths for x, _, _ in path)])
    return Layout(corners, paths, width, max(y - GAP_Y, 0.0))


def _ranks(count: int, edges: Sequence[tuple[int, int]], late: set[int]) -> list[int]:
    ranks = [0] * count
    for a, b in sorted(edges, key=lambda e: e[1]):
        ranks[b] = max(ranks[b], ranks[a] + 1)
    users: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        users[a].append(b)
    for i in sorted(late, reverse=True):
        if users[i]:
            ranks[i] = min(ranks[b] for b in users[i]) - 1
    return ranks


def _ordered(items: _Items) -> list[list[int]]:
    """The items of each layer from left to right, with few crossings."""
    layers: list[list[int]] = [[] for _ in range(max(items.rank, default=-1) + 1)]
    for item, rank in enumerate(items.rank):
        layers[rank].append(item)
    best, fewest = [list(layer) for layer in layers], _crossings(items, layers)
    for sweep in range(_ORDER_SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        neighbours = items.above if down else items.below
        for r in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            place = {item: i for i, item in enumerate(layers[r - 1 if down else r + 1])}
            keys = {
                item: _mean([place[v] for v in neighbours[item]], i)
                for i, item in enumerate(layers[r])
            }
            layers[r].sort(key=keys.__getitem__)
        found = _crossings(items, layers)
        if found < fewest:
            best, fewest = [list(layer) for layer in layers], found
    return best


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _crossings(items: _Items, layers: list[list[int]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        place = {item: i for i, item in enumerate(lower)}
        passed: list[int] = []
        for item in upper:
            ends = sorted(place[v] for v in items.below[item])
            total += sum(len(passed) - bisect(passed, end) for end in ends)
            for end in ends:
                insort(passed, end)
    return total


def _placed(items: _Items, layers: list[list[int]]) -> list[float]:
    """Centres of the items, at least 0 on the left."""
    xs = [0.0] * len(items.widths)
    for layer in layers:
        for i, item in enumerate(layer[1:], 1):
            xs[item] = xs[layer[i - 1]] + _distance(items, layer[i - 1], item)
    for sweep in range(_PLACE_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wanted, weights = [], []
            for item in layer:
                near = items.above[item] if down else items.below[item]
                wanted.append(_mean([xs[v] for v in near], xs[item]))
                weights.append(1.0 if items.widths[item] else _STRAIGHT)
            for item, x in zip(layer, _spread(items, layer, wanted, weights), strict=True):
                xs[item] = x
    left = min((x - w / 2 for x, w in zip(xs, items.widths, strict=True)), default=0.0)
    return [x - left for x in xs]


def _distance(items: _Items, a: int, b: int) -> float:
    gap = GAP_X if items.widths[a] or items.widths[b] else GAP_X / 2
    return (items.widths[a] + items.widths[b]) / 2 + gap


def _spread(
    items: _Items, layer: list[int], wanted: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Positions in order and without overlap, as close to ``wanted`` as possible (least squares).

    With the distances taken off, this is isotonic regression: pool adjacent violators.
    """
    offsets = [0.0]
    for a, b in pairwise(layer):
        offsets.append(offsets[-1] + _distance(items, a, b))
    blocks: list[tuple[float, float, int]] = []  # mean, weight, number of items
    for target, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, total, size = target - offset, weight, 1
        while blocks and blocks[-1][0] > mean:
            other, other_total, other_size = blocks.pop()
            mean = (mean * total + other * other_total) / (total + other_total)
            total, size = total + other_total, size + other_size
        blocks.append((mean, total, size))
    means = [mean for mean, _, size in blocks for _ in range(size)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _path(
    chain: list[int],
    sizes: Sequence[Point],
    xs: list[float],
    items: _Items,
    tops: list[float],
    bottoms: list[float],
) -> list[tuple[float, float, float]]:
    first, last = chain[0], chain[-1]
    rank = items.rank[first]
    pieces = [(xs[first], tops[rank] + sizes[first][1], bottoms[rank])]
    for item in chain[1:-1]:
        pieces.append((xs[item], tops[items.rank[item]], bottoms[items.rank[item]]))
    pieces.append((xs[last], tops[items.rank[last]], tops[items.rank[last]]))
    return pieces
