"""``netwright demo``: trains a CNN on the shipped digits, times it, and shows a fused block."""

from __future__ import annotations

import argparse
import copy
import json
import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ir.columns import aligned
from . import timing
from .failure import Misuse, require_compiler
from .progress import Progress

if TYPE_CHECKING:
    from ..frontend.data import Dataset
    from ..frontend.nn.module import Module
    from ..frontend.tensor import Tensor

BATCH = 64
"""Of the comparison of times."""
_TRAINING_BATCH = 32
_LEARNING_RATE = 2e-3
_TEST_BATCH = 250
_MAX_EPOCHS = 1000


def add(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "demo",
        help="train a CNN on handwritten digits and compare compiled with eager",
        description="Trains a convolutional network with a compiled step on the 4,000 training "
        "digits that come with the package, tests it on the other 1,000, times compiled against "
        "eager execution, and prints the IR of one block before and after optimisation.",
    )
    parser.add_argument("--epochs", type=_epochs, default=10, help="passes over the digits (10)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and dropout (0)")
    timing.add_argument(parser, 4.0)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run)


def _epochs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_EPOCHS:
        raise argparse.ArgumentTypeError(
            f"expected a number of epochs from 1 to {_MAX_EPOCHS}; got {text!r}"
        )
    return int(text)


