"""Compiling and calling single kernels, and reading their assembly."""

import ctypes
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm
import numpy as np
import pytest

from netwright.codegen.kernel import Kernel
from netwright.codegen.llvm import assembly, compile_ir, module_text
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host, target_machine
from netwright.ir.graph import Graph, Node, Value
from netwright.ir.interpreter import run_node
from netwright.ir.types import TensorType, dtype_of

_ALIGNMENT = 64
_GARBAGE = 0x7B
_GUARD = 256  # bytes behind each result that a kernel must not touch
_names = itertools.count()
_alive: list[object] = []


@pytest.fixture(scope="session")
def link() -> Callable[..., int]:
    """``link(text, symbol, target=host())``: the address of a function of a module's text.

    The same text is compiled once: most kernels run several times, with their tasks cut in
    different ways.
    """
    engine = llvm.create_lljit_compiler(target_machine(host()), use_jit_link=True)
    # Dropping a tracker frees its code; dropping the engine frees all of it.
    _alive.append(engine)

    @functools.cache
    def address(text: str, symbol: str, target: Target | None = None) -> int:
        text = text.replace("define internal", "define")
        library = (
            llvm.JITLibraryBuilder()
            .add_object_img(compile_ir(text, target or host()))
            .add_current_process()
            .export_symbol(symbol)
            .link(engine, f"test{next(_names)}")
        )
        _alive.append(library)
        return library[symbol]

    return address


@pytest.fixture(scope="session")
def run(link: Callable[..., int]) -> Callable[..., None]:
    """``run(kernel, outs, ins, n=1, splits=None)``: runs a kernel on numpy arrays.

    ``splits`` are task numbers where the range is cut, as by several threads, done in reverse
    order. Returns the two status words.
    """

    def call(
        kernel: Kernel,
        outs: Sequence[np.ndarray],
        ins: Sequence[np.ndarray],
        n: int = 1,
        splits: Sequence[int] = (),
        target: Target | None = None,
    ) -> np.ndarray:
        text = module_text([kernel.code], kernel.declarations)
        entry = link(text, kernel.symbol, target)
        pointers = [ctypes.c_void_p] * (len(outs) + len(ins) + 2)
        function = ctypes.CFUNCTYPE(None, *pointers, *[ctypes.c_int64] * 3)(entry)
        scratch = aligned(kernel.scratch_bytes + _ALIGNMENT, np.uint8)
        status = np.zeros(2, np.int64)
        for array in [*outs, *ins]:
            assert array.flags.c_contiguous
        data = [a.ctypes.data for a in [*outs, *ins, scratch, status]]
        cuts = [0, *splits, kernel.tasks.at(n)]
        for begin, end in reversed(list(itertools.pairwise(cuts))):
            function(*data, n if kernel.length is None else kernel.length, begin, end)
        return status

    return call


def aligned(shape: int | tuple[int, ...], dtype: object = np.float32) -> np.ndarray:
    """A zeroed array whose data starts on a cache line, as arena buffers do."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    raw = np.zeros(count * kind.itemsize + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + count * kind.itemsize].view(kind).reshape(shape)


@dataclass(frozen=True)
class Assembly:
    """The instructions of one kernel on one target."""

    text: str
    target: Target

    def count(self, pattern: str) -> int:
        """How many instruction lines match the regular expression."""
        return len(re.findall(rf"^\s+(?:{pattern})", self.text, re.MULTILINE))

    @property
    def calls(self) -> int:
        """Calls to any function."""
        return self.count(r"callq?\s|bl\s|blr\s")

    @property
    def spills(self) -> int:
        """Stores of vector registers and masks to the stack, and what reads them back.

        Not spills: callee-saved registers (``d8`` to ``d15`` on AArch64), arguments that were
        passed on the stack, integers that are broadcast from it, and scalars.
        """
        return len(self._spilling_lines())

    @property
    def inner_spills(self) -> int:
        """Those of the spills that are in innermost loops (of one block: no branch in the body)."""
        lines = self.text.split("\n")
        loops = [
            (a, b)
            for a, b in self._innermost()
            if not any(line.startswith(".L") for line in lines[a + 1 : b])
        ]
        return sum(any(a <= i <= b for a, b in loops) for i in self._spilling_lines())

    @property
    def widths(self) -> list[int]:
        """For each innermost loop, its instructions on registers of the target's full width."""
        wide = {64: r"%zmm\d", 32: r"%ymm\d", 16: r"\bv\d+\.(?:16b|8h|4s|2d)|\bq\d"}
        pattern = re.compile(r"\s+\w.*" + f"(?:{wide[self.target.vector_bytes]})")
        lines = self.text.split("\n")
        return [sum(bool(pattern.match(x)) for x in lines[a : b + 1]) for a, b in self._innermost()]

    def _spilling_lines(self) -> list[int]:
        found, first = [], 0
        for function in re.split(r"(?m)^(?=\w+:)", self.text):
            lines = function.split("\n")
            found += [first + i for i in _spills_of(lines, self.target)]
            first += len(lines) - 1
        return found

    def _innermost(self) -> list[tuple[int, int]]:
        loops = _loops(self.text.split("\n"))
        return [
            (a, b)
            for a, b in loops
            if not any(a <= c <= d <= b and (a, b) != (c, d) for c, d in loops)
        ]


