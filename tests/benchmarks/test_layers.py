"""benchmarks/layers.py: which layers it finds, and that it measures the right thing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import netwright as nw
from netwright import nn
from netwright.frontend.trace import trace


@pytest.fixture
def layers(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("layers")


class Net(nn.Module):
    """Two equal convolutions, a depthwise one, a dilated one, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
            nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2),
            nn.Flatten(),
            nn.Linear(6 * 4 * 5, 3),
        )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        return self.layers(x)


def test_distinct_layers_are_found_once_and_counted(layers: ModuleType) -> None:
    model = Net().eval()
    graph = trace(model, {"": model}, (nw.randn(1, 4, 8, 10),)).graph
    assert {shape.text: uses for shape, uses in layers.layers_of(graph).items()} == {
        "3x3 4->4 8x10": 2,
        "3x3/2 depthwise 4 8x10": 1,
        "3x3 4->6 in 2 groups 4x5 dilation 2": 1,
        "linear 120->3": 1,
    }


def test_rows_have_rates_peaks_and_scaling(
    layers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers.probe, "peak_gflops", lambda threads=None: 100.0)
    options = argparse.Namespace(
        shape=(4, 8, 10), batch=2, threads=[1, 2], seconds=0.005, backward=False,
        output=tmp_path / "rows.json",
    )  # fmt: skip
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), nn.Flatten(), nn.Linear(80, 3)
    )
    rows = layers.run(model.eval(), "net", options)
    assert json.loads(options.output.read_text())["rows"] == rows
    assert [row["threads"] for row in rows] == [1, 2] * 2
    first, second = rows[:2]
    assert first["gflop"] == 2 * 2 * 4 * 9 * 20 / 1e9
    assert first["gflops"] == pytest.approx(first["gflop"] / first["median_ms"] * 1e3)
    assert second["scaling"] == pytest.approx(first["median_ms"] / second["median_ms"])
    assert first["of_peak"] == pytest.approx(first["gflops"] / 100)
    assert "3x3/2 depthwise 4 8x10" in layers.table(rows)
    assert layers.total(rows, 1).startswith("threads 1: ")


def test_gradients_of_convolutions_follow_them(
    layers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers.probe, "peak_gflops", lambda threads=None: 100.0)
    options = argparse.Namespace(
        shape=(4, 8, 10), batch=2, threads=[1], seconds=0.005, backward=True,
        output=tmp_path / "rows.json",
    )  # fmt: skip
    model = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(120, 3))
    rows = layers.run(model.eval(), "net", options)
    names = ["3x3/2 4->6 8x10", "dx 3x3/2 4->6 8x10", "dw 3x3/2 4->6 8x10", "linear 120->3"]
    assert [row["layer"] for row in rows] == names
    work = 2 * 2 * (4 * 5 * 6) * 4 * 9 / 1e9
    assert [row["gflop"] for row in rows[:3]] == [work] * 3


def test_a_model_that_the_zoo_does_not_have_is_named(layers: ModuleType) -> None:
    with pytest.raises(SystemExit, match="has no 'no_such_model'"):
        layers.make_model("no_such_model")
