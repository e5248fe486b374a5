"""Writing a weight's gradient in the order of the weight.

Kernels compute the gradient with output channels along a vector, one row per (input channel, kernel
element); in an OIHW weight these rows are columns.
"""

from __future__ import annotations

from ..ir.types import DType
from .emitter import VectorEmitter, scalar_type
from .packing import lanes_below, transpose
from .sizes import times
from .text import Function


def rows_to_weight(
    symbol: str, dtype: DType, lanes: int, pitch: int, step: int, active: int
) -> Function:
    """``void @symbol(ptr out, ptr rows, i64 count)``: ``out[o][k] = rows[k][o]`` for k < count and
    the first ``active`` of ``lanes`` output channels.

    Rows are ``pitch`` elements apart, output channels of the result ``step``. Up to ``lanes - 1``
    rows after the last one are read, too.
    """
    params = [("ptr noalias", "out"), ("ptr noalias readonly", "rows"), ("i64", "count")]
    f = Function(symbol, params, attributes="noinline nounwind")
    e = VectorEmitter(f, lanes, dtype)
    scalar = scalar_type(dtype)
    with f.loop("%count", step=lanes) as loop:
        source = f.element("%rows", scalar, times(f, loop.index, pitch))
        square = [e.load(f.element(source, scalar, r * pitch), dtype) for r in range(lanes)]
        columns = transpose(e, square)[:active]
        target = f.element("%out", scalar, loop.index)
        places = [f.element(target, scalar, o * step) for o in range(active)]
        end = f.emit(f"add nsw i64 {loop.index}, {lanes}")
        whole = f.emit(f"icmp sle i64 {end}, %count")
        with f.when(whole):
            for value, place in zip(columns, places, strict=True):
                e.store(value, place)
        with f.when(f.emit(f"xor i1 {whole}, true")):
            mask = lanes_below(e, loop.index, "%count")
            for value, place in zip(columns, places, strict=True):
                e.store_masked(value, place, mask)
    return f
