"""The settings of a training run: options of the command line, kept in its checkpoint."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..failure import Misuse
from ..losses import LOSSES

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "linear", "step", "none")
_MAX_COUNT = 10**9
_DEFAULTS: dict[str, Any] = {
    "data": "mnist",
    "augment": False,
    "epochs": 10,
    "batch_size": 64,
    "drop_last": False,
    "accumulate": 1,
    "clip_grad_norm": None,
    "clip_grad_value": None,
    "optimizer": "adam",
    "schedule": "cosine",
    "warmup": 0.0,
    "loss": None,
    "label_smoothing": 0.0,
    "seed": 0,
}
_DEFAULTS_OF_OPTIMIZER = {
    "sgd": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
    "adam": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.01},
}
# Schedules that do not look at the end of the training: only these can be prolonged.
_ENDLESS = ("step", "none")


@dataclass(frozen=True)
class Settings:
    """Everything that determines the weights, besides model, data and netwright itself.

    accumulate: batches per update. clip_grad_norm, clip_grad_value: None for no limit. warmup,
    step_size: in epochs. loss: None until the data has told.
    """

    data: str
    augment: bool
    epochs: int
    batch_size: int
    drop_last: bool
    accumulate: int
    clip_grad_norm: float | None
    clip_grad_value: float | None
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup: float
    step_size: int
    gamma: float
    loss: str | None
    label_smoothing: float
    seed: int

    def as_json(self) -> dict[str, Any]:
        """By the options' names."""
        return asdict(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options. Their defaults are None, so that ``resumed`` sees which were given."""
    add = parser.add_argument
    add(
        "--data",
        metavar="DATA",
        help="mnist (the digits that come with netwright), FILE.npz with x_train, y_train, x_test "
        "and y_test, or FILE.py:function, which returns a training and a test data set (mnist)",
    )
    add(
        "--augment",
        action="store_const",
        const=True,
        help="turn, scale and move each training digit a little whenever it is drawn",
    )
    add("--epochs", type=_count(1), help="passes over the training data (10)")
    add("--batch-size", type=_count(1), help="samples per step (64)")
    add(
        "--drop-last",
        action="store_const",
        const=True,
        help="leave out a last batch that is smaller",
    )
    add(
        "--accumulate",
        type=_count(1),
        metavar="K",
        help="batches per update, which takes the gradient of the mean of their losses (1)",
    )
    add(
        "--clip-grad-norm",
        type=_number(above=0),
        metavar="X",
        help="scale the gradients of an update down to this norm over all parameters (no limit)",
    )
    add(
        "--clip-grad-value",
        type=_number(above=0),
        metavar="X",
        help="limit each element of the gradients of an update to [-X, X] (no limit)",
    )
    add("--optimizer", choices=OPTIMIZERS, help="sgd, adam or adamw (adam)")
    add("--lr", type=_number(above=0), help="learning rate (sgd 0.05, adam and adamw 0.001)")
    add("--momentum", type=_number(0, 1), help="of sgd (0.9)")
    add("--weight-decay", type=_number(0), help="(sgd and adam 0, adamw 0.01)")
    add(
        "--schedule",
        choices=SCHEDULES,
        help="the learning rate falls to 0 along a cosine or a line, by --gamma every --step-size "
        "epochs, or not (cosine)",
    )
    add("--warmup", type=_number(0), help="epochs in which the rate climbs to --lr (0)")
    add("--step-size", type=_count(1), help="with --schedule step (a third of the epochs)")
    add("--gamma", type=_number(above=0), help="with --schedule step (0.1)")
    add(
        "--loss",
        choices=LOSSES,
        metavar="LOSS",
        help=f"one of {', '.join(LOSSES)} (CrossEntropyLoss for integer targets, else MSELoss)",
    )
    add("--label-smoothing", type=_number(0, 1), help="of CrossEntropyLoss (0)")
    add("--seed", type=_seed, help="of weights, order, augmentation and dropout (0)")


def chosen(options: argparse.Namespace) -> Settings:
    """The settings of a new run. Misuse for options that do not go together."""
    given = _given(options)
    found = {**_DEFAULTS, **given}
    of_optimizer = _DEFAULTS_OF_OPTIMIZER[found["optimizer"]]
    found = {**of_optimizer, **found}
    if found["optimizer"] != "sgd" and "momentum" in given:
        raise Misuse(f"--momentum goes with --optimizer sgd, not with {found['optimizer']}")
    if found["schedule"] != "step":
        for name in ("step_size", "gamma"):
            if name in given:
                raise Misuse(
                    f"{_option(name)} goes with --schedule step, not with {found['schedule']}"
                )
    found.setdefault("step_size", math.ceil(found["epochs"] / 3))
    found.setdefault("gamma", 0.1)
    if found["warmup"] >= found["epochs"]:
        raise Misuse(
            f"--warmup {found['warmup']:g} has to be shorter than --epochs {found['epochs']}"
        )
    if found["augment"] and found["data"] != "mnist":
        raise Misuse(
            "--augment is for --data mnist; a data set of yours augments in its __getitem__: "
            "--data FILE.py:function"
        )
    return Settings(**found)


def resumed(options: argparse.Namespace, saved: dict[str, Any]) -> Settings:
    """The settings of a run that is continued; options may be repeated, not changed.

    Only ``--epochs`` may, where the learning rate does not depend on it.
    """
    for name, value in _given(options).items():
        if value == saved[name]:
            continue
        if name != "epochs":
            raise Misuse(
                f"{_option(name)} {value}: the run to resume has {saved[name]}; leave the option "
                "out, or start a new run with another --out"
            )
        if saved["schedule"] not in _ENDLESS:
            raise Misuse(
                f"--epochs {value}: the {saved['schedule']} schedule of the run to resume ends "
                f"after {saved['epochs']}; leave the option out, or start a new run with another "
                "--out"
            )
    return Settings(**{**saved, **_given(options)})


def _given(options: argparse.Namespace) -> dict[str, Any]:
    names = Settings.__dataclass_fields__
    return {n: v for n, v in vars(options).items() if n in names and v is not None}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _count(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= _MAX_COUNT):
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {_MAX_COUNT}; got {text!r}"
            )
        return int(text)

    return read


def _number(
    least: float = -math.inf, below: float = math.inf, above: float = -math.inf
) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value < below and value > above):
            low = f"above {above:g}" if above > least else f"of at least {least:g}"
            high = "" if below == math.inf else f" and below {below:g}"
            raise argparse.ArgumentTypeError(f"expected a number {low}{high}; got {text!r}")
        return value

    return read


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least 0 that fits 63 bits; got {text!r}"
        )
    return value
