"""What LLVM does with a module: parse, check, a few scalar passes, machine code.

Also a program: run as a script, this file is a worker that compiles modules for another process
(`runtime/compile_workers.py`). It imports nothing of netwright, so a worker starts in a fraction of
the time that importing the package takes.
"""

from __future__ import annotations

import struct
import sys
from functools import cache
from typing import BinaryIO

import llvmlite.binding as llvm

READY = b"netwright worker\n"
"""What a worker says first."""

FAILED = (1 << 64) - 1
"""The size of the answer to a module that LLVM rejects."""

_SIZE = struct.Struct("<Q")


@cache
def initialize() -> None:
    """Registers every LLVM back end: tests emit assembly for machines other than this one."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def create_machine(triple: str, cpu: str, features: str) -> llvm.TargetMachine:
    """The LLVM target machine: small code model, position independent, optimisation level 2.

    The default JIT code model would load every constant through a 64-bit absolute address.
    """
    initialize()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=2, reloc="pic", codemodel="small"
    )


def parse(text: str, machine: llvm.TargetMachine, triple: str, optimize: bool) -> llvm.ModuleRef:
    """The module of a text, ready to be emitted; raises RuntimeError if LLVM rejects the text.

    ``optimize`` runs a few cheap scalar passes. Kernels unroll and vectorise themselves: LLVM's
    whole pipeline costs superlinear time on them and gains nothing.
    """
    module = llvm.parse_assembly(text)
    module.verify()
    module.triple = triple
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


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Compiles modules until ``requests`` ends.

    The first request is three texts: triple, CPU, features. Then each is ``1`` or an empty text
    (whether to optimise) and a module; its answer is an object file. All are preceded by their size
    as 8 bytes, little end first.
    """
    triple, cpu, features = (read_text(requests) for _ in range(3))
    machine = create_machine(triple, cpu, features)
    answers.write(READY)
    answers.flush()
    while True:
        try:
            optimize, text = read_text(requests), read_text(requests)
        except EOFError:
            return
        try:
            content = machine.emit_object(parse(text, machine, triple, bool(optimize)))
            answers.write(_SIZE.pack(len(content)) + content)
        except RuntimeError:
            answers.write(_SIZE.pack(FAILED))
        answers.flush()


def read_text(stream: BinaryIO) -> str:
    """One text of `serve`'s protocol; raises EOFError at the end."""
    return exactly(stream, read_size(stream)).decode()


def read_size(stream: BinaryIO) -> int:
    """The size before a text or an object file."""
    size: int = _SIZE.unpack(exactly(stream, _SIZE.size))[0]
    return size


def sized(text: str) -> bytes:
    """A text with its size before it."""
    data = text.encode()
    return _SIZE.pack(len(data)) + data


def exactly(stream: BinaryIO, size: int) -> bytes:
    """That many bytes; raises EOFError if there are fewer."""
    data = stream.read(size)
    if len(data) < size:
        raise EOFError(f"{len(data)} of {size} bytes")
    return data


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
