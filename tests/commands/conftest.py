"""Model files for the tests of the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

MODELS = """
import netwright as nw
from netwright import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, words, scale):
        return self.table(words).mean(1) * scale


class NeedsSizes(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise KeyError("no weights")


class BrokenForward(nn.Module):
    def forward(self, x):
        return x + self.missing


class DataDependent(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Drifting(nn.Module):
    '''Gives something else whenever it runs as Python.'''

    calls = 0.0

    def forward(self, x):
        Drifting.calls += 1.0
        return x * Drifting.calls


class Images(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 26 * 26, 3)
        )


def make_tiny():
    return Tiny()


ready = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(dim=1))
number = 3
"""


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of model files do not stay on the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a file with models, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    return "models.py"
