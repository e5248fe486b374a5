"""Loss curves of compiled steps and of PyTorch, from the same weights and batches.

    python benchmarks/loss_curves.py       # docs/loss_curves.png, results/loss_curves.json

Two programs that round differently drift apart: training amplifies a rounding error as it amplifies
any other change of the weights. How far is "within rounding" is therefore measured: PyTorch is run
in float32 with 1 and with 2 threads, which sum in another order, and in float64. netwright's curve
should be as close to float64's as PyTorch's own is. Needs PyTorch; matplotlib for the picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import netwright as nw
from netwright.ir.columns import aligned

sys.path.insert(0, str(Path(__file__).resolve().parent))

from environment import environment
from train_pytorch import Theirs
from training import Ours, Recipe, Start, Task, Training, start_of, without_dropout

HERE = Path(__file__).resolve().parent
ADAM = Recipe("Adam", "Adam", {"lr": 1e-3})
MOMENTUM = Recipe("SGD with momentum", "SGD", {"lr": 0.05, "momentum": 0.9})
TASKS = (
    Task(
        "CNN, BatchNorm, no dropout",
        lambda s: without_dropout(s.example("cnn").CNN()),
        (1, 28, 28), 64, ADAM, 0.0,
    ),
    Task(
        "MLP 784-392-196-10, BatchNorm",
        lambda s: s.example("mlp_batchnorm").MLPBatchNorm(),
        (1, 28, 28), 64, MOMENTUM, 0.0,
    ),
)  # fmt: skip
NETWRIGHT, ONE, TWO, WIDE = (
    "netwright", "PyTorch, 1 thread", "PyTorch, 2 threads", "PyTorch, float64",
)  # fmt: skip
PAIRS = ((NETWRIGHT, ONE), (TWO, ONE), (NETWRIGHT, WIDE), (ONE, WIDE))
"""Whose difference is written down; the second and the last are the yardsticks."""


def batches(task: Task, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The shipped digits in an order drawn anew for each epoch; the same for everybody."""
    images, labels = (t.numpy() for t in nw.vision.datasets.MNIST(train=True).tensors())
    rng = np.random.default_rng(0)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < task.batch:
            order = rng.permutation(len(images))
        chosen, order = order[: task.batch], order[task.batch :]
        yield images[chosen].reshape(-1, *task.shape), labels[chosen]


def curve_of_netwright(task: Task, start: Start, steps: int) -> list[float]:
    """The loss of every compiled step."""
    training = Training(nw, Ours(), task, start)
    step = nw.compile(training.model, loss=training.criterion, optimizer=training.optimizer)
    losses = [step(x, t).item() for x, t in batches(task, steps)]
    assert step.fallbacks == 0
    return losses


def curve_of_pytorch(
    task: Task, start: Start, steps: int, threads: int, wide: bool = False
) -> list[float]:
    """The loss of every eager step."""
    torch.set_num_threads(threads)
    training = Training(torch, Theirs(), task, start, wide)
    losses = []
    for x, t in batches(task, steps):
        training.optimizer.zero_grad()
        images = torch.from_numpy(x.astype(np.float64) if wide else x)
        loss = training.criterion(training.model(images), torch.from_numpy(t))
        loss.backward()
        training.optimizer.step()
        losses.append(loss.item())
    return losses


def run(steps: int, tasks: tuple[Task, ...] = TASKS) -> list[dict[str, Any]]:
    """All curves of all models and their largest differences in every 50 steps."""
    rows = []
    for task in tasks:
        start = start_of(task)
        curves = {
            NETWRIGHT: curve_of_netwright(task, start, steps),
            ONE: curve_of_pytorch(task, start, steps, 1),
            TWO: curve_of_pytorch(task, start, steps, 2),
            WIDE: curve_of_pytorch(task, start, steps, 1, wide=True),
        }
        rows.append(
            {
                "model": task.name,
                "batch": task.batch,
                "largest_differences": {
                    f"{a} - {b}": differences(curves[a], curves[b]) for a, b in PAIRS
                },
                "losses": curves,
            }
        )
    return rows


def differences(a: list[float], b: list[float], every: int = 50) -> list[float]:
    """The largest difference in each stretch of ``every`` steps."""
    gaps = np.abs(np.subtract(a, b))
    return [float(gaps[i : i + every].max()) for i in range(0, len(gaps), every)]


def table(row: dict[str, Any]) -> str:
    """The differences of one model."""
    steps = len(row["losses"][NETWRIGHT])
    heads = [f"{i + 1}-{min(i + 50, steps)}" for i in range(0, steps, 50)]
    lines = [(f"{row['model']}: largest difference in steps", *heads)]
    for name, values in row["largest_differences"].items():
        lines.append((name, *(f"{v:.1e}" for v in values)))
    losses = row["losses"][WIDE]
    lines.append(("loss at the end of them", *(f"{losses[min(i + 49, steps - 1)]:.4f}"
                                               for i in range(0, steps, 50))))  # fmt: skip
    return aligned(lines, right=range(1, len(heads) + 1))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Above the curves, below the differences on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        2, len(rows), figsize=(5.2 * len(rows), 6.4), squeeze=False, sharex=True
    )
    styles = {WIDE: ("#999999", "-", 3.0), ONE: ("#d9822b", "-", 1.4),
              NETWRIGHT: ("#2a78b8", "--", 1.4)}  # fmt: skip
    colors = ("#2a78b8", "#d9822b", "#6a4c93", "#3a8f5c")
    for i, row in enumerate(rows):
        curves = row["losses"]
        steps = range(1, len(curves[NETWRIGHT]) + 1)
        above, below = panels[0][i], panels[1][i]
        for name, (color, line, width) in styles.items():
            above.plot(steps, curves[name], line, color=color, linewidth=width, label=name)
        above.set_yscale("log")
        above.set_title(f"{row['model']}, batch {row['batch']}", fontsize=9)
        for color, (a, b) in zip(colors, PAIRS, strict=True):
            gap = np.abs(np.subtract(curves[a], curves[b]))
            below.plot(steps, np.maximum(gap, 1e-9), color=color, linewidth=0.8, label=f"{a} - {b}")
        below.set_yscale("log")
        below.set_xlabel("step")
    panels[0][0].set_ylabel("loss")
    panels[1][0].set_ylabel("difference of the losses")
    panels[0][-1].legend(fontsize=7)
    panels[1][-1].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Writes picture and JSON, prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "loss_curves.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "loss_curves.png")
    parser.add_argument("--no-plot", action="store_true", help="JSON only (no matplotlib)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", nw.LintWarning)
    rows = run(options.steps)
    facts = {**environment(), "torch": torch.__version__}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    if not options.no_plot:
        plot(rows, options.picture)
    print("\n\n".join(table(row) for row in rows))


if __name__ == "__main__":
    main()