def make_model() -> Module:
    """Convolution, BatchNorm, ReLU, pooling; then two linear layers with dropout."""
    from ..frontend import nn

    class CNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(1, 16, 5, padding=2, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            self.classifier = nn.Sequential(
                nn.Linear(16 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)
            )

        def forward(self, x: Tensor) -> Any:
            x = self.features(x)
            return self.classifier(x.view(x.size(0), -1))

    return CNN()


def run(options: argparse.Namespace) -> int:
    """Trains, times and prints."""
    from ..frontend import manual_seed

    if not -(2**63) <= options.seed < 2**64:
        raise Misuse(f"--seed {options.seed}: expected a number that fits 64 bits")
    require_compiler()
    manual_seed(options.seed)
    model = make_model()
    trained = train(model, options.epochs)
    if not options.json:
        print(
            f"test accuracy {trained['accuracy']:.1%} after {options.epochs} epochs "
            "(each has every digit twice), "
            f"{trained['training_seconds']:.1f} s of training with a compiled step "
            f"(first step {trained['first_step_ms']:.0f} ms)\n",
            flush=True,
        )
    times = compare(model, options.seconds)
    before, after, explanation = block_ir()
    if options.json:
        result = {
            **trained,
            "epochs": options.epochs,
            "seed": options.seed,
            "batch": BATCH,
            "inference": times["inference"].as_json(),
            "training": times["training"].as_json(),
            "ir": {"before": before, "after": after},
        }
        print(json.dumps(result, indent=1))
        return 0
    print(times_table(times))
    print(f"\nOne block as it was traced:\n\n{before}\n\nand optimised:\n\n{after}\n")
    for line in explanation.splitlines():
        if " done " in line:
            print(re.sub(r" \[[^]]*\]$", "", line))
    return 0


def training_digits() -> Dataset[Any]:
    """Each of the 4,000 training digits twice, shifted anew whenever it is drawn."""
    from ..frontend.data import ConcatDataset
    from ..frontend.vision.datasets import MNIST

    return ConcatDataset([MNIST(train=True, transform=_shifted) for _ in range(2)])


def _shifted(pixels: np.ndarray) -> Tensor:
    """A digit (28, 28), moved by up to one pixel in each direction, as an image (1, 28, 28)."""
    from ..frontend.functions import randint
    from ..frontend.vision.transforms import ToTensor

    move = randint(-1, 2, (2,)).tolist()
    return ToTensor()(np.roll(pixels, move, axis=(0, 1)))


def train(model: Module, epochs: int) -> dict[str, Any]:
    """Adam with a cosine schedule; mean loss of each epoch, test accuracy, time, fallbacks.

    Shifts and label smoothing are what so few digits need: without them this network stays at 95 %,
    in PyTorch, too.
    """
    from ..bridge.compile import compile as compile_model
    from ..frontend import nn, optim
    from ..frontend.data import DataLoader

    loader = DataLoader(training_digits(), batch_size=_TRAINING_BATCH, shuffle=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    step = compile_model(model.train(), loss=criterion, optimizer=optimizer)
    losses = []
    start = time.perf_counter()
    first_step = 0.0
    for epoch in range(epochs):
        bar = Progress(f"epoch {epoch + 1}/{epochs}", len(loader))
        total = 0.0
        for i, (x, y) in enumerate(loader):
            loss = step(x, y).item()
            total += loss
            first_step = first_step or time.perf_counter() - start
            bar.update(i + 1, f"loss {loss:.4f}")
        losses.append(total / len(loader))
        bar.done(f"mean loss {losses[-1]:.4f}")
        schedule.step()
    return {
        "training_seconds": time.perf_counter() - start,
        "first_step_ms": first_step * 1e3,
        "losses": losses,
        "accuracy": accuracy(step.predict),
        "fallbacks": step.fallbacks,
    }


def accuracy(predict: Any) -> float:
    """Share of the 1,000 test digits that are classified correctly."""
    from ..frontend import vision
    from ..frontend.data import DataLoader, TensorDataset

    test = TensorDataset(*vision.datasets.MNIST(train=False).tensors())
    correct = 0
    for x, y in DataLoader(test, batch_size=_TEST_BATCH):
        correct += int((predict(x).argmax(1) == y).sum().item())
    return correct / len(test)


def compare(model: Module, seconds: float) -> dict[str, Any]:
    """Comparisons by mode, on a batch of digits."""
    from ..bridge.compile import compile as compile_model
    from ..frontend import nn, optim, vision
    from .compare import compare_inference, compare_training

    images, labels = vision.datasets.MNIST(train=True).tensors()
    x, y = images[:BATCH].contiguous(), labels[:BATCH].contiguous()
    eager_model, compiled_model = (copy.deepcopy(model).train() for _ in range(2))
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.Adam(eager_model.parameters(), lr=_LEARNING_RATE)
    step = compile_model(
        compiled_model,
        loss=criterion,
        optimizer=optim.Adam(compiled_model.parameters(), lr=_LEARNING_RATE),
    )

    def eager() -> Any:
        optimizer.zero_grad()
        loss = criterion(eager_model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return {
        "inference": compare_inference(model, compile_model(model.eval()), [x], seconds),
        "training": compare_training(eager, step, [x, y], seconds),
    }


def times_table(times: dict[str, Any]) -> str:
    """Medians and speed-ups."""
    rows = [(f"batch {BATCH}", "eager (numpy)", "compiled", "speed-up")]
    for mode, found in times.items():
        rows.append(
            (
                mode if mode == "inference" else "training step",
                f"{found.eager.median:.3f} ms",
                f"{found.compiled.median:.3f} ms",
                f"{found.speedup:.1f}x",
            )
        )
    return aligned(rows, right=(1, 2, 3))


def block_ir() -> tuple[str, str, str]:
    """Convolution + BatchNorm + ReLU for inference: the traced graph, the optimised, the ledger."""
    from ..bridge.compile import compile as compile_model
    from ..frontend import nn
    from ..frontend.functions import zeros
    from ..frontend.grad_mode import no_grad

    block = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    )
    compiled = compile_model(block.eval())
    with no_grad():
        compiled(zeros(1, 16, 14, 14))
    before, after = (_without_sources(str(compiled.graph(s))) for s in ("traced", "optimized"))
    return before, after, compiled.explain()


def _without_sources(text: str) -> str:
    """IR without ``@ "module" "file":line``: the block is not in the user's file."""
    return re.sub(r' @ "[^"]*"( "[^"]*":\d+)?', "", text)
