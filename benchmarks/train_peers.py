"""Compiled training steps beside PyTorch, torch.compile and JAX.

    python benchmarks/train_peers.py                            # all rows, 2 threads
    python benchmarks/train_peers.py --rows MLP --peers torch,jax
    python benchmarks/train_peers.py --peers torch,jax          # without torch.compile's compiling
    python benchmarks/train_peers.py --report                   # table and picture of what is there

A step is forward, loss, backward, BatchNorm statistics and update. Every framework starts from the
same weights and gets the same batches; before anything is timed, the loss, the gradients, the new
weights and the running statistics of the first step are compared with a float64 reference. Writes
results/train_peers.json after every row, and results/train_peers.png at the end. A run that was
interrupted goes on where it stopped (--fresh measures everything again).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netwright as nw
from netwright.commands.peers.contest import NETWRIGHT, Say, compete
from netwright.commands.peers.peer import Peer, Ready
from netwright.commands.peers.train_contest import prepare_compiled_step
from netwright.commands.peers.training import Recipe, without_dropout
from netwright.commands.text import counts
from netwright.ir.report import flops

sys.path.insert(0, str(Path(__file__).resolve().parent))

from environment import environment
from peers_report import geometric_mean, markdown, peak_share, plot
from rows import Rows, label, load, measure_row
from training import Ours, Source, Start, Task, judge_of, start_of, training_of

RESULTS = Path(__file__).resolve().parent / "results"
MEAN_TARGET, LEAST_TARGET = 2.0, 1.2
"""Over all rows: the geometric mean of the ratios to the fastest peer, and the least of them."""

PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", "PyTorch", "torch", "train_pytorch:prepare_eager"),
        Peer("compile", "torch.compile", "torch", "train_pytorch:prepare_compiled"),
        Peer("jax", "JAX", "jax", "train_jax:prepare"),
    )
}

SGD = Recipe("SGD", "SGD", {"lr": 0.1})
MOMENTUM = Recipe("SGD with momentum", "SGD", {"lr": 0.01, "momentum": 0.9})
ADAM = Recipe("Adam", "Adam", {"lr": 1e-3})
ADAMW = Recipe("AdamW", "AdamW", {"lr": 1e-3})


def vit_tiny(source: Source) -> Any:
    """12 layers of 192 features with 3 heads on patches of 16 x 16. The last linear layer does not
    start with zeros, which would let no gradient through in the step that is compared."""
    model = source.zoo().VisionTransformer(224, 16, 12, 3, 192, 768)
    model.heads.head = type(model.heads.head)(192, 1000)
    return model


def _tasks() -> tuple[Task, ...]:
    no_dropout = "dropout 0: frameworks draw different numbers"
    rows: list[tuple[Any, ...]] = [
        (
            "MLP 784-392-196-10, BatchNorm",
            lambda s: s.example("mlp_batchnorm").MLPBatchNorm(),
            ((1, 28, 28), 256, (MOMENTUM, ADAM), 2.0),
            {"jax": "mlp_batchnorm"},
        ),
        (
            "MLP 784-512-512-10",
            lambda s: s.example("mlp").MLP(),
            ((1, 28, 28), 64, (SGD, ADAM), 2.0),
            {"jax": "mlp"},
        ),
        (
            "CNN, BatchNorm",
            lambda s: without_dropout(s.example("cnn").CNN()),
            ((1, 28, 28), 64, (SGD, ADAM), 4.0),
            {"jax": "cnn", "note": no_dropout},
        ),
        (
            "ResNet-18, 32x32",
            lambda s: s.example("resnet18").ResNet18(),
            ((3, 32, 32), 32, (MOMENTUM, ADAM), 1.5),
            {},
        ),
        (
            "mobilenet_v2, 224x224",
            lambda s: s.zoo().mobilenet_v2(dropout=0.0),
            ((3, 224, 224), 8, (ADAMW,), 1.3),
            {"classes": 1000, "note": no_dropout},
        ),
        ("ViT-tiny, 224x224", vit_tiny, ((3, 224, 224), 8, (ADAMW,), 1.3), {"classes": 1000}),
    ]
    return tuple(
        Task(model, build, shape, batch, recipe, target, **more)
        for model, build, (shape, batch, recipes, target), more in rows
        for recipe in recipes
    )


TASKS = _tasks()


def prepare_netwright(task: Task, start: Start) -> tuple[Ready, Any]:
    """One native call per step; the compiled step itself, too."""
    return prepare_compiled_step(training_of(nw, Ours(), task, start))


def train_contest(
    task: Task, peers: list[str], threads: int, seconds: float, say: Say
) -> dict[str, Any]:
    """One row: every framework's first step is judged, then steps are timed."""
    start = start_of(task)
    say(0, len(peers) + 3, "reference")
    judge = judge_of(task, start)
    made: list[Any] = []

    def ours() -> Ready:
        ready, compiled = prepare_netwright(task, start)
        made.append(compiled)
        return ready

    contenders: dict[str, Callable[[], Ready]] = {NETWRIGHT: ours}
    for name in peers:
        if PEERS[name].version() is not None and (name != "jax" or task.jax is not None):
            contenders[name] = _peer(name, task, start, threads)
    found = compete(contenders, judge, threads, seconds, say, PEERS)
    return {
        "threads": threads,
        "gflop": flops(made[0].graph(), task.batch) / 1e9,
        "reference": judge.origin,
        "yardstick": judge.yardstick,
        "fallbacks": made[0].fallbacks,
        "target": task.target,
        "note": task.note,
        **found,
    }


