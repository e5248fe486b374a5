"""``netwright bench --train``: the first step of everybody is right before steps are timed."""

from __future__ import annotations

import json

import pytest

import netwright as nw
from netwright import nn
from netwright.cli import main
from netwright.commands.peers import train_contest
from netwright.commands.peers.contest import NETWRIGHT

SECONDS = ["--seconds", "0.01"]

pytestmark = pytest.mark.filterwarnings("ignore:L0")


def test_without_peers_it_times_training_steps_beside_eager_ones(
    models: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--input", "4x6", "--train", "--optimizer", "adamw", "--json", *SECONDS]
    assert main(["bench", f"{models}:Tiny", *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["mode"] for row in rows] == ["inference", "training"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_with_peers_the_steps_of_the_exported_model_are_compared(
    models: str, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    options = ["--input", "8x6", "--train", "--peers", "torch", "--optimizer", optimizer]
    arguments = [*options, "--loss", "MSELoss", "--threads", "1", "--json", *SECONDS]
    assert main(["bench", f"{models}:Tiny", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["training"]["loss"] == "MSELoss"
    (row,) = found["rows"]
    assert row["reference"] == "PyTorch in float64"
    errors = {"error", "loss_error", "update_error", "buffer_error"}
    for entry in (row[NETWRIGHT], row["peers"]["torch"]):
        assert errors <= set(entry), entry
        assert max(entry[key] for key in errors) < 1e-4
        assert entry["calls"] >= 5
    assert row["fastest_peer"] == "torch"


def _row(model: nn.Module, optimizer: str = "sgd") -> dict[str, object]:
    nw.manual_seed(0)
    return train_contest.contest(
        model.train(), [nw.randn(5, 4)], "CrossEntropyLoss",
        train_contest.RECIPES[optimizer], ["torch"], 1, 0.01, lambda step, total, text: None,
    )  # fmt: skip


def test_a_model_without_a_form_in_pytorch_is_a_failed_peer() -> None:
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    row = _row(nn.Sequential(nn.Linear(4, 3), Cubing()))
    assert "has no PyTorch form" in str(row["peers"]["torch"]["failed"])  # type: ignore[index]
    assert row["reference"] == "eager netwright in float64"
    assert row["fastest_peer"] is None


class Cubing(nn.Module):
    """Keeps a buffer in a way that is not BatchNorm's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", nw.ones(()))

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        self.scale.copy_(self.scale * 0.5)
        return x


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_layer_stays_as_it_is_everywhere(optimizer: str) -> None:
    """In the reference, too, whose optimizer would decay a weight that has a gradient of 0."""
    pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    row = _row(model, optimizer)
    assert "failed" not in row["peers"]["torch"]  # type: ignore[index]
