"""Fixtures of the operator tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from netwright.ir.autodiff import input_gradients
from netwright.ir.builder import ArrayBuilder
from netwright.ir.ops.record import GradContext, get, infer_types


class Differentiated(NamedTuple):
    """Outputs of an operator and the gradient of each operand (None for integers)."""

    outputs: tuple[np.ndarray, ...]
    grads: list[Any]


def _differentiate(
    name: str, arrays: list[np.ndarray], g: np.ndarray | None = None, **attrs: Any
) -> Differentiated:
    b, op = ArrayBuilder(), get(name)
    result = op.numpy(*arrays, **attrs)
    outputs = result if isinstance(result, tuple) else (result,)
    types = tuple(b.type(o) for o in outputs)
    assert types == infer_types(name, [b.type(a) for a in arrays], attrs)
    needs = tuple(a.dtype.kind == "f" for a in arrays)
    ctx = GradContext(tuple(arrays), outputs, attrs, needs)
    seed = np.ones_like(outputs[0]) if g is None else g
    return Differentiated(
        outputs, input_gradients(b, op, ctx, [seed, *[None] * (len(outputs) - 1)])
    )


@pytest.fixture
def differentiate() -> Callable[..., Differentiated]:
    """``(op, arrays, g, **attrs)``: the numpy meaning, its inferred types checked, and the
    gradients of the float operands for the gradient ``g`` of the first output."""
    return _differentiate
