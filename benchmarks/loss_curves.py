"""Loss curves of compiled steps and of PyTorch, from the same weights and batches.

    python benchmarks/loss_curves.py       # docs/loss_curves.png, results/loss_curves.json

How far apart "within rounding" is, is measured: PyTorch is run in float32 with 1 and with 2
threads, which sum in another order, and in float64. Differences stay those of one forward pass
until the input of a ReLU rounds to the other side of 0 somewhere. That changes a gradient by far
more than rounding does, and from there on two right programs go ways of their own. Whether it
happens within the steps is luck, so there are several seeds, and the decisions of PyTorch's ReLUs
that differ between float32 and float64 are counted. Needs PyTorch; matplotlib for the picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import netwright as nw
from netwright.commands.peers.training import Recipe, Start, without_dropout
from netwright.ir.columns import aligned

sys.path.insert(0, str(Path(__file__).resolve().parent))

from environment import environment
from train_pytorch import Theirs
from training import Ours, Task, start_of, training_of

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
EVERY = 50
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
    training = training_of(nw, Ours(), task, start)
    step = nw.compile(training.model, loss=training.criterion, optimizer=training.optimizer)
    losses = [step(x, t).item() for x, t in batches(task, steps)]
    assert step.fallbacks == 0
    return losses


def curve_of_pytorch(
    task: Task, start: Start, steps: int, threads: int, wide: bool = False
) -> tuple[list[float], list[np.ndarray]]:
    """The loss of every eager step, and the signs of all inputs of ReLUs in it, as bits."""
    torch.set_num_threads(threads)
    training = training_of(torch, Theirs(), task, start, wide)
    signs: list[np.ndarray] = []

    def note(_: Any, inputs: tuple[Any, ...]) -> None:
        signs.append(np.packbits((inputs[0] > 0).numpy()))

    for module in training.model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(note)
    losses, decisions = [], []
    for x, t in batches(task, steps):
        training.optimizer.zero_grad()
        images = torch.from_numpy(x.astype(np.float64) if wide else x)
        loss = training.criterion(training.model(images), torch.from_numpy(t))
        loss.backward()
        training.optimizer.step()
        losses.append(loss.item())
        decisions.append(np.concatenate(signs))
        signs.clear()
    return losses, decisions


def run(steps: int, seeds: int, tasks: tuple[Task, ...] = TASKS) -> list[dict[str, Any]]:
    """All curves of all models and seeds, and their largest differences in every 50 steps."""
    rows = []
    for task in tasks:
        for seed in range(seeds):
            start = start_of(task, seed)
            one, narrow = curve_of_pytorch(task, start, steps, 1)
            exact, wide = curve_of_pytorch(task, start, steps, 1, wide=True)
            curves = {
                NETWRIGHT: curve_of_netwright(task, start, steps),
                ONE: one,
                TWO: curve_of_pytorch(task, start, steps, 2)[0],
                WIDE: exact,
            }
            rows.append(
                {
                    "model": task.name,
                    "batch": task.batch,
                    "seed": seed,
                    "largest_differences": {
                        f"{a} - {b}": differences(curves[a], curves[b]) for a, b in PAIRS
                    },
                    "relu_decisions_of_float32_that_differ": stretches(
                        [
                            int(np.unpackbits(a ^ b).sum())
                            for a, b in zip(narrow, wide, strict=True)
                        ],
                        sum,
                    ),
                    "losses": curves,
                }
            )
    return rows


def differences(a: list[float], b: list[float]) -> list[float]:
    """The largest difference in each stretch of 50 steps."""
    return stretches([abs(x - y) for x, y in zip(a, b, strict=True)], max)


def stretches(values: list[Any], combine: Callable[[list[Any]], Any]) -> list[Any]:
    """One number for each stretch of 50 steps."""
    return [combine(values[i : i + EVERY]) for i in range(0, len(values), EVERY)]


def by_model(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The seeds of each model."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The differences of one model, a group of lines per seed."""
    steps = len(rows[0]["losses"][NETWRIGHT])
    heads = [f"{i + 1}-{min(i + EVERY, steps)}" for i in range(0, steps, EVERY)]
    lines = [(f"{rows[0]['model']}: largest difference in steps", *heads)]
    for row in rows:
        for name, values in row["largest_differences"].items():
            lines.append((f"seed {row['seed']}: {name}", *(f"{v:.1e}" for v in values)))
        counts = row["relu_decisions_of_float32_that_differ"]
        lines.append((f"seed {row['seed']}: ReLUs that differ", *map(str, counts)))
    return aligned(lines, right=range(1, len(heads) + 1))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Above the curves of the first seed, below the differences of all from float64."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = by_model(rows)
    figure, panels = plt.subplots(
        2, len(groups), figsize=(5.2 * len(groups), 6.4), squeeze=False, sharex=True
    )
    styles = {WIDE: ("#999999", "-", 3.0), ONE: ("#d9822b", "-", 1.4),
              NETWRIGHT: ("#2a78b8", "--", 1.4)}  # fmt: skip
    for i, (model, group) in enumerate(groups.items()):
        above, below = panels[0][i], panels[1][i]
        steps = range(1, len(group[0]["losses"][NETWRIGHT]) + 1)
        for name, (color, line, width) in styles.items():
            curve = group[0]["losses"][name]
            above.plot(steps, curve, line, color=color, linewidth=width, label=name)
        above.set_yscale("log")
        above.set_title(f"{model}, batch {group[0]['batch']}, seed 0", fontsize=9)
        for row in group:
            for name in (ONE, NETWRIGHT):
                gap = np.abs(np.subtract(row["losses"][name], row["losses"][WIDE]))
                label = f"{name} - {WIDE}" if row is group[0] else None
                color, line, _ = styles[name]
                below.plot(steps, np.maximum(gap, 1e-9), line, color=color, linewidth=0.7,
                           label=label)  # fmt: skip
        below.set_yscale("log")
        below.set_xlabel(f"step ({len(group)} seeds)")
    panels[0][0].set_ylabel("loss")
    panels[1][0].set_ylabel("difference of the losses")
    panels[0][-1].legend(fontsize=7)
    panels[1][-1].legend(fontsize=7, loc="upper left")
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
    parser.add_argument("--seeds", type=int, default=6, help="initial weights (default: 6)")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "loss_curves.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "loss_curves.png")
    parser.add_argument("--no-plot", action="store_true", help="JSON only (no matplotlib)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", nw.LintWarning)
    rows = run(options.steps, options.seeds)
    facts = {**environment(), "torch": torch.__version__}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    if not options.no_plot:
        plot(rows, options.picture)
    print("\n\n".join(map(table, by_model(rows).values())))


if __name__ == "__main__":
    main()
