"""Gradients of every network of the zoo in its published size, beside PyTorch's and float64's.

    python benchmarks/zoo_gradients.py                      # what is missing; table at the end
    python benchmarks/zoo_gradients.py --rows resnet --seeds 3
    python benchmarks/zoo_gradients.py --large              # vit_l_16, vit_l_32, vit_h_14, too
    python benchmarks/zoo_gradients.py --report

Not a timing. For several seeds (weights, images and labels) one compiled backward pass in training
mode, without dropout, and PyTorch's in float32 are compared with PyTorch's in float64. The error of
a parameter is the norm of the difference, of the norm of its gradient.

Where the input of a ReLU is so close to 0, or two inputs of a max pooling so close to each other,
that rounding decides, a share of a gradient comes or goes: a thousand times more than rounding is,
in one library and not in the other, as luck has it. So each network has two rows: as published,
which is written down and not judged, and ``smooth``, with SiLU, Sigmoid and average pooling in
place of what has corners. That one says what the kernels' rounding is: errors may be twice
PyTorch's there.

Besides: the bits with 1 and with 2 threads and in a second run, of the gradients and of whole steps
with the published dropout; every step's loss is finite. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import netwright as nw
from netwright.commands.peers.judge import SMALL, TINY
from netwright.ir.columns import aligned
from netwright.vision import models

sys.path.insert(0, str(Path(__file__).resolve().parent))

from environment import environment
from rows import Row, Rows, load
from train_pytorch import Theirs

RESULTS = Path(__file__).resolve().parent / "results"
TIMES, FLOOR = 2.0, 8 * float(np.finfo(np.float32).eps)
"""Errors may be so many times PyTorch's, and a few roundings."""
MEASURES = ("median", "rms", "worst", "together")
"""Over the parameters: median, root mean square and largest error; all gradients as one vector."""
THREADS = 2

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Net:
    """A function of ``vision.models``; the size of its images and the batch.

    large: more memory than everybody has (for float64, up to 12 GB); only on demand.
    """

    name: str
    size: int = 224
    batch: int = 2
    large: bool = False
    options: Mapping[str, Any] | None = None

    def build(self, package: Any) -> Any:
        """The network of a package of models, netwright's or PyTorch's."""
        return getattr(package, self.name)(**self.options or {})


NETS = (
    *map(Net, ("alexnet", "squeezenet1_1", "vgg11", "vgg11_bn", "vgg16", "vgg16_bn")),
    *map(Net, ("resnet18", "resnet34", "resnet50", "densenet121", "mobilenet_v2")),
    *map(Net, ("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0")),
    # Its second classifier normalises one pixel per sample: of two samples, nothing is left of it.
    Net("inception_v3", size=299, batch=4),
    *map(Net, ("vit_b_16", "vit_b_32")),
    *(Net(name, batch=1, large=True) for name in ("vit_l_16", "vit_l_32", "vit_h_14")),
)


def loss_of(output: Any, target: Any) -> Any:
    """Cross-entropy; of Inception's second classifier, too, as its authors weigh it."""
    library: Any = torch if isinstance(target, torch.Tensor) else nw
    if isinstance(output, tuple):
        cross_entropy = library.nn.functional.cross_entropy
        return cross_entropy(output[0], target) + 0.4 * cross_entropy(output[1], target)
    return library.nn.functional.cross_entropy(output, target)


# -- the networks ---------------------------------------------------------------------------------


def without_chance(model: Any) -> Any:
    """The model with nothing dropped."""
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    return model


