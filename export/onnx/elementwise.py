"""Elementwise operators: arithmetic, functions, activations, comparison, logic, casts."""

from __future__ import annotations

import math
from collections.abc import Callable

from ...ir.graph import Node
from ...ir.types import dtype_of
from .builder import OnnxBuilder
from .rules import rule, same

# -- operators that ONNX has --------------------------------------------------------------------

for _op, _onnx_op in {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow",
    "maximum": "Max", "minimum": "Min", "neg": "Neg", "abs": "Abs", "sign": "Sign",
    "reciprocal": "Reciprocal", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin",
    "cos": "Cos", "erf": "Erf", "sigmoid": "Sigmoid", "tanh": "Tanh", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "relu": "Relu", "hardswish": "HardSwish",
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
    "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor", "logical_not": "Not",
    "isnan": "IsNaN", "where": "Where", "detach": "Identity",
}.items():  # fmt: skip
    same(_op, _onnx_op)

same("hardsigmoid", "HardSigmoid", alpha=1 / 6, beta=0.5)
same("leaky_relu", "LeakyRelu", alpha=lambda attrs: attrs["slope"])
same("elu", "Elu", alpha=lambda attrs: attrs["alpha"])
same("gelu", "Gelu", approximate=lambda attrs: attrs.get("approximate", "none"))

# -- operators that are several ONNX nodes ------------------------------------------------------


def _formula(op: str) -> Callable[[Callable[..., str]], None]:
    """Registers ``f(b, number, *operands)``; ``number(x)`` is a constant of the dtype."""

    def register(f: Callable[..., str]) -> None:
        @rule(op)
        def convert(b: OnnxBuilder, node: Node, *operands: str) -> str:
            dtype = b.type(node).dtype
            return f(b, lambda x: b.scalar(x, dtype), *operands, **node.attrs)

    return register


Number = Callable[[float], str]


@_formula("square")
def _square(b: OnnxBuilder, number: Number, x: str) -> str:
    return b.add("Mul", x, x)


@_formula("rsqrt")
def _rsqrt(b: OnnxBuilder, number: Number, x: str) -> str:
    return b.add("Reciprocal", b.add("Sqrt", x))


@_formula("silu")
def _silu(b: OnnxBuilder, number: Number, x: str) -> str:
    return b.add("Mul", x, b.add("Sigmoid", x))


@_formula("relu6")
def _relu6(b: OnnxBuilder, number: Number, x: str) -> str:
    return b.add("Clip", x, number(0), number(6))


@_formula("clamp")
def _clamp(
    b: OnnxBuilder, number: Number, x: str, *, min: float | None = None, max: float | None = None
) -> str:
    if min is not None and max is not None and min > max:  # the upper bound wins
        return b.add("Min", b.add("Max", x, number(min)), number(max))
    low, high = ("" if bound is None else number(bound) for bound in (min, max))
    return b.add("Clip", x, low, high)


@_formula("trunc")
def _trunc(b: OnnxBuilder, number: Number, x: str) -> str:
    return b.add("Where", b.add("Less", x, number(0)), b.add("Ceil", x), b.add("Floor", x))


@_formula("ne")
def _ne(b: OnnxBuilder, number: Number, x: str, y: str) -> str:
    return b.add("Not", b.add("Equal", x, y))


@_formula("expm1")
def _expm1(b: OnnxBuilder, number: Number, x: str) -> str:
    # tanh(x / 2) (exp(x) + 1) loses nothing near 0, as exp(x) - 1 does.
    half = b.add("Tanh", b.add("Mul", x, number(0.5)))
    return b.add("Mul", half, b.add("Add", b.add("Exp", x), number(1)))


@_formula("log1p")
def _log1p(b: OnnxBuilder, number: Number, x: str) -> str:
    # log(1 + x) = 2 atanh(x / (x + 2)), which loses nothing near 0 but saturates for large x.
    small = b.add("Atanh", b.add("Div", x, b.add("Add", x, number(2))))
    large = b.add("Log", b.add("Add", x, number(1)))
    is_small = b.add("Less", b.add("Abs", x), number(0.5))
    return b.add("Where", is_small, b.add("Mul", small, number(2)), large)


@_formula("softplus")
def _softplus(b: OnnxBuilder, number: Number, x: str, *, beta: float, threshold: float) -> str:
    scaled = x if beta == 1 else b.add("Mul", x, number(beta))
    soft = b.add("Softplus", scaled)
    soft = soft if beta == 1 else b.add("Div", soft, number(beta))
    if math.exp(-threshold) / threshold < 1e-9:  # the two agree in float32 from there on
        return soft
    return b.add("Where", b.add("Greater", scaled, number(threshold)), x, soft)


@rule("cast")
def _cast(b: OnnxBuilder, node: Node, x: str) -> str:
    return b.cast(x, dtype_of(node.attrs["dtype"]))
