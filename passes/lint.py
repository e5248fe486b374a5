"""Lints: likely mistakes that a traced graph shows. Each has a stable code.

L001 softmax or log-softmax into CrossEntropyLoss; L002 sigmoid into BCEWithLogitsLoss; L003 an
activation on the logits of a classification loss; L004 Linear directly into Linear; L005 a bias in
front of BatchNorm; L006 saturating activations in the hidden layers of a deep feed-forward net;
L007 CrossEntropyLoss on a single output; L008 MSELoss against integer class labels; L009 parameters
that get no gradient.

Silence one: ``warnings.filterwarnings("ignore", message="L004")``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from ..errors import LintWarning
from ..ir.graph import Graph, Node, Value
from .eliminate_redundant_softmax import softmax_before

SATURATING = ("sigmoid", "tanh")
ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid",
    "tanh", "softplus",
)
DEEP = 4
_TRANSPARENT = ("reshape", "cast")


def lint(graph: Graph) -> list[LintWarning]:
    """The warnings of a traced graph, in the order of its nodes."""
    found: dict[str, LintWarning] = {}
    for rule in RULES:
        for warning in rule(graph):
            found.setdefault(str(warning), warning)
    return list(found.values())


def lint_gradients(
    parameters: Collection[str], differentiated: Collection[str]
) -> list[LintWarning]:
    """L009 for the trained ``parameters`` that are not among the ``differentiated`` ones."""
    missing = [p for p in parameters if p not in differentiated]
    if not missing:
        return []
    return [
        LintWarning(
            "L009",
            f"no gradient reaches {', '.join(missing)}: the loss does not depend on them, or only "
            "through operations without a gradient (argmax, comparisons, detach); they will not "
            "be trained",
        )
    ]


def _at(node: Node) -> str:
    return f" [{node.source}]" if str(node.source) else ""


def _through(graph: Graph, value: Value) -> Node:
    node = graph.node(value)
    while node.op in _TRANSPARENT:
        node = graph.node(node.operands[0])
    return node


def _softmax_into_cross_entropy(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op != "cross_entropy":
            continue
        found = softmax_before(graph, node.operands[0], 1)
        if found is not None:
            kind = "Softmax" if found.op == "softmax" else "LogSoftmax"
            yield LintWarning(
                "L001",
                f"{kind}{_at(found)} feeds CrossEntropyLoss{_at(node)}, which contains a "
                "log-softmax: give it the logits. netwright removes it (strict=True keeps it)",
            )


def _is_bce_with_logits(graph: Graph, node: Node) -> bool:
    return node.op == "softplus" and "BCEWithLogits" in node.source.module or (
        node.op == "softplus" and any(
            u.op in ("sub", "add") for u in graph.users(node.value)
        ) and any(
            u.op == "mul" for u in graph.users(node.operands[0])
        )
    )


def _sigmoid_into_bce_with_logits(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if _is_bce_with_logits(graph, node):
            before = _through(graph, node.operands[0])
            if before.op == "sigmoid":
                yield LintWarning(
                    "L002",
                    f"Sigmoid{_at(before)} feeds BCEWithLogitsLoss{_at(node)}, which contains a "
                    "sigmoid: give it the logits, or use BCELoss",
                )


def _activation_on_logits(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op == "cross_entropy":
            before = _through(graph, node.operands[0])
            if before.op in ("softmax", "log_softmax"):
                before = _through(graph, before.operands[0])
            if before.op in ACTIVATIONS:
                yield LintWarning(
                    "L003",
                    f"{before.op}{_at(before)} is applied to the logits of CrossEntropyLoss"
                    f"{_at(node)}: it limits which probabilities the model can express; remove it",
                )


def _linear_into_linear(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op == "linear":
            before = _through(graph, node.operands[0])
            if before.op == "linear":
                yield LintWarning(
                    "L004",
                    f"Linear{_at(before)} feeds Linear{_at(node)} without an activation between "
                    "them: together they are one linear layer",
                )


def _bias_before_batch_norm(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op in ("batch_norm", "batch_norm_train"):
            before = _through(graph, node.operands[0])
            if before.op in ("linear", "conv2d") and len(before.operands) == 3:
                yield LintWarning(
                    "L005",
                    f"the bias of {before.op}{_at(before)} has no effect: BatchNorm{_at(node)} "
                    "subtracts the mean; use bias=False",
                )


def _saturating_hidden(graph: Graph) -> Iterator[LintWarning]:
    hidden = [
        n
        for n in graph.nodes
        if n.op in SATURATING
        and _through(graph, n.operands[0]).op in ("linear", "conv2d", "batch_norm",
                                                  "batch_norm_train")
        and _feeds_layer(graph, n)
    ]
    if len(hidden) >= DEEP:
        places = ", ".join(str(n.source) or n.name for n in hidden)
        yield LintWarning(
            "L006",
            f"{len(hidden)} hidden layers use {hidden[0].op} ({places}): its gradient vanishes "
            "in deep nets; use ReLU, GELU or SiLU, or normalise",
        )


def _feeds_layer(graph: Graph, node: Node) -> bool:
    pending = list(graph.users(node.value))
    while pending:
        user = pending.pop()
        if user.op in ("linear", "conv2d"):
            return True
        if user.op in _TRANSPARENT:
            pending += graph.users(user.value)
    return False


def _single_output_cross_entropy(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op == "cross_entropy" and graph.type(node.operands[0]).shape[1] == 1:
            yield LintWarning(
                "L007",
                f"CrossEntropyLoss{_at(node)} on a single output is always zero: for two classes "
                "use two outputs, or BCEWithLogitsLoss",
            )


def _mse_on_labels(graph: Graph) -> Iterator[LintWarning]:
    for node in graph.nodes:
        if node.op != "mean" or len(node.operands) != 1:
            continue
        square = graph.node(node.operands[0])
        if square.op not in ("square", "mul", "pow"):
            continue
        difference = graph.node(square.operands[0])
        if difference.op != "sub":
            continue
        for v in difference.operands:
            cast = graph.node(v)
            if cast.op == "cast" and graph.type(cast.operands[0]).dtype.is_int and (
                _through(graph, cast.operands[0]).op == "input"
            ):
                yield LintWarning(
                    "L008",
                    f"MSELoss{_at(node)} compares with integer labels: for classes use "
                    "CrossEntropyLoss; for numbers convert the targets to floating point",
                )


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
