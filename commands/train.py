"""``netwright train``: trains a user's model with a compiled step."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import model_file
from .failure import Failure, Misuse, user_code
from .training import checkpoint, data, history, settings
from .training.interruption import watched
from .training.team import Alone, join

if TYPE_CHECKING:
    from .training.loop import Training


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "train",
        help="train a model, with checkpoints, a history and curves",
        description="Trains a model with a compiled step. After each epoch and on CTRL-C it writes "
        "a checkpoint, from which --resume continues bit for bit.",
    )
    model_file.add_argument(parser)
    settings.add_arguments(parser)
    parser.add_argument("--threads", type=_threads, help="threads per step (all CPUs)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the results go (runs/MODEL)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run whose checkpoint is in DIR"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes that mpirun has started; --batch-size is that of each",
    )
    parser.add_argument("--json", action="store_true", help="print the history as JSON")
    parser.set_defaults(run=run)


def _threads(text: str) -> int:
    from ..runtime.settings import MAX_THREADS

    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MAX_THREADS):
        raise argparse.ArgumentTypeError(
            f"expected a number of threads from 1 to {MAX_THREADS}; got {text!r}"
        )
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Trains and prints."""
    from ..runtime.settings import set_num_threads

    if options.threads is not None:
        set_num_threads(options.threads)
    team = join(options.distributed)
    with team.failing_together():
        return train(options, team)


def train(options: argparse.Namespace, team: Alone) -> int:
    """Trains and, on rank 0, prints; returns the exit code."""
    name = options.model.rpartition(":")[2]
    folder = options.out or Path("runs", name)
    training = prepare(options, folder, team)
    with watched() as interruption:
        finished = training.run(interruption)
    signal = 0 if finished else team.largest(interruption.signal)
    if not finished:
        if not team.rank:
            distributed = " --distributed" if options.distributed else ""
            print(
                f"{folder / checkpoint.CHECKPOINT} is written; to continue: "
                f"netwright train {options.model} --out {folder}{distributed} --resume"
            )
        return 128 + signal
    if not team.rank:
        problem = history.draw(folder, name, training.epochs, np.array(training.losses))
        print(report(training, options.json, problem))
    return 0


def prepare(options: argparse.Namespace, folder: Path, team: Alone) -> Training:
    """The run that the options ask for, new or resumed."""
    from .training.loop import Training

    saved = checkpoint.load(folder) if options.resume else None
    if saved is None:
        if (folder / checkpoint.CHECKPOINT).exists():
            raise Misuse(
                f"{folder} has a checkpoint already: --resume continues its run, another --out "
                "starts a new one"
            )
        wanted = settings.chosen(options)
    else:
        wanted = settings.resumed(options, saved["settings"])
    checkpoint.seed(wanted.seed)
    model, file = model_file.load_model(options.model, wanted.seed)
    found = data.load(wanted.data, wanted.augment)
    if wanted.loss is None:
        with user_code("reading the data", found.file or file):
            kind = "CrossEntropyLoss" if data.is_classification(found) else "MSELoss"
        wanted = replace(wanted, loss=kind)
    training = Training(model, found, wanted, folder, file, team, saved)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"--out {folder} cannot be made: {error.strerror}") from error
    return training


def report(training: Training, as_json: bool, problem: str | None) -> str:
    """The results, and where they are."""
    if as_json:
        found = {
            "settings": training.settings.as_json(),
            "folder": str(training.folder),
            "epochs": [asdict(epoch) for epoch in training.epochs],
            "curves": problem,
        }
        return json.dumps(found, indent=1)
    last = training.epochs[-1]
    files = [checkpoint.CHECKPOINT, history.HISTORY, *([] if problem else [history.CURVES])]
    return "\n".join(
        [
            f"{last.epoch} epochs: {last.line()}",
            f"{training.folder}: {', '.join(files)}",
            *([problem] if problem else []),
        ]
    )
