"""Gives every value of a graph its place in memory, and orders the kernels.

Before::

    %x: f32[N,256] = input {path="x"}
    %a: f32[N,512] = linear(%x, %w0)
    %b: f32[N,512] = relu(%a)
    %y: f32[N,10] = linear(%b, %w1)
    output "out" = %y

After::

    %a -> batch + 0 (2048 bytes per sample)    %b -> the same place
    %x -> input:x    %w0 -> state:w0    %y -> output:out

Buffers whose size is a multiple of the batch live in the ``batch`` arena, where an offset is a
number of bytes per sample, so one plan serves every batch size; the others live in the ``fixed``
arena. A buffer is reused after its last reader. An elementwise operator writes over an operand that
dies in it. Reshapes are other names of the same memory.

Kernels keep the order of the program. Taking next what frees most memory was tried: it made the
arena of no model of the zoo smaller, and those of training larger.

Values that depend on state alone (folded BatchNorm, packed weights) go into the ``prepared`` arena
when ``hoist`` is set: the runtime computes them when a parameter changes, not in each call. What
a call reads is never overwritten, because all prepared steps come before its last reader; what
only other prepared steps read (a folded weight that is packed) shares memory.

A value may be columns of a wider one: operands of a concatenation, which then has nothing to do,
and slices (``parts.py``). They share one buffer.

An update is written straight into the state where nothing can read the old value any more
(``commits.py``); other updates, and outputs that are inputs, state, prepared values or other
outputs, are copied at the end.

Skips (nothing is written over): operands that are used later, are results, are broadcast, or have
another element size than the result; inputs, state and constants; operators other than elementwise.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import ShapeError
from ..ir.graph import Graph, Node, Value
from ..ir.plan import Location, Plan, Step
from ..ir.types import Dim, fixed, numel
from .arena import Buffer, aligned, pack
from .commits import Commits, Copy
from .in_place import same_index_operands
from .parts import Accepts, Parts, find_parts
from .state import state_only

SOURCES = ("input", "parameter", "buffer", "constant")
ARENAS = ("batch", "fixed", "prepared")


def plan_memory(graph: Graph, hoist: bool = False, accepts: Accepts | None = None) -> Plan:
    """The plan of a graph.

    ``hoist`` separates what depends on parameters alone. ``accepts`` says which kernels can have
    operands and results that are columns of wider tensors; without it none is.
    """
    return _Planner(graph, hoist, accepts).run()


class _Planner:
    def __init__(self, graph: Graph, hoist: bool, accepts: Accepts | None) -> None:
        self.graph = graph
        self.plan = Plan()
        self.hoisted = state_only(graph) if hoist else set()
        self.root: dict[Value, Value] = {}
        for node in graph.nodes:
            for v in node.values:
                self.root[v] = self.root[node.operands[0]] if node.op == "reshape" else v
        parts = find_parts(graph, self.root, accepts, self.hoisted) if accepts else Parts()
        self.parts = {v: parts.place[r] for v, r in self.root.items() if r in parts.place}
        self.root |= {v: part.whole for v, part in self.parts.items()}
        idle = parts.elided
        kernels = [n for n in graph.nodes if n.op not in (*SOURCES, "reshape")]
        # Prepared steps run before all others: lifetimes count in that order.
        self.order = sorted(
            (n for n in kernels if n.name not in idle), key=lambda n: n.name not in self.hoisted
        )
        self.position = {n.name: i for i, n in enumerate(self.order)}
        self.readers: dict[Value, list[int]] = {}
        self.writers: dict[Value, list[int]] = {}
        for node in self.order:
            for v in node.operands:
                self.readers.setdefault(self.root[v], []).append(self.position[node.name])
            for v in node.values:
                self.writers.setdefault(self.root[v], []).append(self.position[node.name])

    def run(self) -> Plan:
        self._place_sources()
        copies = self._place_results()
        pinned = {self.root[c.value] for c in copies}
        buffers = self._make_buffers(pinned)
        staging = self._make_staging(copies)
        for slot in ARENAS:
            unique = {id(b): b for b in (*buffers.values(), *staging.values()) if b.slot == slot}
            setattr(self.plan, slot + "_bytes", pack(list(unique.values())))
        for value, buffer in buffers.items():
            self.plan.locations[value] = Location(buffer.slot, buffer.offset)
        for value, root in self.root.items():
            self.plan.locations[value] = self._inside(value, self.plan.locations[root])
        self._make_steps()
        self._make_copies(copies, staging)
        return self.plan

    def _inside(self, value: Value, place: Location) -> Location:
        """The place of a value in the value at ``place`` that it is, or is part of."""
        if value not in self.parts:
            return place
        part = self.parts[value]
        whole = self.graph.type(part.whole)
        size = whole.dtype.itemsize
        return replace(place, start=part.column * size, pitch=fixed(whole.shape[-1]) * size)

    def _place_sources(self) -> None:
        for node in self.graph.nodes:
            if node.op in ("parameter", "buffer"):
                self.plan.locations[node.value] = Location("state:" + node.attrs["path"])
            elif node.op == "input":
                self.plan.locations[node.value] = Location("input:" + node.attrs["path"])
            elif node.op == "constant":
                self.plan.locations[node.value] = Location("constant:" + node.name)

    def _place_results(self) -> list[Copy]:
        """Puts results where the caller wants them; returns the copies that remain."""
        copies: list[Copy] = []
        placed = self.plan.locations
        for name, value in self.graph.outputs.items():
            root, target = self.root[value], Location("output:" + name)
            if root in placed or root.node in self.hoisted:
                copies.append(Copy(value, target, False))
            else:
                placed[root] = target
        commits = Commits(self.graph, self.root, self.readers, self.position)
        for path, value in self.graph.updates.items():
            root = self.root[value]
            free = root not in placed and root.node not in self.hoisted
            if free and commits.is_direct(path, root):
                placed[root] = Location("state:" + path)
                continue
            copy = commits.copy(path, value)
            if copy is not None:
                copies.append(copy)
        return copies

    # -- the arenas ----------------------------------------------------------------------------

    def _make_buffers(self, pinned: set[Value]) -> dict[Value, Buffer]:
        """A buffer for every value that has no place yet; ``pinned`` ones live to the end."""
        buffers: dict[Value, Buffer] = {}
        for node in self.order:
            at = self.position[node.name]
            dying = self._dying(node, at, buffers)
            for value in map(self.root.__getitem__, node.values):
                if value in self.plan.locations or value in buffers:
                    continue
                end = max(self.writers[value] + self.readers.get(value, []))
                made = self._buffer(value, at, len(self.order) if value in pinned else end)
                over = next((o for o in dying if self._same_size(o, value, buffers, made)), None)
                if over is not None and value.node == node.name:
                    dying.remove(over)
                    buffers[over].end = made.end
                    made = buffers[over]
                buffers[value] = made
        return buffers

    def _buffer(self, value: Value, start: int, end: int) -> Buffer:
        kind = self.graph.type(value)
        try:
            count = numel(kind.shape)
        except ShapeError as error:
            source = self.graph.node(value).source
            raise ShapeError(
                f"{value}: {kind} [{source}] cannot be placed in memory: {error}; compile for a "
                "fixed batch size (dynamic=False)"
            ) from None
        slot = "batch" if isinstance(count, Dim) else "fixed"
        if value.node in self.hoisted:
            slot = "prepared"
        elements = count.coef if isinstance(count, Dim) else count
        return Buffer(slot, aligned(elements * kind.dtype.itemsize), start, end)

    def _dying(self, node: Node, at: int, buffers: dict[Value, Buffer]) -> list[Value]:
        """Roots of the operands that the node may write over."""
        safe = same_index_operands(self.graph, node)
        roots = [self.root[v] for v in node.operands]
        return [
            root
            for root in dict.fromkeys(roots)
            if root in buffers
            and buffers[root].end == at
            and not any(v in self.parts for v in node.operands if self.root[v] == root)
            and all(i in safe for i, other in enumerate(roots) if other == root)
        ]

    def _same_size(
        self, over: Value, value: Value, buffers: dict[Value, Buffer], made: Buffer
    ) -> bool:
        one, other = self.graph.type(over).dtype, self.graph.type(value).dtype
        return one.itemsize == other.itemsize and buffers[over].slot == made.slot

    def _make_staging(self, copies: list[Copy]) -> dict[Value, Buffer]:
        """Memory at the end of the run for copies whose source is overwritten there."""
        end = len(self.order)
        return {c.value: self._buffer(c.value, end, end) for c in copies if c.staged}

    # -- the steps -----------------------------------------------------------------------------

    def _make_steps(self) -> None:
        locations = self.plan.locations
        for node in self.order:
            results = tuple(locations[v] for v in node.values)
            step = Step(
                node,
                tuple(locations[v] for v in node.operands),
                results,
                commits=any(r.slot.startswith("state:") for r in results),
            )
            (self.plan.prepare if node.name in self.hoisted else self.plan.steps).append(step)

    def _make_copies(self, copies: list[Copy], staging: dict[Value, Buffer]) -> None:
        """Outputs first, then what reads state that is about to change, then the commits."""
        sources = dict(self.plan.locations)
        for value, buffer in staging.items():
            stage = Location(buffer.slot, buffer.offset)
            self.plan.steps.append(Step(None, (sources[value],), (stage,), value))
            sources[value] = stage
        for copy in sorted(copies, key=lambda c: c.commits):
            source = sources[copy.value] if copy.staged else self.plan.locations[copy.value]
            self.plan.steps.append(Step(None, (source,), (copy.target,), copy.value, copy.commits))
