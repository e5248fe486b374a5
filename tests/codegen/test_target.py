"""Targets, and compiling IR text for them."""

import pytest

from netwright.codegen import target as targets
from netwright.codegen.llvm import assembly, compile_ir, module_text
from netwright.codegen.target import AVX2, AVX512, NEON, Target, host, target_machine
from netwright.errors import CompileError
from netwright.ir.types import bool_, float32, float64, int8

ADD = """
define void @add(ptr %a) {
  %v = load <16 x float>, ptr %a, align 4
  %w = fadd <16 x float> %v, splat (float 1.0)
  store <16 x float> %w, ptr %a, align 4
  ret void
}
"""


def test_lanes_fill_one_register() -> None:
    assert [t.lanes(float32) for t in (AVX512, AVX2, NEON)] == [16, 8, 4]
    assert [t.lanes(float64) for t in (AVX512, AVX2, NEON)] == [8, 4, 2]
    assert AVX2.lanes(int8) == AVX2.lanes(bool_) == 32


def test_host_has_a_sensible_register_and_caches() -> None:
    machine = host()
    assert machine.vector_bytes in (16, 32, 64)
    assert machine.registers in (16, 32)
    assert 0 < machine.l1 <= machine.l2
    assert host() is machine


@pytest.mark.parametrize(("cpu", "width"), [("haswell", 32), ("skylake-avx512", 64)])
def test_environment_variable_names_another_cpu(
    cpu: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(targets.CPU_VARIABLE, cpu)
    monkeypatch.setattr(targets, "get_triple", lambda: "x86_64-unknown-linux-gnu")
    found = targets.host.__wrapped__()
    assert (found.cpu, found.vector_bytes) == (cpu, width)


def test_unknown_cpu_is_an_error_that_names_the_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(targets.CPU_VARIABLE, "z80")
    monkeypatch.setattr(targets, "get_triple", lambda: "x86_64-unknown-linux-gnu")
    with pytest.raises(CompileError, match=r"z80.*haswell"):
        targets.host.__wrapped__()


def test_target_machine_is_made_once() -> None:
    assert target_machine(AVX2) is target_machine(AVX2)


def test_every_target_compiles_with_its_own_registers(target: Target) -> None:
    text = assembly(ADD, target)
    assert {AVX512: "%zmm", AVX2: "%ymm", NEON: "v0.4s"}[target] in text
    assert len(compile_ir(ADD, target)) > 0


def test_rejected_text_is_a_compile_error() -> None:
    with pytest.raises(CompileError, match="LLVM rejected"):
        compile_ir("define void @f() { ret i32 %missing }", AVX2)


def test_module_text_declares_each_function_once() -> None:
    text = module_text(["define void @f() {\nret void\n}"], ["declare void @g()"] * 2)
    assert text.count("declare void @g()") == 1