def smoothed(model: Any, nn: Any) -> Any:
    """The model with smooth modules in place of those with corners."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            kind = type(child).__name__
            if kind in ("ReLU", "ReLU6", "Hardswish"):
                setattr(module, name, nn.SiLU())
            elif kind == "Hardsigmoid":
                setattr(module, name, nn.Sigmoid())
            elif kind == "MaxPool2d":
                window = (child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(module, name, nn.AvgPool2d(*window))
    return model


@contextmanager
def smooth_functions(packages: Iterable[Any], wanted: bool) -> Iterator[None]:
    """Meanwhile the functions that the models of the packages call (not as modules) are smooth,
    too, if ``wanted``."""
    before = []
    for package in packages if wanted else ():
        for module in (package.inception_blocks, package.densenet):
            F = module.F
            before.append((module, F))
            module.F = SimpleNamespace(
                relu=lambda x, inplace, F=F: F.silu(x),
                max_pool2d=lambda x, kernel_size, stride, F=F: F.avg_pool2d(x, kernel_size, stride),
                avg_pool2d=F.avg_pool2d,
                adaptive_avg_pool2d=F.adaptive_avg_pool2d,
            )
    try:
        yield
    finally:
        for module, F in before:
            module.F = F


@dataclass(frozen=True)
class Case:
    """Where all start: weights and buffers, images, labels."""

    state: Arrays
    x: np.ndarray
    labels: np.ndarray


def case_of(net: Net, seed: int) -> Case:
    """The same in every run."""
    nw.manual_seed(seed)
    state = {k: v.numpy() for k, v in net.build(models).state_dict().items()}
    rng = np.random.default_rng(seed)
    head = state.get("heads.head.weight")
    if head is not None:  # zeros in a new ViT, which would let no gradient through
        head[...] = rng.standard_normal(head.shape) / np.sqrt(head.shape[1])
    x = rng.standard_normal((net.batch, 3, net.size, net.size), np.float32)
    return Case(state, x, rng.integers(0, 1000, net.batch))


# -- gradients ------------------------------------------------------------------------------------


class Ours:
    """The compiled backward pass of one network, for any case."""

    def __init__(self, net: Net, smooth: bool) -> None:
        model = without_chance(net.build(models))
        self.model = smoothed(model, nw.nn) if smooth else model
        optimizer = nw.optim.SGD(self.model.parameters(), lr=0.01)
        self.step = nw.compile(self.model, loss=loss_of, optimizer=optimizer)

    def __call__(self, case: Case, threads: int) -> tuple[float, Arrays]:
        """Loss and gradients."""
        _load(self.model, case)
        nw.set_num_threads(threads)
        try:
            loss = self.step.gradients(case.x, case.labels).item()
        finally:
            nw.set_num_threads(None)
        found = {name: array.copy() for name, array in self.step.grads.items()}
        self.step.zero_grad()
        return loss, found


def torchs(net: Net, case: Case, smooth: bool, wide: bool) -> tuple[float, Arrays]:
    """PyTorch's loss and gradients, in float64 if ``wide``."""
    with torch.device("meta"):  # its weights come from the case
        model = without_chance(net.build(Theirs().zoo()))
    model = smoothed(model, torch.nn) if smooth else model
    state = {key: torch.from_numpy(value.copy()) for key, value in case.state.items()}
    model.load_state_dict(state, assign=True)
    x = torch.from_numpy(case.x)
    if wide:
        model, x = model.double(), x.double()
    loss = loss_of(model.train()(x), torch.from_numpy(case.labels))
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in model.named_parameters()}


def _load(model: Any, case: Case) -> None:
    model.load_state_dict({key: nw.from_numpy(value) for key, value in case.state.items()})


def errors(found: Arrays, exact: Arrays) -> dict[str, float]:
    """By measure. A gradient that is 0 but for rounding, as that of a bias in front of BatchNorm,
    is measured by a share of the root mean square of all in place of its own size."""
    total = sum(float((g**2).sum()) for g in exact.values())
    mean = (total / sum(g.size for g in exact.values())) ** 0.5
    gaps = {name: float(np.linalg.norm(found[name] - g)) for name, g in exact.items()}
    shares = [
        gaps[name] / max(float(np.linalg.norm(g)), SMALL * mean * g.size**0.5, TINY)
        for name, g in exact.items()
    ]
    return {
        "median": statistics.median(shares),
        "rms": float(np.sqrt(np.mean(np.square(shares)))),
        "worst": max(shares),
        "together": float(np.sqrt(sum(g**2 for g in gaps.values()) / max(total, TINY))),
    }


# -- rows -----------------------------------------------------------------------------------------


def gradient_row(net: Net, smooth: bool, seeds: int) -> Row:
    """Errors by seed and their medians; whether bits were the same with any number of threads."""
    ours, per_seed, same, finite = Ours(net, smooth), [], True, True
    for seed in range(seeds):
        case = case_of(net, seed)
        loss, found = ours(case, 1)
        for threads in (THREADS, THREADS):
            again, other = ours(case, threads)
            same = (
                same
                and again == loss
                and all(found[k].tobytes() == other[k].tobytes() for k in found)
            )
            del other
        finite = finite and all(bool(np.isfinite(g).all()) for g in found.values())
        narrow_loss, narrow = torchs(net, case, smooth, wide=False)
        exact_loss, exact = torchs(net, case, smooth, wide=True)
        per_seed.append(
            {
                "netwright": errors(found, exact),
                "torch": errors(narrow, exact),
                "loss_errors": [loss - exact_loss, narrow_loss - exact_loss],
            }
        )
        del found, narrow, exact
        gc.collect()
    medians = {
        who: {m: statistics.median(seed[who][m] for seed in per_seed) for m in MEASURES}
        for who in ("netwright", "torch")
    }
    return {
        "smooth": smooth,
        "parameters": sum(p.numel() for p in ours.model.parameters()),
        "fallbacks": ours.step.fallbacks,
        "same_bits": same,
        "finite": finite,
        "errors": medians,
        "ratios": {m: medians["netwright"][m] / medians["torch"][m] for m in MEASURES},
        "seeds": per_seed,
    }


