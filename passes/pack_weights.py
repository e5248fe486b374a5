"""Makes the packing of weights explicit, so that it is done once and not in every call.

Before::

    %y: f32[N,10] = linear(%x, %w, %b)

After::

    %y_packed: f32[12544] = pack_matrix(%w) {panel=16, transpose=True}
    %y: f32[N,10] = linear_packed(%x, %y_packed, %b) {out_features=10, panel=16}

The same inside of ``contraction`` regions. Where ``choose_tile`` says so, a 3x3 convolution of
stride 1 becomes ``conv2d_winograd`` on a weight from ``pack_winograd``. A pack of a parameter is a
function of state alone: in inference the runtime computes it when a parameter changes; a training
step computes it once per step. Two users of one weight in one form share its pack. Code P101.

Skips: convolutions that are not channels-last, which have no packed kernel; a region whose weight
has another use inside of it; weights of symbolic size; Winograd for strides, dilations, groups,
gradients and symbolic image sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..ir.graph import Graph, Node, Value
from ..ir.types import DType
from .rewriting import Ledger, add_like, rebuild

NAME = "pack_weights"
ChoosePanel = Callable[[int, DType], int]
"""``(columns, dtype)``: the width of the panels in which a kernel reads such a matrix."""
ChooseTile = Callable[[int, int, tuple[int, int], DType], int]
"""``(inputs, outputs, size, dtype)``: the m of Winograd's F(m x m, 3 x 3) for such a 3x3
convolution of stride 1 with ``size`` outputs, or 0 for the direct sum."""
_PACKED = ("linear", "conv2d", "conv2d_grad_input")


def pack_weights(
    graph: Graph,
    choose_panel: ChoosePanel,
    ledger: Ledger | None = None,
    choose_tile: ChooseTile | None = None,
) -> Graph:
    """The graph with packed operands for linear and convolution kernels."""
    packer = _Packer(choose_panel, choose_tile or _direct, ledger)
    return rebuild(graph, packer.emit)


def _direct(inputs: int, outputs: int, size: tuple[int, int], dtype: DType) -> int:
    return 0


@dataclass(frozen=True)
class _Form:
    """An operator on packed weights: the operator that packs, the one that computes, and the
    attributes of both."""

    pack: str
    pack_attrs: dict[str, Any]
    op: str
    attrs: dict[str, Any]


@dataclass
class _Packer:
    choose_panel: ChoosePanel
    choose_tile: ChooseTile
    ledger: Ledger | None
    packs: dict[tuple[Any, ...], Value] = field(default_factory=dict)

    def emit(self, new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.op == "fused" and node.attrs["kind"] == "contraction":
            return self._emit_region(new, node, operands)
        form = self._form(node, new.type(operands[1]).shape) if node.op in _PACKED else None
        if form is None:
            return None
        packed = self._pack(new, node, operands[1], form)
        return add_like(new, node, form.op, [operands[0], packed, *operands[2:]], **form.attrs)

    def _pack(self, new: Graph, node: Node, weight: Value, form: _Form) -> Value:
        key = (weight, form.pack, tuple(sorted(form.pack_attrs.items())))
        if key not in self.packs:
            name = f"{node.name}_packed"
            self.packs[key] = new.add(
                form.pack, weight, name=name, source=node.source, **form.pack_attrs
            )
        if self.ledger is not None:
            self.ledger.did(NAME, "P101", node, f"%{node.name} reads {weight} in packed form")
        return self.packs[key]

    def _form(self, node: Node, weight_shape: tuple[Any, ...]) -> _Form | None:
        if not all(isinstance(d, int) for d in weight_shape):
            return None
        dtype = node.type.dtype
        if node.op == "linear":
            out = weight_shape[0]
            panel = self.choose_panel(out, dtype)
            return _Form(
                "pack_matrix",
                {"transpose": True, "panel": panel},
                "linear_packed",
                {"out_features": out, "panel": panel},
            )
        if node.attrs["layout"] != "NHWC":
            return None
        return self._conv_form(node, weight_shape)

    def _conv_form(self, node: Node, weight_shape: tuple[int, ...]) -> _Form:
        """Of a convolution or its gradient with respect to the input (``flip``)."""
        out, inner, *kernel_size = weight_shape
        groups = node.attrs["groups"]
        depthwise = groups > 1 and out == groups and inner == 1
        flip = node.op == "conv2d_grad_input"
        columns = out if depthwise else inner if flip else out // groups
        panel = self.choose_panel(columns, node.type.dtype)
        tile = 0 if flip else self._tile(node, out, inner, tuple(kernel_size))
        if tile:
            how: dict[str, Any] = {"tile": tile, "panel": panel}
            kept = {k: node.attrs[k] for k in ("padding", "layout")}
            attrs = {"out_channels": out, **how, **kept}
            return _Form("pack_winograd", how, "conv2d_winograd", attrs)
        attrs = {**node.attrs, "kernel_size": tuple(kernel_size), "panel": panel}
        attrs["in_channels" if flip else "out_channels"] = inner * groups if flip else out
        pack_attrs = {"panel": panel, "flip": flip, "groups": groups}
        return _Form("pack_conv", pack_attrs, node.op + "_packed", attrs)

    def _tile(self, node: Node, out: int, inner: int, kernel_size: tuple[int, ...]) -> int:
        """The tile of Winograd's algorithm for a convolution that it can compute; 0: direct."""
        plain = (node.attrs["stride"], node.attrs["dilation"], node.attrs["groups"])
        size = node.type.shape[1:3]
        if kernel_size != (3, 3) or plain != ((1, 1), (1, 1), 1):
            return 0
        if not all(isinstance(d, int) and d > 0 for d in size):
            return 0
        return self.choose_tile(inner, out, (int(size[0]), int(size[1])), node.type.dtype)  # type: ignore[arg-type]

    def _emit_region(
        self, new: Graph, node: Node, operands: list[Value]
    ) -> tuple[Value, ...] | None:
        """Packs the weight of the contraction inside of a region."""
        body: Graph = node.attrs["body"]
        anchor = next((n for n in body.nodes if n.op in _PACKED), None)
        if anchor is None:
            return None
        weight = body.node(anchor.operands[1])
        form = self._form(anchor, weight.type.shape)
        if form is None or weight.op != "input" or body.use_count(weight.value) > 1:
            return None
        at = int(weight.attrs["path"])
        operands = list(operands)
        operands[at] = self._pack(new, node, operands[at], form)
        packed = _packed_body(body, weight, anchor, form, new.type(operands[at]))
        return add_like(new, node, "fused", operands, kind="contraction", body=packed)


def _packed_body(body: Graph, weight: Node, anchor: Node, form: _Form, kind: Any) -> Graph:
    def emit(inner: Graph, part: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if part.name == weight.name:
            return add_like(inner, part, "input", [], path=part.attrs["path"], type=kind)
        if part.name == anchor.name:
            return add_like(inner, part, form.op, operands, **form.attrs)
        return None

    return rebuild(body, emit)
