"""``netwright train --distributed`` under mpirun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright.cli import main

PROGRAM = """
import os
import signal

import numpy as np

import netwright as nw
import netwright.distributed as dist
from netwright import nn
from netwright.utils.data import Dataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )

    def forward(self, x):
        return self.layers(x)


class Points(Dataset):
    reads = 0

    def __init__(self, count):
        self.points = np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        self.reads += 1
        stop = int(os.environ.get("KILL_AT", 0))
        if len(self) == 40 and self.reads == stop and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        x = self.points[index]
        return x + nw.rand(1).numpy() * 0.01, int(x[:3].argmax())


def data():
    return Points(40), Points(15)
"""
OPTIONS = [
    "-m", "netwright", "train", "net.py:Net", "--distributed", "--data", "net.py:data",
    "--batch-size", "5", "--epochs", "3", "--accumulate", "3",
]  # fmt: skip


def _weights(folder: str) -> dict[str, bytes]:
    saved = nw.load(f"{folder}/checkpoint.npz")
    return {name: np.asarray(value.numpy()).tobytes() for name, value in saved["model"].items()}


def test_a_killed_rank_ends_the_job_and_the_run_resumes_bit_for_bit(mpirun: Any) -> None:
    Path("net.py").write_text(PROGRAM)
    whole = mpirun(*OPTIONS, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    lines = [line for line in whole.stderr.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3, "rank 0 alone shows progress"
    assert len(nw.load("whole/checkpoint.npz")["losses"]) == 3 * 4

    # Each rank reads 20 samples in an epoch: this is in the second.
    killed = mpirun(*OPTIONS, "--out", "killed", KILL_AT="28")
    assert killed.returncode != 0
    saved = nw.load("killed/checkpoint.npz")
    assert (len(saved["epochs"]), saved["done"]) == (1, 0)
    assert not [name for name in os.listdir("killed") if name.endswith(".tmp")]

    resumed = mpirun(*OPTIONS, "--out", "killed", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert _weights("killed") == _weights("whole")


def test_under_mpirun_the_option_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert main(["train", "net.py:Net"]) == 2
    assert "this is one of 4 processes" in capsys.readouterr().err