def step_row(net: Net) -> Row:
    """Two whole steps with the published dropout and SGD with momentum, three times from the same
    seed: loss, memory, and whether all bits of weights and buffers are the same."""
    case = case_of(net, 0)
    model = net.build(models)
    optimizer = nw.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = nw.compile(model, loss=loss_of, optimizer=optimizer)
    start, first = optimizer.state_dict(), None
    same, finite = True, True
    for threads in (1, THREADS, THREADS):
        _load(model, case)
        optimizer.load_state_dict(start)
        nw.manual_seed(7)
        nw.set_num_threads(threads)
        try:
            losses = [step(case.x, case.labels).item() for _ in range(2)]
        finally:
            nw.set_num_threads(None)
        state = {k: v.numpy() for k, v in model.state_dict().items()}
        finite = finite and bool(np.isfinite(losses).all())
        finite = finite and all(bool(np.isfinite(v).all()) for v in state.values())
        bits = losses, {k: v.tobytes() for k, v in state.items()}
        first = first or bits
        same = same and bits == first
    return {
        "step_losses": first[0] if first else [],
        "step_same_bits": same,
        "step_finite": finite,
        "memory": str(step.memory(net.batch)),
    }


def measured(net: Net, smooth: bool, seeds: int) -> Row:
    """The row of a network, published or smooth."""
    with smooth_functions((models, Theirs().zoo()), smooth):
        row = gradient_row(net, smooth, seeds)
    gc.collect()
    return row if smooth else {**row, **step_row(net)}


def is_right(row: Row) -> bool:
    """Whether bits and numbers are as they must be and, in a smooth row, errors at most twice
    PyTorch's: the median over the parameters, the root mean square and that of all together."""
    within = not row["smooth"] or all(
        row["errors"]["netwright"][m] <= TIMES * row["errors"]["torch"][m] + FLOOR
        for m in ("median", "rms", "together")
    )
    flags = ("same_bits", "finite", "step_same_bits", "step_finite")
    return within and row["fallbacks"] == 0 and all(row.get(flag, True) for flag in flags)


def title(net: Net, smooth: bool) -> str:
    """``resnet18, smooth``."""
    return f"{net.name}, smooth" if smooth else net.name


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> None:
    """Measures what is missing, and writes it down after every row."""
    facts = {**environment(), "torch": torch.__version__}
    settings = {"seeds": options.seeds, "commit": facts["commit"], "cpu": facts["cpu"]}
    names = [title(net, smooth) for net in NETS for smooth in (False, True)]
    rows = Rows(options.output, facts, settings, names)
    for net in NETS:
        for smooth in (False, True):
            name = title(net, smooth)
            if options.rows not in name or (net.large and not options.large):
                continue
            if not options.fresh and not rows.is_missing(name, net.batch, THREADS):
                continue
            row = measured(net, smooth, options.seeds)
            rows.add(name, net.batch, THREADS, row)
            say(f"{name}: {'right' if is_right(row) else 'WRONG'} {_ratios(row)}")


def _ratios(row: Row) -> str:
    return ", ".join(f"{m} {row['ratios'][m]:.2f}x" for m in MEASURES)


def table(rows: list[Row]) -> str:
    """A line per row: errors of netwright and PyTorch, and their ratios."""
    heads = ("netwright", "PyTorch", *MEASURES, "bits")
    lines: list[tuple[str, ...]] = [("", "batch", "seeds", *heads)]
    for row in rows:
        ours, theirs = (row["errors"][who]["median"] for who in ("netwright", "torch"))
        ratios = (f"{row['ratios'][m]:.2f}" for m in MEASURES)
        same = row["same_bits"] and row.get("step_same_bits", True)
        lines.append(
            (row["model"], str(row["batch"]), str(len(row["seeds"])), f"{ours:.1e}",
             f"{theirs:.1e}", *ratios, "same" if same else "DIFFER")
        )  # fmt: skip
    return aligned(lines, right=range(1, len(lines[0])))


def main() -> int:
    """Measures, prints the table; 1 if a row is not right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--seeds", type=int, default=5, help="default: 5")
    parser.add_argument("--large", action="store_true", help="also networks that need 12 GB")
    parser.add_argument("--output", type=Path, default=RESULTS / "zoo_gradients.json")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore", nw.LintWarning)
    if not options.report:
        run(options)
    rows = load(options.output)
    if rows:
        print(table(rows))
    return 0 if all(map(is_right, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
