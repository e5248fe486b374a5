"""profile(): rows, shares and keys; what it must leave as it was. Times are not looked at."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.bridge.profile import COLUMNS, Limits, Profile
from netwright.bridge.profiler import module_paths
from netwright.errors import NetwrightError
from netwright.frontend.random import default_generator
from netwright.runtime import probe

SECONDS = 0.01


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of the machine without measuring them."""
    monkeypatch.setattr(probe, "peak_gflops", lambda threads, seconds: 100.0 * threads)
    monkeypatch.setattr(probe, "bandwidth_gbs", lambda threads, seconds: 10.0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    nw.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 5 * 5, 3),
    )


@pytest.fixture(scope="module")
def fast(model: nn.Module) -> nn.Module:
    return nw.compile(model)


@pytest.fixture(scope="module")
def step(model: nn.Module) -> object:
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    return nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer)


X = np.random.default_rng(0).standard_normal((4, 1, 5, 5), np.float32)
Y = np.array([0, 1, 2, 0])


def state(model: nn.Module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in model.state_dict().items()}


def profiles(fast: nn.Module, step: object) -> Iterator[tuple[Profile, list[str]]]:
    """Every kind of profile, and the symbols of the kernels that it must have."""
    with nw.no_grad():
        yield fast.eval().profile(X, seconds=SECONDS), symbols(fast, "eval", ["optimized"])
        yield fast.train().profile(X, seconds=SECONDS), symbols(fast, "forward", ["optimized"])
    yield fast.profile(X, seconds=SECONDS), symbols(fast, "train", ["optimized", "backward"])
    yield step.profile(X, Y, seconds=SECONDS), symbols(step, "step", ["optimized"])


def symbols(compiled: object, mode: str, stages: list[str]) -> list[str]:
    made = compiled._compilation(mode)
    programs = [made.executables[stage].program for stage in stages]
    return [x.symbol for p in programs for x in p.launches if x.phase == "run"]


def test_rows_are_the_kernels_of_the_run_and_shares_sum_to_one(
    fast: nn.Module, step: object
) -> None:
    modes = []
    for found, expected in profiles(fast, step):
        modes.append(found.mode)
        assert [r.kernel for r in found.rows if r.kernel not in ("copy", "numpy")] == expected
        assert [r.order for r in found.rows] == list(range(len(found.rows)))
        assert sum(r.share for r in found.rows) == pytest.approx(1)
        assert sum(r.ms for r in found.rows) == pytest.approx(found.kernels_ms)
        assert found.batch == 4
        assert found.fallbacks == 0
        assert found.runs >= 5
        assert found.outside_ms > 0
        for row in found.rows:
            assert row.bytes > 0
            assert row.operators
            assert row.bound in ("fma", "memory", "cache")
    assert modes == ["eval", "forward", "train", "step"]


def test_rows_name_modules_and_what_was_fused(fast: nn.Module) -> None:
    with nw.no_grad():
        found = fast.eval().profile(X, seconds=SECONDS)
    convolution = next(r for r in found.rows if r.operators[0].startswith("conv2d"))
    assert convolution.operators == ("conv2d_packed", "relu")
    assert convolution.modules == ("0", "2")
    assert convolution.flops == 2 * 4 * (5 * 5 * 4) * 9
    assert convolution.tasks > 0
    linear = next(r for r in found.rows if r.operators[0].startswith("linear"))
    assert linear.modules == ("5",)
    packed = fast.graph("optimized", "eval").node(linear.node).attrs["panel"]
    assert linear.bytes >= 4 * (100 * 4 + 4 * 3 + 100 * packed)  # weights count at any batch


def test_training_is_profiled_without_training(
    model: nn.Module, fast: nn.Module, step: object
) -> None:
    step(X, Y)  # Adam has state
    before, optimizer = state(model), step.optimizer.state_dict()
    moments = [v.numpy().copy() for s in optimizer["state"].values() for v in s.values()
               if isinstance(v, nw.Tensor)]  # fmt: skip
    random = default_generator.get_state()
    pending = fast.train()(X).sum()
    after_forward = state(model)  # running statistics of the call
    random_after = default_generator.get_state()
    for _ in profiles(fast, step):
        pass
    assert state(model) == after_forward != before
    assert default_generator.get_state() == random_after != random
    after = [v.numpy() for s in step.optimizer.state_dict()["state"].values() for v in s.values()
             if isinstance(v, nw.Tensor)]  # fmt: skip
    for old, new in zip(moments, after, strict=True):
        np.testing.assert_array_equal(old, new)
    pending.backward()  # no parameter counts as modified since the forward call


