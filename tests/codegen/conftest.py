"""Compiling and calling single kernels, and reading their assembly."""

import ctypes
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

_ALIGNMENT = 64
_names = itertools.count()
_alive: list[object] = []


@pytest.fixture(scope="session")
def link() -> Callable[..., int]:
    """``link(text, symbol, target=host())``: the address of a function of a module's text."""
    engine = llvm.create_lljit_compiler(target_machine(host()), use_jit_link=True)
    # Dropping a tracker frees its code; dropping the engine frees all of it.
    _alive.append(engine)

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
        text = module_text([kernel.text], kernel.declarations)
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
            function(*data, n, begin, end)
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
        """Vector loads and stores on the stack (saving callee-saved registers is not one)."""
        if self.target.triple.startswith("aarch64"):
            return self.count(r"(?:str|ldr|stp|ldp|stur|ldur)\s+q.*\[sp")
        return self.count(r"v\w+\s.*\(%rsp\)")


@pytest.fixture(scope="session")
def asm_for() -> Callable[[Kernel, Target], Assembly]:
    """``asm_for(kernel, target)``: an Assembly to count instructions in."""

    def emit(kernel: Kernel, target: Target) -> Assembly:
        text = module_text([kernel.text], kernel.declarations).replace("define internal", "define")
        return Assembly(assembly(text, target), target)

    return emit


@pytest.fixture(params=[AVX512, AVX2, NEON], ids=lambda t: t.name)
def target(request: pytest.FixtureRequest) -> Target:
    """Each machine that kernels must be good on."""
    return request.param
