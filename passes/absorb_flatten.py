"""The order of a channels-last image in front of a linear layer moves into the layer's weight.

Before::

    %x: f32[N,14,14,16] = max_pool2d(...) {layout="NHWC", ...}
    %p: f32[N,16,14,14] = permute(%x) {dims=(0,3,1,2)}
    %f: f32[N,3136] = reshape(%p) {shape=(N,3136)}
    %y: f32[N,10] = linear(%f, %w, %b)

After::

    %y_image: f32[10,16,14,14] = reshape(%w) {shape=(10,16,14,14)}
    %y_order: f32[10,14,14,16] = permute(%y_image) {dims=(0,2,3,1)}
    %y_weight: f32[10,3136] = reshape(%y_order) {shape=(10,3136)}
    %y_f: f32[N,3136] = reshape(%x) {shape=(N,3136)}
    %y: f32[N,10] = linear(%y_f, %y_weight, %b)

The columns of the weight are put in the order of the image once, when a parameter changes; the
user's parameter keeps PyTorch's order. The sums are those of before in another order.

Skips: a permutation or flattened image that something else reads or that is a result; a weight that
is computed from the input or that the graph updates; layers of more than MOST_FEATURES outputs, for
which the permutation is little beside the product, and a second copy of the weight is not.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.types import Dim
from .rewriting import Ledger, add_like, erase_dead, rebuild
from .state import state_only

NAME = "absorb_flatten"

MOST_FEATURES = 256
"""For each element of the image, the product does twice as many operations; the copy moves it."""


def absorb_flatten(graph: Graph, ledger: Ledger | None = None) -> Graph:
    """Lets linear layers read flattened images in the order of their memory."""
    ledger = ledger if ledger is not None else Ledger()
    state = state_only(graph)
    permutes = {
        node.name: permute
        for node in graph.nodes
        if node.op == "linear" and (permute := _permutation(graph, node, state)) is not None
    }

    def emit(new: Graph, node: Node, operands: list[Value]) -> tuple[Value, ...] | None:
        if node.name not in permutes:
            return None
        permute = permutes[node.name]
        image = new.node(new.node(operands[0]).operands[0]).operands[0]
        weight = _reordered(new, node, permute, operands[1])
        shape = graph.type(node.operands[0]).shape
        flat = new.add("reshape", image, name=f"{node.name}_f", source=permute.source, shape=shape)
        ledger.did(NAME, "Y301", permute, f"permutation absorbed by the weight of %{node.name}")
        return add_like(new, node, "linear", [flat, weight, *operands[2:]])

    if not permutes:
        return graph
    result = rebuild(graph, emit)
    erase_dead(result)
    return result


def _permutation(graph: Graph, node: Node, state: set[str]) -> Node | None:
    """The permute in front of a flattened image that a linear layer can do without."""
    out, features = graph.type(node.operands[1]).shape
    reshape = graph.node(node.operands[0])
    if reshape.op != "reshape" or node.operands[1].node not in state or node.name in state:
        return None
    permute = graph.node(reshape.operands[0])
    if permute.op != "permute" or permute.attrs["dims"][0] != 0:
        return None
    sample = permute.type.shape[1:]
    if reshape.type.shape != (permute.type.shape[0], features):
        return None
    if isinstance(out, Dim) or out > MOST_FEATURES or any(isinstance(d, Dim) for d in sample):
        return None
    return permute if all(graph.use_count(n.value) == 1 for n in (permute, reshape)) else None


def _reordered(new: Graph, node: Node, permute: Node, weight: Value) -> Value:
    """The weight with its columns in the order of the operand of ``permute``."""
    dims = permute.attrs["dims"]
    inverse = tuple(sorted(range(len(dims)), key=dims.__getitem__))

    def add(name: str, op: str, value: Value, **attrs: object) -> Value:
        result: Value = new.add(op, value, name=f"{node.name}_{name}", source=node.source, **attrs)
        return result

    shape = new.type(weight).shape
    image = add("image", "reshape", weight, shape=(shape[0], *permute.type.shape[1:]))
    return add("weight", "reshape", add("order", "permute", image, dims=inverse), shape=shape)
