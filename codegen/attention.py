"""Scaled dot-product attention on top of the micro-kernel, and its weights alone.

A task is a block of query rows of one head. Its scores are a strip in private memory: products of
the queries with the packed panels of K^T, scaled and masked as they leave the registers; the
softmax of each row; then the products of the strip with the packed panels of V. Keys and values are
packed once per head by each thread that has rows of it. Queries, keys, values and results are read
and written with any steps between batch, head and row, so that heads that are columns of a
projection need no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.graph import Graph, Node
from ..ir.types import DType, Extent, TensorType, numel
from .attention_heads import (
    HeadWriter,
    Place,
    Rows,
    fixed,
    mask_steps,
    place_of,
    row_lanes,
    row_pitch,
)
from .attention_scores import ScoreEpilogue, softmax_function
from .kernel import Kernel, TaskCount, assembled, kernel_params, symbol_for, traffic
from .packing import choose_panel
from .sizes import Size, least, minus, plus, times, unravel
from .target import Target
from .text import Function
from .tile import register_rows

# A block of query rows has at least this many tiles, so that panels are not read for a few rows.
_FEWEST_TILES = 2


@dataclass(frozen=True)
class Attention:
    """One attention: its sizes, where the operands are, and what happens to the scores.

    ``mask`` has the steps of batch, head, query and key in the mask, 0 where it repeats.
    ``value`` and ``value_dim`` are None and 0 if the weights are the result, at ``out``.
    """

    dtype: DType
    batch: Extent
    heads: int
    rows: int
    keys: int
    dim: int
    value_dim: int
    scale: float
    causal: bool
    query: Place
    key: Place
    value: Place | None
    out: Place
    mask: tuple[int, int, int, int] | None


def emit_attention(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of ``attention`` or ``attention_weights``; None for empty matrices."""
    operands = [graph.type(v) for v in node.operands]
    spec = _spec(node, operands)
    if min(spec.heads, spec.rows, spec.keys, spec.dim) < 1 or (spec.value and not spec.value_dim):
        return None
    kernel = _AttentionWriter(node.op, spec, len(operands), target).kernel()
    return replace(kernel, bytes=traffic([*operands, *node.types]))


def _spec(node: Node, operands: Sequence[TensorType]) -> Attention:
    attrs = node.attrs
    heads, dim, starts = attrs["heads"], attrs["head_dim"], attrs["starts"]
    value_dim = attrs.get("value_dim", 0)
    q, k, *rest = operands
    value = None
    if node.op == "attention":
        value = place_of(rest.pop(0), value_dim, starts[2])
    rows, keys = fixed(q.shape[-2:])[0], fixed(k.shape[-2:])[0]
    return Attention(
        q.dtype,
        q.shape[0],
        heads,
        rows,
        keys,
        dim,
        value_dim,
        attrs["scale"],
        attrs["causal"],
        place_of(q, dim, starts[0]),
        place_of(k, dim, starts[1]),
        value,
        place_of(node.type, value_dim, 0),
        mask_steps(rest[0]) if rest else None,
    )


