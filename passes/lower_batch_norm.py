"""BatchNorm in eval mode that no convolution takes up becomes elementwise operators.

Before::

    %n: f32[N,8,8,16] = batch_norm(%x, %gamma, %beta, %mean, %var) {channel_dim=3, eps=1e-05}
    %y: f32[N,8,8,16] = relu(%n)

After::

    %n_scale: f32[16] = mul(%gamma, rsqrt(add(%var, eps)))
    %n_centred: f32[N,8,8,16] = sub(%x, %mean)
    %n_scaled: f32[N,8,8,16] = mul(%n_centred, %n_scale)
    %n: f32[N,8,8,16] = add(%n_scaled, %beta)
    %y: f32[N,8,8,16] = relu(%n)

``fuse_elementwise`` makes one loop of this and what follows, as in front of the convolutions of
DenseNet. The scale depends on state alone: it is computed when a parameter changes. The mean is
subtracted first, as in the operator: folded into ``beta``, a mean far from zero would cost digits.

Skips: training mode; statistics or parameters that are computed from the input or that the graph
updates.
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from .rewriting import Ledger, rebuild
from .state import state_only

NAME = "lower_batch_norm"


def lower_batch_norm(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """Writes every eval-mode BatchNorm with constant statistics as sub, mul and add."""
    ledger = ledger if ledger is not None else Ledger()
    state = state_only(graph)

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.op != "batch_norm" or node.name in state:
            return None
        if any(v.node not in state for v in node.operands[1:]):
            return None
        ledger.did(NAME, "N101", node, "BatchNorm in eval mode became elementwise")
        return (_lowered(new, node, operands),)

    return rebuild(graph, emit)


def _lowered(new: Graph, norm: Node, operands: list[Value]) -> Value:
    x, gamma, beta, mean, var = operands
    kind = norm.type
    channels = (kind.shape[norm.attrs["channel_dim"]],)
    behind = (1,) * (kind.rank - 1 - norm.attrs["channel_dim"])

    def add(name: str, op: str, *operands: Value, **attrs: object) -> Value:
        full = f"{norm.name}_{name}" if name else norm.name
        result: Value = new.add(op, *operands, name=full, source=norm.source, **attrs)
        return result

    def per_channel(name: str, value: Value) -> Value:
        if not behind:
            return value
        return add(f"{name}_channels", "reshape", value, shape=channels + behind)

    eps = add("eps", "constant", value=np.asarray(norm.attrs["eps"], kind.dtype.np))
    scale = add("scale", "mul", gamma, add("rstd", "rsqrt", add("var", "add", var, eps)))
    centred = add("centred", "sub", x, per_channel("mean", mean))
    scaled = add("scaled", "mul", centred, per_channel("scale", scale))
    return add("", "add", scaled, per_channel("beta", beta))
