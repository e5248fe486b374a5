"""Into how many chunks kernels are cut, and the form of an entry."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from netwright.codegen.chunks import MAX_CUTS, TAPERED
from netwright.codegen.kernel import Kernel
from netwright.codegen.program import Native, emit_program
from netwright.codegen.select import select_kernel
from netwright.codegen.sharing import TOO_SMALL, WORTH_A_CHUNK, Cost, cuts_for
from netwright.codegen.target import host
from netwright.codegen.text import Function
from netwright.ir.graph import Graph
from netwright.ir.ops.record import get
from netwright.ir.types import Dim, TensorType, float32
from netwright.passes.plan_memory import plan_memory

N = Dim(1)


def test_a_cost_adds_what_is_fixed_and_what_grows_with_the_batch() -> None:
    assert Cost.of(500, 100) == Cost(20)
    assert Cost.of(Dim(500), 100) == Cost(10, 10)
    assert Cost.of(Dim(1), Dim(1)) == Cost(0, 2)  # rounded up
    assert Cost(10, 10).at(7) == 80


@pytest.fixture
def cuts(link: Callable[..., int]) -> Callable[[Cost, int, int, int], int]:
    """``cuts(cost, most, n, nthreads)``: what the emitted code chooses."""

    def choose(cost: Cost, most: int, n: int, nthreads: int) -> int:
        name = f"cuts_{cost.fixed}_{cost.per_sample}_{most}"
        fn = Function(name, [("ptr", "out"), ("i64", "N"), ("i64", "nthreads")], linkage="")
        found = cuts_for(cost, most)
        if not callable(found):
            return found
        fn.store("i64", found(fn), "%out", 8)
        result = ctypes.c_int64(-1)
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
            link(fn.render(), name)
        )
        call(ctypes.addressof(result), n, nthreads)
        return result.value

    return choose


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize(
    ("work", "most", "nthreads", "wanted"),
    [
        (TOO_SMALL - 1, 4, 2, 0),
        (TOO_SMALL, 4, 2, 1),
        (2 * WORTH_A_CHUNK - 1, 4, 2, 1),
        (4 * WORTH_A_CHUNK - 1, 4, 2, TAPERED + 1),
        (4 * WORTH_A_CHUNK, 4, 2, TAPERED + 2),
        (8 * WORTH_A_CHUNK, 4, 2, TAPERED + 4),
        (8 * WORTH_A_CHUNK, 4, 3, TAPERED + 2),
        (10**12, 4, 2, TAPERED + MAX_CUTS),
        (4 * WORTH_A_CHUNK, 2, 2, 2),
        (10**12, 2, 2, 2),
        (10**12, 1, 2, 1),
        (10**12, 100, 2, TAPERED + MAX_CUTS),
    ],
)
def test_more_work_is_cut_finer_as_far_as_the_kernel_bears_it(
    cuts: Callable[[Cost, int, int, int], int],
    grows: bool,
    work: int,
    most: int,
    nthreads: int,
    wanted: int,
) -> None:
    cost = Cost(work - 1, 1) if grows else Cost(work)
    assert cuts(cost, most, 1, nthreads) == wanted


@pytest.mark.parametrize(("most", "wanted"), [(2, 2), (MAX_CUTS, TAPERED + MAX_CUTS)])
def test_small_batches_are_not_cut_where_each_range_prepares_the_same(
    link: Callable[..., int], most: int, wanted: int
) -> None:
    fn = Function(f"since{most}", [("ptr", "out"), ("i64", "N"), ("i64", "nthreads")], linkage="")
    found = cuts_for(Cost(0, 10**9), most, 3)
    assert callable(found)
    fn.store("i64", found(fn), "%out", 8)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        link(fn.render(), f"since{most}")
    )
    result = ctypes.c_int64()
    chosen = []
    for n in (1, 2, 3, 4):
        call(ctypes.addressof(result), n, 2)
        chosen.append(result.value)
    assert chosen == [1, 1, wanted, wanted]


def kernel_of(op: str, *shapes: tuple[int | Dim, ...], **attrs: object) -> Kernel:
    graph = Graph()
    values = [
        graph.add("input", path=str(i), type=TensorType(float32, s)) for i, s in enumerate(shapes)
    ]
    kernel = select_kernel(graph.node(graph.add(op, *values, **attrs)), graph, host())
    assert kernel is not None
    return kernel


def test_kernels_that_prepare_something_for_each_range_are_cut_less() -> None:
    x, w, padding = (N, 8, 8, 16), (32, 16, 3, 3), ((1, 1), (1, 1))
    window = {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding": padding}
    packed = get("pack_winograd").infer(TensorType(float32, w), tile=2, panel=16)
    winograd = {"out_channels": 32, "tile": 2, "panel": 16, "padding": padding}
    assert kernel_of("relu", (N, 64)).cuts == MAX_CUTS
    assert kernel_of("matmul", (N, 64), (64, 64)).cuts == 2  # packs panels
    assert kernel_of("conv2d_winograd", x, packed.shape, **winograd, layout="NHWC").cuts == 2
    assert kernel_of("conv2d", x, w, **window, layout="NHWC").cuts == 1  # packs the weight


def chain(operators: list[str], size: int) -> str:
    """The text of an entry that applies operators one after the other."""
    graph = Graph("chain")
    x = graph.add("input", path="x", type=TensorType(float32, (size,)))
    for op in operators:
        x = graph.add(op, x)
    graph.outputs["out"] = x
    program = emit_program(graph, plan_memory(graph, False), host())
    (segment,) = program.run
    assert isinstance(segment, Native)
    return program.text[program.text.index(f"@{segment.entry}(") :]


def test_threads_wait_only_where_a_kernel_needs_what_another_one_did() -> None:
    text = chain(["exp", "tanh"], 64)
    assert text.count("@nw_round(") == 2
    assert text.count("@nw_arrive(") == 1
    assert text.count("@nw_leave(") == 1
    assert text.count("@nw_claim(") == text.count("@nw_finish(") == 2


def test_work_without_a_wait_before_it_is_for_whoever_comes_first() -> None:
    graph = Graph("parallel")
    for name in "ab":
        x = graph.add("input", path=name, type=TensorType(float32, (N, 4)))
        graph.outputs[name] = graph.add("exp", x)
    program = emit_program(graph, plan_memory(graph, False), host())
    rounds = [line for line in program.text.splitlines() if "call void @nw_round" in line]
    assert [line.split("i64 ")[-1] for line in rounds] == ["0)", "1)"]
    assert "@nw_arrive(" not in program.text[program.text.index("define  void @run") :]