class _AttentionWriter(HeadWriter):
    def __init__(self, prefix: str, spec: Attention, inputs: int, target: Target) -> None:
        symbol = symbol_for(prefix, spec, inputs, target)
        super().__init__(symbol, Function(symbol, kernel_params(1, inputs)), spec.dtype, target)
        self.spec = spec
        self._plan_tiles()
        self._plan_scratch()

    def _plan_tiles(self) -> None:
        """Widths of the panels, the height of the tiles, the rows of a block."""
        spec, rows = self.spec, register_rows(self.target)
        widths = [choose_panel(spec.keys, self.target, spec.dtype)]
        columns = [spec.keys]
        if spec.value is not None:
            widths.append(choose_panel(spec.value_dim, self.target, spec.dtype))
            columns.append(spec.value_dim)
        self.key_panel, self.value_panel = widths[0], widths[-1]
        tallest = min(
            rows[-(-min(p, n) // self.lanes)] for p, n in zip(widths, columns, strict=True)
        )
        tiles = -(-spec.rows // tallest)
        unit = -(-spec.rows // tiles)
        self.rows = Rows.of(tallest, [spec.rows])
        size = spec.dtype.itemsize
        self.pitch = spec.keys if spec.value is None else row_pitch(spec.keys, spec.dtype)
        fits = self.target.l1 // 2 // (unit * self.pitch * size)
        blocks = -(-tiles // max(_FEWEST_TILES, fits))
        self.block = -(-tiles // blocks) * unit
        self.blocks = -(-spec.rows // self.block)

    def _plan_scratch(self) -> None:
        """Places of the packed keys, packed values and the strip."""
        spec = self.spec
        self.keys = self.packed(spec.keys, self.key_panel, spec.dim)
        if spec.value is not None:
            self.values = self.packed(spec.value_dim, self.value_panel, spec.keys)
            self.strip_at = self.room(self.block * self.pitch)

    def kernel(self) -> Kernel:
        spec, f = self.spec, self.f
        softmax = f"{self.symbol}_softmax"
        limited = spec.causal and spec.value is not None
        self.helpers.append(
            softmax_function(
                softmax,
                spec.dtype,
                row_lanes(spec.keys, self.lanes),
                None if limited else spec.keys,
                self.target.registers,
            )
        )
        with f.loop("%end", start="%begin") as task:
            batch, head, block = unravel(f, task.index, (0, spec.heads, self.blocks))
            self._pack(task.index, block, batch, head)
            first = times(f, block, self.block)
            count = least(f, minus(f, spec.rows, first), self.block)
            # Keys behind the last query of a causal block have the weight 0.
            limit = least(f, plus(f, first, count), spec.keys) if limited else spec.keys
            strip = self._strip(batch, head, first)
            self._scores(strip, batch, head, first, count, limit)
            with f.loop(count) as row:
                at = f.element(strip, self.kind, times(f, row.index, self.pitch))
                f.do(f"call void @{softmax}(ptr {at}, i64 {limit})")
            if spec.value is not None:
                out = self.address("%out0", spec.out, batch, head, first)
                rows = (self.rows, count)
                self.deep(strip, self.pitch, self.values, limit, out, spec.out.row, rows)
        flops = numel((spec.batch, spec.heads, spec.rows, spec.keys, spec.dim + spec.value_dim))
        tasks = numel((spec.batch, spec.heads, self.blocks))
        functions = [*self.helpers, *self.micro.functions, f]
        # Every range packs the keys and values of the head that it begins in.
        return assembled(functions, TaskCount(tasks), self.scratch_bytes, flops * 2, cuts=2)

    def _strip(self, batch: Size, head: Size, first: Size) -> str:
        """Where the scores of a block are."""
        if self.spec.value is None:
            return self.address("%out0", self.spec.out, batch, head, first)
        return self.f.element("%scratch", "i8", self.strip_at)

    def _pack(self, task: str, block: Size, batch: Size, head: Size) -> None:
        """Packs keys and values when the head is another one than that of the last task."""
        f, spec = self.f, self.spec
        fresh = f.emit(f"icmp eq i64 {block}, 0")
        fresh = f.emit(f"or i1 {fresh}, {f.emit(f'icmp eq i64 {task}, %begin')}")
        with f.when(fresh):
            keys = self.address("%in1", spec.key, batch, head)
            self.pack("keys", keys, spec.key.row, self.keys, transposed=True)
            if spec.value is not None:
                values = self.address("%in2", spec.value, batch, head)
                self.pack("values", values, spec.value.row, self.values, transposed=False)

    def _scores(
        self, strip: str, batch: Size, head: Size, first: Size, count: Size, limit: Size
    ) -> None:
        """The strip: queries times K^T, a panel of keys after the other."""
        spec = self.spec
        mask, steps = "", None
        if spec.mask is not None:
            steps = spec.mask[2:]
            place = Place(0, *spec.mask[:3])
            base = f"%in{2 + (spec.value is not None)}"
            mask = self.address(base, place, batch, head, first)
        queries = self.address("%in0", spec.query, batch, head, first)
        epilogue = ScoreEpilogue(spec.scale, steps, spec.causal, spec.value is None)
        rows = (self.rows, count)
        self.scores(
            queries, spec.query.row, self.keys, limit, strip, self.pitch, rows, epilogue, mask,
            first,
        )  # fmt: skip