def test_a_call_after_a_profile_gives_the_same_bits(model: nn.Module, fast: nn.Module) -> None:
    fast.eval()
    with nw.no_grad():
        before = fast(X).numpy().tobytes()
        compilations = fast.compilations
        fast.profile(X, seconds=SECONDS)
        assert fast(X).numpy().tobytes() == before
    assert fast.compilations == compilations


def test_the_timed_form_is_made_by_the_first_profile_and_kept(model: nn.Module) -> None:
    fast = nw.compile(model.eval())
    with nw.no_grad():
        fast(X)
        made = fast._compilation("eval")
        assert made.recorders == {}
        fast.profile(X, seconds=SECONDS)
        (recorder,) = made.recorders.values()
        fast.profile(X[:2], seconds=SECONDS)
    assert made.recorders == {"optimized": recorder}


def test_it_prints_a_table_and_sorts(fast: nn.Module) -> None:
    with nw.no_grad():
        found = fast.eval().profile(X, seconds=SECONDS)
    text = str(found)
    assert len([line for line in text.split("\n") if line.startswith("conv2d_packed_")]) == 1
    for part in ("Sequential, eval, batch 4", "GFLOP/s", "of the limit", "arena", "compile time",
                 "outside of them", "FMA peak 100.0, 100.0"):  # fmt: skip
        assert part in text
    assert [r.ms for r in found.sorted("ms").rows] == sorted(r.ms for r in found.rows)[::-1]
    assert found.sorted("ms").sorted("order") == found
    for column in COLUMNS:
        assert len(found.sorted(column).rows) == len(found.rows)
    with pytest.raises(ValueError, match="columns are order, ms"):
        found.sorted("nonsense")


def test_json_has_the_documented_keys(fast: nn.Module) -> None:
    found = json.loads(json.dumps(fast.train().profile(X, seconds=SECONDS).as_json()))
    assert set(found) == {
        "model", "mode", "batch", "runs", "kernels_ms", "call_ms", "timed_call_ms",
        "outside_ms", "fallbacks", "limits", "memory", "compile", "rows",
    }  # fmt: skip
    assert set(found["limits"]) == {"forward", "backward"}
    assert set(found["limits"]["forward"]) == {"threads", "gflops", "gbs"}
    assert {row["phase"] for row in found["rows"]} == {"forward", "backward"}
    assert set(found["rows"][0]) == {
        "order", "phase", "kernel", "node", "operators", "modules", "ms", "share", "flops",
        "bytes", "gflops", "gbs", "bound", "of_limit", "tasks",
    }  # fmt: skip


def test_operators_without_a_kernel_are_rows_of_their_own() -> None:
    class Products(nn.Module):
        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return (x + x).transpose(1, 2) @ x

    x = np.ones((3, 4, 4), np.int32)
    with nw.no_grad():
        found = nw.compile(Products()).profile(x, seconds=SECONDS)
    assert found.fallbacks == 1
    (row,) = [r for r in found.rows if r.kernel == "numpy"]
    assert row.operators == ("matmul",)
    assert row.tasks == 0
    assert "1 operators run through numpy" in str(found)


def test_what_limits_a_kernel_is_whichever_needs_more_time_unless_memory_cannot_be_it() -> None:
    limits = Limits(1, (90.0, 100.0), (10.0, 8.0))
    assert limits.judge(10**8, 10**6, ms=2) == ("fma", pytest.approx(0.5))
    assert limits.judge(10**8, 10**7, ms=2) == ("memory", pytest.approx(0.5))
    assert limits.judge(10**7, 10**7, ms=0.5) == ("cache", pytest.approx(0.2))
    assert limits.judge(0, 0, ms=0) == ("memory", 0)


def test_paths_of_modules_that_contain_another_are_left_out(model: nn.Module) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: nw.Tensor) -> nw.Tensor:
            return nw.relu(self.inner(x))

    fast = nw.compile(nn.Sequential(Outer()).eval())
    with nw.no_grad():
        fast(np.ones((2, 4), np.float32))
    fused = next(n for n in fast.graph().nodes if n.op == "fused")
    assert module_paths(fused) == ("0.inner",)


def test_misuse_says_what_is_wrong(
    fast: nn.Module, step: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        fast.eval().profile(X, seconds=0)
    with pytest.raises(TypeError, match="at least one netwright tensor"):
        fast.profile()
    with pytest.raises(TypeError, match="and then the target"):
        step.profile(X)
    monkeypatch.setenv("NETWRIGHT_DISABLE", "1")
    for call in (lambda: fast.profile(X), lambda: step.profile(X, Y)):
        with pytest.raises(NetwrightError, match="NETWRIGHT_DISABLE"):
            call()
