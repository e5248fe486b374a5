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
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netwright as nw
from netwright import nn
from netwright.commands.peers.command import parse_peers
from netwright.commands.peers.contest import NETWRIGHT, Say, contest
from netwright.commands.peers.peer import PEERS, versions
from netwright.commands.text import counts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cnn import CNN
from environment import environment
from mlp_batchnorm import MLPBatchNorm
from peers_report import markdown, plot
from resnet18 import ResNet18
from rows import Rows, label, load, measure_row

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


def wanted(models: tuple[Model, ...], text: str) -> Iterator[tuple[Model, list[int]]]:
    """Models and batch sizes whose ``name, batch`` contains a text, in any case."""
    for model in models:
        batches = [b for b in model.batches if text.lower() in label(model.name, b).lower()]
        if batches:
            yield model, batches


def run(options: argparse.Namespace, models: tuple[Model, ...] = MODELS) -> bool:
    """Measures what is missing and writes it down; whether every row could be measured."""
    facts = {**environment(), "peers": versions()}
    settings = {
        "seconds": options.seconds,
        "peers": options.peers,
        "commit": facts["commit"],
        "cpu": facts["cpu"],
        "neighbour": options.neighbour,
    }
    rows = Rows(options.output, facts, settings, [m.name for m in models])
    complete = True
    for entry, batches in wanted(models, options.rows):
        missing = [
            (batch, threads)
            for batch in batches
            for threads in options.threads
            if options.fresh or rows.is_missing(entry.name, batch, threads)
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
            rows.add(entry.name, batch, threads, found)
    return complete


def measure(
    compiled: Any, entry: Model, batch: int, threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One row."""
    x = nw.randn(batch, *entry.shape)

    def go(say: Say) -> dict[str, Any]:
        return contest(compiled, [x], options.peers, threads, options.seconds, say)

    return measure_row(label(entry.name, batch), threads, go)


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
    shown = [row for row in rows if NETWRIGHT in row]
    if shown:
        if not options.no_plot:
            plot(shown, options.output.with_suffix(".png"))
        print(markdown(shown))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
