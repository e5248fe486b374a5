"""Data-parallel steps whose buckets travel after the backward pass, or during it.

    mpirun -n 2 python benchmarks/overlap.py                       # ResNet-18 and an MLP
    mpirun -n 2 python benchmarks/overlap.py --bucket-mb 4 --threads 1

Every rank makes the same number of calls of both forms, in turns, so that a slow phase of the
machine hits both. Rank 0 prints the medians of a call in ms, the time of the gradients alone among
them. The parameters of both are compared at the end: they have the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import netwright as nw
import netwright.distributed as dist
from netwright import nn, optim

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from mlp import MLP
from resnet18 import ResNet18

MODELS = {
    "resnet18": (ResNet18, (3, 32, 32), 8),
    "mlp": (MLP, (1, 28, 28), 64),
}
"""The class, the shape of a sample, and the batch of each rank."""
FORMS = {"after": False, "during": True}
"""When buckets travel, as ``overlap``."""
WARM_UP = 3


def make(kind: type[nn.Module], overlap: bool, bucket_mb: float) -> Any:
    """A model with the same weights every time, and its step."""
    nw.manual_seed(0)
    model = kind()
    optimizer = optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer)
    return dist.DataParallel(step, bucket_cap_mb=bucket_mb, overlap=overlap, verify_every=0)


def measure(name: str, bucket_mb: float, calls: int) -> dict[str, float]:
    """Median milliseconds of each form."""
    kind, shape, batch = MODELS[name]
    rng = np.random.default_rng(dist.get_rank())
    x = nw.from_numpy(rng.standard_normal((batch, *shape), np.float32))
    y = nw.from_numpy(rng.integers(0, 10, batch))
    forms = {title: make(kind, overlap, bucket_mb) for title, overlap in FORMS.items()}
    times: dict[str, list[float]] = {title: [] for title in (*forms, "gradients alone")}
    for call in range(calls + WARM_UP):
        for title, parallel in forms.items():
            dist.all_gather_object(None)  # nobody waits for a rank that is still in another form
            start = time.perf_counter()
            parallel(x, y)
            if call >= WARM_UP:
                times[title].append(time.perf_counter() - start)
    digests = {parallel.verify() for parallel in forms.values()}
    assert len(digests) == 1, "the two forms have different parameters"
    step = forms["after"].step
    for call in range(calls + WARM_UP):
        dist.all_gather_object(None)
        start = time.perf_counter()
        step.gradients(x, y)
        if call >= WARM_UP:
            times["gradients alone"].append(time.perf_counter() - start)
        step.zero_grad()
    return {title: statistics.median(found) * 1e3 for title, found in times.items()}


def main() -> None:
    """Prints a line per model on rank 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS), help="of resnet18,mlp")
    parser.add_argument("--bucket-mb", type=float, default=4.0, help="MiB (default: 4)")
    parser.add_argument("--threads", type=int, help="of each rank (default: its share of the CPUs)")
    parser.add_argument("--calls", type=int, default=30)
    options = parser.parse_args()
    warnings.simplefilter("ignore", nw.LintWarning)
    if options.threads:
        nw.set_num_threads(options.threads)
    dist.init_process_group()
    for name in options.models.split(","):
        found = measure(name, options.bucket_mb, options.calls)
        if dist.get_rank() == 0:
            text = ", ".join(f"{title} {ms:.2f}" for title, ms in found.items())
            threads = nw.get_num_threads()
            print(f"{name}, {dist.get_world_size()} ranks x {threads} thread(s), ms: {text}")


if __name__ == "__main__":
    main()
