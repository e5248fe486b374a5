"""Peak memory of training ResNet-18 (3x32x32, batch 32), as whole processes.

    python benchmarks/train_memory.py      # netwright, cold and from the cache; PyTorch
    python benchmarks/train_memory.py --batch 64 --optimizer Adam

Each framework trains three steps in a process of its own. Given are the resident sets (VmRSS and
VmHWM of /proc, the latter equal to getrusage's ru_maxrss): after importing the framework, and the
peak of everything. Nothing is subtracted. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

HERE = Path(__file__).resolve().parent
OPTIMIZERS: dict[str, tuple[str, dict[str, float]]] = {
    "SGD": ("SGD", {"lr": 0.01, "momentum": 0.9}),
    "Adam": ("Adam", {"lr": 1e-3}),
}
STEPS = 3
COLUMNS = ("import", "model", "first step", "steps", "peak")


def resident() -> float:
    """VmRSS in MiB."""
    return _status("VmRSS")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def measure(framework: str, batch: int, optimizer: str, threads: int) -> dict[str, Any]:
    """Trains in this process; MiB after each part."""
    import numpy as np

    name, numbers = OPTIMIZERS[optimizer]
    x = np.zeros((batch, 3, 32, 32), np.float32)
    labels = np.arange(batch) % 10
    found: dict[str, Any] = {"numpy": resident()}
    library: Any
    if framework == "netwright":
        import netwright as nw

        library = nw
        warnings.simplefilter("ignore", nw.LintWarning)
        nw.set_num_threads(threads)
        found["import"] = resident()
        sys.path.insert(0, str(HERE.parent / "examples"))
        from resnet18 import ResNet18
    else:
        import torch

        library = torch
        torch.set_num_threads(threads)
        found["import"] = resident()
        import on_torch

        ResNet18 = on_torch.load(on_torch.EXAMPLES / "resnet18.py").ResNet18
    x[:] = np.random.default_rng(0).standard_normal(x.shape, np.float32)
    model = ResNet18().train()
    opt = getattr(library.optim, name)(model.parameters(), **numbers)
    criterion = library.nn.CrossEntropyLoss()
    images, targets = library.from_numpy(x), library.from_numpy(labels)
    found["model"] = resident()
    if framework == "netwright":
        step = library.compile(model, loss=criterion, optimizer=opt)
        call: Any = lambda: step(images, targets)  # noqa: E731
    else:

        def call() -> Any:
            opt.zero_grad()
            loss = criterion(model(images), targets)
            loss.backward()
            opt.step()
            return loss

    for i in range(STEPS):
        loss = call().item()
        if not i:
            found["first step"] = resident()
    found["steps"] = resident()
    found["peak"] = _status("VmHWM")
    found["ru_maxrss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["ru_maxrss_of_workers"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    found["loss"] = loss
    if framework == "netwright":
        found["planned"] = planned(step, batch)
    return found


def planned(step: Any, batch: int) -> dict[str, float]:
    """What netwright's plan says, in MiB."""
    use = step.memory(batch)
    return {key: value / 2**20 for key, value in vars(use).items() if key != "n"}


def child(framework: str, options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """`measure` in a new process with this cache directory."""
    numbers = [str(options.batch), options.optimizer, str(options.threads)]
    found = subprocess.run(
        [sys.executable, __file__, "--measure", framework, *numbers],
        env=os.environ | {"NETWRIGHT_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per process: netwright with an empty cache, then with what that left; PyTorch."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name in ("netwright, cold", "netwright, cached", "PyTorch, eager"):
            framework = "netwright" if name.startswith("netwright") else "torch"
            rows.append({"process": name, "mib": child(framework, options, cache)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """MiB of resident memory."""
    lines = [
        "| process, MiB resident after | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " ---: |" * len(COLUMNS),
    ]
    for row in rows:
        cells = " | ".join(f"{row['mib'][c]:.0f}" for c in COLUMNS)
        lines.append(f"| {row['process']} | {cells} |")
    plan = rows[0]["mib"]["planned"]
    lines += ["", "netwright's plan: " + ", ".join(f"{k} {v:.0f}" for k, v in plan.items())]
    return "\n".join(lines)


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="SGD")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "train_memory.json")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        framework, batch, optimizer, threads = options.measure
        print(json.dumps(measure(framework, int(batch), optimizer, int(threads))))
        return
    rows = run(options)
    print(table(rows))
    from environment import environment

    settings = {key: getattr(options, key) for key in ("batch", "optimizer", "threads")}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"environment": environment(), "settings": settings, "rows": rows}
    options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
