"""The region operator ``fused``: a graph that code generation turns into one kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import ShapeError
from ..types import TensorType
from .record import Op, register


def _infer_fused(*types: TensorType, kind: str, body: Any) -> tuple[TensorType, ...]:
    """Types of the body's outputs; its inputs '0', '1', .. are the operands in order."""
    expected = {node.attrs["path"]: node.type for node in body.sources("input")}
    given = {str(i): t for i, t in enumerate(types)}
    if expected != given:
        raise ShapeError(
            f"fused: a {kind} region takes {_listed(expected)}, its operands are {_listed(given)}"
        )
    return tuple(body.type(value) for value in body.outputs.values())


def _listed(types: dict[str, TensorType]) -> str:
    return "(" + ", ".join(f"{path}: {types[path]}" for path in sorted(types, key=int)) + ")"


def _fused(*arrays: np.ndarray, kind: str, body: Any) -> tuple[np.ndarray, ...]:
    # Not at the top: the interpreter imports the records. It reads the batch size from the
    # arrays; inside a graph, it runs regions itself and passes the batch size on.
    from ..interpreter import evaluate

    return tuple(evaluate(body, {str(i): a for i, a in enumerate(arrays)}).values())


register(Op("fused", "region", _infer_fused, _fused))
