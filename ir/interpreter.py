"""The numpy interpreter: the specification of the IR, and the oracle of its tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import NetwrightError, ShapeError
from .builder import substitute_batch
from .graph import Graph, Node, Value
from .ops.record import get
from .types import Dim


def evaluate(
    graph: Graph, values: Mapping[str, np.ndarray], n: int | None = None
) -> dict[str, np.ndarray]:
    """Runs a graph on ``values``: the arrays of inputs, parameters and buffers by path.

    Returns the outputs by name and the updates by ``update:`` + path. ``n`` is the batch size;
    without it, it is read from the shapes of the inputs.
    """
    if n is None:
        n = batch_size(graph, values)
    env: dict[Value, np.ndarray] = {}
    for node in graph.nodes:
        for value, result in zip(node.values, _run(graph, node, env, values, n), strict=True):
            env[value] = result
    results = {name: env[v] for name, v in graph.outputs.items()}
    results.update({"update:" + path: env[v] for path, v in graph.updates.items()})
    return results


def run_node(node: Node, operands: list[np.ndarray], n: int) -> tuple[np.ndarray, ...]:
    """The numpy meaning of one node at batch size ``n``."""
    attrs = {k: substitute_batch(v, n) for k, v in node.attrs.items()}
    if node.op == "fused":
        paths = {str(i): a for i, a in enumerate(operands)}
        return tuple(evaluate(node.attrs["body"], paths, n).values())
    result = get(node.op).numpy(*operands, **attrs)
    return result if isinstance(result, tuple) else (result,)


def _run(
    graph: Graph,
    node: Node,
    env: dict[Value, np.ndarray],
    values: Mapping[str, np.ndarray],
    n: int,
) -> tuple[np.ndarray, ...]:
    if node.op in ("input", "parameter", "buffer"):
        path = node.attrs["path"]
        if path not in values:
            raise NetwrightError(f"evaluate: no value for {node.op} {path!r}")
        array = np.asarray(values[path])
        expected = node.type.at(n)
        if array.shape != expected.shape or array.dtype != expected.dtype.np:
            raise ShapeError(
                f"evaluate: {node.op} {path!r} is {array.dtype}{list(array.shape)}, "
                f"the graph expects {expected}"
            )
        return (array,)
    results = run_node(node, [env[v] for v in node.operands], n)
    return tuple(np.asarray(r) for r in results)


def batch_size(graph: Graph, values: Mapping[str, np.ndarray]) -> int:
    """The batch size that the inputs' shapes imply (1 for a graph without symbolic extents)."""
    for node in graph.sources("input"):
        if node.attrs["path"] not in values:
            continue
        array = np.asarray(values[node.attrs["path"]])
        for extent, size in zip(node.type.shape, array.shape, strict=False):
            if isinstance(extent, Dim):
                return size // extent.coef
    return 1