def _peer(name: str, task: Task, start: Start, threads: int) -> Callable[[], Ready]:
    module, _, function = PEERS[name].place.partition(":")

    def prepare() -> Ready:
        found: Ready = getattr(importlib.import_module(module), function)(task, start, threads)
        return found

    return prepare


def run(options: argparse.Namespace, tasks: tuple[Task, ...] = TASKS) -> bool:
    """Measures what is missing and writes it down; whether every row could be measured."""
    versions = {p.distribution: p.version() for p in PEERS.values() if p.version() is not None}
    facts = {**environment(), "peers": versions}
    settings = {
        "seconds": options.seconds,
        "peers": options.peers,
        "commit": facts["commit"],
        "cpu": facts["cpu"],
    }
    rows = Rows(options.output, facts, settings, [task.name for task in tasks])
    complete = True
    for task in tasks:
        name = label(task.name, task.batch)
        if options.rows.lower() not in name.lower():
            continue
        for threads in options.threads:
            if not options.fresh and not rows.is_missing(task.name, task.batch, threads):
                continue
            found = measure_row(name, threads, _row(task, threads, options), PEERS)
            complete = complete and "failed" not in found
            rows.add(task.name, task.batch, threads, found)
            time.sleep(options.pause)
    return complete


def _row(task: Task, threads: int, options: argparse.Namespace) -> Callable[[Say], dict[str, Any]]:
    return lambda say: train_contest(task, options.peers, threads, options.seconds, say)


def summary(rows: list[dict[str, Any]]) -> str:
    """Which targets are reached: per row, in the geometric mean, at least."""
    lines = []
    judged = [row for row in rows if row["ratio"] is not None]
    for row in judged:
        lines.append(
            _target(label(row["model"], row["batch"]), row["ratio"], row["target"])
            + (_limit(row) if row["ratio"] < row["target"] else "")
            + (f" ({row['note']})" if row["note"] else "")
        )
    if judged:
        ratios = [row["ratio"] for row in judged]
        lines.append(_target("geometric mean", geometric_mean(ratios), MEAN_TARGET))
        lines.append(_target("least", min(ratios), LEAST_TARGET))
    return "\n".join(lines)


def _target(what: str, ratio: float, target: float) -> str:
    mark = "reached" if ratio >= target else "MISSED"
    return f"- {what}: {ratio:.2f}x of the fastest peer, target {target:g}x {mark}"


def _limit(row: dict[str, Any]) -> str:
    """What the ratio of a row would be if the step were nothing but its products and convolutions,
    by the direct algorithm and at the FMA peak."""
    return f"; its products alone, at the FMA peak, {row['ratio'] / peak_share(row):.2f}x"


def parse_peers(text: str) -> list[str]:
    """Reads ``torch,jax``; ArgumentTypeError for an unknown name."""
    unknown = sorted(set(text.split(",")) - set(PEERS))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown peer {', '.join(map(repr, unknown))}; the peers are {', '.join(PEERS)}"
        )
    return text.split(",")


def make_parser() -> argparse.ArgumentParser:
    """The program's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--threads", type=counts, default=[2], help="default: 2")
    parser.add_argument("--seconds", type=float, default=10.0, help="time per row (default: 10)")
    parser.add_argument(
        "--peers", type=parse_peers, default=list(PEERS), help=f"of {','.join(PEERS)}"
    )
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of rest between rows")
    parser.add_argument("--output", type=Path, default=RESULTS / "train_peers.json")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--no-plot", action="store_true", help="no picture (no matplotlib)")
    return parser


def main() -> int:
    """Measures, draws, prints the table and the targets; 1 if netwright failed in a row."""
    options = make_parser().parse_args()
    warnings.simplefilter("ignore", nw.LintWarning)
    complete = options.report or run(options)
    shown = [row for row in load(options.output) if NETWRIGHT in row]
    if shown:
        if not options.no_plot:
            plot(shown, options.output.with_suffix(".png"), PEERS)
        print(markdown(shown, PEERS))
        print()
        print(summary(shown))
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
