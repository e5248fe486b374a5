"""Where the time of the first call goes: a new model, the same one from the cache on disk.

    python benchmarks/compile_time.py                       # the examples
    python benchmarks/compile_time.py --models mlp resnet50 --repeat 5
    python benchmarks/compile_time.py --train --models resnet18_32      # training steps

Each measurement is a process of its own, cold with an empty cache, then again with what that left.
``first`` is ``nw.compile(model)(x)`` as a whole. Its parts are the phases of ``compile_report()``
and ``prepare``: the rest, less a usual call (packing weights, memory that is touched first).
With --train it is the first call of a step with cross-entropy and SGD with momentum.
``load`` is importing the compiler and LLVM, which the first compilation of a process does besides.
``batch`` is the first call with another batch size, less a usual call with it. Times are medians,
in milliseconds; ``cpu`` is the processor time of ``first`` without that of workers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
EXAMPLES = {
    "mlp": ("mlp_batchnorm", "MLPBatchNorm", (1, 28, 28)),
    "cnn": ("cnn", "CNN", (1, 28, 28)),
    "resnet18_32": ("resnet18", "ResNet18", (3, 32, 32)),
}
BATCHES = {False: (1, 2), True: (2, 3)}
"""The first batch size and another one, without and with --train: BatchNorm needs two samples."""
COLUMNS = (
    *("load", "first", "cpu", "trace", "passes", "plan", "emit", "llvm", "cache", "link"),
    *("prepare", "batch"),
)


def model_of(name: str) -> tuple[Any, tuple[int, ...]]:
    """An example, or ``netwright.vision.models.NAME()``; and the shape of one input."""
    if name in EXAMPLES:
        module, kind, shape = EXAMPLES[name]
        sys.path.insert(0, str(HERE.parent / "examples"))
        return getattr(importlib.import_module(module), kind)(), shape
    models = importlib.import_module("netwright.vision.models")
    size = 299 if name == "inception_v3" else 224
    return getattr(models, name)(), (3, size, size)


def compiled(model: Any, train: bool) -> Any:
    """The model, or its training step."""
    import netwright as nw

    if not train:
        return nw.compile(model)
    optimizer = nw.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return nw.compile(model, loss=nw.nn.CrossEntropyLoss(), optimizer=optimizer)


def batch_of(n: int, shape: tuple[int, ...], train: bool) -> tuple[Any, ...]:
    """Images, and labels for a step."""
    import netwright as nw

    labels = (nw.zeros(n, dtype=nw.int64),) if train else ()
    return (nw.randn(n, *shape), *labels)


def measure(name: str, train: bool = False) -> dict[str, Any]:
    """One first call in this process."""
    start = time.perf_counter()
    import netwright as nw

    imported = time.perf_counter() - start
    warnings.simplefilter("ignore", nw.LintWarning)
    nw.manual_seed(0)
    model, shape = model_of(name)
    model.train(train)
    one, two = (batch_of(n, shape, train) for n in BATCHES[train])
    start = time.perf_counter()
    for module in ("netwright.bridge.module", "llvmlite.binding"):
        importlib.import_module(module)
    load = time.perf_counter() - start
    from netwright.runtime import jit

    with nw.no_grad():
        start, cpu = time.perf_counter(), time.process_time()
        fast = compiled(model, train)
        fast(*one)
        first, cpu = time.perf_counter() - start, time.process_time() - cpu
        usual = timed(lambda: fast(*one))
        compilations = jit.counters.compilations
        start = time.perf_counter()
        fast(*two)
        batch = time.perf_counter() - start - timed(lambda: fast(*two))
    report = fast.compile_report()
    phases = report.phases
    rest = first - usual - sum(phases.values())
    seconds = {"load": load, "first": first, "cpu": cpu, **phases, "prepare": rest, "batch": batch}
    return {
        "model": name,
        "import_ms": imported * 1e3,
        "ms": {k: v * 1e3 for k, v in seconds.items()},
        "usual_call_ms": usual * 1e3,
        "compilations": compilations,
        "compilations_for_another_batch": jit.counters.compilations - compilations,
        "threads": nw.get_num_threads(),
        "programs": report.as_json()["programs"],
    }


def timed(call: Any) -> float:
    """Seconds of a usual call."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def child(name: str, cache: str, train: bool) -> dict[str, Any]:
    """`measure` in a new process with this cache directory."""
    command = [sys.executable, __file__, "--measure", name, *["--train"] * train]
    environment = os.environ | {"NETWRIGHT_CACHE_DIR": cache}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def run(names: list[str], repeat: int, train: bool) -> list[dict[str, Any]]:
    """Rows of all models, cold and cached."""
    rows = []
    print(f"{'':22}" + "".join(f"{c:>9}" for c in COLUMNS) + "  processes")
    for name in names:
        found: dict[str, list[dict[str, Any]]] = {"cold": [], "cached": []}
        for _ in range(repeat):
            with tempfile.TemporaryDirectory() as cache:
                for state in found:
                    found[state].append(child(name, cache, train))
        for state, results in found.items():
            middle = {c: statistics.median(r["ms"][c] for r in results) for c in COLUMNS}
            rows.append({"model": name, "state": state, "median_ms": middle, "runs": results})
            processes = max(p["processes"] for r in results for p in r["programs"])
            cells = "".join(f"{middle[c]:9.1f}" for c in COLUMNS)
            print(f"{name:15} {state:6}{cells}  {processes or '-'}", flush=True)
    return rows


def main() -> None:
    """Prints a line per model and state, and writes JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(EXAMPLES))
    parser.add_argument("--repeat", type=int, default=3, help="processes per model and state")
    parser.add_argument("--train", action="store_true", help="training steps, not inference")
    parser.add_argument(
        "--output", type=Path, help="default: results/compile_time.json, or compile_time_train.json"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.train)))
        return
    if options.output is None:
        options.output = RESULTS / f"compile_time{'_train' if options.train else ''}.json"
    rows = run(options.models, options.repeat, options.train)
    from environment import environment

    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(
        json.dumps({"environment": environment(), "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
