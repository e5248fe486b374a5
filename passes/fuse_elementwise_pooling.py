"""Joins max pooling, and the routing of its gradient, with the elementwise loop next to it.

Before::

    %r: f32[N,28,28,16] = fused(%x, %mean, ...) {kind="elementwise"} { sub, mul, add, relu }
    %y, %p = max_pool2d_with_places(%r) {kernel_size=(2,2)}
    %at: f32[N,14,14,16] = max_pool2d_gather(%x, %p) {kernel_size=(2,2)}
    ...
    %dr: f32[N,28,28,16] = max_pool2d_scatter(%g, %p) {kernel_size=(2,2), size=(28,28)}
    %dx: f32[N,28,28,16] = fused(%dr, %x, ...) {kind="elementwise"} { sub, mul, ... }

After::

    %y, %p, %at = fused(%x, %mean, ...) {kind="pooling"}
        { sub, mul, add, relu, max_pool2d_with_places, max_pool2d_gather }
    ...
    %dx = fused(%g, %p, %x, ...) {kind="pooling"} { max_pool2d_scatter, sub, mul, ... }

Neither the operand of the pooling nor its scattered gradient is written to memory. If nothing but a
permutation to channels first reads the maxima, as in front of a flatten, they are written in that
order. Codes: M201 the pooling computes its operand, M202 what follows is computed where the
gradient is scattered, M203 declined, M204 channels first.

Skips: windows that overlap, leave gaps or are padded, for which elements would be computed several
times; an operand or a scattered gradient that has another reader or is a result (M203);
``uniform``, whose draws are numbered by the place in the tensor (M203); operands that are neither
of the image nor per channel (M203).
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops.record import get
from ..ir.types import TensorType
from .region import Group, build_regions, is_elementwise
from .rewriting import Ledger
from .save_pool_places import LARGEST, tiles_image

NAME = "fuse_elementwise_pooling"


def fuse_elementwise_pooling(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with elementwise operands and users fused into max pooling."""
    ledger = ledger if ledger is not None else Ledger()
    groups: list[Group] = []
    taken: set[str] = set()
    for node in graph.nodes:
        group: Group | None = None
        if _is_pooling(node, graph):
            group = _with_operand(graph, node, taken, ledger)
        elif node.op == "max_pool2d_scatter":
            group = _with_user(graph, node, taken, ledger)
        if group is not None:
            taken.update(group.members)
            groups.append(group)
    return build_regions(graph, groups)


def _is_pooling(node: Node, graph: Graph) -> bool:
    if node.op == "max_pool2d_with_places":
        return True
    if node.op != "max_pool2d" or node.attrs["layout"] != "NHWC":
        return False
    height, width = node.attrs["kernel_size"]
    size = graph.type(node.operands[0]).shape[1:3]
    return node.type.dtype.is_float and height * width <= LARGEST and tiles_image(node, size)


def _with_operand(graph: Graph, pool: Node, taken: set[str], ledger: Ledger) -> Group | None:
    """The pooling, the loop that computes its operand, gathers of what that loop reads, and the
    permutation of the result in front of a flatten."""
    loop = _operand_loop(graph, pool, taken, ledger)
    permute = _channels_first(graph, pool)
    if permute is not None and (loop is not None or pool.op != "max_pool2d"):
        ledger.did(NAME, "M204", permute, "max pooling writes its result with the channels first")
        last = [permute.name]
    else:
        last = []
    if loop is None:
        return Group((pool.name, *last), "pooling", pool.name) if last else None
    gathers = [
        n.name
        for n in graph.users(pool.name)
        if n.op == "max_pool2d_gather"
        and n.operands[1] == pool.values[1]
        and n.operands[0] in loop.operands
    ]
    ledger.did(NAME, "M201", pool, f"max pooling computes its operand itself: {_ops(loop)}")
    return Group((loop.name, pool.name, *gathers, *last), "pooling", pool.name)


def _operand_loop(graph: Graph, pool: Node, taken: set[str], ledger: Ledger) -> Node | None:
    loop = graph.node(pool.operands[0])
    if not is_elementwise(loop) or loop.name in taken:
        return None
    obstacle = _obstacle(graph, loop, graph.type(pool.operands[0]))
    if not obstacle and (len(loop.types) > 1 or graph.use_count(pool.operands[0]) > 1):
        obstacle = f"%{loop.name} is also used elsewhere"
    if obstacle:
        ledger.declined(NAME, "M203", pool, obstacle)
        return None
    return loop


def _channels_first(graph: Graph, pool: Node) -> Node | None:
    """What alone reads the maxima, if that is their permutation to (N, C, H, W)."""
    users = graph.users(pool.value)
    if len(users) != 1 or graph.use_count(pool.value) != 1:
        return None
    (user,) = users
    return user if user.op == "permute" and user.attrs["dims"] == (0, 3, 1, 2) else None


def _with_user(graph: Graph, scatter: Node, taken: set[str], ledger: Ledger) -> Group | None:
    """The scattered gradient and the one loop that reads it."""
    users = graph.users(scatter.value)
    if len(users) != 1 or not is_elementwise(users[0]):
        if any(map(is_elementwise, users)):
            ledger.declined(NAME, "M203", scatter, f"%{scatter.name} has several readers")
        return None
    (loop,) = users
    if loop.name in taken:
        return None
    obstacle = _obstacle(graph, loop, scatter.type)
    if not obstacle and graph.use_count(scatter.value) > loop.operands.count(scatter.value):
        obstacle = f"%{scatter.name} is a result"
    if obstacle:
        ledger.declined(NAME, "M203", scatter, obstacle)
        return None
    ledger.did(NAME, "M202", scatter, f"the scattered gradient stays in registers: {_ops(loop)}")
    return Group((scatter.name, loop.name), "pooling", loop.name)


def _obstacle(graph: Graph, loop: Node, image: TensorType) -> str:
    """Why a loop cannot run over the channels of pixels in any order."""
    if "uniform" in _ops(loop):
        return f"%{loop.name} draws random numbers"
    if any(t.shape != image.shape for t in loop.types):
        return f"%{loop.name} has results of another shape than the image"
    for value in loop.operands:
        shape = graph.type(value).shape
        per_channel = all(d == 1 for d in shape[:-1]) and shape[-1:] in ((), (1,), image.shape[-1:])
        if shape != image.shape and not per_channel:
            return f"{value} is neither of the image nor per channel"
    return ""


def _ops(loop: Node) -> str:
    if loop.op != "fused":
        return loop.op
    body: Graph = loop.attrs["body"]
    return ", ".join(n.op for n in body.nodes if get(n.op).kind != "source")
