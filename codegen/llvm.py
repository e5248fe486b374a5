"""From LLVM IR text to machine code."""

from __future__ import annotations

from collections.abc import Iterable

import llvmlite.binding as llvm

from ..errors import CompileError
from .target import Target, target_machine


def module_text(functions: Iterable[str], declarations: Iterable[str]) -> str:
    """One module out of function definitions and the ``declare`` lines that they need."""
    return "\n".join([*functions, *sorted(set(declarations)), ""])


def compile_ir(text: str, target: Target, optimize: bool = True) -> bytes:
    """The object file for a module; raises CompileError if LLVM rejects the text.

    ``optimize`` runs a few cheap scalar passes. Kernels unroll and vectorise themselves: LLVM's
    whole pipeline costs superlinear time on them and gains nothing.
    """
    return target_machine(target).emit_object(_parse(text, target, optimize))


def assembly(text: str, target: Target, optimize: bool = True) -> str:
    """The assembly for a module, for people and for tests that count instructions."""
    return target_machine(target).emit_assembly(_parse(text, target, optimize))


def _parse(text: str, target: Target, optimize: bool) -> llvm.ModuleRef:
    machine = target_machine(target)
    try:
        module = llvm.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise CompileError(f"LLVM rejected the generated IR: {error}") from error
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    if optimize:
        _run_scalar_passes(module, machine)
    return module


def _run_scalar_passes(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.add_new_gvn_pass()
    passes.add_dead_code_elimination_pass()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
