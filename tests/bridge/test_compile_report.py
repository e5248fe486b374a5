"""compile_report() and memory(): what a compilation took and what its result needs."""

import gc
from dataclasses import replace

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.bridge.compile_report import CompileReport, ProgramReport
from netwright.bridge.memory_use import MemoryUse
from netwright.codegen import partition
from netwright.compilation import PHASES

X = np.random.default_rng(0).standard_normal((4, 6), np.float32)
Y = np.array([0, 1, 2, 0])


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETWRIGHT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def network() -> nn.Module:
    nw.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 3)
    )


def compiled(model: nn.Module) -> nn.Module:
    fast = nw.compile(model.eval())
    with nw.no_grad():
        fast(X)
    return fast


def test_the_first_compilation_runs_llvm_and_the_next_finds_what_it_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(partition, "WORTH_CUTTING", 1 << 30)
    first = compiled(network())
    report = first.compile_report()
    (program,) = report.programs
    assert program.origin == "compiled" and program.processes == 1 and not program.problem
    assert not report.from_cache
    assert report.phases["llvm"] > 0
    assert program.object_bytes > 0 and program.ir_bytes > 0
    launches = first._compilation(None).executables["optimized"].program.launches
    assert program.kernels == len(launches)
    assert program.distinct_kernels == len({x.symbol for x in launches})
    assert program.fallbacks == 0
    alive = compiled(network())
    assert alive.compile_report().programs[0].origin == "process"
    del first, alive
    gc.collect()
    again = compiled(network()).compile_report()
    assert again.programs[0].origin == "disk cache" and again.programs[0].processes == 0
    assert again.from_cache
    assert again.phases["llvm"] == 0
    assert again.programs[0].object_bytes == program.object_bytes


def test_phases_are_those_of_the_compiler_and_passes_sum_to_theirs() -> None:
    fast = nw.compile(network())
    fast(X).sum().backward()
    report = fast.compile_report("train")
    assert tuple(report.phases) == PHASES
    assert all(spent >= 0 for spent in report.phases.values())
    assert report.seconds == pytest.approx(sum(report.phases.values()))
    assert sum(report.passes.values()) == pytest.approx(report.phases["passes"])
    assert {"simplify", "differentiate", "split_backward", "pack_weights", "verify"} <= set(
        report.passes
    )
    assert [p.stage for p in report.programs] == ["optimized", "backward"]


def test_it_prints_and_is_part_of_explain() -> None:
    fast = compiled(network())
    text = str(fast.compile_report())
    assert text in fast.explain()
    for part in ("compile time", "trace", "llvm", "cache", "link", "passes:", "object code"):
        assert part in text
    found = fast.compile_report().as_json()
    assert set(found) == {"ms", "phases_ms", "passes_ms", "from_cache", "programs"}
    assert set(found["programs"][0]) == {
        "stage", "kernels", "distinct_kernels", "fallbacks", "ir_bytes", "object_bytes", "origin",
        "processes", "problem",
    }  # fmt: skip


def test_the_report_says_how_many_processes_compiled_and_why_not_more() -> None:
    usual = ProgramReport("optimized", 2, 1, 0, 100, 200, "compiled", processes=1)
    assert str(usual).endswith("of LLVM IR, compiled now")
    assert str(replace(usual, processes=2)).endswith("compiled now by 2 processes")
    failed = replace(usual, problem="a worker failed: no memory")
    assert str(failed).endswith("compiled now (a worker failed: no memory)")


def test_memory_is_that_of_the_executables_and_not_below_the_largest_live_set() -> None:
    fast = compiled(network())
    executable = fast._compilation(None).executables["optimized"]
    for n in (0, 1, 100):
        use = fast.memory(n)
        assert isinstance(use, MemoryUse)
        assert use.arena == executable.arena_bytes(n)
        assert use.arena >= use.live
    assert use.weights == sum(p.numel() * 4 for p in network().parameters())
    assert use.saved == 0
    assert "arena" in str(use) and "largest live set" in str(use)
    assert use.as_json()["arena"] == use.arena
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        fast.memory(-1)


def test_training_counts_saved_values_and_optimizer_state() -> None:
    model = network()
    fast = nw.compile(model)
    fast(X).sum().backward()
    assert fast.memory(4, mode="train").saved > 0
    assert "saved for backward" in str(fast.memory(4))
    step = nw.compile(
        model, loss=nn.CrossEntropyLoss(), optimizer=optim.SGD(model.parameters(), 0.1, 0.9)
    )
    step(X, Y)
    parameters = sum(p.numel() * 4 for p in model.parameters())
    assert step.memory(4).weights == 2 * parameters
    assert isinstance(step.compile_report(), CompileReport)
