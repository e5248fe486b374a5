"""Lets the kernel of a weight's gradient update the weight: the gradient never goes to memory.

Before::

    %dw: f32[10,4] = linear_grad_weight(%dy, %x)
    %v, %w = fused(%v0, %momentum, %dw, %lr, %w0) {kind="elementwise"} { mul, add, mul, sub }
    update "weight" = %w
    update "opt.weight.momentum_buffer" = %v

After::

    %v, %w = fused(%dy, %x, %v0, %momentum, %lr, %w0) {kind="contraction"} { linear_grad_weight,
        mul, add, mul, sub }

The kernel writes over the old weight. ``schedule_updates`` places it right behind the last other
reader of the weight (the product that computes the gradient of the layer's input), so that ``dy``
and ``x`` live no longer than they must. Code F501 done, F502 declined.

Skips: a gradient that something else reads (its norm, for clipping), or that is a result; an update
with results that are read in the same run or are results; operands of another shape than the
weight's or one number; random numbers in the update; state that is a result itself; graphs in which
a bad index may be found later, because no state may have changed by then; updates that are not
faster there (``is_faster``).
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node
from ..ir.ops.contraction import IN_PLACE_ANCHORS
from ..ir.types import TensorType
from .commits import CHECKED
from .region import Group, build_regions
from .rewriting import Ledger

NAME = "fuse_update"
IsFaster = Callable[[TensorType, int], bool]
"""``(type of the weight, arrays of that size that the update reads)``: whether the update is faster
in the kernel of the gradient than on its own."""


def fuse_update(
    graph: Graph, ledger: Ledger | None = None, is_faster: IsFaster | None = None
) -> Graph:
    """The graph with updates in the kernels of the gradients that only they read."""
    groups: list[Group] = []
    taken: set[str] = set()
    position = {n.name: i for i, n in enumerate(graph.nodes)}
    last_check = max((position[n.name] for n in graph.nodes if n.op in CHECKED), default=-1)
    for node in graph.nodes:
        if node.op not in IN_PLACE_ANCHORS:
            continue
        users = graph.users(node.value)
        update = next((u for u in users if _updates(graph, u)), None)
        if update is None or update.name in taken:
            continue
        obstacle = _obstacle(graph, node, update, is_faster)
        if position[node.name] < last_check:
            obstacle = "a later operator may find a bad index"
        if obstacle is None:
            taken.add(update.name)
            groups.append(Group((node.name, update.name), "contraction", node.name))
        if ledger is None:
            continue
        if obstacle is None:
            ledger.did(NAME, "F501", node, f"the kernel of %{node.name} updates the weight")
        else:
            ledger.declined(NAME, "F502", node, f"%{node.name} does not update: {obstacle}")
    return build_regions(graph, groups)


def _updates(graph: Graph, node: Node) -> bool:
    """Whether a node is a loop that computes new state."""
    loop = node.op == "fused" and node.attrs["kind"] == "elementwise"
    return loop and any(v in graph.updates.values() for v in node.values)


def _obstacle(graph: Graph, gradient: Node, update: Node, is_faster: IsFaster | None) -> str | None:
    """Why the kernel of a gradient cannot do an update, or should not."""
    if graph.use_count(gradient.value) > 1:
        return f"something else than %{update.name} reads the gradient"
    for value in update.values:
        if graph.users(value) or value in graph.outputs.values():
            return f"the result {value} of the update is read in the same run"
    streams = 0
    for value in update.operands:
        kind = graph.type(value)
        if kind.shape == gradient.type.shape:
            streams += value != gradient.value
        elif any(d != 1 for d in kind.shape):
            return f"{value}: {kind} does not fit the gradient {gradient.type}"
    if any(n.op == "uniform" for n in update.attrs["body"].nodes):
        return "the update draws random numbers"
    if any(v in graph.outputs.values() for v in update.operands):
        return "the old state is a result"
    if is_faster is not None and not is_faster(gradient.type, streams):
        return "the update is not faster there"
    return None
