"""Layers that are written in other operators, compiled: torch's results and gradients, in both
modes and for two batch sizes, and no operator that runs through numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import netwright as nw
from netwright import nn

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::netwright.errors.LintWarning")

# Layers of a framework's ``nn`` that get the same input, and the shape of one sample of it.
GROUPS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "activations": (
        lambda nn: [
            nn.SELU(),
            nn.CELU(0.7),
            nn.Mish(),
            nn.Hardtanh(),
            nn.Threshold(0.1, 2.0),
            nn.Softsign(),
            nn.LogSigmoid(),
            nn.Tanhshrink(),
            nn.Hardshrink(),
            nn.Softshrink(),
            nn.PReLU(),
            nn.PReLU(6),
            nn.GLU(1),
            nn.Softmin(dim=1),
        ],
        (6,),
    ),
    "normalisation": (
        lambda nn: [
            nn.GroupNorm(2, 6),
            nn.InstanceNorm2d(6, affine=True),
            nn.RMSNorm(5),
            nn.GroupNorm(3, 6, affine=False),
        ],
        (6, 4, 5),
    ),
    "sequences": (
        lambda nn: [
            nn.MaxPool1d(2),
            nn.AvgPool1d(3, 2, 1),
            nn.AdaptiveAvgPool1d(3),
            nn.AdaptiveMaxPool1d(3),
            nn.ConvTranspose1d(4, 3, 3, 2, 1, 1),
        ],
        (4, 8),
    ),
    "images": (
        lambda nn: [
            nn.AdaptiveMaxPool2d((3, 2)),
            nn.ReflectionPad2d(1),
            nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
            nn.Upsample(scale_factor=2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.PixelShuffle(2),
            nn.PixelUnshuffle(2),
        ],
        (4, 8, 6),
    ),
    "decoder": (
        lambda nn: [
            nn.Sequential(
                nn.Conv2d(4, 8, 3, padding=1),
                nn.GroupNorm(4, 8),
                nn.SiLU(),
                nn.ConvTranspose2d(8, 4, 2, 2, bias=False),
                nn.InstanceNorm2d(4),
                nn.PReLU(4),
                nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, groups=2),
            )
        ],
        (4, 8, 6),
    ),
}


def model(nn: Any, layers: list[Any]) -> Any:
    class Side(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Any) -> list[Any]:
            return [layer(x) for layer in self.layers]

    return Side()


def close(ours: Any, theirs: Any, what: str) -> None:
    a, b = ours.detach().numpy(), theirs.detach().numpy()
    assert a.shape == b.shape, what
    scale = max(1.0, float(np.abs(b).max(initial=0.0)))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=what)


@pytest.mark.parametrize("name", GROUPS)
def test_compiled_layers_equal_torch_without_fallbacks(name: str) -> None:
    make, shape = GROUPS[name]
    torch.manual_seed(0)
    ours, theirs = model(nn, make(nn)), model(torch.nn, make(torch.nn))
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    fast = nw.compile(ours)
    for training, n in ((True, 3), (True, 2), (False, 3), (False, 1)):
        ours.train(training)
        theirs.train(training)
        x = np.random.default_rng(n).normal(size=(n, *shape)).astype(np.float32)
        if not training:
            with nw.no_grad(), torch.no_grad():
                for i, (a, b) in enumerate(zip(fast(x), theirs(torch.tensor(x)), strict=True)):
                    close(a, b, f"result {i} in eval mode")
            continue
        mine, other = nw.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        found, expected = fast(mine), theirs(other)
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            close(a, b, f"result {i}")
        ours.zero_grad()
        theirs.zero_grad()
        sum((a * a).sum() for a in found).backward()
        sum((b * b).sum() for b in expected).backward()
        close(mine.grad, other.grad, "gradient of the input")
        for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            close(p.grad, q.grad, f"gradient of {key}")
    assert fast.fallbacks == 0
    assert "T001" not in fast.explain("train")
