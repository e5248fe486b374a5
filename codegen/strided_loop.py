"""The loop nest under every elementwise kernel and most copies.

The innermost loop is vectorised: operands there are contiguous, constant, or strided (gathered
element by element). Short rows with operands that are the same in every row (one element per
channel, say) become one long loop, in which these operands stay in registers. A result may share
the memory of an operand that is indexed in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..ir.graph import Graph, Node, Value
from ..ir.types import Dim, DType, Extent, SlicedType, TensorType, bool_, fixed, int64, numel
from .body import PASSED_THROUGH, lower_body, lower_nodes
from .emitter import Lane, VectorEmitter, memory_type
from .iteration import Axis, times, total
from .kernel import Kernel, TaskCount, symbol_for
from .target import Target
from .text import Function

CHUNK = 4096
"""Elements per task, about: 16 KiB of f32 per operand, half of an L1 cache for two operands."""


class StridedLoop:
    """Writes one kernel: ``body`` applied at every point of ``space``.

    ``inputs`` are the operands' types; ``keys`` numbers those that are keys of ``uniform``.
    ``bases`` are operands' first elements, where that is not element 0. Results are row-major, or
    columns of such: then the innermost loop is over their columns.
    """

    def __init__(
        self,
        body: Graph,
        space: list[Axis],
        inputs: list[TensorType],
        outputs: list[TensorType],
        keys: frozenset[int],
        target: Target,
        bases: Mapping[int, Extent] | None = None,
        prefix: str = "elementwise",
    ) -> None:
        self.body, self.space, self.keys = body, space, keys
        self.inputs, self.outputs = inputs, outputs
        self.bases, self.prefix = dict(bases or {}), prefix
        self.used = {int(n.attrs["path"]) for n in body.sources("input") if body.use_count(n.value)}
        self.registers = target.registers
        self.lanes = pick_lanes([n.type.dtype for n in body.nodes], target)
        self.repeated = self._repeated_operands(space)
        self.phases = 1
        if self.repeated:
            self.phases = fixed(space[-1].extent) // self.lanes
            space = self._as_one_row(space)
        self.inner, self.outer = space[-1], space[:-1]
        contiguous = all(s in (0, 1) for s in self.inner.strides)
        self.masked_tail = contiguous and has_masked_memory(
            target, [t.dtype for t in [*inputs, *outputs]]
        )
        self.varying, self.fixed = self._split_body()
        names = [f"out{k}" for k in range(len(outputs))] + [f"in{k}" for k in range(len(inputs))]
        params = [("ptr", p) for p in [*names, "scratch", "status"]]
        self.params = [*params, *[("i64", p) for p in ("N", "begin", "end")]]
        self.fn = Function(prefix, self.params)

    def _repeated_operands(self, space: list[Axis]) -> frozenset[int]:
        """Operands of one row that repeat in every row, if rows are few whole vectors.

        All others must be whole or single elements, and no result columns of a wider tensor; then
        the rows are one long row.
        """
        if len(space) != 2 or self.bases or self.lanes == 1:
            return frozenset()
        if any(isinstance(t, SlicedType) for t in self.outputs):
            return frozenset()
        rows, row = space
        width = row.extent
        if not isinstance(width, int) or width not in (n * self.lanes for n in (1, 2, 4)):
            return frozenset()
        steps = {i: (rows.strides[i], row.strides[i]) for i in self.used - self.keys}
        if not set(steps.values()) <= {(width, 1), (0, 1), (0, 0)}:
            return frozenset()
        found = frozenset(i for i, step in steps.items() if step == (0, 1))
        fits = len(found) * (width // self.lanes) <= self.registers // 2
        return found if fits else frozenset()

    def _as_one_row(self, space: list[Axis]) -> list[Axis]:
        rows, row = space
        strides = tuple(0 if s == 0 else 1 for s in rows.strides)
        return [Axis(times(rows.extent, row.extent), strides)]

    def _split_body(self) -> tuple[list[Node], list[Node]]:
        """Nodes that change along the innermost loop, and those that do not."""
        varying: set[Value] = set()
        moving: list[Node] = []
        still: list[Node] = []
        for node in self.body.nodes:
            if node.op == "input":
                path = int(node.attrs["path"])
                moves = path not in self.keys and self.inner.strides[path] != 0
            else:
                moves = node.op == "uniform" or any(v in varying for v in node.operands)
            (moving if moves else still).append(node)
            if moves:
                varying.add(node.value)
        return moving, still

    def kernel(self) -> Kernel:
        rows = numel(a.extent for a in self.outer)
        inner = self.inner.extent
        pieces, per = 1, CHUNK
        if self.outer:
            per = max(1, CHUNK // inner) if isinstance(inner, int) and inner else 1
            if isinstance(inner, int) and inner > 2 * CHUNK:
                pieces = -(-inner // CHUNK)
        tasks = TaskCount(times(rows, pieces), per) if self.outer else TaskCount(inner, CHUNK)
        with self.fn.loop("%end", "%begin") as loop:
            if not self.outer:
                first = self.fn.emit(f"mul nsw i64 {loop.index}, {CHUNK}")
                self._segment(first, self._least(first, CHUNK, inner), self._first_elements(), "0")
            elif pieces > 1:
                row = self.fn.emit(f"udiv i64 {loop.index}, {pieces}")
                piece = self.fn.emit(f"urem i64 {loop.index}, {pieces}")
                first = self.fn.emit(f"mul nsw i64 {piece}, {CHUNK}")
                self._row(row, first, self._least(first, CHUNK, inner))
            else:
                first = self.fn.emit(f"mul nsw i64 {loop.index}, {per}")
                last = self._least(first, per, rows)
                with self.fn.loop(last, first) as row_loop:
                    self._row(row_loop.index, "0", self._number(inner))
        symbol = symbol_for(self.prefix, self.fn.render(), tasks)
        self.fn.name = symbol
        size = numel(self.outputs[0].shape)
        work = sum(n.op not in PASSED_THROUGH for n in self.body.nodes)
        types = [*self.outputs, *(t for i, t in enumerate(self.inputs) if i in self.used)]
        return Kernel(
            symbol,
            self.fn.render(),
            frozenset(self.fn.declarations),
            tasks,
            flops=times(size, work),
            bytes=total([times(numel(t.shape), t.dtype.itemsize) for t in types]),
        )

    def _number(self, extent: Extent) -> str:
        """An extent as an i64 (a constant, or computed from %N)."""
        if isinstance(extent, Dim):
            return self.fn.emit(f"mul nsw i64 %N, {extent.coef}")
        return str(extent)

    def _times(self, row: str, extent: Extent) -> str:
        return "0" if row == "0" else self.fn.emit(f"mul nsw i64 {row}, {self._number(extent)}")

    def _least(self, first: str, count: int, stop: Extent) -> str:
        """min(first + count, stop)."""
        after = self.fn.emit(f"add nsw i64 {first}, {count}")
        return self.fn.call("i64", "llvm.smin.i64", ("i64", after), ("i64", self._number(stop)))

    def _first_elements(self) -> dict[int, str]:
        return {i: self._number(first) for i, first in self.bases.items()}

    def _row(self, row: str, start: str, stop: str) -> None:
        """The elements [start, stop) of one row of the innermost loop."""
        offsets = self._first_elements()
        rest = row
        for k in reversed(range(len(self.outer))):
            axis = self.outer[k]
            at = rest
            if k:
                size = self._number(axis.extent)
                at = self.fn.emit(f"urem i64 {rest}, {size}")
                rest = self.fn.emit(f"udiv i64 {rest}, {size}")
            for i, stride in enumerate(axis.strides):
                if stride == 0 or i not in self.used:
                    continue
                step = self.fn.emit(f"mul nsw i64 {at}, {self._number(stride)}")
                offsets[i] = (
                    self.fn.emit(f"add nsw i64 {offsets[i]}, {step}") if i in offsets else step
                )
        self._segment(start, stop, offsets, row)

    def _segment(self, start: str, stop: str, offsets: dict[int, str], row: str) -> None:
        """Elements [start, stop) of the innermost loop of a row."""
        fn = self.fn
        # The linear index of the row's first element, which is its place in dense results.
        base = self._times(row, self.inner.extent)
        ins = {}
        for i in sorted(self.used):
            kind = memory_type(self.inputs[i].dtype)
            ins[i] = fn.element(f"%in{i}", kind, offsets[i]) if i in offsets else f"%in{i}"
        outs = []
        for k, t in enumerate(self.outputs):
            pointer = f"%out{k}"
            first = self._times(row, t.width) if isinstance(t, SlicedType) else base
            outs.append(
                pointer if first == "0" else fn.element(pointer, memory_type(t.dtype), first)
            )
        wide = VectorEmitter(fn, self.lanes, registers=self.registers)
        envs = [self._fixed_values(wide, ins, phase) for phase in range(self.phases)]
        at: str = start
        most, least = max(self._unroll(), self.phases), self.phases
        for unroll in (most, least) if most > least else (least,):
            step = unroll * self.lanes
            end = fn.emit(f"sub nsw i64 {stop}, {step - 1}")
            with fn.loop(end, at, step) as loop:
                self._steps(wide, envs, ins, outs, loop.index, base, unroll)
            at = loop.index
        if self.lanes == 1 or self.repeated:
            return
        if self.masked_tail:
            with fn.when(fn.emit(f"icmp slt i64 {at}, {stop}")):
                self._steps(wide, envs, ins, outs, at, base, 1, self._active(at, stop))
            return
        narrow = VectorEmitter(fn, 1)
        with fn.when(fn.emit(f"icmp slt i64 {at}, {stop}")):
            scalars = self._fixed_values(narrow, ins)
            with fn.loop(stop, at) as loop:
                self._steps(narrow, [scalars], ins, outs, loop.index, base, 1)

    def _active(self, at: str, stop: str) -> str:
        """The mask of the lanes at ``at`` .. that lie before ``stop``."""
        left = self.fn.emit(f"trunc i64 {self.fn.emit(f'sub i64 {stop}, {at}')} to i32")
        vector = f"<{self.lanes} x i32>"
        iota = ", ".join(f"i32 {k}" for k in range(self.lanes))
        return self.fn.emit(f"icmp slt {vector} <{iota}>, {self.fn.splat(vector, left)}")

    def _fixed_values(
        self, e: VectorEmitter, ins: dict[int, str], phase: int = 0
    ) -> dict[Value, Any]:
        """The values that do not change along the innermost loop: for vector ``phase`` of a row."""
        env: dict[Value, Any] = {}

        def load(path: str) -> Any:
            i = int(path)
            if i in self.repeated:
                kind = memory_type(self.inputs[i].dtype)
                at = self.fn.element(ins[i], kind, phase * e.lanes)
                return e.load(at, self.inputs[i].dtype)
            if i not in self.keys:
                return e.load_splat(ins[i], self.inputs[i].dtype)
            second = self.fn.element(ins[i], "i64", 1)
            return e.load_splat(ins[i], int64), e.load_splat(second, int64)

        nodes = [n for n in self.fixed if n.op != "input" or int(n.attrs["path"]) in self.used]
        lower_nodes(e, nodes, env, {}, load)
        return env

    def _steps(
        self,
        e: VectorEmitter,
        fixed: Sequence[dict[Value, Any]],
        ins: dict[int, str],
        outs: list[str],
        at: str,
        base: str,
        unroll: int,
        active: str | None = None,
    ) -> None:
        """``unroll`` vectors from element ``at``: all loads, then the arithmetic, then stores."""
        fn = self.fn
        first = at if base == "0" else fn.emit(f"add nsw i64 {base}, {at}")
        places = [(at, first)] + [
            tuple(fn.emit(f"add nsw i64 {x}, {k * e.lanes}") for x in (at, first))
            for k in range(1, unroll)
        ]
        envs = []
        for k, (index, _) in enumerate(places):
            env = dict(fixed[k % len(fixed)])
            for n in self.varying:
                if n.op == "input" and int(n.attrs["path"]) in self.used:
                    env[n.value] = self._load(e, int(n.attrs["path"]), ins, index, active)
            envs.append(env)
        nodes = [n for n in self.varying if n.op != "input"]
        for env, (_, linear) in zip(envs, places, strict=True):
            e.index = linear
            lower_nodes(e, nodes, env, {})
        for env, (index, _) in zip(envs, places, strict=True):
            for out, t, v in zip(outs, self.outputs, self.body.outputs.values(), strict=True):
                value: Lane = e.cast(env[v], t.dtype)
                address = fn.element(out, memory_type(t.dtype), index)
                if active is None:
                    e.store(value, address)
                else:
                    e.store_masked(value, address, active)

    def _load(
        self, e: VectorEmitter, i: int, ins: dict[int, str], index: str, active: str | None
    ) -> Lane:
        """The lanes of operand ``i`` from element ``index`` of the innermost loop."""
        dtype, stride = self.inputs[i].dtype, self.inner.strides[i]
        if stride == 1:
            address = self.fn.element(ins[i], memory_type(dtype), index)
            if active is None:
                return e.load(address, dtype)
            return e.load_masked(address, dtype, active)
        step = self._number(stride)
        at = self.fn.emit(f"mul nsw i64 {index}, {step}")
        first = self.fn.element(ins[i], memory_type(dtype), at)
        return e.load_strided(first, dtype, step)

    def _unroll(self) -> int:
        """Independent vectors per iteration: more for bodies too short to hide latencies."""
        trial = Function("trial", self.params)
        e = VectorEmitter(trial, self.lanes, index="%begin")
        inputs = {
            str(i): (Lane("poison", int64),) * 2 if i in self.keys else Lane("poison", t.dtype)
            for i, t in enumerate(self.inputs)
        }
        lower_body(e, self.body, inputs)
        cost = trial.render().count("\n")
        wanted = 4 if cost <= 14 else 2 if cost <= 24 else 1
        # All loads come first, next to what does not change along the loop.
        loads = sum(n.op == "input" for n in self.varying)
        fixed = {n.value for n in self.fixed}
        kept = self.phases * len({v for n in self.varying for v in n.operands if v in fixed})
        while wanted > 1 and wanted * (loads + 1) + kept > self.registers:
            wanted //= 2
        return wanted


def pick_lanes(dtypes: Sequence[DType], target: Target) -> int:
    """Lanes that fill a register with the narrowest float; else the widest integer, or bytes."""
    floats = [d for d in dtypes if d.is_float]
    if floats:
        return target.lanes(min(floats, key=lambda d: d.itemsize))
    integers = [d for d in dtypes if d is not bool_]
    return target.lanes(max(integers, key=lambda d: d.itemsize) if integers else bool_)


def has_masked_memory(target: Target, dtypes: Sequence[DType]) -> bool:
    """Whether loads and stores with a lane mask are single instructions for all ``dtypes``."""
    if not target.triple.startswith("x86_64") or target.vector_bytes < 32:
        return False
    return target.vector_bytes == 64 or all(d.itemsize >= 4 for d in dtypes)