def _spills_of(function: Sequence[str], target: Target) -> list[int]:
    if target.triple.startswith("aarch64"):
        stack = r"\s+(?:str|ldr|stp|ldp|stur|ldur)\s+q.*\[sp"
        return [i for i, line in enumerate(function) if re.match(stack, line)]
    slot = r"(-?\d*\(%rsp\S*?\))"
    if any("%rsp, %rbp" in line for line in function):  # %rbp is the frame's address
        slot = slot.replace("%rsp", "%r[sb]p")
    store = rf"\s+(?:v\w+|kmov\w)\s+(?:\$\d+, )?%(?:[xyz]mm\d+|k\d), {slot}"
    scalar = rf"\s+v\w+s[sd]\s.*?{slot}"
    slots = {found[1] for line in function if (found := re.match(store, line))}
    slots -= {found[1] for line in function if (found := re.match(scalar, line))}
    used = [re.match(rf"\s+(?:v\w+|kmov\w)\s.*?{slot}", line) for line in function]
    # What is stored and not read again is an argument for a call.
    reads = [u for u, line in zip(used, function, strict=True) if not re.match(store, line)]
    slots &= {read[1] for read in reads if read}
    return [i for i, found in enumerate(used) if found and found[1] in slots]


def _loops(lines: Sequence[str]) -> list[tuple[int, int]]:
    """(label, backward branch) of every loop, as line numbers."""
    labels: dict[str, int] = {}
    found = set()
    for i, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = i
        branch = re.match(r"\s+(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?(\.L\w+)", line)
        if branch and branch[1] in labels:
            found.add((labels[branch[1]], i))
    return sorted(found)


@pytest.fixture(scope="session")
def asm_for() -> Callable[[Kernel, Target], Assembly]:
    """``asm_for(kernel, target)``: an Assembly to count instructions in."""

    def emit(kernel: Kernel, target: Target) -> Assembly:
        text = module_text([kernel.code], kernel.declarations).replace("define internal", "define")
        return Assembly(assembly(text, target), target)

    return emit


@pytest.fixture(params=[AVX512, AVX2, NEON], ids=lambda t: t.name)
def target(request: pytest.FixtureRequest) -> Target:
    """Each machine that kernels must be good on."""
    return request.param


@dataclass(frozen=True)
class SingleNode:
    """A kernel for a graph of one node, to be compared with the operator's numpy record."""

    kernel: Kernel
    node: Node
    graph: Graph
    run: Callable[..., np.ndarray]

    def outputs(self, *arrays: np.ndarray, n: int = 1) -> list[np.ndarray]:
        """The results for batch size ``n``; they must have the same bits task by task."""
        tasks = self.kernel.tasks.at(n)
        found = []
        for splits in ((), range(1, tasks, max(1, tasks // 7))):
            guarded = [self._garbage(t.at(n)) for t in self.node.types]
            outs = [out for out, _ in guarded]
            status = self.run(self.kernel, outs, self._contiguous(arrays), n, splits)
            assert not status.any()
            assert all((guard == _GARBAGE).all() for _, guard in guarded), "wrote past the end"
            found.append(outs)
        for whole, split in zip(*found, strict=True):
            assert whole.tobytes() == split.tobytes(), "results depend on how tasks are split"
        return found[0]

    def status(self, *arrays: np.ndarray, n: int = 1) -> np.ndarray:
        """The status words after a run."""
        outs = [self._garbage(t.at(n))[0] for t in self.node.types]
        return self.run(self.kernel, outs, self._contiguous(arrays), n)

    def expected(self, *arrays: np.ndarray, n: int = 1) -> tuple[np.ndarray, ...]:
        """The results of the numpy record on the same values in float64."""
        wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
        return run_node(self.node, wide, n)

    def check(
        self, *arrays: np.ndarray, n: int = 1, rtol: float = 2e-6, atol: float = 2e-6
    ) -> None:
        """Runs the kernel and compares with the record (tolerances are for float32)."""
        double = all(a.dtype != np.float32 for a in arrays)
        scale = 1e-7 if double else 1.0
        for found, wanted in zip(
            self.outputs(*arrays, n=n), self.expected(*arrays, n=n), strict=True
        ):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=rtol * scale, atol=atol * scale)

    @staticmethod
    def _garbage(kind: TensorType) -> tuple[np.ndarray, np.ndarray]:
        """An array full of bytes that no result has, and the bytes that follow it."""
        size = kind.size * kind.dtype.itemsize
        raw = aligned(size + _GUARD, np.uint8)
        raw[:] = _GARBAGE
        return raw[:size].view(kind.dtype.np).reshape(kind.shape), raw[size:]

    @staticmethod
    def _contiguous(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.ascontiguousarray(a).reshape(a.shape) for a in arrays]


@pytest.fixture(scope="session")
def single(run: Callable[..., np.ndarray]) -> Callable[..., SingleNode]:
    """``single(emit, op, types, target=host(), **attrs)``: the kernel ``emit`` writes for ``op``.

    ``types`` are TensorTypes, or arrays whose types are meant.
    """

    def make(
        emit: Callable[..., Kernel | None],
        op: str,
        types: Sequence[TensorType | np.ndarray],
        target: Target | None = None,
        **attrs: object,
    ) -> SingleNode:
        graph = Graph()
        kinds = [
            t if isinstance(t, TensorType) else TensorType(dtype_of(t.dtype), t.shape)
            for t in types
        ]
        inputs = [graph.add("input", path=str(i), type=t) for i, t in enumerate(kinds)]
        result = graph.add(op, *inputs, **attrs)
        node = graph.node(result if isinstance(result, Value) else result[0])
        kernel = emit(node, graph, target or host())
        assert kernel is not None, f"no kernel for {op} of {kinds}"
        return SingleNode(kernel, node, graph, run)

    return make
