"""Gradients of the zoo's networks in float32: at most twice as far from float64 as PyTorch's.

The measure is the norm of a parameter's error, of the norm of its gradient, over three batches
(their root mean square). Where a ReLU's input is so close to 0, or two inputs of a max pooling so
close to each other, that rounding decides, one of the two may decide differently; a batch alone
would tell which of them was luckier. (test_zoo.py compares gradients in float64, where rounding
decides nothing, to 1e-7.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn, optim
from netwright.vision import models

sys.path.insert(0, str(Path(__file__).resolve().parent))

from zoo_networks import NETS, images, on_torch, trained, twins

pytestmark = pytest.mark.filterwarnings("ignore:L005")

BATCHES = 3
# A few roundings: where PyTorch's error is smaller than this, it is luck.
FLOOR = 8 * float(np.finfo(np.float32).eps)
# A gradient that is 0 but for rounding, as that of a bias in front of BatchNorm, is measured by
# this share of the network's mean gradient in place of its own size.
SMALL = 1e-3

Errors = dict[str, float]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """``netwright.vision.models`` with PyTorch in place of netwright."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # its spinning threads would take the cores of ours
    return on_torch().models()


def gradients(model: Any, call: Any, x: Any, labels: np.ndarray, library: Any) -> Any:
    """By parameter, in training mode."""
    model.zero_grad()
    found = trained(model, call, library.from_numpy(x), library.from_numpy(labels), library)
    return {name: found[name].astype(np.float64) for name, _ in model.named_parameters()}


def errors(found: Any, exact: Any) -> Errors:
    """By parameter: the norm of the error, of the norm of the exact gradient."""
    total = sum(float((g**2).sum()) for g in exact.values())
    mean = (total / sum(g.size for g in exact.values())) ** 0.5
    return {
        name: float(
            np.linalg.norm(found[name] - g) / max(np.linalg.norm(g), SMALL * mean * g.size**0.5)
        )
        for name, g in exact.items()
    }


def measured(name: str, theirs: Any) -> tuple[Errors, Errors]:
    """Root mean squares over the batches of netwright's and PyTorch's errors."""
    import torch

    net = NETS[name]
    model, other = twins(net, theirs)
    wide = net.build(theirs).double()
    wide.load_state_dict(other.state_dict())
    fast = nw.compile(model)
    rows = []
    for seed in range(BATCHES):
        x, labels = images(net, seed), (np.arange(net.batch) + seed) % 7
        exact = gradients(wide, wide, x.astype(np.float64), labels, torch)
        ours = errors(gradients(model, fast, x, labels, nw), exact)
        rows.append((ours, errors(gradients(other, other, x, labels, torch), exact)))
    assert fast.fallbacks == 0
    ours, others = (
        {key: float(np.mean([row[i][key] ** 2 for row in rows])) ** 0.5 for key in rows[0][0]}
        for i in (0, 1)
    )
    return ours, others


@pytest.mark.parametrize("name", [name for name in NETS if name != "inception"])
def test_gradients_are_at_most_twice_as_far_from_float64_as_torchs(name: str, theirs: Any) -> None:
    ours, others = measured(name, theirs)
    worse = {
        key: (error, others[key])
        for key, error in ours.items()
        if not error <= 2 * others[key] + FLOOR
    }
    assert worse == {}


def test_gradients_of_inception_are_as_far_from_float64_as_torchs(
    theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SiLU and average pooling in place of ReLU and max pooling, and over all parameters
    together: behind 94 convolutions errors have grown a thousandfold, and with ReLU they are those
    of the inputs, a handful per parameter, that rounded to the other side of 0."""
    for package in (models, theirs):
        functional = package.inception_blocks.F
        monkeypatch.setattr(package.inception_blocks, "F", _smooth(functional))
    ours, others = measured("inception", theirs)
    together = [float(np.mean(np.square(list(e.values())))) ** 0.5 for e in (ours, others)]
    assert together[0] <= 2 * together[1] + FLOOR, together


def _smooth(functional: Any) -> SimpleNamespace:
    """The functions that the blocks of Inception call."""
    return SimpleNamespace(
        relu=lambda x, inplace: functional.silu(x),
        max_pool2d=lambda x, kernel_size, stride: functional.avg_pool2d(x, kernel_size, stride),
        avg_pool2d=functional.avg_pool2d,
        adaptive_avg_pool2d=functional.adaptive_avg_pool2d,
    )


# -- the same seed, the same bits -----------------------------------------------------------------

STEPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: NETS["resnet"].build(models), (3, 64, 64)),
    "mlp_dropout": (
        lambda: nn.Sequential(
            nn.Linear(70, 130), nn.BatchNorm1d(130), nn.ReLU(), nn.Dropout(0.4), nn.Linear(130, 7)
        ),
        (70,),
    ),
    "vit": (
        lambda: models.VisionTransformer(
            32, 8, 2, 4, 32, 64, dropout=0.1, attention_dropout=0.1, num_classes=7
        ),
        (3, 32, 32),
    ),
}


def trained_bits(name: str, threads: int) -> dict[str, bytes]:
    """Losses and weights of three steps from the same seed."""
    make, shape = STEPS[name]
    nw.set_num_threads(threads)
    try:
        nw.manual_seed(5)
        model = make()
        optimizer = optim.AdamW(model.parameters(), lr=1e-3)
        step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer)
        losses = [
            step(nw.randn(5, *shape), nw.from_numpy(np.arange(5) + i)).numpy() for i in range(3)
        ]
    finally:
        nw.set_num_threads(None)
    assert step.fallbacks == 0
    state = {key: value.numpy().tobytes() for key, value in model.state_dict().items()}
    return {**state, **{f"loss {i}": loss.tobytes() for i, loss in enumerate(losses)}}


@pytest.mark.parametrize("name", STEPS)
def test_runs_of_the_same_seed_have_the_same_bits_with_any_number_of_threads(name: str) -> None:
    first = trained_bits(name, 2)
    for threads in (2, 1, 3):
        again = trained_bits(name, threads)
        assert [key for key in first if again[key] != first[key]] == [], f"{threads} threads"
    assert first["loss 0"] != first["loss 1"]
