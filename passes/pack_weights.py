"""Makes the packing of weights explicit, so that it is done once and not in every call.

Before::

    %y: f32[N,10] = linear(%x, %w, %b)

After::

    %pw: f32[7840] = pack_matrix(%w) {panel=16, transpose=True}
    %y: f32[N,10] = linear_packed(%x, %pw, %b) {out_features=10, panel=16}

A pack of a parameter is a function of parameters alone: in inference the runtime computes it when
a parameter changes; a training step computes it once per step.

Skips: convolutions that are not channels-last, which have no packed kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.graph import Graph, Node, Value
from ..ir.types import DType
from .rewriting import Ledger, rebuild

ChoosePanel = Callable[[int, DType], int]


def pack_weights(
    graph: Graph, choose_panel: ChoosePanel, ledger: Ledger | None = None
) -> Graph:
    """The graph with packed operands for linear and convolution kernels."""
    packs: dict[tuple[Any, ...], Value] = {}

    def pack(new: Graph, node: Node, weight: Value, op: str, **attrs: Any) -> Value:
        key = (weight, op, tuple(sorted(attrs.items())))
        if key not in packs:
            packs[key] = new.add(op, weight, source=node.source, **attrs)
        return packs[key]

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.op == "fused":
            return _emit_region(new, node, operands, pack, choose_panel)
        packed = _packing(node, node.type.dtype, new.type(operands[1]).shape, choose_panel) if (
            node.op in _PACKED and len(operands) > 1
        ) else None
        if packed is None:
            return None
        operands[1] = pack(new, node, operands[1], packed.pack, **packed.pack_attrs)
        return (
            new.add(packed.op, *operands, name=node.name, source=node.source, **packed.attrs),
        )

    return rebuild(graph, emit)


class _Packing:
    def __init__(
        self, pack: str, pack_attrs: dict[str, Any], op: str, attrs: dict[str, Any]
    ) -> None:
        self.pack, self.pack_attrs, self.op, self.attrs = pack, pack_attrs, op, attrs


_PACKED = ("linear", "conv2d", "conv2d_grad_input")


def _packing(
    node: Node, dtype: DType, weight_shape: tuple[Any, ...], choose_panel: ChoosePanel
) -> _Packing | None:
    attrs = dict(node.attrs)
    if node.op == "linear":
        out = weight_shape[0]
        panel = choose_panel(out, dtype)
        return _Packing(
            "pack_matrix",
            {"transpose": True, "panel": panel},
            "linear_packed",
            {"out_features": out, "panel": panel},
        )
    if attrs["layout"] != "NHWC":
        return None
    out, inner, kh, kw = weight_shape
    groups = attrs["groups"]
    depthwise = groups > 1 and out == groups and inner == 1
    flip = node.op == "conv2d_grad_input"
    columns = out if depthwise else inner if flip else out // groups
    panel = choose_panel(columns, dtype)
    attrs.update(kernel_size=(kh, kw), panel=panel)
    if flip:
        attrs["in_channels"] = inner * groups
    else:
        attrs["out_channels"] = out
    pack_attrs = {"panel": panel, "flip": flip, "groups": groups}
    return _Packing("pack_conv", pack_attrs, node.op + "_packed", attrs)


def _emit_region(
    new: Graph, node: Node, operands: list[Value], pack: Any, choose_panel: ChoosePanel
) -> tuple[Value, ...] | None:
    """Packs the weight of the anchor inside a ``contraction`` region."""
    body: Graph = node.attrs["body"]
    anchor = next((n for n in body.nodes if n.op in _PACKED), None)
    if node.attrs["kind"] != "contraction" or anchor is None:
        return None
    weight = body.node(anchor.operands[1])
    packing = _packing(anchor, anchor.type.dtype, weight.type.shape, choose_panel)
    if packing is None or weight.op != "input" or len(body.users(weight.name)) > 1:
        return None
    at = int(weight.attrs["path"])
    operands[at] = pack(new, anchor, operands[at], packing.pack, **packing.pack_attrs)

    def emit(inner: Graph, part: Node, args: list[Value]) -> tuple[Value, ...] | None:
        if part.name == weight.name:
            kind = new.type(operands[at])
            return (inner.add("input", name=part.name, path=part.attrs["path"], type=kind),)
        if part.name == anchor.name:
            return (
                inner.add(
                    packing.op, *args, name=part.name, source=part.source, **packing.attrs
                ),
            )
        return None

    packed_body = rebuild(body, emit)
    result = new.add(
        "fused",
        *operands,
        name=node.name,
        source=node.source,
        kind="contraction",
        body=packed_body,
    )
    return (result,) if isinstance(result, Value) else result
