"""benchmarks/peers.py: rows are kept, skipped, measured again; the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import netwright as nw
from netwright import nn
from netwright.commands.failure import Failure

Load = Callable[[str], ModuleType]


@pytest.fixture
def peers(program: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program with rows that take no time and a commit of its own."""
    made = program("peers")
    facts = {"commit": "abc", "cpu": "a CPU"}
    monkeypatch.setattr(made, "environment", lambda: dict(facts))
    made.facts = facts
    made.measured = []

    def contest(compiled: Any, inputs: Any, names: Any, threads: int, *_: Any) -> dict[str, Any]:
        made.measured.append((inputs[0].shape[0], threads))
        return fake_row(threads)

    monkeypatch.setattr(made, "contest", contest)
    return made


def fake_row(threads: int, ours: float = 2.0, ort: float = 3.0) -> dict[str, Any]:
    def found(ms: float) -> dict[str, float]:
        return {"median_ms": ms, "q1_ms": ms * 0.9, "q3_ms": ms * 1.2, "error": 1e-7}

    return {
        "threads": threads,
        "gflop": 0.1,
        "peak_gflops": {"before": 100.0, "after": 90.0},
        "reference": "PyTorch in float64",
        "netwright": found(ours),
        "peers": {"ort": found(ort), "compile": {"failed": "no compiler"}},
        "fastest_peer": "ort",
        "ratio": ort / ours,
    }


def small_models(peers: ModuleType) -> tuple[Any, ...]:
    return (
        peers.Model("small", lambda: nn.Linear(4, 3), (4,), (1, 8)),
        peers.Model("missing", peers.zoo("no_such_model"), (4,), (1,)),
    )


def options(peers: ModuleType, path: Path, *extra: str) -> Any:
    arguments = ["--threads", "1,2", "--peers", "ort", "--output", str(path), *extra]
    return peers.make_parser().parse_args(arguments)


def test_a_run_goes_on_where_another_stopped(
    peers: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, models = tmp_path / "peers.json", small_models(peers)
    assert peers.run(options(peers, path, "--rows", "batch 8"), models)
    assert peers.measured == [(8, 1), (8, 2)]
    assert peers.run(options(peers, path), models)
    assert peers.measured[2:] == [(1, 1), (1, 2)]
    assert "missing: skipped, netwright.vision.models has no no_such_model" in (
        capsys.readouterr().err
    )
    rows = json.loads(path.read_text())["rows"]
    assert [(r["threads"], r["batch"]) for r in rows] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert {r["settings"]["commit"] for r in rows} == {"abc"}


@pytest.mark.parametrize("change", ["commit", "dirty", "seconds", "fresh"])
def test_rows_of_another_commit_or_other_settings_are_measured_again(
    peers: ModuleType, tmp_path: Path, change: str
) -> None:
    path, models = tmp_path / "peers.json", small_models(peers)
    first = options(peers, path, "--rows", "batch 8", "--threads", "1")
    if change == "dirty":
        peers.facts["commit"] = "abc-dirty"
    peers.run(first, models)
    if change == "commit":
        peers.facts["commit"] = "def"
    second = {"seconds": ["--seconds", "1"], "fresh": ["--fresh"]}.get(change, [])
    peers.run(options(peers, path, "--rows", "batch 8", "--threads", "1", *second), models)
    assert peers.measured == [(8, 1), (8, 1)]
    assert len(json.loads(path.read_text())["rows"]) == 1


def test_a_row_in_which_netwright_fails_is_written_down_and_reported(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise Failure("netwright: outputs differ")

    monkeypatch.setattr(peers, "contest", fail)
    path = tmp_path / "peers.json"
    assert not peers.run(options(peers, path), small_models(peers))
    assert {r["failed"] for r in json.loads(path.read_text())["rows"]} == {
        "netwright: outputs differ"
    }


def test_the_readme_table_has_ratios_failures_and_geometric_means(peers: ModuleType) -> None:
    rows = [
        {"model": "a", "batch": 1, **fake_row(2, 2.0, 2.5)},
        {"model": "b", "batch": 64, **fake_row(2, 0.02, 0.064)},
        {"model": "a", "batch": 1, **fake_row(1)},
    ]
    text = peers.markdown(rows)
    two, one = text.split("\n\n| 1 thread")
    assert "| a, batch 1 | 2.00 | 2.50 | ONNX Runtime | 1.25x | 50% |" in two
    assert "| b, batch 64 | 0.0200 | 0.0640 | ONNX Runtime | 3.20x | 5000% |" in two
    assert f"**{math.sqrt(1.25 * 3.2):.2f}x**" in two
    assert "- b, batch 64: torch.compile failed: no compiler" in two
    assert "**1.50x**" in one


def test_a_picture_is_drawn(peers: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    settings = {"settings": {"cpu": "a CPU"}}
    rows = [{"model": "a", "batch": 1, **settings, **fake_row(t)} for t in (1, 2)]
    peers.plot(rows, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_batch_norm_normalises_what_a_model_gives_it(peers: ModuleType) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    made = peers.prepared(model, (3, 16, 16))
    assert not made.training
    assert made[1].momentum == 0.1
    with nw.no_grad():
        y = made[:2](nw.randn(8, 3, 16, 16)).numpy()
    assert abs(y.std() - 1) < 0.3


def test_results_do_not_make_a_commit_dirty(
    program: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = program("environment")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for name in ("code.py", "benchmarks/results/peers.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    environment._git("init", "-q")
    environment._git("add", "-A")
    environment._git(*identity, "commit", "-qm", "first")
    commit = environment.commit()
    assert commit != "unknown"
    (tmp_path / "benchmarks/results/peers.json").write_text("2")
    assert environment.commit() == commit
    (tmp_path / "code.py").write_text("2")
    assert environment.commit() == commit + "-dirty"
