"""Training steps with one pass switched on and off, in turn: what the pass is worth.

    python benchmarks/one_pass.py fuse_moments                      # MobileNetV2, 8 images of 224
    python benchmarks/one_pass.py fuse_moments --model examples/resnet18.py:ResNet18 \\
        --shape 3x32x32 --batch 32

Prints the median of both, and the median and the quartiles of their ratio, pair by pair: a machine
that has slow phases slows both calls of a pair.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import netwright as nw
from netwright import nn, optim
from netwright.commands.model_file import load_model


def make_model(name: str) -> nn.Module:
    """A model of ``vision.models`` or of a file."""
    if ":" in name:
        return load_model(name)[0].train()
    nw.manual_seed(0)
    return getattr(nw.vision.models, name)().train()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pass_name", help="the pass to switch off")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--shape", default="3x224x224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = tuple(int(n) for n in options.shape.split("x"))
    x = rng.standard_normal((options.batch, *shape)).astype(np.float32)
    target = rng.integers(0, 10, options.batch)
    steps = []
    for passes in ({}, {options.pass_name: False}):
        model = make_model(options.model)
        optimizer = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, passes=passes)
        for _ in range(3):
            step(x, target)
        steps.append(step)
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + options.seconds
    while time.perf_counter() < stop or len(times[0]) < 6:
        for k in (0, 1) if len(times[0]) % 2 else (1, 0):
            start = time.perf_counter()
            steps[k](x, target)
            times[k].append(time.perf_counter() - start)
    on, off = (np.array(t) * 1e3 for t in times)
    low, middle, high = np.percentile(on / off, (25, 50, 75))
    print(f"{options.model}, batch {options.batch}, {len(on)} pairs of steps")
    print(f"with {options.pass_name} {np.median(on):.2f} ms, without {np.median(off):.2f} ms")
    print(f"ratio {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
