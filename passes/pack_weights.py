"""Makes the packing of weights explicit, so that it is done once and not in every call.

Before::

    %y: f32[N,10] = linear(%x, %w, %b)

After::

    %y_packed: f32[12544] = pack_matrix(%w) {panel=16, transpose=True}
    %y: f32[N,10] = linear_packed(%x, %y_packed, %b) {out_features=10, panel=16}

The same inside of ``contraction`` regions. Where ``choose_tile`` says so, a 3x3 convolution of
stride 1 becomes ``conv2d_winograd`` on a weight from ``pack_winograd``; the gradient of its weight,
which reads none, becomes ``conv2d_grad_weight_winograd`` where ``choose_gradient_tile`` says so, or
``conv2d_grad_weight_parts`` and a ``sum`` over the parts where ``choose_parts`` does. A
pack of a parameter is a function of state alone: in inference the runtime computes it when a
parameter changes; a training step computes it once per step. Two users of one weight in one form
share its pack. Code P101; P102 for the gradients of weights, P105 for those in parts.

A linear layer whose weight changes in every call may do without a packed copy, which would go to
memory and come back once. ``choose_linear`` chooses: the kernel of ``linear`` packs panels itself,
next to their use (code P103); that of ``linear_transposed`` needs none (P104).

Skips: convolutions that are not channels-last, which have no packed kernel; a region whose weight
has another use inside of it; weights of symbolic size; Winograd for strides, dilations, groups and
symbolic image sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..ir.graph import Graph, Node, Value
from ..ir.types import DType, Extent, is_fixed, numel
from .region import anchor_of
from .rewriting import Ledger, add_like, rebuild
from .state import state_only

NAME = "pack_weights"
ChoosePanel = Callable[[int, DType], int]
"""``(columns, dtype)``: the width of the panels in which a kernel reads such a matrix."""
ChooseTile = Callable[[int, int, tuple[int, int], DType], int]
"""``(inputs, outputs, size, dtype)``: the m of Winograd's F(m x m, 3 x 3) for such a 3x3
convolution of stride 1 with ``size`` outputs, or 0 for the direct sum."""
ChooseParts = Callable[[int, int, tuple[int, int], tuple[int, int]], int]
"""``(inputs, outputs, kernel, size)``: into how many parts of the batch the gradient of such a
weight, of a convolution with ``size`` outputs, is cut; 0 leaves it whole."""
ChooseLinear = Callable[[Extent, int, int, DType], str]
"""``(rows, depth, outputs, dtype)``: the operator that computes a linear layer whose weight changes
in every call: ``linear_packed``, ``linear`` or ``linear_transposed``."""
_PACKED = ("linear", "conv2d", "conv2d_grad_input")


class Choice(NamedTuple):
    """How a product reads its weight: the panel's width, and Winograd's m (0: the direct sum)."""

    panel: int
    tile: int = 0


class Product(NamedTuple):
    """An operator on a weight that can be packed: the node (or the region around it), the number
    of its operand that is the weight, columns of the matrix, whether Winograd applies."""

    node: Node
    weight: int
    columns: int
    winograd: bool


def pack_weights(
    graph: Graph,
    choose_panel: ChoosePanel,
    ledger: Ledger | None = None,
    choose_tile: ChooseTile | None = None,
    choices: Mapping[str, Choice] | None = None,
    choose_gradient_tile: ChooseTile | None = None,
    choose_parts: ChooseParts | None = None,
    choose_linear: ChooseLinear | None = None,
) -> Graph:
    """The graph with packed operands for linear and convolution kernels.

    ``choices``, by the name of a node of the graph, overrule the first two functions for weights
    that are packed.
    """
    unpacked = _unpacked(graph, choose_linear) if choose_linear is not None else {}
    packer = _Packer(
        choose_panel, choose_tile or _direct, choose_gradient_tile or _direct,
        choose_parts or _whole, ledger, dict(choices or {}), unpacked,
    )  # fmt: skip
    return rebuild(graph, packer.emit)


def _unpacked(graph: Graph, choose: ChooseLinear) -> dict[str, str]:
    """The operators of linear layers that read their weights in memory order, by the layer's name:
    of which nothing is prepared, and that no other product could share a pack with."""
    users: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        found = _anchor(node)
        if found is not None:
            users.setdefault(node.operands[found[1]], []).append(found[0])
    prepared = state_only(graph)
    unpacked = {}
    for node in graph.nodes:
        found = _anchor(node)
        if found is None or found[0].op != "linear":
            continue
        weight = node.operands[found[1]]
        kind, rows = graph.type(weight), numel(found[0].type.shape[:-1])
        outputs, depth = kind.shape
        alone = len(users[weight]) == 1 and weight.node not in prepared
        if not alone or not isinstance(outputs, int) or not isinstance(depth, int):
            continue
        op = choose(rows, depth, outputs, kind.dtype)
        if op != "linear_packed":
            unpacked[node.name] = op
    return unpacked


def products(graph: Graph, choose_linear: ChooseLinear | None = None) -> Iterator[Product]:
    """The operators of a graph whose weights ``pack_weights`` packs."""
    unpacked = _unpacked(graph, choose_linear) if choose_linear is not None else {}
    for node in graph.nodes:
        found = _anchor(node)
        if found is None or node.name in unpacked:
            continue
        anchor, weight = found
        shape = graph.type(node.operands[weight]).shape
        fits = anchor.attrs.get("layout", "NHWC") == "NHWC"
        if fits and is_fixed(shape):
            winograd = bool(_winograd_size(anchor, shape))
            yield Product(node, weight, _columns(anchor, shape), winograd)


def _anchor(node: Node) -> tuple[Node, int] | None:
    """The product in a node or region, and which operand of the node is its weight."""
    anchor = anchor_of(node, _PACKED)
    if anchor is None:
        return None
    if anchor is node:
        return node, 1
    body: Graph = node.attrs["body"]
    weight = body.node(anchor.operands[1])
    if weight.op != "input" or body.use_count(weight.value) > 1:
        return None
    return anchor, int(weight.attrs["path"])


def _columns(anchor: Node, shape: tuple[Any, ...]) -> int:
    """Columns of the weight as a matrix, per group."""
    if anchor.op == "linear":
        return int(shape[0])
    groups = anchor.attrs["groups"]
    if groups > 1 and shape[0] == groups and shape[1] == 1:
        return int(shape[0])
    return int(shape[1] if anchor.op == "conv2d_grad_input" else shape[0] // groups)


def _winograd_size(anchor: Node, shape: tuple[Any, ...]) -> tuple[int, ...]:
    """Height and width of the result of a convolution (or of the gradient of its input) that
    Winograd's algorithm can compute; () for all others."""
    if anchor.op not in ("conv2d", "conv2d_grad_input") or shape[2:] != (3, 3):
        return ()
    if anchor.op == "conv2d_grad_input" and max(map(max, anchor.attrs["padding"])) > 2:
        return ()
    return _plain_size(anchor, anchor.type.shape[1:3])


