"""Gives every value of a graph its place in memory, and orders the kernels.

Buffers whose size is a multiple of the batch live in the ``batch`` arena, where an offset is a
number of bytes per sample, so one plan serves every batch size; the others live in the ``fixed``
arena. A buffer is reused after its last reader (greedy by size, best offset first: Pisarchyk and
Lee, "Efficient memory management for deep neural net inference", arXiv:2001.03288). An elementwise
operator writes over an operand that dies in it. Reshapes are other names of the same memory.

Values that depend on parameters alone (folded BatchNorm, packed weights) go into the ``prepared``
arena when ``hoist`` is set: the runtime computes them when a parameter changes, not in each call.

An update of state is written straight into the parameter when every other reader of the old value
has run; otherwise it is copied at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..ir.graph import Graph, Node, Value
from ..ir.ops.record import get
from ..ir.plan import Location, Plan, Step
from ..ir.types import Dim, numel
from .fuse_conv_bn_relu import state_only

ALIGN = 64
SOURCES = ("input", "parameter", "buffer", "constant")


def plan_memory(graph: Graph, hoist: bool = False) -> Plan:
    """The plan of a graph; ``hoist`` separates what depends on parameters alone."""
    return _Planner(graph, hoist).run()


@dataclass
class _Buffer:
    """Arena memory shared by one or more values, live from step ``start`` to ``end``."""

    slot: str
    size: int
    start: int
    end: int
    offset: int = -1


class _Planner:
    def __init__(self, graph: Graph, hoist: bool) -> None:
        self.graph = graph
        self.plan = Plan()
        self.hoisted = state_only(graph) if hoist else set()
        self.order = [
            n for n in graph.nodes if n.op not in SOURCES and n.op != "reshape"
        ]
        self.position = {n.name: i for i, n in enumerate(self.order)}
        self.root: dict[Value, Value] = {}
        for node in graph.nodes:
            for v in node.values:
                self.root[v] = self.root[node.operands[0]] if node.op == "reshape" else v
        self.pinned: set[Value] = set()
        self.readers: dict[Value, list[int]] = {}
        for node in self.order:
            for v in node.operands:
                self.readers.setdefault(self.root[v], []).append(self.position[node.name])

    def run(self) -> Plan:
        copies = self._place_results()
        self.pinned = {self.root[value] for value, _, _ in copies}
        self._place_sources()
        self._place_arena()
        self._make_steps(copies)
        return self.plan

    def _place_sources(self) -> None:
        for node in self.graph.nodes:
            if node.op in ("parameter", "buffer"):
                self.plan.locations[node.value] = Location("state:" + node.attrs["path"])
            elif node.op == "input":
                self.plan.locations[node.value] = Location("input:" + node.attrs["path"])
            elif node.op == "constant":
                self.plan.locations[node.value] = Location("constant:" + node.name)

    def _place_results(self) -> list[tuple[Value, Location, bool]]:
        """Puts results where the caller wants them; returns the copies that remain."""
        copies: list[tuple[Value, Location, bool]] = []
        placed = self.plan.locations
        for name, value in self.graph.outputs.items():
            root = self.root[value]
            target = Location("output:" + name)
            if self.graph.node(root).op in SOURCES or root in placed or root.node in self.hoisted:
                copies.append((value, target, False))
            else:
                placed[root] = target
        for path, value in self.graph.updates.items():
            root = self.root[value]
            target = Location("state:" + path)
            if root in placed or not self._may_commit(path, root):
                copies.append((value, target, True))
            else:
                placed[root] = target
        return copies

    def _may_commit(self, path: str, root: Value) -> bool:
        producer = self.graph.node(root)
        if producer.op in SOURCES or root.node in self.hoisted:
            return False
        own = self.position[producer.name]
        for node in self.graph.nodes:
            if node.op not in ("parameter", "buffer") or node.attrs["path"] != path:
                continue
            old = node.value
            if old in self.graph.outputs.values() or old in self.graph.updates.values():
                return False
            if any(at > own for at in self.readers.get(old, [])):
                return False
            if own in self.readers.get(old, []) and not self._same_index(producer, old):
                return False
        return all(at >= own for at in self.readers.get(root, []))

    def _same_index(self, node: Node, operand: Value) -> bool:
        """Whether the kernel reads each element of ``operand`` only to make the same element."""
        elementwise = get(node.op).kind == "elementwise" or (
            node.op == "fused" and node.attrs["kind"] == "elementwise"
        )
        if not elementwise or operand not in node.operands:
            return False
        shape = self.graph.type(operand).shape
        return all(t.shape == shape for t in node.types)

    def _place_arena(self) -> None:
        buffers: dict[Value, _Buffer] = {}
        for node in self.order:
            at = self.position[node.name]
            free_operands = self._dying(node, at, buffers)
            for value in node.values:
                if value in self.plan.locations:
                    continue
                kind = self.graph.type(value)
                extent = numel(kind.shape)
                batch = isinstance(extent, Dim)
                count = extent.coef if isinstance(extent, Dim) else extent
                size = -(-count * kind.dtype.itemsize // ALIGN) * ALIGN or ALIGN
                slot = "batch" if batch else "fixed"
                if node.name in self.hoisted:
                    slot = "prepared"
                end = max([at, *self.readers.get(value, [])])
                if value in self.pinned:
                    end = len(self.order)
                reuse = next(
                    (b for b in free_operands if b.slot == slot and b.size == size), None
                )
                if reuse is not None:
                    free_operands.remove(reuse)
                    reuse.end = max(reuse.end, end)
                    buffers[value] = reuse
                else:
                    buffers[value] = _Buffer(slot, size, at, end)
        for slot in ("batch", "fixed", "prepared"):
            unique = {id(b): b for b in buffers.values() if b.slot == slot}
            total = _pack(list(unique.values()), reuse=slot != "prepared")
            setattr(self.plan, slot + "_bytes", total)
        for value, buffer in buffers.items():
            self.plan.locations[value] = Location(buffer.slot, buffer.offset)

    def _dying(self, node: Node, at: int, buffers: dict[Value, _Buffer]) -> list[_Buffer]:
        """Operand buffers that the node may write over."""
        found = []
        for operand in dict.fromkeys(node.operands):
            root = self.root[operand]
            buffer = buffers.get(root)
            if (
                buffer is not None
                and buffer.end == at
                and operand == root
                and node.operands.count(operand) == 1
                and self._same_index(node, operand)
                and all(self.root[v] != root for v in node.operands if v != operand)
                and all(
                    self.graph.type(operand).dtype.itemsize == t.dtype.itemsize
                    for t in node.types
                )
            ):
                found.append(buffer)
        return found

    def _make_steps(self, copies: Iterable[tuple[Value, Location, bool]]) -> None:
        locations = self.plan.locations
        for node in self.order:
            step = Step(
                node,
                tuple(locations[self.root[v]] for v in node.operands),
                tuple(locations[v] for v in node.values),
                commits=any(locations[v].slot.startswith("state:") for v in node.values),
            )
            (self.plan.prepare if node.name in self.hoisted else self.plan.steps).append(step)
        for value, target, commits in copies:
            source = locations[self.root[value]]
            self.plan.steps.append(Step(None, (source,), (target,), value, commits))
        for value, root in self.root.items():
            locations[value] = locations[root]


def _pack(buffers: list[_Buffer], reuse: bool) -> int:
    """Assigns offsets: largest first, each at the lowest place free during its lifetime."""
    placed: list[_Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.start)):
        offset = 0
        for other in sorted(placed, key=lambda b: b.offset):
            overlaps = not reuse or (buffer.start <= other.end and other.start <= buffer.end)
            if overlaps and offset + buffer.size > other.offset:
                offset = max(offset, other.offset + other.size)
        buffer.offset = offset
        placed.append(buffer)
    return max((b.offset + b.size for b in buffers), default=0)
