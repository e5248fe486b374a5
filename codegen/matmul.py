"""Kernels of matmul, linear and linear's weight gradient, with plain and with packed weights."""

from __future__ import annotations

from dataclasses import replace

from ..ir.graph import Graph, Node
from ..ir.types import Dim, DType, TensorType, fixed, numel
from .contraction import Contraction, contraction_of
from .gemm import gemm_kernel
from .gemm_blocking import Gemm, is_one_block
from .kernel import Kernel, traffic
from .linear_transposed import TransposedLinear, is_faster, transposed_kernel
from .packing import choose_panel
from .target import Target
from .updating_gemm import updating_gemm_kernel


def linear_operator(rows: int, depth: int, outputs: int, dtype: DType, target: Target) -> str:
    """The operator that is fastest for a linear layer whose weight changes in every call.

    A pack that is a kernel of its own waits for nothing in a step: a thread packs while another one
    finishes what comes before. For many rows, whole steps are faster with it, although the kernels
    alone take longer.
    """
    if not is_one_block(rows, depth, dtype, target):
        return "linear_packed"
    return "linear_transposed" if is_faster(rows, depth, outputs, dtype, target) else "linear"


def emit_matmul(node: Node, graph: Graph, target: Target) -> Kernel | None:
    """The kernel of a matrix product, alone or as the anchor of a ``fused`` node.

    None if there is no kernel for it: integers, a symbolic number of columns, or an epilogue that
    is not elementwise on the result.
    """
    operands = [graph.type(v) for v in node.operands]
    found = contraction_of(node, operands)
    if found is None or not found.result.dtype.is_float:
        return None
    if found.epilogue.pool is not None or found.epilogue.sums or found.moments is not None:
        return None  # tiles know no rows of pixels
    pointers = found.pointer(0), found.pointer(1)
    moved = traffic([*operands, *node.types])
    if found.op == "linear_transposed":
        transposed = _transposed(found)
        if transposed is None:
            return None
        kernel = transposed_kernel(transposed, found.epilogue, pointers, len(operands), target)
        return replace(kernel, bytes=moved)
    spec = _spec(found, target)
    if spec is None:
        return None
    emit = updating_gemm_kernel if found.epilogue.in_place else gemm_kernel
    if emit is gemm_kernel and spec.blocked and found.epilogue.outputs[0] is not spec.dtype:
        return None  # the first output holds the partial sums
    kernel = emit(found.op, spec, found.epilogue, pointers, len(operands), target)
    return replace(kernel, bytes=moved)


def _transposed(found: Contraction) -> TransposedLinear | None:
    x, w = found.operands[:2]
    n, k = w.shape
    if not isinstance(n, int) or not isinstance(k, int) or n < 1:
        return None
    pitches = fixed(x.pitch), fixed(found.pitch)
    return TransposedLinear(found.result.dtype, numel(x.shape[:-1]), n, k, *pitches)


def _spec(found: Contraction, target: Target) -> Gemm | None:
    a, b = found.operands[:2]
    dtype, n = found.result.dtype, found.result.shape[-1]
    if not isinstance(n, int) or n < 1:
        return None
    panel = found.attrs.get("panel") or choose_panel(n, target, dtype)
    if panel % target.lanes(dtype):
        return None
    if found.op == "matmul":
        return _matmul(a, b, n, panel)
    if found.op == "linear_grad_weight":
        out = a.shape[-1]
        rows = numel(a.shape[:-1])
        return None if isinstance(out, Dim) else Gemm(dtype, out, n, rows, 1, out, "rows", panel)
    if found.op in ("linear", "linear_packed", "matmul_packed"):
        k = a.shape[-1]
        if isinstance(k, Dim):
            return None
        form = "columns" if found.op == "linear" else "packed"
        a_row, c_row = fixed(a.pitch), fixed(found.pitch)
        return Gemm(dtype, numel(a.shape[:-1]), n, k, a_row, 1, form, panel, c_row=c_row)
    return None


def _matmul(a: TensorType, b: TensorType, n: int, panel: int) -> Gemm | None:
    k, m = a.shape[-1], a.shape[-2]
    if isinstance(k, Dim):
        return None
    if b.rank <= a.rank and all(d == 1 for d in b.shape[:-2]):
        # One matrix for the whole batch: its rows are rows of one product.
        return Gemm(a.dtype, numel(a.shape[:-1]), n, k, k, 1, "rows", panel)
    rank = max(a.rank, b.rank) - 2
    a_batch, b_batch = ((1,) * (rank + 2 - t.rank) + t.shape[:-2] for t in (a, b))
    batch = tuple(y if x == 1 else x for x, y in zip(a_batch, b_batch, strict=True))
    return Gemm(a.dtype, m, n, k, k, 1, "rows", panel, batch, a_batch, b_batch)
