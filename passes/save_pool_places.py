"""Training keeps where the maxima of a pooling are, one byte each, instead of its operand.

Before::

    %r: f32[N,28,28,16] = relu(%x)
    %y: f32[N,14,14,16] = max_pool2d(%r) {kernel_size=(2,2), stride=(2,2), layout="NHWC", ...}
    ...
    %dr: f32[N,28,28,16] = max_pool2d_grad(%dy, %r) {...}
    %le: bool[N,28,28,16] = le(%r, 0)
    %dx: f32[N,28,28,16] = where(%le, 0, %dr)

After::

    %r: f32[N,28,28,16] = relu(%x)
    %y: f32[N,14,14,16], %p: u8[N,14,14,16] = max_pool2d_with_places(%r) {kernel_size=(2,2)}
    ...
    %le: bool[N,14,14,16] = le(%y, 0)
    %g: f32[N,14,14,16] = where(%le, 0, %dy)
    %dx: f32[N,28,28,16] = max_pool2d_scatter(%g, %p) {kernel_size=(2,2), size=(28,28)}

The gradient is zero but at the maxima, where the operand is what the pooling returned: the
derivative of a ReLU in front is taken of the pooled map (code M102). In front of a flatten it is
taken of the flattened rows, so that the product which makes their gradient can apply it. Nothing
reads the operand after the forward pass; ``fuse_elementwise_pooling`` can leave it out of memory.
M101 says that places are kept.

Skips: windows that overlap, leave gaps, are padded or dilated, or reach beyond the image
(``ceil_mode``): an element then has no or several windows (M103); windows of more than 16 elements,
which kernels do not unroll (M103); images that are not channels-last; a pooling without a gradient;
a scattered gradient that is also used without the mask (stays ``where`` on the large image).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.graph import Graph, Node, Value
from ..ir.ops.pooling import side_by_side
from ..ir.types import Extent, fixed
from .rewriting import Ledger, erase_dead, rebuild

NAME = "save_pool_places"
LARGEST = 16
"""Elements of the largest window."""


def save_pool_places(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """The graph with the gradients of max pooling routed by saved places."""
    if not any(n.op == "max_pool2d_grad" for n in graph.nodes):
        return graph
    new = rebuild(graph, _Rewriter(graph, ledger if ledger is not None else Ledger()).emit)
    erase_dead(new)
    return new


def tiles_image(node: Node, size: Sequence[Extent]) -> bool:
    """Whether the windows of a pooling are next to each other and inside an image of ``size``, also
    with ``ceil_mode``."""
    whole = tuple(fixed(s) // k for s, k in zip(size, node.attrs["kernel_size"], strict=True))
    apart = side_by_side(node.op, {**node.attrs, "ceil_mode": False})
    return apart and node.type.shape[1:3] == whole


@dataclass(frozen=True)
class _Pooled:
    """A pooling in the new graph: what it returns, and where the maxima are."""

    y: Value
    places: Value


class _Rewriter:
    def __init__(self, graph: Graph, ledger: Ledger) -> None:
        self.graph, self.ledger = graph, ledger
        self.pools = self._find()
        self.made: dict[str, _Pooled] = {}
        self.env: dict[Value, Value] = {}

    def _find(self) -> dict[str, Node]:
        """By the name of each gradient that can be routed: the pooling whose places it needs."""
        found = {}
        before: set[str] = set()
        for grad in self.graph.nodes:
            before.add(grad.name)
            if grad.op != "max_pool2d_grad" or grad.attrs["layout"] != "NHWC":
                continue
            users = self.graph.users(grad.operands[1])
            pools = (n for n in users if n.op == "max_pool2d" and n.attrs == grad.attrs)
            pool = next((n for n in pools if n.name in before), None)
            if pool is None:
                continue
            height, width = grad.attrs["kernel_size"]
            if not tiles_image(pool, grad.type.shape[1:3]):
                why = "the windows do not tile the image"
            elif height * width > LARGEST:
                why = f"a window has more than {LARGEST} elements"
            else:
                found[grad.name] = pool
                continue
            self.ledger.declined(NAME, "M103", pool, why)
        return found

    def emit(self, new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        self.env.update(zip(node.operands, operands, strict=True))
        if node.op == "max_pool2d" and any(p is node for p in self.pools.values()):
            y, places = new.add(
                "max_pool2d_with_places", *operands,
                name=node.name, source=node.source, kernel_size=node.attrs["kernel_size"],
            )  # fmt: skip
            self.made[node.name] = _Pooled(y, places)
            self.ledger.did(NAME, "M101", node, "places of the maxima are kept for the gradient")
            return (y,)
        if node.name in self.pools:
            return (self._scatter(new, node, operands[0], node.name),)
        if node.op == "where":
            return self._masked(new, node, operands)
        return None

    def _scatter(self, new: Graph, grad: Node, g: Value, name: str) -> Value:
        made: Value = new.add(
            "max_pool2d_scatter", g, self.made[self.pools[grad.name].name].places,
            name=name, source=grad.source,
            kernel_size=grad.attrs["kernel_size"], size=grad.type.shape[1:3],
        )  # fmt: skip
        return made

    def _masked(self, new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        """``where(le(r, 0), 0, gradient of the pooling of r)`` on the pooled map."""
        test, zero, grad = (self.graph.node(v) for v in node.operands)
        pool = self.pools.get(grad.name)
        if pool is None or test.op != "le" or self.graph.use_count(grad.value) > 1:
            return None
        if test.operands[0] != pool.operands[0] or not _is_zero(zero):
            return None
        limit = self.graph.node(test.operands[1])
        if not _is_zero(limit):
            return None
        pooled, scattered = self.made[pool.name], new.node(operands[2])
        bound = new.node(operands[0]).operands[1]
        y, g = pooled.y, scattered.operands[0]
        flat = self._flattened(new, y, grad)
        if flat is not None:
            y, g = flat
        mask = new.add("le", y, bound, source=test.source)
        g = new.add("where", mask, operands[1], g, source=node.source)
        if flat is not None:
            g = self._unflattened(new, g, grad)
        self.ledger.did(NAME, "M102", node, "the derivative of ReLU is taken of the pooled map")
        return (self._scatter(new, grad, g, node.name),)

    def _views(self, grad: Node) -> tuple[Node, Node] | None:
        """The reshape and the permute that make the gradient of a flattened map a map."""
        permute = self.graph.node(grad.operands[0])
        if permute.op != "permute" or permute.attrs["dims"] != (0, 2, 3, 1):
            return None
        reshape = self.graph.node(permute.operands[0])
        if reshape.op != "reshape":
            return None
        alone = all(
            self.graph.use_count(v) == 1
            for v in (permute.value, reshape.value, reshape.operands[0])
        )
        return (reshape, permute) if alone else None

    def _flattened(self, new: Graph, y: Value, grad: Node) -> tuple[Value, Value] | None:
        """The pooled map and its gradient as the flattened rows that a linear layer has."""
        views = self._views(grad)
        if views is None:
            return None
        shape = self.graph.type(views[0].operands[0]).shape
        for permute in new.users(y):
            if permute.op != "permute" or permute.attrs["dims"] != (0, 3, 1, 2):
                continue
            for reshape in new.users(permute.value):
                if reshape.op == "reshape" and reshape.type.shape == shape:
                    return reshape.value, self.env[views[0].operands[0]]
        return None

    def _unflattened(self, new: Graph, g: Value, grad: Node) -> Value:
        views = self._views(grad)
        for view in views or ():
            g = new.add(view.op, g, source=view.source, **view.attrs)
        return g


def _is_zero(node: Node) -> bool:
    return node.op == "constant" and node.type.shape == () and not node.attrs["value"]
