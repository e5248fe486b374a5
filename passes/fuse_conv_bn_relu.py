"""Convolution (or linear) + BatchNorm + activation + residual add as one kernel.

Before (inference)::

    %c: f32[N,16,8,8] = conv2d(%x, %w, %b) {...}
    %n: f32[N,16,8,8] = batch_norm(%c, %gamma, %beta, %mean, %var) {channel_dim=1, eps=1e-05}
    %s: f32[N,16,8,8] = add(%n, %shortcut)
    %y: f32[N,16,8,8] = relu(%s)

After::

    %c_scale = mul(%gamma, rsqrt(add(%var, eps)))
    %c_weight = mul(%w, reshape(%c_scale))            -- functions of state only: the runtime makes
    %c_bias = add(%beta, mul(sub(%b, %mean), %c_scale))   them again when a parameter changes
    %c: f32[N,16,8,8] = fused(%x, %c_weight, %c_bias, %shortcut) {kind="contraction"}
        { conv2d, add, relu }

F001 says that BatchNorm was folded, F002 that an epilogue was formed. The epilogue is the largest
set of elementwise operators behind the convolution that has one result (x * sigmoid(x), too). In a
backward graph matrix products and input gradients of convolutions get one, too: the activation's
derivative, with the mask that only it reads.

In training the statistics are of the batch, so nothing can be folded: ``split_batch_norm.py`` has
made steps of the normalisation before, which fuse with the activation and the residual add.

Skips: F101 the convolution's result has a second consumer or is a graph result; F102 BatchNorm in
training mode; F103 the weight, the bias or BatchNorm's operands are not functions of state alone;
F104 an epilogue operand does not fit the shape (or is a batch-dependent count); F105 BatchNorm over
another dimension than the channels of the convolution. A residual that depends on the convolution
is a second consumer (F101).
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from ..ir.types import bool_
from .region import Group, build_regions, is_immediate
from .rewriting import Ledger, add_like, rebuild
from .state import state_only

NAME = "fuse_conv_bn_relu"
FOLDABLE = ("conv2d", "linear")
ANCHORS = (*FOLDABLE, "conv2d_grad_input", "matmul")
MASKS = (
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not",
)  # fmt: skip
"""What an epilogue computes itself for its own use rather than reading it from memory."""
MAX_EPILOGUE = 32


def fuse_conv_bn_relu(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with BatchNorm folded and epilogues grouped."""
    ledger = ledger if ledger is not None else Ledger()
    while True:
        folds = _find_folds(graph, ledger)
        if not folds:
            return _group_epilogues(graph, ledger)
        graph = _fold(graph, folds)  # a BatchNorm behind a folded one is next


# -- folding BatchNorm ----------------------------------------------------------------------------


def _find_folds(graph: Graph, ledger: Ledger) -> dict[str, Node]:
    """The convolution (or linear) of every batch_norm that can be folded, by its name."""
    state = state_only(graph)
    folds: dict[str, Node] = {}
    for norm in graph.nodes:
        if norm.op not in ("batch_norm", "batch_norm_train"):
            continue
        anchor = graph.node(norm.operands[0])
        if anchor.op not in FOLDABLE:
            continue
        obstacle = _obstacle(graph, norm, anchor, state)
        if obstacle is None:
            folds[norm.name] = anchor
            ledger.did(NAME, "F001", norm, f"BatchNorm folded into %{anchor.name}")
        else:
            ledger.declined(NAME, obstacle[0], norm, obstacle[1])
    return folds


def _obstacle(graph: Graph, norm: Node, anchor: Node, state: set[str]) -> tuple[str, str] | None:
    """Code and reason why a BatchNorm cannot be folded into the operator before it."""
    if norm.op == "batch_norm_train":
        return "F102", "BatchNorm in training mode is not folded"
    if graph.use_count(anchor.value) > 1:
        others = [u.name for u in graph.users(anchor.value) if u.name != norm.name]
        blocking = ", ".join("%" + n for n in others) or "the graph's results"
        return "F101", f"%{anchor.name} is also used by {blocking}"
    changing = [v for v in (*anchor.operands[1:], *norm.operands[1:]) if v.node not in state]
    if changing:
        return "F103", f"{changing[0]} is computed from the input or changes in the graph"
    if norm.attrs["channel_dim"] != _channel_dim(anchor):
        return "F105", f"BatchNorm is not over the channels of %{anchor.name}"
    return None


def _fold(graph: Graph, folds: dict[str, Node]) -> Graph:
    anchors = {a.name for a in folds.values()}
    parts: dict[str, list[Value]] = {}

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.name in anchors:
            parts[node.name] = operands
            return (operands[0],)  # only the BatchNorm sees it, and does not use it
        if node.name not in folds:
            return None
        anchor = folds[node.name]
        x, *state = parts[anchor.name]
        weight, bias = _folded_state(new, node, anchor, state, operands[1:])
        return add_like(new, anchor, anchor.op, [x, weight, bias], **anchor.attrs)

    return rebuild(graph, emit)


def _folded_state(
    new: Graph, norm: Node, anchor: Node, state: list[Value], statistics: list[Value]
) -> tuple[Value, Value]:
    """``w scale`` and ``beta + (b - mean) scale`` with ``scale = gamma / sqrt(var + eps)``."""
    w, *bias = state
    gamma, beta, mean, var = statistics

    def add(name: str, op: str, *operands: Value, **attrs: object) -> Value:
        full = f"{anchor.name}_{name}"
        result: Value = new.add(op, *operands, name=full, source=norm.source, **attrs)
        return result

    kind = new.type(w)
    eps = add("eps", "constant", value=np.asarray(norm.attrs["eps"], kind.dtype.np))
    scale = add("scale", "mul", gamma, add("rstd", "rsqrt", add("var", "add", var, eps)))
    column = add("column", "reshape", scale, shape=(kind.shape[0],) + (1,) * (kind.rank - 1))
    shift = add("shift", "sub", bias[0], mean) if bias else add("shift", "neg", mean)
    offset = add("offset", "mul", shift, scale)
    return add("weight", "mul", w, column), add("bias", "add", beta, offset)


