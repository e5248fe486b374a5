"""What the rules are worth that choose between two kernels: each program is compiled twice, with a
rule made to say yes and to say no, and both are timed in turns.

    python benchmarks/decisions.py                        # all rules
    python benchmarks/decisions.py updating_gemm winograd --threads 2

Prints a table: what the rule says by itself, the medians in ms, and how many times faster yes is.
Results are compared before anything is timed. Figures in comments next to the rules come from here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

import netwright as nw
from netwright import nn, optim
from netwright.codegen import (
    conv_grad_weight,
    select,
    updating_gemm,
    winograd,
    winograd_grad_weight,
)
from netwright.commands.timing import interleave
from netwright.ir.columns import aligned
from netwright.runtime import settings

sys.path.insert(0, str(Path(__file__).resolve().parent))

from layers import Layer, Shape

_HEADER = ("rule", "program", "says", "yes, ms", "no, ms", "yes is")
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Program:
    """Something to compile. ``make`` does it and returns a call that runs what was compiled."""

    text: str
    make: Callable[[], Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Rule:
    """A function of a module that says yes or no, and programs for which it is asked."""

    module: ModuleType
    function: str
    programs: tuple[Program, ...]

    @contextmanager
    def saying(self, answer: bool | None) -> Iterator[list[bool]]:
        """In the block the rule gives this answer, or its own if that is None. The value is filled
        with the answers that were given. Kernels that others made are not seen."""
        given: list[bool] = []
        own = getattr(self.module, self.function)

        def say(*args: Any, **kwargs: Any) -> bool:
            given.append(bool(own(*args, **kwargs)) if answer is None else answer)
            return given[-1]

        with patch.object(self.module, self.function, say), patch.dict(select._made, clear=True):
            yield given


def convolution(op: str, channels: int, size: int, kernel: int = 3, batch: int = 8) -> Program:
    """A convolution of stride 1, or the gradient of its weight, with as many channels on both
    sides."""
    edge = (kernel // 2, kernel // 2)
    attrs = {
        "dilation": (1, 1), "groups": 1, "layout": "NHWC", "padding": (edge, edge),
        "stride": (1, 1),
    }  # fmt: skip
    weight = (channels, channels, kernel, kernel)
    shape = Shape(op, (channels, size, size), weight, tuple(attrs.items()), False)

    def make() -> Callable[[], np.ndarray]:
        nw.manual_seed(0)
        compiled = nw.compile(Layer(shape).eval())
        inputs = [nw.randn(batch, *sizes) for sizes in shape.inputs]

        def call() -> np.ndarray:
            with nw.no_grad():
                return compiled(*inputs).numpy()

        call()
        return call

    return Program(f"{shape.text}, batch {batch}", make)


def step(features: Sequence[int], batch: int, optimizer: Callable[..., Any], name: str) -> Program:
    """A training step of an MLP."""

    def make() -> Callable[[], np.ndarray]:
        nw.manual_seed(0)
        layers = [m for a, b in pairwise(features) for m in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*layers[:-1])
        made = nw.compile(
            model, loss=nn.CrossEntropyLoss(), optimizer=optimizer(model.parameters())
        )
        x, t = nw.randn(batch, features[0]), nw.randint(0, features[-1], (batch,))
        made(x, t)

        def call() -> np.ndarray:
            return made(x, t).numpy()

        return call

    return Program(f"MLP {'-'.join(map(str, features))}, {name}, batch {batch}", make)


_SGD = partial(optim.SGD, lr=1e-3, momentum=0.9)
_ADAM = partial(optim.Adam, lr=1e-4)
RULES = {
    "updating_gemm": Rule(
        updating_gemm,
        "is_faster",
        (
            step((784, 512, 512, 10), 16, _SGD, "SGD with momentum"),
            step((784, 512, 512, 10), 64, _SGD, "SGD with momentum"),
            step((2048, 2048, 10), 64, _SGD, "SGD with momentum"),
            step((784, 512, 512, 10), 256, _SGD, "SGD with momentum"),
            step((784, 512, 512, 10), 64, _ADAM, "Adam"),
            step((2048, 2048, 10), 64, _ADAM, "Adam"),
            step((3136, 128), 64, _SGD, "SGD with momentum"),
        ),
    ),
    "winograd": Rule(
        winograd,
        "is_faster",
        tuple(
            convolution("conv2d", channels, size)
            for channels, size in ((16, 32), (64, 2), (64, 32), (256, 16))
        ),
    ),
    "winograd_grad_weight": Rule(
        winograd_grad_weight,
        "is_faster",
        tuple(
            convolution("conv2d_grad_weight", channels, size)
            for channels, size in ((32, 32), (64, 2), (64, 32), (256, 16), (512, 4))
        ),
    ),
    "stays_in_cache": Rule(
        conv_grad_weight,
        "_stays_in_cache",
        tuple(
            convolution("conv2d_grad_weight", channels, size, kernel=1)
            for channels, size in ((32, 112), (96, 28), (512, 7))
        ),
    ),
}


def measure(name: str, rule: Rule, program: Program, seconds: float) -> tuple[str, ...]:
    """A row of the table. SystemExit if the results differ by more than rounding."""
    with rule.saying(None) as given:
        program.make()
    calls = {}
    for answer, word in ((True, "yes"), (False, "no")):
        with rule.saying(answer):
            calls[word] = program.make()
    yes, no = (call() for call in calls.values())
    error = float(np.abs(yes - no).max() / np.abs(no).max())
    if not error < _TOLERANCE:
        raise SystemExit(f"{name}, {program.text}: the results differ by {error:.2g}")
    times = {word: found.median for word, found in interleave(calls, seconds).items()}
    says = "not asked" if not given else "yes" if any(given) else "no"
    ratio = times["no"] / times["yes"]
    return (name, program.text, says, *(f"{ms:.3f}" for ms in times.values()), f"{ratio:.2f}x")


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rules", nargs="*", metavar="RULE", help=f"of {', '.join(RULES)}")
    parser.add_argument("--threads", type=int, default=nw.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="per program")
    options = parser.parse_args()
    unknown = sorted(set(options.rules) - set(RULES))
    if unknown:
        parser.error(f"there is no rule {unknown[0]!r}; there are {', '.join(RULES)}")
    lines: list[tuple[str, ...]] = [_HEADER]
    with settings.threads(options.threads):
        for name in options.rules or RULES:
            for program in RULES[name].programs:
                lines.append(measure(name, RULES[name], program, options.seconds))
    print(aligned(lines, right=range(3, len(_HEADER))))


if __name__ == "__main__":
    main()
