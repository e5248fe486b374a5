"""The table of conversion rules: what each IR operator is in ONNX.

A rule is ``rule(b, node, *operands) -> name``: it adds ONNX nodes with the builder ``b`` and
returns the name of the result, or a list of names for an operator with several results. Operands
are ONNX names; optional ones may be missing at the end. To add an operator, write a rule in the
file of its kind and register it with ``@rule("name")``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...ir.graph import Node
from .builder import OnnxBuilder

Rule = Callable[..., "str | list[str]"]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of IR operators."""

    def register(function: Rule) -> Rule:
        for op in ops:
            if op in RULES:
                raise ValueError(f"operator {op!r} has two ONNX rules")
            RULES[op] = function
        return function

    return register


def same(op: str, onnx_op: str, **attributes: Any) -> None:
    """Registers an operator that is one ONNX operator with the same operands.

    attributes: attributes of the ONNX node by name; a callable gets the IR node's attributes.
    """

    @rule(op)
    def convert(b: OnnxBuilder, node: Node, *operands: str) -> str:
        found = {k: v(node.attrs) if callable(v) else v for k, v in attributes.items()}
        return b.add(onnx_op, *operands, **found)
