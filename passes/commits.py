"""How updates of state and copies of results end a run.

An update may be written straight into the state by the kernel that computes it; what cannot is
copied at the end, in an order in which nothing is overwritten before it has been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir.graph import Graph, Node, Value
from ..ir.plan import Location
from .in_place import same_index_operands

STATE = ("parameter", "buffer")
CHECKED = (
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_rows",
    "embedding",
    "embedding_grad",
    "gather",
    "scatter_add_grad",
)
"""Operators that can find a bad index in a run, which must then leave all state as it was."""


@dataclass(frozen=True)
class Copy:
    """A copy at the end of a run. ``staged`` ones go through memory of their own, because their
    source is state that the same run overwrites."""

    value: Value
    target: Location
    commits: bool
    staged: bool = False


class Commits:
    """Decides for each update of a graph; ``root`` maps reshapes to the value that they rename,
    ``readers`` a root to the positions of the steps that read it."""

    def __init__(
        self,
        graph: Graph,
        root: Mapping[Value, Value],
        readers: Mapping[Value, list[int]],
        position: Mapping[str, int],
    ) -> None:
        self.graph, self.root, self.readers, self.position = graph, root, readers, position
        self.state = {n.attrs["path"]: n for n in graph.nodes if n.op in STATE}
        self.kept = {root[v] for v in (*graph.outputs.values(), *graph.updates.values())}
        self.last_check = max(
            (position[n.name] for n in graph.nodes if n.op in CHECKED), default=-1
        )

    def is_direct(self, path: str, value: Value) -> bool:
        """Whether the kernel of ``value`` may write into the state ``path`` itself.

        Not if the old state is a result, if a step after it or the kernel itself (other than
        element by element) reads the old state, or if it or a later step may still find a bad
        index.
        """
        producer = self.graph.node(value)
        own = self.position[producer.name]
        if own <= self.last_check:
            return False
        node = self.state.get(path)
        if node is None:
            return True
        old = node.value
        if old in self.kept:
            return False
        reads = self.readers.get(old, [])
        if any(at > own for at in reads):
            return False
        return own not in reads or self._reads_same_index(producer, old)

    def _reads_same_index(self, producer: Node, old: Value) -> bool:
        safe = same_index_operands(self.graph, producer)
        return all(i in safe for i, v in enumerate(producer.operands) if self.root[v] == old)

    def copy(self, path: str, value: Value) -> Copy | None:
        """The copy that commits ``value`` at the end; None if the state is there already."""
        source = self.graph.node(self.root[value])
        target = Location("state:" + path)
        if source.op not in STATE:
            return Copy(value, target, True)
        if source.attrs["path"] == path:
            return None
        return Copy(value, target, True, staged=source.attrs["path"] in self.graph.updates)
