"""One record per operator: shape rule, numpy meaning, gradient rule, lowering, samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...errors import UnsupportedError
from ..types import TensorType


class Sample(NamedTuple):
    """Inputs of one generated test: arrays (floats in float64), attributes.

    ``differentiable`` is False where finite differences make no sense (kinks, NaN, infinities).
    """

    arrays: tuple[np.ndarray, ...]
    attrs: dict[str, Any] = {}  # noqa: RUF012
    differentiable: bool = True


@dataclass(frozen=True)
class GradContext:
    """What a gradient rule sees of the node that it differentiates."""

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    attrs: dict[str, Any]
    needs_grad: tuple[bool, ...]

    def needs(self, index: int) -> bool:
        """Whether the gradient of operand ``index`` will be used (False past the last one)."""
        return index < len(self.needs_grad) and self.needs_grad[index]


def _no_samples(rng: np.random.Generator) -> Sequence[Sample]:
    return ()


@dataclass(frozen=True)
class Op:
    """An operator.

    infer: ``(*types, **attrs) -> TensorType | tuple[TensorType, ...]``, raises ShapeError.
    numpy: ``(*arrays, **attrs) -> ndarray | tuple``: the meaning.
    grad:  ``(b, ctx, *output_grads) -> tuple`` with one gradient or None per operand, written
           with the builder ``b``; the caller reduces gradients of broadcast operands.
    lower: ``(e, *values, **attrs) -> value``: elementwise kernels, written with an emitter ``e``.
    """

    name: str
    kind: str
    infer: Callable[..., Any]
    numpy: Callable[..., Any]
    grad: Callable[..., tuple[Any, ...]] | None = None
    lower: Callable[..., Any] | None = None
    samples: Callable[[np.random.Generator], Sequence[Sample]] = field(default=_no_samples)
    rtol: float = 2e-6
    atol: float = 2e-6


# For records that add many products or squares: their float32 error grows with the number of
# terms, and the order of the additions is left to the kernel.
SUMMED: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}

KINDS = (
    "source",
    "elementwise",
    "reduction",
    "shape",
    "contraction",
    "spatial",
    "norm",
    "row",
    "index",
    "region",
)

_OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Adds a record; its name must be new."""
    if op.name in _OPS:
        raise ValueError(f"operator {op.name!r} is registered twice")
    if op.kind not in KINDS:
        raise ValueError(f"operator {op.name!r} has unknown kind {op.kind!r}")
    _OPS[op.name] = op
    return op


def get(name: str) -> Op:
    """The record of an operator; UnsupportedError names the ones there are."""
    try:
        return _OPS[name]
    except KeyError:
        raise UnsupportedError(
            f"no operator named {name!r}; the IR has: {', '.join(sorted(_OPS))}"
        ) from None


def has(name: str) -> bool:
    """Whether there is an operator of that name."""
    return name in _OPS


def all_ops() -> dict[str, Op]:
    """Every record by name."""
    return dict(_OPS)


def infer_types(
    name: str, types: Sequence[TensorType], attrs: dict[str, Any]
) -> tuple[TensorType, ...]:
    """Result types of an operator, always as a tuple."""
    result = get(name).infer(*types, **attrs)
    return result if isinstance(result, tuple) else (result,)
