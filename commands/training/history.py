"""What a training has shown so far: ``history.json`` and ``curves.png``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..failure import Failure

HISTORY = "history.json"
CURVES = "curves.png"
_SMOOTHED = 200
"""Points of the curve of the training loss, each the mean of as many steps as it takes."""


@dataclass(frozen=True)
class Epoch:
    """One epoch. Losses are means over samples; accuracy is a share of the test samples.

    None: there is no test data, or the loss does not classify. lr: of the last step.
    seconds: of training, without tests; samples_per_second: without a process's first step, which
    compiles.
    """

    epoch: int
    steps: int
    lr: float
    train_loss: float
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    samples_per_second: float | None

    def line(self) -> str:
        """For people."""
        parts = [f"train loss {self.train_loss:.4f}"]
        if self.test_loss is not None:
            parts.append(f"test loss {self.test_loss:.4f}")
        if self.test_accuracy is not None:
            parts.append(f"accuracy {self.test_accuracy:.2%}")
        if self.samples_per_second is not None:
            parts.append(f"{self.samples_per_second:,.0f} samples/s")
        return "  ".join(parts)


def write_json(folder: Path, epochs: list[Epoch]) -> None:
    """Replaces ``history.json``. Failure if it cannot be written."""
    text = json.dumps([asdict(epoch) for epoch in epochs], indent=1)
    with _replaced(folder / HISTORY) as temporary:
        temporary.write_text(text + "\n")


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file to write to, which then takes the place of ``path``."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Failure(f"{path} cannot be written: {error}") from error


def draw(folder: Path, title: str, epochs: list[Epoch], losses: np.ndarray) -> str | None:
    """Writes ``curves.png``: loss, accuracy and throughput over the epochs.

    losses: of every step. Returns why there is no picture, or None. Failure if it cannot be
    written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return f'no {CURVES} without matplotlib: pip install "netwright[plot]"'
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy, rate = figure.subplots(1, 3)
    figure.suptitle(title)
    x, y = _smooth(losses, epochs[-1].steps / epochs[-1].epoch if epochs else 1.0)
    loss.plot(x, y, color="tab:blue", linewidth=1, alpha=0.6, label="train, steps")
    _plot(loss, epochs, "train_loss", "train", "tab:blue")
    _plot(loss, epochs, "test_loss", "test", "tab:orange")
    loss.set_ylabel("loss")
    loss.legend()
    _plot(accuracy, epochs, "test_accuracy", "test", "tab:orange")
    accuracy.set_ylabel("test accuracy")
    _plot(rate, epochs, "samples_per_second", "training", "tab:green")
    rate.set_ylabel("samples/s")
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    with _replaced(folder / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return None


def _plot(axes: Any, epochs: list[Epoch], name: str, label: str, color: str) -> None:
    points = [(e.epoch, getattr(e, name)) for e in epochs if getattr(e, name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker=".", color=color, label=label)


def _smooth(losses: np.ndarray, per_epoch: float) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and means of runs of steps."""
    width = max(1, len(losses) // _SMOOTHED)
    count = len(losses) // width
    means = losses[: count * width].reshape(count, width).mean(axis=1)
    return (np.arange(count) + 0.5) * width / per_epoch, means
