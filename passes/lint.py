"""Lints: likely mistakes that a traced graph shows. Each has a stable code.

L001 softmax or log-softmax into CrossEntropyLoss; L002 sigmoid into BCEWithLogitsLoss; L003 an
activation on the logits of a classification loss; L004 Linear directly into Linear; L005 a bias in
front of BatchNorm; L006 saturating activations in the hidden layers of a deep feed-forward net;
L007 CrossEntropyLoss on a single output; L008 MSELoss against integer class labels; L009 parameters
that get no gradient.

Silence one: ``warnings.filterwarnings("ignore", message="L004")``.

For example L004, for::

    %a: f32[N,8] = linear(%x, %w0) @ "fc1" "model.py":7
    %b: f32[N,4] = linear(%a, %w1) @ "fc2" "model.py":8

The rules see through operators that only move or convert elements. They do not fire where the value
in between has another use, because then it is no mistake (L004, L005), nor where a network does
normalise in front of its saturating activations (L006).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

from ..errors import LintWarning
from ..ir.graph import Graph, Node, Value
from .eliminate_redundant_softmax import softmax_before

SATURATING = ("sigmoid", "tanh")
ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid",
    "tanh", "softplus",
)  # fmt: skip
DEEP = 4
_LAYERS = ("linear", "conv2d")
_NORMS = ("batch_norm", "batch_norm_train")
_TRANSPARENT = ("reshape", "cast", "permute")
_BETWEEN_LAYERS = (*_TRANSPARENT, "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")


def lint(graph: Graph) -> list[LintWarning]:
    """The warnings of a traced graph, ordered by code and node."""
    found: dict[str, LintWarning] = {}
    for rule in RULES:
        for warning in rule(graph):
            found.setdefault(str(warning), warning)
    return list(found.values())


def lint_gradients(
    graph: Graph, parameters: Collection[str], differentiated: Collection[str]
) -> list[LintWarning]:
    """L009 for the trained ``parameters`` that are not among the ``differentiated`` ones."""
    missing = [p for p in parameters if p not in differentiated]
    if not missing:
        return []
    sources = {n.attrs["path"]: n for n in graph.sources("parameter")}
    places = [p + (_at(sources[p]) if p in sources else " (never used)") for p in missing]
    return [
        LintWarning(
            "L009",
            f"no gradient reaches {', '.join(places)}: the loss does not depend on them, or only "
            "through operations without a gradient (argmax, comparisons, detach); they will not "
            "be trained. Use them in the loss, or do not give them to the optimizer",
        )
    ]


def _at(node: Node) -> str:
    return f" [{node.source}]" if str(node.source) else ""


def _through(graph: Graph, value: Value) -> Node:
    """The node that computes a value, seen through what only moves or converts it."""
    node = graph.node(value)
    while node.op in _TRANSPARENT:
        node = graph.node(node.operands[0])
    return node


def _single_use(graph: Graph, node: Node, user: Node) -> bool:
    """Whether nothing but ``user`` sees the node, up to operators that only move elements."""
    while node.name != user.name:
        if graph.use_count(node.value) != 1:
            return False
        node = graph.users(node.value)[0]
    return True


# -- losses ---------------------------------------------------------------------------------------


def _softmax_into_cross_entropy(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op == "cross_entropy":
            found = softmax_before(graph, node.operands[0], 1)
        elif node.op == "log_softmax":  # cross entropy with class probabilities
            found = softmax_before(graph, node.operands[0], node.attrs["dim"])
        else:
            continue
        if found is None:
            continue
        kind = "Softmax" if found.op == "softmax" else "LogSoftmax"
        if node.op == "cross_entropy":
            loss, end = "CrossEntropyLoss", "netwright removes it (strict=True keeps it)"
        else:
            loss, end = "log_softmax (or CrossEntropyLoss)", "netwright keeps it as written"
        yield LintWarning(
            "L001",
            f"{kind}{_at(found)} feeds {loss}{_at(node)}, which contains a log-softmax: give it "
            f"the logits, without {kind}. {end}",
        )


def _bce_with_logits(graph: Graph) -> Iterator[tuple[Node, Value]]:
    """Binary cross entropies with logits, which are no operator of their own:
    ``softplus(-x) [* weight] + (1 - t) * x``. Gives the addition and x."""
    for node in graph.nodes:
        if node.op != "add":
            continue
        for positive, negative in (node.operands, node.operands[::-1]):
            logits = _softplus_of_negative(graph, positive)
            if logits is not None and _is_complement_times(graph, negative, logits):
                yield node, logits


def _softplus_of_negative(graph: Graph, value: Value) -> Value | None:
    """x, if the value is ``softplus(-x)`` or a product with it."""
    node = graph.node(value)
    factors = node.operands if node.op == "mul" else (value,)
    for factor in factors:
        softplus = graph.node(factor)
        if softplus.op == "softplus":
            inner = graph.node(softplus.operands[0])
            if inner.op == "neg":
                return inner.operands[0]
    return None


def _is_complement_times(graph: Graph, value: Value, logits: Value) -> bool:
    """Whether the value is ``(1 - t) * logits``."""
    product = graph.node(value)
    if product.op != "mul" or logits not in product.operands:
        return False
    other = product.operands[1 - product.operands.index(logits)]
    difference = graph.node(other)
    if difference.op != "sub":
        return False
    one = graph.node(difference.operands[0])
    return one.op == "constant" and bool(np.all(one.attrs["value"] == 1))


def _sigmoid_into_bce_with_logits(graph: Graph) -> Iterator[LintWarning]:
    for node, logits in _bce_with_logits(graph):
        before = _through(graph, logits)
        if before.op == "sigmoid":
            yield LintWarning(
                "L002",
                f"Sigmoid{_at(before)} feeds BCEWithLogitsLoss{_at(node)}, which contains a "
                "sigmoid: give it the logits, or use BCELoss",
            )


def _classification_losses(graph: Graph) -> Iterator[tuple[Node, Value, str]]:
    for node in graph.nodes:
        if node.op == "cross_entropy":
            yield node, node.operands[0], "CrossEntropyLoss"
        elif node.op == "log_softmax":
            yield node, node.operands[0], "log_softmax"
    for node, logits in _bce_with_logits(graph):
        yield node, logits, "BCEWithLogitsLoss"


def _activation_on_logits(graph: Graph) -> Iterator[LintWarning]:
    for node, logits, loss in _classification_losses(graph):
        before = _through(graph, logits)
        if before.op in ("softmax", "log_softmax"):
            before = _through(graph, before.operands[0])
        if before.op not in ACTIVATIONS or (loss, before.op) == ("BCEWithLogitsLoss", "sigmoid"):
            continue
        yield LintWarning(
            "L003",
            f"{before.op}{_at(before)} is applied to the logits of {loss}{_at(node)}: it limits "
            "which probabilities the model can express; remove it",
        )


def _single_output_cross_entropy(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op == "cross_entropy" and graph.type(node.operands[0]).shape[1] == 1:
            layer = _through(graph, node.operands[0])
            made = f" (made by {layer.op}{_at(layer)})" if layer.op in _LAYERS else ""
            yield LintWarning(
                "L007",
                f"CrossEntropyLoss{_at(node)} on a single output{made} is always zero: for two "
                "classes use two outputs, or BCEWithLogitsLoss",
            )


def _squared(graph: Graph, node: Node) -> Value | None:
    """x, if the node is ``x ** 2``."""
    if node.op == "square":
        return node.operands[0]
    if node.op == "mul" and node.operands[0] == node.operands[1]:
        return node.operands[0]
    if node.op == "pow":
        exponent = graph.node(node.operands[1])
        if exponent.op == "constant" and bool(np.all(exponent.attrs["value"] == 2)):
            return node.operands[0]
    return None


def _mse_on_labels(graph: Graph) -> Iterator[LintWarning]:
    """Only a conversion that the subtraction itself made: who writes ``y.float()`` means it."""
    for node in graph.nodes:
        value = _squared(graph, node)
        difference = graph.node(value) if value is not None else None
        if difference is None or difference.op != "sub":
            continue
        for v in difference.operands:
            cast = graph.node(v)
            if cast.op != "cast" or cast.source != difference.source:
                continue
            labels = _through(graph, cast.operands[0])
            if labels.op == "input" and labels.type.dtype.is_int:
                yield LintWarning(
                    "L008",
                    f"MSELoss{_at(node)} compares with the integer labels "
                    f"{labels.attrs['path']!r}: for classes use CrossEntropyLoss; for numbers "
                    "convert the targets with .float()",
                )


# -- layers ---------------------------------------------------------------------------------------


def _linear_into_linear(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op != "linear":
            continue
        before = _through(graph, node.operands[0])
        if before.op == "linear" and _single_use(graph, before, node):
            yield LintWarning(
                "L004",
                f"Linear{_at(before)} feeds Linear{_at(node)} without an activation between them: "
                "together they are one linear layer; put an activation between them, or use one",
            )


def _bias_before_batch_norm(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op not in _NORMS:
            continue
        before = graph.node(node.operands[0])
        channels = 1 if before.op == "conv2d" else before.type.rank - 1
        if (
            before.op in _LAYERS
            and len(before.operands) == 3
            and node.attrs["channel_dim"] == channels
            and _single_use(graph, before, node)
        ):
            yield LintWarning(
                "L005",
                f"the bias of {before.op}{_at(before)} has no effect: BatchNorm{_at(node)} "
                "subtracts the mean and has a bias of its own; use bias=False",
            )


def _saturating_hidden(graph: Graph) -> Iterator[LintWarning]:
    hidden = [
        n
        for n in graph.nodes
        if n.op in SATURATING
        and _through(graph, n.operands[0]).op in _LAYERS
        and _feeds_layer(graph, n)
    ]
    if len(hidden) >= DEEP:
        places = ", ".join(str(n.source) or "%" + n.name for n in hidden)
        ops = " and ".join(dict.fromkeys(n.op for n in hidden))
        yield LintWarning(
            "L006",
            f"{len(hidden)} hidden layers use {ops} ({places}): their gradients vanish in deep "
            "nets; use ReLU, GELU or SiLU, or normalise in front of them",
        )


def _feeds_layer(graph: Graph, node: Node) -> bool:
    """Whether a layer reads the node itself, perhaps pooled (a gate feeds a product instead)."""
    pending = [(u, node.value) for u in graph.users(node.value)]
    while pending:
        user, value = pending.pop()
        if user.op in _LAYERS and user.operands[0] == value:
            return True
        if user.op in _BETWEEN_LAYERS:
            pending += [(u, user.value) for u in graph.users(user.value)]
    return False


Rule = Callable[[Graph], Iterator[LintWarning]]

RULES: tuple[Rule, ...] = (
    _softmax_into_cross_entropy,
    _sigmoid_into_bce_with_logits,
    _activation_on_logits,
    _linear_into_linear,
    _bias_before_batch_norm,
    _saturating_hidden,
    _single_output_cross_entropy,
    _mse_on_labels,
)
