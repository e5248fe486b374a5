"""Values that are views: what reshapes, permutes and slices show of another value.

    %a: f32[N,6,8] = reshape(%x) {shape=(N,6,8)}
    %b: f32[N,8,6] = permute(%a) {dims=(0,2,1)}

Element (n, i, j) of %b is element 48 n + i + 8 j of %x: the view has the strides (48, 1, 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import ShapeError
from ..ir.graph import Graph, Node, Value
from ..ir.types import Dim, Extent, Shape, numel

VIEW_OPS = ("reshape", "permute", "slice")


@dataclass(frozen=True)
class View:
    """Elements ``start`` + index * strides of the row-major value ``base``, in elements.

    ``moved``: a permute or slice is on the way, so that the view saves a copy.
    """

    base: Value
    shape: Shape
    strides: tuple[Extent, ...]
    start: int = 0
    moved: bool = False


def views(graph: Graph, value: Value) -> Iterator[View]:
    """``value`` as a view of each value above it, the furthest first, at last of itself."""
    chain = [graph.node(value)]
    while chain[-1].op in VIEW_OPS:
        chain.append(graph.node(chain[-1].operands[0]))
    nodes = chain[:-1][::-1]
    for i in range(len(nodes) + 1):
        base = nodes[i].operands[0] if i < len(nodes) else value
        view: View | None = View(base, graph.type(base).shape, dense(graph.type(base).shape))
        for node in nodes[i:]:
            view = through(node, view) if view is not None else None
        if view is not None:
            yield view


def dense(shape: Shape) -> tuple[Extent, ...]:
    """The strides of a row-major value; ShapeError for N * N."""
    return tuple(numel(shape[i + 1 :]) for i in range(len(shape)))


def is_dense(view: View, size: Extent) -> bool:
    """Whether a view is all of its base (of ``size`` elements) in the base's order."""
    wanted = dense(view.shape)
    return (
        view.start == 0
        and numel(view.shape) == size
        and all(d == 1 or s == w for d, s, w in zip(view.shape, view.strides, wanted, strict=True))
    )


def through(node: Node, view: View) -> View | None:
    """The result of a node whose operand is ``view``; None if it is no view."""
    if node.op == "permute":
        dims = node.attrs["dims"]
        shape = tuple(view.shape[d] for d in dims)
        return View(view.base, shape, tuple(view.strides[d] for d in dims), view.start, True)
    if node.op == "reshape":
        found = _reshaped(view.shape, view.strides, node.type.shape)
        if found is None:
            return None
        return View(view.base, node.type.shape, found, view.start, view.moved)
    dim, start, step = node.attrs["dim"], node.attrs["start"], node.attrs.get("step", 1)
    stride = view.strides[dim]
    if isinstance(start, Dim) or (start and isinstance(stride, Dim)):
        return None
    first = view.start + (start * stride if isinstance(stride, int) else 0)
    strides = (*view.strides[:dim], stride * step, *view.strides[dim + 1 :])
    return View(view.base, node.type.shape, strides, first, True)


def _reshaped(shape: Shape, strides: Sequence[Extent], wanted: Shape) -> tuple[Extent, ...] | None:
    """Strides of a view seen in another shape, or None if that takes a copy.

    Neighbouring dimensions that are evenly spaced are one; each such group has to hold a group of
    the new dimensions exactly.
    """
    if numel(shape) == 0:
        return None
    groups: list[tuple[Extent, Extent]] = []  # (extent, stride)
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if groups and groups[-1][1] == _product(extent, stride):
            groups[-1] = (_product(groups[-1][0], extent), stride)
        else:
            groups.append((extent, stride))
    found: list[Extent] = []
    left = list(groups)
    rest: Extent = 1  # elements of the group that the dimensions so far leave
    for extent in wanted:
        if extent == 1:
            found.append(0)
            continue
        if rest == 1:
            if not left:
                return None
            rest, stride = left.pop(0)
        quotient = _quotient(rest, extent)
        if quotient is None:
            return None
        rest = quotient
        found.append(_product(rest, stride))
    return tuple(found) if rest == 1 and not left else None


def _product(a: Extent, b: Extent) -> Extent:
    """``a * b``; -1, which equals no extent or stride, for N * N."""
    if isinstance(a, Dim) and isinstance(b, Dim):
        return -1
    return b * a if isinstance(b, Dim) else a * b


def _quotient(a: Extent, b: Extent) -> Extent | None:
    try:
        if isinstance(a, int) and isinstance(b, int):
            return a // b if a % b == 0 else None
        return a // b if isinstance(a, Dim) else None
    except ShapeError:
        return None
