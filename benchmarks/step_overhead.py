"""What a training step costs besides its kernels: a tiny MLP at batch 1, called again and again.

    python benchmarks/step_overhead.py

Prints, per optimizer, the median time of a call that takes the short way, of one that is looked at
anew, and of the native call alone, in microseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

import netwright as nw
from netwright import nn, optim
from netwright.runtime import pool

CALLS = 5000


def median_us(call: Callable[[], object]) -> float:
    """The median of many calls, in microseconds."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def main() -> None:
    """Measures and prints the table."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1, 16), np.float32), rng.integers(0, 10, 1)
    print(f"{'optimizer':16} {'short way':>10} {'anew':>10} {'native':>10}")
    for name, make, options in (
        ("SGD momentum", lambda p: optim.SGD(p, lr=0.01, momentum=0.9), {}),
        ("Adam", optim.Adam, {}),
        ("Adam, clipped", optim.Adam, {"clip_grad_norm": 1.0}),
    ):
        nw.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
        )
        optimizer = make(model.parameters())
        step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, **options)
        for _ in range(50):
            step(x, y)
        short = median_us(lambda step=step: step(x, y))

        def anew(step=step) -> None:
            step._shortcut = None
            step(x, y)

        (variant,) = step._variants.values()
        (entry,) = variant.executable._run
        table = variant.executable.table_address
        native = median_us(lambda entry=entry, table=table: pool.run(entry, table, 1, 1))
        print(f"{name:16} {short:10.1f} {median_us(anew):10.1f} {native:10.1f}")


if __name__ == "__main__":
    main()
