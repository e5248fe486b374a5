"""The gradient of attention with respect to queries, keys and values, in one kernel.

A task is one head. Its weights are computed again: a block of query rows, as many as keep two
strips in half of the second level cache and a panel of them in the first, goes through

1. the scores, queries times K^T, and their gradient's first term, G V^T, each a strip;
2. row by row, the softmax in place and the gradient of the scores, ``P (dP - sum(P dP)) scale``;
3. dQ, the second strip times K; dV and dK, the strips transposed times G and Q, added up over the
   blocks in the results.

K, V, Q and G of the head are packed once, K in both directions. Operands and results are read and
written with any steps, as in `attention`; the three results may be columns of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.graph import Graph, Node
from ..ir.types import DType, Extent, TensorType, numel
from .attention_heads import (
    HeadWriter,
    Packed,
    Place,
    Rows,
    fixed,
    mask_steps,
    place_of,
    row_lanes,
    row_pitch,
)
from .attention_scores import ScoreEpilogue, grad_function
from .kernel import Kernel, TaskCount, assembled, kernel_params, symbol_for, traffic
from .packing import choose_panel
from .sizes import Size, least, minus, plus, times, unravel
from .target import Target
from .text import Function
from .tile import register_rows

# Query rows of a block, at most: a panel of two vectors of so many rows of G fits the first level
# cache, and sums of so many products need no further blocks.
_MOST_ROWS = 256


@dataclass(frozen=True)
class AttentionGrad:
    """The sizes and places of one gradient of attention.

    ``grad`` is the place of the result's gradient; ``results`` are (number of the output, place) of
    dQ, dK and dV.
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
    grad: Place
    query: Place
    key: Place
    value: Place
    results: tuple[tuple[int, Place], ...]
    mask: tuple[int, int, int, int] | None


