"""Limits gradients before the optimizer sees them: their global norm, or every element.

Before::

    output "grad:weight" = %dw
    output "grad:bias" = %db

After, for the norm (``coef = min(max_norm / (norm + 1e-6), 1)``, as PyTorch's
``clip_grad_norm_``)::

    %s0: f32[] = sum(%square_of_dw) {dims=(0,1), keepdim=False}
    %s1: f32[] = sum(%square_of_db) {dims=(0,), keepdim=False}
    %norm: f32[] = sqrt(%s0_plus_s1)
    %max_norm: f32[] = input {path="opt.clip_norm"}
    ...
    %clipped: f32[2,4] = mul(%dw, %coef)
    output "grad:weight" = %clipped
    output "grad_norm" = %norm

After, for elements::

    %limit: f32[] = input {path="opt.clip_value"}
    %clipped: f32[2,4] = minimum(maximum(%dw, -%limit), %limit)

The limits are inputs: changing one compiles nothing. With both, the norm comes first. NaN stays
NaN, and a NaN in one gradient makes the norm and with it every gradient NaN, as in PyTorch.

Skips: graphs without gradients.
"""

from __future__ import annotations

from typing import Any

from ..ir.builder import GraphBuilder
from ..ir.graph import Graph, Value
from ..ir.types import float32, float64
from .differentiate import GRAD
from .number_inputs import Numbers

NORM = "grad_norm"
"""The output for the norm of all gradients before they are clipped."""
MAX_NORM = "opt.clip_norm"
MAX_VALUE = "opt.clip_value"
EPSILON = 1e-6
"""PyTorch adds it to the norm that it divides by."""


def clip_gradients(graph: Graph, norm: bool, value: bool) -> Graph:
    """The graph with its ``grad:`` outputs limited by their global norm, by value, or by both."""
    new = graph.copy()
    b = GraphBuilder(new)
    numbers = Numbers(new)
    grads = {k: v for k, v in new.outputs.items() if k.startswith(GRAD)}
    if norm and grads:
        new.outputs[NORM], grads = _by_norm(b, numbers, grads)
    if value:
        for name, grad in grads.items():
            limit = numbers.get(MAX_VALUE, "clip_value", b.type(grad).dtype)
            grads[name] = b.minimum(b.maximum(grad, b.neg(limit)), limit)
    new.outputs.update(grads)
    return new


def _by_norm(
    b: GraphBuilder, numbers: Numbers, grads: dict[str, Value]
) -> tuple[Value, dict[str, Value]]:
    dtype = float64 if any(b.type(g).dtype == float64 for g in grads.values()) else float32
    total: Any = None
    for grad in grads.values():
        square = _sum(b, b.mul(grad, grad))
        if b.type(square).dtype != dtype:
            square = b.op("cast", square, dtype=dtype.short)
        total = square if total is None else b.add(total, square)
    norm = b.sqrt(total)
    limit = numbers.get(MAX_NORM, "clip_norm", dtype)
    factor = b.minimum(b.div(limit, b.add(norm, EPSILON)), 1.0)
    factors = {dtype: factor}
    clipped = {}
    for name, grad in grads.items():
        own = b.type(grad).dtype
        if own not in factors:
            factors[own] = b.op("cast", factor, dtype=own.short)
        clipped[name] = b.mul(grad, factors[own])
    return norm, clipped


def _sum(b: GraphBuilder, value: Value) -> Value:
    dims = tuple(range(len(b.type(value).shape)))
    return b.op("sum", value, dims=dims, keepdim=False) if dims else value
