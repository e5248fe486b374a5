"""What a program in training mode does to buffers, as PyTorch's modules do it: running statistics
of BatchNorm, which PyTorch updates in the call that normalises, and counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import UnsupportedError
from ...ir.graph import Graph, Node, Value

_MEAN, _VAR = 1, 2  # results of batch_norm_train


@dataclass(frozen=True)
class RunningStatistics:
    """Buffers that a ``batch_norm_train`` moves towards its statistics, None for none."""

    mean: Value | None
    var: Value | None
    momentum: float


class BufferUpdates:
    """Finds the updates of a graph.

    inside: names of the nodes that exist for updates alone; counters: the numbers that are added to
    buffers in each run. Raises UnsupportedError for any other update.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._statistics: dict[Value, tuple[Value, float]] = {}
        self.counters: dict[Value, Any] = {}
        self._buffers = {n.attrs["path"]: n.value for n in graph.sources("buffer")}
        for path, value in graph.updates.items():
            self._read(path, graph.node(value))
        self.inside = graph.ancestors(graph.updates.values()) - graph.ancestors(
            graph.outputs.values()
        )

    def of_batch_norm(self, node: Node) -> RunningStatistics:
        """The running statistics of a ``batch_norm_train``."""
        found = [self._statistics.get(Value(node.name, i)) for i in (_MEAN, _VAR)]
        mean, var = (None if f is None else f[0] for f in found)
        momentum = next((f[1] for f in found if f is not None), 0.0)
        return RunningStatistics(mean, var, momentum)

    def _read(self, path: str, update: Node) -> None:
        """Notes ``buffer + number``, or ``buffer * (1 - momentum) + statistic * momentum``, where
        the variance has its factor for the unbiased form before."""
        buffer, graph = self._buffers.get(path), self._graph
        if update.op == "add" and buffer is not None:
            if update.operands[0] == buffer:
                step = number_of(graph, update.operands[1])
                if step is not None:
                    self.counters[buffer] = step
                    return
            kept, moved = (graph.node(v) for v in update.operands)
            if kept.op == moved.op == "mul" and kept.operands[0] == buffer:
                momentum = number_of(graph, moved.operands[1])
                statistic = moved.operands[0]
                if graph.node(statistic).op == "mul":
                    statistic = graph.node(statistic).operands[0]
                if momentum is not None and graph.node(statistic).op == "batch_norm_train":
                    self._statistics[statistic] = (buffer, momentum)
                    return
        raise UnsupportedError(
            f"the update of {path!r} at {update.source} is none of BatchNorm's and has no PyTorch "
            "form"
        )


def number_of(graph: Graph, value: Value) -> Any:
    """The number of a constant without dimensions, else None."""
    node = graph.node(value)
    if node.op != "constant" or node.type.rank:
        return None
    return node.attrs["value"].item()
