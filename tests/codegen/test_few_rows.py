"""Products of one or two rows: every cut of the columns gives all of them, with the same bits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401
from netwright.codegen.kernel import Kernel
from netwright.codegen.llvm import module_text
from netwright.codegen.matmul import emit_matmul
from netwright.codegen.packing import choose_panel
from netwright.codegen.target import Target, host
from netwright.ir.graph import Graph
from netwright.ir.ops.packing import pack_columns
from netwright.ir.types import Dim, DType, TensorType, float32, float64

N = Dim(1)
DEPTH = 7


def product(features: int, dtype: DType, target: Target, depth: int = DEPTH) -> Kernel:
    """The kernel of ``f[N,depth] -> f[N,features]`` with packed weights and a bias."""
    panel = choose_panel(features, target, dtype)
    shapes = ((N, depth), (-(-features // panel) * panel * depth,), (features,))
    graph = Graph()
    values = [
        graph.add("input", path=str(k), type=TensorType(dtype, shape))
        for k, shape in enumerate(shapes)
    ]
    graph.add("linear_packed", *values, out_features=features, panel=panel)
    kernel = emit_matmul(graph.nodes[-1], graph, target)
    assert kernel is not None
    return kernel


def operands(features: int, dtype: DType, rows: int) -> list[np.ndarray]:
    """An input, packed weights and a bias."""
    rng = np.random.default_rng(features)
    x, w, bias = (
        rng.standard_normal(shape).astype(dtype.np)
        for shape in ((rows, DEPTH), (DEPTH, features), (features,))
    )
    return [x, pack_columns(w, choose_panel(features, host(), dtype)), bias]


@pytest.mark.parametrize(
    ("features", "dtype"),
    [(5, float32), (40, float32), (72, float32), (112, float32), (392, float32), (100, float64)],
)
def test_any_cut_gives_the_bits_that_a_row_has_in_a_large_batch(
    run: Callable[..., Any], features: int, dtype: DType
) -> None:
    kernel = product(features, dtype, host())
    x, packed, bias = operands(features, dtype, 9)
    expected = np.empty((9, features), dtype.np)
    run(kernel, [expected], [x, packed, bias], 9)
    tasks = kernel.tasks.at(1)
    for rows in (1, 2):
        for parts in (1, 2, 3, 5, 7, tasks):
            cuts = [tasks * k // parts for k in range(1, parts)]
            found = np.full((rows, features), np.nan, dtype.np)
            run(kernel, [found], [x[:rows].copy(), packed, bias], rows, cuts)
            assert found.tobytes() == expected[:rows].tobytes(), (rows, parts)


@pytest.mark.parametrize("features", [128, 196, 392])
def test_two_threads_get_about_as_many_columns_each(
    link: Callable[..., int], features: int
) -> None:
    kernel = product(features, float32, host())
    ins = operands(features, float32, 1)
    arguments = [np.full((1, features), np.nan, np.float32), *ins]
    arguments += [np.zeros(1 << 12, np.uint8), np.zeros(2, np.int64)]
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    kind = ctypes.CFUNCTYPE(None, *[pointer] * len(arguments), *[word] * 3)
    text = module_text([kernel.code], kernel.declarations)
    entry = kind(link(text, kernel.symbol))
    entry(*[a.ctypes.data for a in arguments], 1, 0, kernel.tasks.at(1) // 2)
    first = np.count_nonzero(~np.isnan(arguments[0]))
    assert first <= features // 2, "thread 0, whose caches hold more, takes the smaller part"
    assert abs(2 * first - features) <= 32


@pytest.mark.parametrize("features", [40, 196])  # several panels at a time, halves of one
@pytest.mark.parametrize("dtype", [float32, float64], ids=lambda d: d.short)
def test_reading_is_in_full_vectors_that_stay_in_registers(
    asm_for: Any, target: Target, features: int, dtype: DType
) -> None:
    code = asm_for(product(features, dtype, target, 392), target)
    assert code.spills == 0
    assert max(code.widths) >= 8
