"""Calling gradient rules: the part that eager autograd and the graph's backward pass share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import NetwrightError, UnsupportedError
from .builder import Builder
from .ops.record import GradContext, Op
from .types import Shape, TensorType


def input_gradients(b: Builder, op: Op, ctx: GradContext, output_grads: Sequence[Any]) -> list[Any]:
    """Gradients of a node's operands (None where there is none), in the operands' own shapes.

    Rules return gradients in the broadcast shape; the sum over broadcast dimensions is done here,
    once for every rule.
    """
    if op.grad is None:
        raise UnsupportedError(f"operator {op.name!r} has no gradient")
    grads = op.grad(b, ctx, *output_grads)
    if len(grads) != len(ctx.inputs):
        raise NetwrightError(
            f"gradient rule of {op.name!r} returned {len(grads)} gradients for "
            f"{len(ctx.inputs)} operands"
        )
    return [
        None if g is None or not ctx.needs(i) else sum_to(b, g, b.type(ctx.inputs[i]))
        for i, g in enumerate(grads)
    ]


def sum_to(b: Builder, value: Any, target: TensorType) -> Any:
    """Sums ``value`` over the dimensions in which ``target`` was broadcast to its shape."""
    shape = b.type(value).shape
    if shape == target.shape:
        return value
    lead = len(shape) - len(target.shape)
    dims = tuple(range(lead)) + tuple(
        i + lead for i, d in enumerate(target.shape) if d == 1 and shape[i + lead] != 1
    )
    if dims:
        value = b.op("sum", value, dims=dims, keepdim=False)
    return reshape(b, value, target.shape)


def reshape(b: Builder, value: Any, shape: Shape) -> Any:
    """Reshape, or nothing when the shape is right already."""
    return value if b.type(value).shape == shape else b.op("reshape", value, shape=shape)
