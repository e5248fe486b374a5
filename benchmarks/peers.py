"""Compiled inference beside PyTorch, torch.compile, ONNX Runtime and OpenVINO, from one model each.

    python benchmarks/peers.py                                 # all rows, 1 and 2 threads
    python benchmarks/peers.py --rows resnet --peers ort       # some rows, some peers
    python benchmarks/peers.py --neighbour --rows MLP          # while another process is busy
    python benchmarks/peers.py --report                        # table and picture of what is there

Writes results/peers.json after every row, and results/peers.png at the end. A run that was
interrupted goes on where it stopped: rows of the same commit and settings are kept (--fresh
measures them again). Outputs are compared with a float64 reference before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netwright as nw
from netwright import nn
from netwright.commands.failure import Failure
from netwright.commands.peers.command import Display, parse_peers, threads_text, verdict
from netwright.commands.peers.contest import NETWRIGHT, contest
from netwright.commands.peers.peer import PEERS, versions
from netwright.commands.text import counts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cnn import CNN
from environment import environment
from mlp_batchnorm import MLPBatchNorm
from peers_report import markdown, plot
from resnet18 import ResNet18

RESULTS = Path(__file__).resolve().parent / "results"


class MissingModel(Exception):
    """The installed netwright does not have this model."""


@dataclass(frozen=True)
class Model:
    """One model of the table: a name, its constructor, a sample's shape, the batch sizes."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batches: tuple[int, ...]


def zoo(name: str) -> Callable[[], nn.Module]:
    """The constructor of a model of ``netwright.vision.models``; it raises MissingModel when it is
    called if there is none."""

    def make() -> nn.Module:
        try:
            models = importlib.import_module("netwright.vision.models")
            constructor = getattr(models, name)
        except (ImportError, AttributeError):
            raise MissingModel(f"netwright.vision.models has no {name}") from None
        made: nn.Module = constructor()
        return made

    return make


MODELS = (
    Model("MLP 784-392-196-10, BatchNorm", MLPBatchNorm, (784,), (1, 64, 256)),
    Model("CNN, BatchNorm", CNN, (1, 28, 28), (1, 64)),
    Model("ResNet-18, 32x32", ResNet18, (3, 32, 32), (1, 64)),
    Model("resnet18, 224x224", zoo("resnet18"), (3, 224, 224), (1, 8)),
    Model("resnet50, 224x224", zoo("resnet50"), (3, 224, 224), (1,)),
    Model("mobilenet_v2, 224x224", zoo("mobilenet_v2"), (3, 224, 224), (1,)),
    Model("efficientnet_b0, 224x224", zoo("efficientnet_b0"), (3, 224, 224), (1,)),
    Model("vgg11, 224x224", zoo("vgg11"), (3, 224, 224), (1,)),
    Model("alexnet, 224x224", zoo("alexnet"), (3, 224, 224), (1,)),
    Model("vit_b_16, 224x224", zoo("vit_b_16"), (3, 224, 224), (1,)),
)