def _plain_size(node: Node, size: tuple[Any, ...]) -> tuple[int, ...]:
    """``size`` if a convolution of this many outputs has stride 1, one group and no dilation."""
    plain = (node.attrs["stride"], node.attrs["dilation"], node.attrs["groups"])
    if plain != ((1, 1), (1, 1), 1) or not all(isinstance(d, int) and d > 0 for d in size):
        return ()
    return tuple(int(d) for d in size)


def _direct(inputs: int, outputs: int, size: tuple[int, int], dtype: DType) -> int:
    return 0


def _whole(inputs: int, outputs: int, kernel: tuple[int, int], size: tuple[int, int]) -> int:
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
    choose_gradient_tile: ChooseTile
    choose_parts: ChooseParts
    ledger: Ledger | None
    choices: dict[str, Choice]
    unpacked: dict[str, str]
    packs: dict[tuple[Any, ...], Value] = field(default_factory=dict)

    def emit(self, new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.op == "conv2d_grad_weight":
            return self._weight_gradient(new, node, operands)
        found = _anchor(node)
        if found is None:
            return None
        anchor, weight = found
        if node.name in self.unpacked:
            return self._changing(new, node, operands, anchor, weight)
        form = self._form(node, anchor, new.type(operands[weight]).shape)
        if form is None:
            return None
        operands = list(operands)
        operands[weight] = self._pack(new, node, operands[weight], form)
        if anchor is node:
            return add_like(new, node, form.op, operands, **form.attrs)
        kind = new.type(operands[weight])
        packed = _packed_body(node.attrs["body"], anchor, form.op, form.attrs, kind)
        return add_like(new, node, "fused", operands, kind="contraction", body=packed)

    def _changing(
        self, new: Graph, node: Node, operands: list[Value], anchor: Node, weight: int
    ) -> tuple[Value, ...] | None:
        """A linear layer on a weight in memory order; None if its kernel packs it."""
        op, value = self.unpacked[node.name], operands[weight]
        if op == "linear":
            if self.ledger is not None:
                why = f"%{node.name} packs {value} itself: it changes in every call"
                self.ledger.declined(NAME, "P103", node, why)
            return None
        if self.ledger is not None:
            text = f"%{node.name} reads {value}, which changes in every call, as a left factor"
            self.ledger.did(NAME, "P104", node, text)
        if anchor is node:
            return add_like(new, node, op, operands)
        body = _packed_body(node.attrs["body"], anchor, op, {}, new.type(value))
        return add_like(new, node, "fused", operands, kind="contraction", body=body)

    def _weight_gradient(
        self, new: Graph, node: Node, operands: list[Value]
    ) -> tuple[Value, ...] | None:
        """By Winograd's algorithm, in parts, or None for the direct sum as a whole."""
        attrs, shape = node.attrs, new.type(operands[0]).shape
        sizes = (*shape[1:], *new.type(operands[1]).shape[1:])
        if attrs["layout"] != "NHWC" or not is_fixed(sizes) or 0 in sizes:
            return None
        height, width, outputs, *_, inputs = sizes
        tile = self._gradient_tile(node, shape, inputs)
        if tile:
            self._did("P102", node, f"by Winograd's algorithm, F({tile}x{tile}, 3x3)")
            how = {"tile": tile, "padding": attrs["padding"], "layout": attrs["layout"]}
            return add_like(new, node, "conv2d_grad_weight_winograd", operands, **how)
        kernel = attrs["kernel_size"]
        parts = self.choose_parts(inputs, outputs, kernel, (height, width))
        if attrs["groups"] > 1 or not parts:
            return None
        self._did("P105", node, f"in {parts} parts of the batch, which are then added")
        op, name = "conv2d_grad_weight_parts", f"{node.name}_parts"
        found = new.add(op, *operands, name=name, source=node.source, parts=parts, **attrs)
        return add_like(new, node, "sum", [found], dims=(0,), keepdim=False)

    def _gradient_tile(self, node: Node, shape: tuple[Any, ...], inputs: int) -> int:
        """The m of Winograd's algorithm for the gradient of a weight, 0 for the direct sum."""
        size = _plain_size(node, shape[1:3])
        if not size or tuple(node.attrs["kernel_size"]) != (3, 3):
            return 0
        return self.choose_gradient_tile(inputs, shape[3], (size[0], size[1]), node.type.dtype)

    def _did(self, code: str, node: Node, how: str) -> None:
        if self.ledger is not None:
            self.ledger.did(NAME, code, node, f"%{node.name} is computed {how}")

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

    def _form(self, node: Node, anchor: Node, weight_shape: tuple[Any, ...]) -> _Form | None:
        if not is_fixed(weight_shape):
            return None
        if anchor.op == "linear":
            panel = self._choice(node, anchor, weight_shape).panel
            return _Form(
                "pack_matrix",
                {"transpose": True, "panel": panel},
                "linear_packed",
                {"out_features": weight_shape[0], "panel": panel},
            )
        if anchor.attrs["layout"] != "NHWC":
            return None
        return self._conv_form(anchor, weight_shape, self._choice(node, anchor, weight_shape))

    def _conv_form(self, anchor: Node, weight_shape: tuple[int, ...], choice: Choice) -> _Form:
        """Of a convolution or its gradient with respect to the input (``flip``)."""
        out, inner, *kernel_size = weight_shape
        groups, panel = anchor.attrs["groups"], choice.panel
        flip = anchor.op == "conv2d_grad_input"
        if choice.tile:
            how: dict[str, Any] = {"tile": choice.tile, "panel": panel}
            padding = anchor.attrs["padding"]
            if flip:  # the gradient meets the kernel's far end first
                padding = tuple((2 - low, 2 - high) for low, high in padding)
            attrs = {"out_channels": inner if flip else out, **how, "padding": padding}
            attrs["layout"] = anchor.attrs["layout"]
            return _Form("pack_winograd", {**how, "flip": flip}, "conv2d_winograd", attrs)
        attrs = {**anchor.attrs, "kernel_size": tuple(kernel_size), "panel": panel}
        attrs["in_channels" if flip else "out_channels"] = inner * groups if flip else out
        pack_attrs = {"panel": panel, "flip": flip, "groups": groups}
        return _Form("pack_conv", pack_attrs, anchor.op + "_packed", attrs)

    def _choice(self, node: Node, anchor: Node, shape: tuple[int, ...]) -> Choice:
        if node.name in self.choices:
            return self.choices[node.name]
        dtype = anchor.type.dtype
        panel = self.choose_panel(_columns(anchor, shape), dtype)
        size = _winograd_size(anchor, shape)
        if not size:
            return Choice(panel)
        outputs, inputs = shape[:2] if anchor.op == "conv2d" else shape[1::-1]
        return Choice(panel, self.choose_tile(inputs, outputs, (size[0], size[1]), dtype))


def _packed_body(body: Graph, anchor: Node, op: str, attrs: dict[str, Any], kind: Any) -> Graph:
    """The body with operator ``op`` in place of the anchor, on a weight of type ``kind``."""
    weight = body.node(anchor.operands[1])

    def emit(inner: Graph, part: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if part.name == weight.name:
            return add_like(inner, part, "input", [], path=part.attrs["path"], type=kind)
        if part.name == anchor.name:
            return add_like(inner, part, op, operands, **attrs)
        return None

    return rebuild(body, emit)
