"""``netwright profile``."""

from __future__ import annotations

import json

import pytest

from netwright.cli import main
from netwright.runtime import probe


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of the machine without measuring them."""
    monkeypatch.setattr(probe, "peak_gflops", lambda threads, seconds: 100.0)
    monkeypatch.setattr(probe, "bandwidth_gbs", lambda threads, seconds: 10.0)


def test_it_prints_a_table_for_each_batch_size(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", "1x6", "--batch", "2,3", "--seconds", "0.01", "--sort", "ms"]
    assert main(["profile", f"{models}:Tiny", *arguments]) == 0
    text = capsys.readouterr().out
    assert "Tiny, eval, batch 2" in text
    assert "Tiny, eval, batch 3" in text
    assert text.count("layers.0") == 2


def test_training_as_json_has_the_documented_keys(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", "4x6", "--train", "--seconds", "0.01", "--json"]
    assert main(["profile", f"{models}:Tiny", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"model", "inputs", "cpu", "isa", "profiles"}
    (profile,) = found["profiles"]
    assert (profile["mode"], profile["batch"]) == ("train", 4)
    assert {row["phase"] for row in profile["rows"]} == {"forward", "backward"}
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)
    assert set(profile["compile"]["phases_ms"]) == {
        "trace", "passes", "plan", "emit", "llvm", "cache", "link",
    }  # fmt: skip


def test_a_shape_that_the_model_refuses_is_one_line(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", f"{models}:Tiny", "--input", "2x7", "--seconds", "0.01"]) == 1
    error = capsys.readouterr().err
    assert "netwright profile: error:" in error
    assert "Traceback" not in error
