"""Kernels that move elements, against numpy, bit for bit."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import netwright.ir.ops  # noqa: F401  (registers the records)
from netwright.codegen.kernel import Kernel
from netwright.codegen.movement import emit_movement
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host
from netwright.ir.graph import Graph, Node
from netwright.ir.interpreter import run_node
from netwright.ir.ops.record import all_ops
from netwright.ir.types import Dim, TensorType, dtype_of, float32, float64

N = Dim(1)
RECORDS = sorted(n for n, op in all_ops().items() if op.kind == "shape")
DTYPES = ("f32", "f64", "i16", "u8", "bool", "i64")


def node_of(op: str, types: Sequence[TensorType], **attrs: Any) -> tuple[Node, Graph]:
    g = Graph()
    values = [g.add("input", path=str(i), type=t) for i, t in enumerate(types)]
    return g.node(g.add(op, *values, **attrs)), g


def numbered(shape: tuple[int, ...], dtype: str, start: int = 1) -> np.ndarray:
    """Distinct values (as far as the dtype has them)."""
    count = int(np.prod(shape))
    return (np.arange(start, start + count) % 251).astype(dtype_of(dtype).np).reshape(shape)


@pytest.fixture
def check(run: Callable[..., Any]) -> Callable[..., Kernel]:
    """Compiles a node, runs it whole and split, and compares with numpy."""

    def go(
        op: str, types: Sequence[TensorType], n: int = 1, target: Target | None = None, **attrs: Any
    ) -> Kernel:
        node, g = node_of(op, types, **attrs)
        kernel = emit_movement(node, g, target or host())
        assert kernel is not None
        arrays = [numbered(t.at(n).shape, t.dtype.short, 1 + 90 * i) for i, t in enumerate(types)]
        tasks = kernel.tasks.at(n)
        for splits in ([], list(range(1, tasks, max(1, tasks // 3)))):
            out = np.full(node.type.at(n).shape, 77, node.type.dtype.np)
            run(kernel, [out], arrays, n, splits)
            np.testing.assert_array_equal(out, run_node(node, arrays, n)[0])
        return kernel

    return go


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RECORDS)
def test_every_record_moves_what_numpy_moves(
    name: str, dtype: str, check: Callable[..., Kernel]
) -> None:
    for sample in all_ops()[name].samples(np.random.default_rng(0)):
        check(name, [TensorType(dtype_of(dtype), a.shape) for a in sample.arrays], **sample.attrs)


PERMUTES: list[tuple[tuple[Any, ...], tuple[int, ...]]] = [
    ((N, 3, 28, 28), (0, 2, 3, 1)),
    ((N, 28, 28, 3), (0, 3, 1, 2)),
    ((N, 24, 7, 9), (0, 2, 3, 1)),
    ((33, 65), (1, 0)),
    ((N, 19), (1, 0)),
    ((19, N), (1, 0)),
    ((N, 5, 4, 16), (0, 2, 1, 3)),
    ((N, 5, 4, 17), (0, 2, 3, 1)),
    ((4, N, 9, 10), (3, 1, 2, 0)),
    ((2, 1, 20, 1, 20), (4, 3, 1, 2, 0)),
]


@pytest.mark.parametrize("dtype", ["f32", "f64", "u8"])
@pytest.mark.parametrize(("shape", "dims"), PERMUTES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 9, 41])
def test_permute_moves_every_element(
    shape: Any, dims: Any, dtype: str, n: int, check: Callable[..., Kernel]
) -> None:
    check("permute", [TensorType(dtype_of(dtype), shape)], n, dims=dims)


MOVES: list[tuple[str, list[tuple[Any, ...]], dict[str, Any]]] = [
    ("reshape", [(N, 5, 9)], {"shape": (N, 45)}),
    ("broadcast_to", [(5, 1)], {"shape": (N, 5, 33)}),
    ("broadcast_to", [(N, 1)], {"shape": (N, 700)}),
    ("broadcast_to", [()], {"shape": (N, 3)}),
    ("slice", [(N, 40, 3)], {"dim": 1, "start": 3, "stop": 37, "step": 1}),
    ("slice", [(N, 40)], {"dim": 1, "start": 3, "stop": 37, "step": 3}),
    ("slice", [(Dim(3), 7)], {"dim": 0, "start": N, "stop": Dim(2), "step": 1}),
    ("slice_grad", [(N, 34, 3)], {"dim": 1, "start": 3, "step": 1, "size": 40}),
    ("slice_grad", [(N, 12)], {"dim": 1, "start": 3, "step": 3, "size": 40}),
    ("slice_grad", [(N, 7)], {"dim": 0, "start": N, "step": 1, "size": Dim(3)}),
    ("cat", [(N, 30), (N, 1), (N, 9)], {"dim": 1}),
    ("cat", [(N, 30), (Dim(2), 30)], {"dim": 0}),
    ("cat", [(3, N, 5), (3, Dim(2), 5)], {"dim": 1}),
    ("cat", [(2, 5000), (3, 5000)], {"dim": 0}),
    ("pad", [(N, 3, 6, 7)], {"low": (0, 0, 1, 2), "high": (0, 0, 0, 3), "value": -1.0}),
    ("pad", [(N, 6, 7, 5)], {"low": (0, 1, 2, 0), "high": (0, 1, 1, 0), "value": 0.0}),
    ("pad", [(6, N)], {"low": (1, 0), "high": (2, 0), "value": 3.0}),
]


@pytest.mark.parametrize(("op", "shapes", "attrs"), MOVES, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("n", [0, 1, 13])
def test_symbolic_batch_moves_like_numbers(
    op: str, shapes: Any, attrs: Any, n: int, check: Callable[..., Kernel]
) -> None:
    check(op, [TensorType(float32, s) for s in shapes], n, **attrs)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("dtype", [float32, float64])
@pytest.mark.parametrize("size", [(5, 7), (64, 65), (1, 1)])
def test_a_few_planes_are_interleaved(
    channels: int, dtype: Any, size: tuple[int, int], check: Callable[..., Kernel]
) -> None:
    for n in (0, 1, 3):
        check("permute", [TensorType(dtype, (N, channels, *size))], n, dims=(0, 2, 3, 1))


def test_interleaving_works_on_whole_registers(target: Target, asm_for: Callable[..., Any]) -> None:
    node, g = node_of("permute", [TensorType(float32, (N, 3, 224, 224))], dims=(0, 2, 3, 1))
    kernel = emit_movement(node, g, target)
    assert kernel is not None and kernel.symbol.startswith("interleave")
    code = asm_for(kernel, target)
    stores = {AVX512: r"vmovups\s+%zmm", AVX2: r"vmovups\s+%ymm", NEON: r"(?:str|stp|stur)\s+q"}
    assert code.count(stores[target]) >= (2 if target is NEON else 3)
    assert code.spills == 0


def test_unsupported_nodes_fall_back() -> None:
    node, g = node_of("relu", [TensorType(float32, (N, 3))])
    assert emit_movement(node, g, host()) is None


@pytest.mark.parametrize("shape", [(N, 64, 28, 28), (512, 512)], ids=str)
def test_transposes_use_registers_and_not_the_stack(
    shape: Any, target: Target, asm_for: Callable[..., Any]
) -> None:
    dims = (0, 2, 3, 1) if len(shape) == 4 else (1, 0)
    node, g = node_of("permute", [TensorType(float32, shape)], dims=dims)
    kernel = emit_movement(node, g, target)
    assert kernel is not None
    code = asm_for(kernel, target)
    shuffles = {
        AVX512: r"vunpck|vperm|vinsert|vshuf|vblend",
        AVX2: r"vunpck|vperm|vinsert|vshuf|vblend",
        NEON: r"zip|uzp|trn|ext|mov\s+v",
    }[target]
    assert code.count(shuffles) >= {AVX512: 24, AVX2: 24, NEON: 8}[target]
    assert code.calls == 0
    assert code.spills == 0
