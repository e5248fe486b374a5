"""Computes new state where that costs least: big updates at their gradient, small ones together.

Before::

    %dw: f32[512,512] = linear_grad_weight(%dy, %x)
    %dx: f32[N,512] = matmul(%dy, %w0)
    %dh: f32[N,512] = mul(%dx, %mask)
    ...
    %w: f32[512,512] = fused(%dw, %lr, %w0) {kind="elementwise"} { mul, sub }
    %b: f32[512] = fused(%db, %lr, %b0) {kind="elementwise"} { mul, sub }
    update "weight" = %w
    update "bias" = %b

After, ``%w`` comes behind ``%dx``::

    %dw: f32[512,512] = linear_grad_weight(%dy, %x)
    %dx: f32[N,512] = matmul(%dy, %w0)
    %w: f32[512,512] = fused(%dw, %lr, %w0) {kind="elementwise"} { mul, sub }
    %dh: f32[N,512] = mul(%dx, %mask)
    ...
    %b: f32[512] = fused(%db, %lr, %b0) {kind="elementwise"} { mul, sub }

A big update runs behind the last other reader of the old state, so that the gradient's memory is
free again, instead of all gradients being alive at the end (code W101). It waits there for its
gradient, which costs a few percent of a short step; so where all gradients together are small, only
kernels that compute a gradient and apply it come early, and the others late. Small ones, the counts
and running statistics of normalisation among them, come last, next to each other: there they can
write into the state itself, whatever was read or checked before, and code generation makes one
round of them (``codegen/joint.py``, code W102).

Skips: results that something else reads or that are outputs; old state that is an output; operators
that read no old state, such as a gradient that is kept in a buffer, and buffers of gradients, for
which others may be waiting: these are never put off. No update comes before the last operator that
may find a bad index, because no state may have changed by then.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.types import Dim, TensorType
from .commits import CHECKED, STATE
from .differentiate import GRAD
from .rewriting import Ledger

NAME = "schedule_updates"
SMALL = 16 * 1024
"""Bytes of each operand and result below which an update may wait: keeping its gradient costs less
than a round of its own."""

FEW = 8 * 1024 * 1024
"""Bytes of all gradients of big updates up to which these gradients may wait."""

SOURCES = (*STATE, "input", "constant")


def schedule_updates(graph: Graph, ledger: Ledger | None = None, few: int = FEW) -> Graph:
    """The graph with every update of state early or last in the order of its nodes."""
    paths: dict[Value, list[str]] = {}
    for path, value in graph.updates.items():
        paths.setdefault(value, []).append(path)
    old = {n.attrs["path"]: n.value for n in graph.nodes if n.op in STATE}
    found = [n for n in graph.nodes if _updates_state(graph, n, paths, old)]
    late = [n for n in found if _may_wait(paths, n)]
    big = [n for n in late if not _is_small_update(graph, n)]
    if sum(_gradient_bytes(graph, n) for n in big) > few:
        late = [n for n in late if n not in big]
    else:
        late = [*big, *(n for n in late if n not in big)]
    early = {n.name for n in found} - {n.name for n in late}
    if not found:
        return graph
    moved = {n.name for n in found}
    sources = [n for n in graph.nodes if n.op in SOURCES]
    order = sources + [n for n in graph.nodes if n.op not in SOURCES and n.name not in moved]
    behind = _places(graph, order, [n for n in found if n.name in early])
    new = Graph(graph.name)
    for i, node in enumerate(order):
        for each in (node, *behind.get(i, ())):
            new.insert(each)
    for node in late:
        new.insert(node)
    new.outputs, new.updates = dict(graph.outputs), dict(graph.updates)
    if ledger is not None:
        if early:
            ledger.note(NAME, "W101", True, f"{len(early)} updates right behind their gradients")
        if late:
            ledger.note(NAME, "W102", True, f"{len(late)} updates together at the end")
    return new


def _updates_state(
    graph: Graph, node: Node, paths: dict[Value, list[str]], old: dict[str, Value]
) -> bool:
    """Whether a node makes new state from old state and nothing else."""
    if node.op in SOURCES or graph.users(node.name):
        return False
    if not all(v in paths for v in node.values):
        return False
    results = set(graph.outputs.values())
    replaced = {old[p] for v in node.values for p in paths[v] if p in old}
    if results.intersection(node.values) or results & replaced:
        return False
    return not replaced.isdisjoint(node.operands)


def _may_wait(paths: dict[Value, list[str]], node: Node) -> bool:
    """Whether nobody waits for an update: sums of gradients are sent, and a kernel that computes
    the gradient, too, reads what is bigger than that."""
    gradient = any(p.startswith(GRAD) for v in node.values for p in paths[v])
    return not gradient and node.attrs.get("kind") != "contraction"


def _is_small_update(graph: Graph, node: Node) -> bool:
    return all(map(_is_small, (*node.types, *map(graph.type, node.operands))))


def _gradient_bytes(graph: Graph, update: Node) -> int:
    """Bytes of what an update reads that is not state and does not depend on the batch size."""
    made = [graph.type(v) for v in update.operands if graph.node(v).op not in SOURCES]
    return sum(k.size * k.dtype.itemsize for k in made if not isinstance(k.size, Dim))


def _is_small(kind: TensorType) -> bool:
    return not isinstance(kind.size, Dim) and kind.size * kind.dtype.itemsize < SMALL


def _places(graph: Graph, order: list[Node], updates: list[Node]) -> dict[int, list[Node]]:
    """For numbers in ``order``, the updates that come right behind: what must come before them is
    what makes their operands, and the other readers of the state that they write over."""
    place = {n.name: i for i, n in enumerate(order)}
    check = max((i for i, n in enumerate(order) if n.op in CHECKED), default=0)
    behind: dict[int, list[Node]] = {}
    for node in updates:
        before = {n for v in node.operands for n in _before(graph, v) if n in place}
        behind.setdefault(max([check, *map(place.__getitem__, before)]), []).append(node)
    return behind


def _before(graph: Graph, operand: Value) -> set[str]:
    """The node that makes an operand; if it is state, also those that read it."""
    maker = graph.node(operand)
    readers = graph.users(operand) if maker.op in STATE else ()
    return {maker.name, *(u.name for u in readers)}
