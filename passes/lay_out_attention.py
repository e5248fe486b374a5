"""Lets attention read and write heads where they are: as columns of a projection.

Before::

    %p: f32[N,197,2304] = linear(%x, %w, %b)
    %q: f32[N,197,768] = slice(%p) {dim=2, start=0, stop=768, step=1}
    %r: f32[N,197,12,64] = reshape(%q) {shape=(N,197,12,64)}
    %h: f32[N,12,197,64] = permute(%r) {dims=(0,2,1,3)}
    ...
    %a: f32[N,12,197,64] = attention(%h, %i, %j) {starts=(0,0,0), merged=False, ...}
    %y: f32[N,197,12,64] = permute(%a) {dims=(0,2,1,3)}
    %z: f32[N,197,768] = reshape(%y) {shape=(N,197,768)}

After (and ``simplify``)::

    %p: f32[N,197,2304] = linear(%x, %w, %b)
    %a: f32[N,197,768] = attention(%p, %p, %p) {starts=(0,768,1536), merged=True, ...}

Any chain of reshapes, permutes and slices counts whose result is a view with the elements of a head
next to each other, the heads one after the other, and rows that are evenly spaced over the batch.
Each operand is judged alone. Code Y201.

Skips: operands that are no such view (rows before the batch, for instance); a result that anything
but one permutation to (batch, rows, heads, dim) reads.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.ops.attention import SPLIT_HEADS
from ..ir.types import Extent, Shape, numel
from .rewriting import Ledger, add_like, rebuild
from .views import View, views

NAME = "lay_out_attention"
_OPERANDS = {"attention": 3, "attention_weights": 2}


def lay_out_attention(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with the operands and results of attention where they need no copy."""

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        count = _OPERANDS.get(node.op, 0)
        starts = list(node.attrs["starts"]) if count else []
        found = list(operands)
        for i in range(count):
            view = _columns(new, operands[i])
            if view is not None:
                base, shape, starts[i] = view
                found[i] = new.add(
                    "reshape", base, name=f"{node.name}_rows", source=node.source, shape=shape
                )
        merges = node.op == "attention" and not node.attrs["merged"] and _is_merged(graph, node)
        if found == operands and not merges:
            return None
        attrs = {**node.attrs, "starts": tuple(starts)}
        if merges:
            attrs["merged"] = True
        result = add_like(new, node, node.op, found, **attrs)
        if ledger is not None:
            inside = sum(a != b for a, b in zip(found, operands, strict=True))
            ledger.did(
                NAME, "Y201", node,
                f"%{node.name} reads {inside} operands in place" + ", writes merged heads" * merges,
            )  # fmt: skip
        return _split_again(new, node, result[0]) if merges else result

    return rebuild(graph, emit)


def _is_merged(graph: Graph, node: Node) -> bool:
    """Whether the result has one reader, which puts the heads next to each other."""
    if graph.use_count(node.value) != 1 or graph.is_result(node.name):
        return False
    (user,) = graph.users(node.value)
    return user.op == "permute" and user.attrs["dims"] == SPLIT_HEADS


def _split_again(new: Graph, node: Node, merged: Value) -> tuple[Value, ...]:
    """The result as it was before; ``simplify`` cancels this with what follows."""
    batch, heads, rows, dim = node.type.shape
    apart = new.add(
        "reshape", merged, name=f"{node.name}_heads", source=node.source,
        shape=(batch, rows, heads, dim),
    )  # fmt: skip
    result: Value = new.add(
        "permute", apart, name=f"{node.name}_split", source=node.source, dims=SPLIT_HEADS
    )
    return (result,)


def _columns(graph: Graph, value: Value) -> tuple[Value, Shape, int] | None:
    """(base, its shape (batch, rows, features), start) of which the operand is columns."""
    shape = graph.type(value).shape
    if len(shape) != 4:
        return None
    for view in views(graph, value):
        if view.moved:
            features = _features(view, shape, numel(graph.type(view.base).shape))
            if features is not None:
                return view.base, (shape[0], shape[2], features), view.start
    return None


def _features(view: View, shape: Shape, size: Extent) -> int | None:
    """Columns of the base as (batch, rows, columns), if the view is neighbouring ones of them."""
    batch, heads, rows, dim = shape
    lines = numel((batch, rows))
    features = _ratio(size, lines)
    if features is None or not isinstance(heads, int) or not isinstance(dim, int):
        return None
    wanted = (numel((rows, features)), dim, features, 1)
    fits = all(d == 1 or s == w for d, s, w in zip(shape, view.strides, wanted, strict=True))
    return features if fits and view.start + heads * dim <= features else None


def _ratio(size: Extent, lines: Extent) -> int | None:
    """``size / lines`` if it is a whole number."""
    if isinstance(size, int) and isinstance(lines, int):
        return size // lines if lines and size % lines == 0 else None
    if isinstance(size, int) or isinstance(lines, int):
        return None
    return size.coef // lines.coef if size.coef % lines.coef == 0 else None