def emit_attention_grad(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of ``attention_grad``; None for empty matrices."""
    operands = [graph.type(v) for v in node.operands]
    spec = _spec(node, operands)
    if min(spec.heads, spec.rows, spec.keys, spec.dim, spec.value_dim) < 1:
        return None
    kernel = _Writer(spec, len(node.types), len(operands), target).kernel()
    return replace(kernel, bytes=traffic([*operands, *node.types]))


def _spec(node: Node, operands: Sequence[TensorType]) -> AttentionGrad:
    attrs = node.attrs
    starts, dims = attrs["starts"], (attrs["head_dim"], attrs["head_dim"], attrs["value_dim"])
    g, q, k, v, *mask = operands
    places = [place_of(x, d, at) for x, d, at in zip((q, k, v), dims, starts, strict=True)]
    if attrs["together"]:
        results = [(0, place_of(q, d, at)) for d, at in zip(dims, starts, strict=True)]
    else:
        results = [
            (i, place_of(x, d, 0)) for i, (x, d) in enumerate(zip(node.types, dims, strict=True))
        ]
    return AttentionGrad(
        q.dtype,
        q.shape[0],
        attrs["heads"],
        fixed(q.shape[-2:])[0],
        fixed(k.shape[-2:])[0],
        attrs["head_dim"],
        attrs["value_dim"],
        attrs["scale"],
        attrs["causal"],
        place_of(g, attrs["value_dim"], 0),
        places[0],
        places[1],
        places[2],
        tuple(results),
        mask_steps(mask[0]) if mask else None,
    )


class _Writer(HeadWriter):
    def __init__(self, spec: AttentionGrad, outputs: int, inputs: int, target: Target) -> None:
        symbol = symbol_for("attention_grad", spec, outputs, inputs, target)
        params = kernel_params(outputs, inputs)
        super().__init__(symbol, Function(symbol, params), spec.dtype, target)
        self.spec = spec
        self._plan_blocks()
        self._plan_scratch()

    def _plan_blocks(self) -> None:
        """Query rows per block: a multiple of the height of the tiles that make the scores."""
        spec = self.spec
        self.wide_panel = choose_panel(spec.keys, self.target, spec.dtype)
        tallest = self._tallest(self.wide_panel, spec.keys)
        self.pitch = row_pitch(spec.keys, spec.dtype)
        fits = self.target.l2 // 2 // (2 * self.pitch * spec.dtype.itemsize)
        blocks = -(-spec.rows // max(1, min(fits, _MOST_ROWS)))
        self.block = -(-spec.rows // blocks)
        if blocks > 1:
            self.block = -(-self.block // tallest) * tallest
        self.blocks = -(-spec.rows // self.block)
        self.counts = [self.block, spec.rows - (self.blocks - 1) * self.block]

    def _plan_scratch(self) -> None:
        """Places of the packed operands and of the strips."""
        spec = self.spec
        self.keys = self.packed(spec.keys, self.wide_panel, spec.dim)
        self.values = self.packed(spec.keys, self.wide_panel, spec.value_dim)
        self.key_rows = self.packed(spec.dim, self._panel(spec.dim), spec.keys)
        self.queries = self.packed(spec.dim, self._panel(spec.dim), spec.rows)
        self.grads = self.packed(spec.value_dim, self._panel(spec.value_dim), spec.rows)
        self.weights_at = self.room(self.block * self.pitch)
        self.scores_at = self.room(self.block * self.pitch)

    def _panel(self, columns: int) -> int:
        """Columns per panel of a long product: two vectors, so that a panel of many rows stays in
        the first level cache while the strip passes by."""
        return min(-(-columns // self.lanes), 2) * self.lanes

    def _tallest(self, panel: int, columns: int) -> int:
        """Rows of the tallest tile."""
        return register_rows(self.target)[-(-min(panel, columns) // self.lanes)]

    def kernel(self) -> Kernel:
        spec, f = self.spec, self.f
        row_work = f"{self.symbol}_softmax"
        lanes, registers = row_lanes(spec.keys, self.lanes), self.target.registers
        length = None if spec.causal else spec.keys
        self.helpers.append(
            grad_function(row_work, spec.dtype, lanes, length, spec.scale, registers)
        )
        with f.loop("%end", start="%begin") as task:
            batch, head = unravel(f, task.index, (0, spec.heads))
            self._pack(batch, head)
            if self.blocks == 1:
                self._block(batch, head, 0, spec.rows, row_work)
            else:
                with f.loop(spec.rows, step=self.block) as loop:
                    count = least(f, minus(f, spec.rows, loop.index), self.block)
                    self._block(batch, head, loop.index, count, row_work)
        pairs = numel((spec.batch, spec.heads, spec.rows, spec.keys))
        functions = [*self.helpers, *self.micro.functions, f]
        flops = numel((pairs, 2 * (3 * spec.dim + 2 * spec.value_dim)))
        tasks = TaskCount(numel((spec.batch, spec.heads)))
        return assembled(functions, tasks, self.scratch_bytes, flops)

    def _pack(self, batch: Size, head: Size) -> None:
        spec = self.spec
        for name, base, place, to, transposed in (
            ("queries", "%in1", spec.query, self.queries, False),
            ("grads", "%in0", spec.grad, self.grads, False),
            ("key_rows", "%in2", spec.key, self.key_rows, False),
            ("keys", "%in2", spec.key, self.keys, True),
            ("values", "%in3", spec.value, self.values, True),
        ):
            self.pack(name, self.address(base, place, batch, head), place.row, to, transposed)

    def _block(self, batch: Size, head: Size, first: Size, count: Size, row_work: str) -> None:
        """A block of queries."""
        spec, f = self.spec, self.f
        weights = f.element("%scratch", "i8", self.weights_at)
        scores = f.element("%scratch", "i8", self.scores_at)
        limit: Size = spec.keys
        if spec.causal:
            limit = least(f, plus(f, first, count), spec.keys)
        self._strips(batch, head, first, count, limit, weights, scores)
        with f.loop(count) as row:
            at = times(f, row.index, self.pitch)
            p, dp = f.element(weights, self.kind, at), f.element(scores, self.kind, at)
            f.do(f"call void @{row_work}(ptr {p}, ptr {dp}, i64 {limit})")
        (q_out, q_at), (k_out, k_at), (v_out, v_at) = spec.results
        out = self.address(f"%out{q_out}", q_at, batch, head, first)
        rows = (self._rows(self.key_rows.panel, spec.dim), count)
        self.deep(scores, self.pitch, self.key_rows, limit, out, q_at.row, rows)
        for strip, right, number, place in (
            (weights, self.grads, v_out, v_at),
            (scores, self.queries, k_out, k_at),
        ):
            self._turned(strip, right, f"%out{number}", place, batch, head, first, count, limit)

    def _rows(self, panel: int, columns: int) -> Rows:
        """Tiles for the query rows of a block."""
        return Rows.of(self._tallest(panel, columns), self.counts)

    def _strips(
        self, batch: Size, head: Size, first: Size, count: Size, limit: Size, weights: str,
        scores: str,
    ) -> None:  # fmt: skip
        """Scores, and the gradient of the weights."""
        spec = self.spec
        mask, steps = "", None
        if spec.mask is not None:
            steps = spec.mask[2:]
            mask = self.address("%in4", Place(0, *spec.mask[:3]), batch, head, first)
        epilogue = ScoreEpilogue(spec.scale, steps, spec.causal, dense=False)
        rows = (self._rows(self.keys.panel, spec.keys), count)
        queries = self.address("%in1", spec.query, batch, head, first)
        self.scores(
            queries, spec.query.row, self.keys, limit, weights, self.pitch, rows, epilogue, mask,
            first,
        )  # fmt: skip
        grads = self.address("%in0", spec.grad, batch, head, first)
        plain = ScoreEpilogue(1.0, None, causal=False, dense=False)
        self.wide(grads, spec.grad.row, self.values, limit, scores, self.pitch, rows, plain)

    def _turned(
        self, strip: str, right: Packed, base: str, place: Place, batch: Size, head: Size,
        first: Size, count: Size, limit: Size,
    ) -> None:  # fmt: skip
        """A strip transposed times the packed rows of a block: dK or dV."""
        spec, f = self.spec, self.f
        out = self.address(base, place, batch, head)
        tallest = self._tallest(right.panel, right.columns)
        if not spec.causal:
            rows: tuple[Rows, Size] = (Rows.of(tallest, [spec.keys]), spec.keys)
        else:
            rows = (Rows.any(tallest), limit)
            self._clear(out, place.row, right.columns, first, limit)
        keep = None
        if self.blocks > 1:
            started = f.emit(f"icmp sgt i64 {first}, 0")
            keep = f.emit(f"sext i1 {started} to i64")
        self.turned(strip, self.pitch, right, first, count, out, place.row, rows, keep)

    def _clear(self, out: str, row: int, columns: int, first: Size, limit: Size) -> None:
        """Zeros for the keys that the first causal block does not see."""
        f = self.f
        size = columns * self.dtype.itemsize
        with f.when(f.emit(f"icmp eq i64 {first}, 0")), f.loop(self.spec.keys, limit) as key:
            at = f.element(out, self.kind, times(f, key.index, row))
            f.call(
                "void", "llvm.memset.p0.i64", ("ptr", at), ("i8", "0"), ("i64", str(size)),
                ("i1", "false"),
            )  # fmt: skip
