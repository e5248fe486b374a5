"""Convolution (or linear) + BatchNorm + activation + residual add as one kernel.

Before (inference)::

    %c: f32[N,16,8,8] = conv2d(%x, %w, %b) {...}
    %n: f32[N,16,8,8] = batch_norm(%c, %gamma, %beta, %mean, %var) {channel_dim=1, eps=1e-05}
    %s: f32[N,16,8,8] = add(%n, %shortcut)
    %y: f32[N,16,8,8] = relu(%s)

After::

    %scale: f32[16] = mul(%gamma, rsqrt(add(%var, eps)))
    %wf = mul(%w, reshape(%scale))        -- functions of parameters only: the runtime computes
    %bf = add(%beta, mul(sub(%b, %mean), %scale))  -- them once and again when a parameter changes
    %y: f32[N,16,8,8] = fused(%x, %wf, %bf, %shortcut) {kind="contraction"} { conv2d, add, relu }

Training keeps batch_norm_train: its statistics are of the batch, so nothing can be folded; the
activation and the residual add still fuse into loops.

Skips: F101 the convolution's result has a second consumer or is a graph result; F102 BatchNorm in
training mode; F103 the weight is not a function of parameters alone; F104 an epilogue operand
depends on the convolution or does not fit its shape.
"""

from __future__ import annotations

from ..ir.builder import GraphBuilder
from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from .region import build_region
from .rewriting import Ledger, erase_dead

NAME = "fuse_conv_bn_relu"
ANCHORS = ("conv2d", "linear")
STATE_OPS = ("parameter", "buffer", "constant")


def fuse_conv_bn_relu(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with BatchNorm folded and epilogues grouped."""
    ledger = ledger if ledger is not None else Ledger()
    new = graph.copy()
    for node in graph.nodes:
        if node.op == "batch_norm":
            _fold(new, node, ledger)
        elif node.op == "batch_norm_train" and graph.node(node.operands[0]).op in ANCHORS:
            ledger.declined(NAME, "F102", node, "BatchNorm in training mode is not folded")
    erase_dead(new)
    return _group_epilogues(new, ledger)


def state_only(graph: Graph) -> set[str]:
    """Names of the nodes that are functions of parameters, buffers and constants alone."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op in STATE_OPS or (
            node.operands and all(v.node in found for v in node.operands)
        ):
            found.add(node.name)
    return found


def _fold(graph: Graph, norm: Node, ledger: Ledger) -> None:
    anchor = graph.node(graph.node(norm.name).operands[0])
    if anchor.op not in ANCHORS:
        return
    if graph.use_count(anchor.value) > 1:
        others = [u.name for u in graph.users(anchor.value) if u.name != norm.name]
        blocking = ", ".join("%" + n for n in others) or "the graph's results"
        ledger.declined(NAME, "F101", norm, f"%{anchor.name} is also used by {blocking}")
        return
    state = state_only(graph)
    if any(v.node not in state for v in anchor.operands[1:]):
        ledger.declined(NAME, "F103", norm, f"the weight of %{anchor.name} is no parameter")
        return
    if norm.attrs["channel_dim"] != _channel_dim(anchor):
        ledger.declined(NAME, "F104", norm, "BatchNorm is over another dimension")
        return
    x, w, *rest = anchor.operands
    _, gamma, beta, mean, var = graph.node(norm.name).operands
    b = GraphBuilder(graph, norm.source)
    scale = b.mul(gamma, b.rsqrt(b.add(var, norm.attrs["eps"])))
    w_type = graph.type(w)
    column = b.op("reshape", scale, shape=(w_type.shape[0],) + (1,) * (w_type.rank - 1))
    folded = b.mul(w, column)
    shift = b.sub(rest[0], mean) if rest else b.neg(mean)
    bias = b.add(beta, b.mul(shift, scale))
    result = graph.add(
        anchor.op, x, folded, bias, name=anchor.name, source=anchor.source, **anchor.attrs
    )
    graph.replace_uses(norm.value, result)
    ledger.did(NAME, "F001", norm, f"BatchNorm folded into %{anchor.name}")


def _channel_dim(anchor: Node) -> int:
    if anchor.op == "conv2d":
        return 3 if anchor.attrs["layout"] == "NHWC" else 1
    return anchor.type.rank - 1


def _group_epilogues(graph: Graph, ledger: Ledger) -> Graph:
    for node in graph.nodes:
        if node.op not in ANCHORS or node.name not in graph:
            continue
        chain = _epilogue(graph, node, ledger)
        if len(chain) > 1:
            graph = build_region(graph, [n.name for n in chain], "contraction")
            ops = ", ".join(n.op for n in chain)
            ledger.did(NAME, "F002", node, f"one kernel: {ops}")
    return graph


def _epilogue(graph: Graph, anchor: Node, ledger: Ledger) -> list[Node]:
    """The anchor and the longest chain of elementwise operators that only it feeds."""
    chain = [graph.node(anchor.name)]
    while True:
        last = chain[-1]
        users = graph.users(last.value)
        if not users:
            return chain
        if graph.use_count(last.value) > 1:
            if get(users[0].op).kind == "elementwise":
                names = ", ".join("%" + u.name for u in users)
                ledger.declined(
                    NAME, "F101", last, f"%{last.name} has several consumers: {names}"
                )
            return chain
        user = users[0]
        if get(user.op).kind != "elementwise" or user.type != anchor.type:
            return chain
        others = [v for v in user.operands if v != last.value]
        if not all(_fits(graph, anchor, v) for v in others):
            ledger.declined(NAME, "F104", user, f"%{user.name} does not fit the epilogue")
            return chain
        chain.append(user)


def _fits(graph: Graph, anchor: Node, value: Value) -> bool:
    kind = graph.type(value)
    shape, target = kind.shape, anchor.type.shape
    if kind.dtype != anchor.type.dtype:
        return False
    per_channel = bool(shape) and all(d == 1 for d in shape[:-1]) and shape[-1] in (1, target[-1])
    channels_last = anchor.op == "linear" or anchor.attrs["layout"] == "NHWC"
    if shape != target and shape and not (per_channel and channels_last):
        return False
    return not _depends(graph, value.node, anchor.name)


def _depends(graph: Graph, start: str, target: str) -> bool:
    pending, seen = [start], {start}
    while pending:
        name = pending.pop()
        if name == target:
            return True
        for v in graph.node(name).operands:
            if v.node not in seen:
                seen.add(v.node)
                pending.append(v.node)
    return False
