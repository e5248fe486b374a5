"""Compiled against eager (numpy), inference and training, on the example programs.

    python benchmarks/fused_vs_eager.py            # writes results/fused_vs_eager.json and .png

Outputs, losses and parameters are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import netwright as nw
from netwright import nn, optim
from netwright.commands.timing import interleave

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cnn import CNN
from environment import environment
from mlp import MLP
from mlp_batchnorm import MLPBatchNorm

RESULTS = Path(__file__).resolve().parent / "results"
PROGRAMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-512-512-10": (MLP, (1, 28, 28)),
    "MLP 784-392-196-10, BatchNorm": (MLPBatchNorm, (1, 28, 28)),
    "CNN, BatchNorm, dropout": (CNN, (1, 28, 28)),
}


def digits(batch: int, shape: tuple[int, ...]) -> tuple[nw.Tensor, nw.Tensor]:
    """A batch of the shipped digits."""
    images, labels = nw.vision.datasets.MNIST(train=True).tensors()
    return images[:batch].reshape(batch, *shape).contiguous(), labels[:batch]


def bench_inference(make: Callable[[], nn.Module], x: nw.Tensor, seconds: float) -> dict[str, Any]:
    """Forward in eval mode without gradients."""
    model = make().eval()
    fast = nw.compile(model)
    with nw.no_grad():
        expected, got = model(x).numpy(), fast(x).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        return contest({"eager": lambda: model(x), "compiled": lambda: fast(x)}, seconds)


def bench_training(
    make: Callable[[], nn.Module],
    optimizer: Callable[..., optim.Optimizer],
    batch: tuple[nw.Tensor, nw.Tensor],
    seconds: float,
) -> dict[str, Any]:
    """Forward, loss, backward and update."""
    x, y = batch
    criterion = nn.CrossEntropyLoss()
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    eager_optimizer = optimizer(model.parameters())
    step = nw.compile(twin, loss=criterion, optimizer=optimizer(twin.parameters()))

    def eager() -> float:
        eager_optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        eager_optimizer.step()
        return loss.item()

    for seed in range(3):
        nw.manual_seed(seed)
        expected = eager()
        nw.manual_seed(seed)
        np.testing.assert_allclose(step(x, y).item(), expected, rtol=1e-3)
    return contest({"eager": eager, "compiled": lambda: step(x, y)}, seconds)


def contest(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Times of both and the ratio of their medians."""
    times = interleave(calls, seconds)
    speedup = times["eager"].median / times["compiled"].median
    return {**{name: t.as_json() for name, t in times.items()}, "speedup": speedup}


def run(batches: list[int], seconds: float) -> dict[str, Any]:
    """All programs: rows by program, mode and batch."""
    rows = []
    optimizers = {
        "SGD": lambda p: optim.SGD(p, lr=0.01, momentum=0.9),
        "Adam": lambda p: optim.Adam(p, lr=1e-3),
    }
    for name, (make, shape) in PROGRAMS.items():
        for batch in batches:
            x, y = digits(batch, shape)
            nw.manual_seed(0)
            found = bench_inference(make, x, seconds)
            rows.append({"program": name, "mode": "inference", "batch": batch, **found})
            report(rows[-1])
            for kind, optimizer in optimizers.items():
                found = bench_training(make, optimizer, (x, y), seconds)
                mode = f"training step, {kind}"
                rows.append({"program": name, "mode": mode, "batch": batch, **found})
                report(rows[-1])
    return {"environment": environment(), "rows": rows}


def report(row: dict[str, Any]) -> None:
    """One line per finished row."""
    print(
        f"{row['program']:32} {row['mode']:22} batch {row['batch']:4}  "
        f"eager {row['eager']['median_ms']:8.3f} ms  "
        f"compiled {row['compiled']['median_ms']:8.3f} ms  {row['speedup']:6.2f}x",
        flush=True,
    )


def markdown(result: dict[str, Any]) -> str:
    """The README's table."""
    lines = [
        "| program, batch | mode | eager (numpy) | compiled | speed-up |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['program']}, {row['batch']} | {row['mode']} | "
            f"{row['eager']['median_ms']:.2f} ms | {row['compiled']['median_ms']:.3f} ms | "
            f"{row['speedup']:.1f}x |"
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """A bar chart of the speed-ups with the quartiles of the compiled times."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["rows"]
    labels = [f"{r['program']}\n{r['mode']}, batch {r['batch']}" for r in rows]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.5))
    places = np.arange(len(rows))[::-1]
    values = [r["speedup"] for r in rows]
    low = [r["speedup"] - r["eager"]["median_ms"] / r["compiled"]["q3_ms"] for r in rows]
    high = [r["eager"]["median_ms"] / r["compiled"]["q1_ms"] - r["speedup"] for r in rows]
    colors = ["#2a78b8" if r["mode"] == "inference" else "#d9822b" for r in rows]
    axes.barh(places, values, xerr=[np.maximum(low, 0), np.maximum(high, 0)], color=colors)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, labels, fontsize=7)
    axes.set_xlabel("times faster than eager (numpy), median of interleaved rounds")
    axes.set_title(f"{result['environment']['cpu']}, {result['environment']['threads']} threads")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs the benchmark and writes JSON and PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", default="64", help="comma-separated batch sizes")
    parser.add_argument("--seconds", type=float, default=3.0, help="time per row")
    parser.add_argument("--output", type=Path, default=RESULTS / "fused_vs_eager.json")
    parser.add_argument("--no-plot", action="store_true", help="JSON only (no matplotlib)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", nw.LintWarning)
    result = run([int(b) for b in options.batch.split(",")], options.seconds)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    if not options.no_plot:
        plot(result, options.output.with_suffix(".png"))
    print(markdown(result))


if __name__ == "__main__":
    main()
