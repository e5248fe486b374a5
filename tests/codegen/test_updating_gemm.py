"""updating_gemm: the kernel of a weight's gradient that updates the weight in place."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from netwright.codegen.kernel import Kernel
from netwright.codegen.matmul import emit_matmul
from netwright.codegen.target import AVX2, Target, host
from netwright.codegen.updating_gemm import is_faster
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.types import Dim, TensorType, float32, int64

N = Dim(1)
Run = Callable[..., None]
RULES = {"momentum": 2, "adam": 3}
"""Rules and how many arrays of the weight's size each reads and writes."""


def update(rule: str, out: int, k: int, rows: Any = N) -> tuple[Node, Graph]:
    """``linear_grad_weight`` with an optimizer's rule behind it: (dy, x, state..., numbers...)."""
    body = Graph("body")
    weight = TensorType(float32, (out, k))
    types = [TensorType(float32, (rows, out)), TensorType(float32, (rows, k))]
    types += [weight] * RULES[rule] + [TensorType(float32, ())] * 2
    dy, x, *state, one, other = (
        body.add("input", path=str(i), type=t) for i, t in enumerate(types)
    )
    add, g = body.add, body.add("linear_grad_weight", dy, x)
    if rule == "momentum":
        w, v = state
        results = [add("add", add("mul", v, one), g)]
        results.append(add("sub", w, add("mul", results[0], other)))
        results.reverse()
    else:
        w, m, v = state
        mean = add("add", add("mul", m, one), add("mul", g, other))
        square = add("add", add("mul", v, one), add("mul", add("mul", g, g), other))
        step = add("div", add("mul", mean, other), add("add", add("sqrt", square), one))
        results = [add("sub", w, step), mean, square]
    body.outputs |= {str(i): r for i, r in enumerate(results)}
    graph = Graph("update")
    operands = [graph.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    value = graph.add("fused", *operands, kind="contraction", body=body)
    return graph.node(value[0] if isinstance(value, tuple) else value), graph


def expected(rule: str, g: np.ndarray, state: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rule in numpy, operator by operator, in float32."""
    one, other = np.float32(0.9), np.float32(0.1)
    if rule == "momentum":
        w, v = state
        new = v * one + g
        return [w - new * other, new]
    w, m, v = state
    mean, square = m * one + g * other, v * one + g * g * other
    return [w - mean * other / (np.sqrt(square) + one), mean, square]


def kernel_of(*case: Any, target: Target | None = None) -> Kernel:
    kernel = emit_matmul(*case, target or host())
    assert kernel is not None
    return kernel


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("out", "k", "rows"),
    [(1, 1, N), (10, 33, N), (17, 24, N), (50, 150, N), (3, 20, N), (70, 64, 40), (20, 33, 700)],
)
def test_the_state_is_written_over_with_the_bits_of_separate_kernels(
    run: Run, rule: str, out: int, k: int, rows: Any
) -> None:
    kernel = kernel_of(*update(rule, out, k, rows))
    plain = Graph("gradient")
    types = [TensorType(float32, (rows, c)) for c in (out, k)]
    operands = [plain.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    gradient = kernel_of(plain.node(plain.add("linear_grad_weight", *operands)), plain)
    rng = np.random.default_rng(0)
    numbers = [np.array(v, np.float32) for v in (0.9, 0.1)]
    for n in (0, 1, 33, 300, 700) if rows is N else (rows,):
        dy, x = (rng.standard_normal((n, c)).astype(np.float32) for c in (out, k))
        state = [rng.random((out, k)).astype(np.float32) for _ in range(RULES[rule])]
        g = np.empty((out, k), np.float32)
        run(gradient, [g], [dy, x], n)
        wanted = expected(rule, g, state)
        tasks = kernel.tasks.at(n)
        for splits in ([], [tasks // 3, tasks // 2]):
            found = [s.copy() for s in state]
            run(kernel, found, [dy, x, *found, *numbers], n, splits)
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def test_random_numbers_may_follow_a_gradient(run: Run) -> None:
    """As behind any contraction: the epilogue also takes the index of the tile's first element."""
    body, graph = Graph("body"), Graph("masked")
    types = [TensorType(float32, (N, 50)), TensorType(float32, (N, 33)), TensorType(int64, (2,))]
    dy, x, key = (body.add("input", path=str(i), type=t) for i, t in enumerate(types))
    mask = body.add("uniform", key, shape=(50, 33), stream=1)
    body.outputs["0"] = body.add("mul", body.add("linear_grad_weight", dy, x), mask)
    operands = [graph.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    node = graph.node(graph.add("fused", *operands, kind="contraction", body=body))
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((20, c)).astype(np.float32) for c in (50, 33)]
    arrays.append(np.array([3, 4]))
    found = np.empty((50, 33), np.float32)
    kernel = kernel_of(node, graph)
    run(kernel, [found], arrays, 20, [kernel.tasks.at(20) // 3])
    (wanted,) = run_node(node, arrays, 20)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_few_arrays_and_short_rows_are_faster_in_the_kernel_of_the_gradient() -> None:
    def faster(rows: Any, columns: int, arrays: int) -> bool:
        return is_faster(TensorType(float32, (rows, columns)), arrays)

    assert faster(512, 784, 2) and faster(512, 2048, 1)
    assert not faster(512, 784, 3)
    assert not faster(128, 3136, 2)


def test_blocks_of_columns_that_share_cache_sets_are_copied(run: Run) -> None:
    few_sets = replace(host(), l2=256 << 10)
    kernels = [kernel_of(*update("momentum", 2048, 3), target=t) for t in (few_sets, host())]
    assert "llvm.memcpy" in kernels[0].text
    rng = np.random.default_rng(1)
    dy, x = (rng.standard_normal((300, c)).astype(np.float32) for c in (2048, 3))
    numbers = [np.array(v, np.float32) for v in (0.9, 0.1)]
    found = [[np.ones((2048, 3), np.float32) for _ in range(2)] for _ in kernels]
    for kernel, state in zip(kernels, found, strict=True):
        run(kernel, state, [dy, x, *state, *numbers], 300, [kernel.tasks.at(300) // 3])
    np.testing.assert_array_equal(*(s[0] for s in found))


@pytest.mark.parametrize("rule", RULES)
def test_the_sums_stay_in_registers_next_to_the_update(
    asm_for: Any, target: Target, rule: str
) -> None:
    code = asm_for(kernel_of(*update(rule, 500, 784), target=target), target)
    assert code.inner_spills == 0
    # With 16 registers, Adam's rule needs more next to the sums than are left.
    assert code.spills <= (16 if (rule, target) == ("adam", AVX2) else 0)
    called = set(re.findall(r"(?m)^\s+(?:callq?|bl)\s+(\w+)", code.text))
    assert called <= set(re.findall(r"(?m)^(\w+):", code.text))