def prepared(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The model in eval mode, with the BatchNorm statistics of two random samples.

    With the statistics of a new layer, which do not normalise anything, the values of a deep
    network vanish or explode, and neither errors nor times would be those of a trained one.
    """
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    if norms:
        momenta = [m.momentum for m in norms]
        for m in norms:
            m.momentum = 1.0
        with nw.no_grad():
            model.train()(nw.randn(2, *shape))
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
    return model.eval()


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same measurement, of perhaps different programs."""
    return row["model"], row["batch"], row["threads"]


def is_current(row: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether a row that is there needs no other measurement."""
    return row["settings"] == settings and not settings["commit"].endswith("-dirty")


def wanted(models: tuple[Model, ...], text: str) -> Iterator[tuple[Model, list[int]]]:
    """Models and batch sizes whose ``name, batch`` contains a text, in any case."""
    for model in models:
        batches = [b for b in model.batches if text.lower() in label(model.name, b).lower()]
        if batches:
            yield model, batches


def label(name: str, batch: int) -> str:
    """``resnet50, 224x224, batch 1``."""
    return f"{name}, batch {batch}"


def run(options: argparse.Namespace, models: tuple[Model, ...] = MODELS) -> bool:
    """Measures what is missing and writes it down; whether every row could be measured."""
    rows = {key(row): row for row in load(options.output)}
    facts = {**environment(), "peers": versions()}
    settings = {
        "seconds": options.seconds,
        "peers": options.peers,
        "commit": facts["commit"],
        "cpu": facts["cpu"],
        "neighbour": options.neighbour,
    }
    complete = True
    for entry, batches in wanted(models, options.rows):
        missing = [
            (batch, threads)
            for batch in batches
            for threads in options.threads
            if options.fresh
            or not is_current(
                rows.get((entry.name, batch, threads), {"settings": None}), settings
            )
        ]
        if not missing:
            continue
        nw.manual_seed(0)
        try:
            model = prepared(entry.make(), entry.shape)
        except MissingModel as error:
            print(f"{entry.name}: skipped, {error}", file=sys.stderr)
            continue
        compiled = nw.compile(model)
        for batch, threads in missing:
            found = measure(compiled, entry, batch, threads, options)
            complete = complete and "failed" not in found
            row = {"model": entry.name, "batch": batch, "threads": threads, **found}
            row["settings"] = settings
            rows[key(row)] = row
            save(options.output, facts, ordered(rows, models))
    return complete


def measure(
    compiled: Any, entry: Model, batch: int, threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One row; ``failed`` with the reason if netwright itself fails or is wrong."""
    x = nw.randn(batch, *entry.shape)
    with Display(f"{label(entry.name, batch)}, {threads_text(threads)}:") as display:
        start = time.perf_counter()
        try:
            row = contest(compiled, [x], options.peers, threads, options.seconds, display.say)
        except (Failure, nw.errors.NetwrightError) as error:
            display.result = f"failed: {error}"
            return {"failed": str(error)}
        display.result = f"{verdict(row)} ({time.perf_counter() - start:.0f} s)"
        for name, found in row["peers"].items():
            if "failed" in found:
                display.result += f"; {PEERS[name].title} failed: {found['failed']}"
    return row


def ordered(
    rows: dict[tuple[Any, ...], dict[str, Any]], models: tuple[Model, ...]
) -> list[dict[str, Any]]:
    """The rows in the order of the table; those of models that it no longer has are dropped."""
    places = {m.name: i for i, m in enumerate(models)}
    kept = [row for row in rows.values() if row["model"] in places]
    return sorted(kept, key=lambda r: (r["threads"], places[r["model"]], r["batch"]))


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def save(path: Path, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes the results; a run that is killed meanwhile leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n")
    beside.replace(path)


@contextmanager
def neighbour() -> Iterator[None]:
    """Meanwhile another process keeps a CPU busy, wherever the kernel puts it."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def make_parser() -> argparse.ArgumentParser:
    """The program's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--threads", type=counts, default=[1, 2], help="default: 1,2")
    parser.add_argument("--seconds", type=float, default=6.0, help="time per row (default: 6)")
    parser.add_argument(
        "--peers", type=parse_peers, default=list(PEERS), help=f"of {','.join(PEERS)}"
    )
    parser.add_argument(
        "--neighbour", action="store_true", help="time while another process keeps one CPU busy"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/peers.json, or peers_neighbour.json"
    )
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--no-plot", action="store_true", help="no picture (no matplotlib)")
    return parser


def main() -> int:
    """Measures, draws, prints the README's table; 1 if netwright failed in a row."""
    options = make_parser().parse_args()
    if options.output is None:
        options.output = RESULTS / f"peers{'_neighbour' if options.neighbour else ''}.json"
    warnings.simplefilter("ignore", nw.LintWarning)
    with neighbour() if options.neighbour else nullcontext():
        complete = options.report or run(options)
    rows = load(options.output)
    measured = [row for row in rows if NETWRIGHT in row]
    if measured:
        if not options.no_plot:
            plot(measured, options.output.with_suffix(".png"))
        print(markdown(measured))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