def _channel_dim(anchor: Node) -> int:
    if "layout" in anchor.attrs:
        return 3 if anchor.attrs["layout"] == "NHWC" else 1
    return anchor.type.rank - 1


# -- epilogues ------------------------------------------------------------------------------------


def _group_epilogues(graph: Graph, ledger: Ledger) -> Graph:
    finder = _Epilogues(graph, ledger)
    groups = []
    for anchor in graph.nodes:
        if anchor.op not in ANCHORS:
            continue
        members = finder.find(anchor)
        if len(members) > 1:
            names = tuple(n.name for n in members)
            groups.append(Group(names, "contraction", anchor.name))
            ops = ", ".join(n.op for n in members)
            ledger.did(NAME, "F002", anchor, f"one kernel: {ops}")
    return build_regions(graph, groups)


class _Epilogues:
    """Finds for each anchor the elementwise operators that its kernel can do; none twice."""

    def __init__(self, graph: Graph, ledger: Ledger) -> None:
        self.graph, self.ledger = graph, ledger
        self.position = {n.name: i for i, n in enumerate(graph.nodes)}
        self.prepared = state_only(graph)
        self.taken: set[str] = set()

    def find(self, anchor: Node) -> list[Node]:
        """The anchor and the most operators after it that together have one result, in order.

        The earliest consumer is taken first. So nothing outside that a later one reads can depend
        on a member: what does would have been an earlier consumer.
        """
        members = {anchor.name: anchor}
        complete = [anchor]
        while len(members) < MAX_EPILOGUE:
            user = self._next_user(members)
            if user is None or not self._may_follow(anchor, user):
                break
            masks = self._own_masks(anchor, user, members)
            misfit = self._misfit(anchor, user, {*members, *(n.name for n in masks)})
            if misfit is not None:
                self.ledger.declined(
                    NAME, "F104", user, f"{misfit} does not fit the epilogue of %{anchor.name}"
                )
                break
            members.update({n.name: n for n in (*masks, user)})
            if user.type == anchor.type and self._only_result(members, user):
                complete = list(members.values())
        _note_second_consumer(self.graph, complete[-1], self.ledger)
        complete.sort(key=lambda n: self.position[n.name])
        self.taken.update(n.name for n in complete)
        return complete

    def _next_user(self, members: dict[str, Node]) -> Node | None:
        users = [u for m in members for u in self.graph.users(m) if u.name not in members]
        return min(users, key=lambda u: self.position[u.name], default=None)

    def _may_follow(self, anchor: Node, user: Node) -> bool:
        return (
            get(user.op).kind == "elementwise"
            and user.name not in self.taken
            and user.type.shape == anchor.type.shape
            and user.type.dtype in (anchor.type.dtype, bool_)
            and (user.name in self.prepared) == (anchor.name in self.prepared)
        )

    def _only_result(self, members: dict[str, Node], last: Node) -> bool:
        """Whether nothing but ``last`` is seen from outside."""
        return not any(
            self.graph.is_result(name) or any(u.name not in members for u in self.graph.users(name))
            for name in members
            if name != last.name
        )

    def _own_masks(self, anchor: Node, user: Node, members: dict[str, Node]) -> list[Node]:
        """Comparisons that only ``user`` reads and that fit the epilogue, operands first."""
        found: list[Node] = []
        for value in user.operands:
            mask = self.graph.node(value)
            if mask.op not in MASKS or mask.name in members or self.graph.use_count(value) > 1:
                continue
            if not self._may_follow(anchor, mask):
                continue
            above = self._own_masks(anchor, mask, members)
            if self._misfit(anchor, mask, {n.name for n in above}) is None:
                found += [*above, mask]
        return found

    def _misfit(self, anchor: Node, node: Node, inside: set[str]) -> Value | None:
        """An operand from outside that the kernel of the anchor cannot read."""
        outside = [v for v in node.operands if v.node not in inside]
        return next((v for v in outside if not _fits(self.graph, anchor, v)), None)


def _note_second_consumer(graph: Graph, last: Node, ledger: Ledger) -> None:
    users = [u for u in graph.users(last.value) if get(u.op).kind == "elementwise"]
    if users and graph.use_count(last.value) > 1:
        names = [f"%{u.name}" for u in graph.users(last.value)]
        names += ["the graph's results"] if graph.is_result(last.value) else []
        ledger.declined(
            NAME, "F101", last, f"%{last.name} has several consumers: {', '.join(names)}"
        )


def _fits(graph: Graph, anchor: Node, value: Value) -> bool:
    """Whether the kernel of the anchor can read the value for each element that it writes."""
    if is_immediate(graph.node(value)):
        return graph.node(value).op == "constant"
    kind, target = graph.type(value), anchor.type.shape
    if kind.dtype not in (anchor.type.dtype, bool_):
        return False
    if kind.shape == target or all(d == 1 for d in kind.shape):
        return True
    channels_last = _channel_dim(anchor) == anchor.type.rank - 1
    per_channel = all(d == 1 for d in kind.shape[:-1]) and kind.shape[-1] == target[-1]
    return channels_last and per_channel
