"""From LLVM IR text to machine code."""

from __future__ import annotations

from collections.abc import Iterable

import llvmlite.binding as llvm

from ..errors import CompileError
from . import object_code
from .target import Target, target_machine


def module_text(functions: Iterable[str], declarations: Iterable[str]) -> str:
    """One module out of function definitions and the ``declare`` lines that they need."""
    return "\n".join([*functions, *sorted(set(declarations)), ""])


def compile_ir(text: str, target: Target, optimize: bool = True) -> bytes:
    """The object file for a module; raises CompileError if LLVM rejects the text."""
    return target_machine(target).emit_object(_parse(text, target, optimize))


def assembly(text: str, target: Target, optimize: bool = True) -> str:
    """The assembly for a module, for people and for tests that count instructions."""
    return target_machine(target).emit_assembly(_parse(text, target, optimize))


def _parse(text: str, target: Target, optimize: bool) -> llvm.ModuleRef:
    try:
        return object_code.parse(text, target_machine(target), target.triple, optimize)
    except RuntimeError as error:
        raise CompileError(f"LLVM rejected the generated IR: {error}") from error
