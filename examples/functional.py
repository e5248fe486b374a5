"""Four ways to write a model: functional calls, a ModuleList loop, named layers, a residual block.

python examples/functional.py                 # trains each of them on the shipped digits
netwright inspect examples/functional.py:ResidualMLP --input 1x784 --explain
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import netwright as nw
import netwright.nn.functional as F
from netwright import nn, optim
from netwright.utils.data import DataLoader, TensorDataset


class FunctionalMLP(nn.Module):
    """Layers as attributes, activations as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(784, 256)
        self.linear2 = nn.Linear(256, 10)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, 10)."""
        x = x.flatten(1)
        x = F.relu(self.linear1(x))
        return self.linear2(x)


class ListMLP(nn.Module):
    """A loop over a ModuleList: the depth is an argument."""

    def __init__(self, sizes: Sequence[int] = (784, 128, 128, 10)) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sizes)])

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, 10)."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


class NamedMLP(nn.Module):
    """An OrderedDict Sequential whose layers are reached by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            OrderedDict(
                [
                    ("flatten", nn.Flatten()),
                    ("hidden", nn.Linear(784, 128)),
                    ("activation", nn.SiLU()),
                    ("head", nn.Linear(128, 10)),
                ]
            )
        )
        nn.init.zeros_(self.net.head.bias)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, 10)."""
        return self.net(x)


class Residual(nn.Module):
    """``F(x) + x`` around two linear layers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.up = nn.Linear(features, 2 * features)
        self.down = nn.Linear(2 * features, features)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """The same shape as ``x``."""
        return self.down(F.relu(self.up(self.norm(x)))) + x


class ResidualMLP(nn.Module):
    """Residual blocks between two linear layers."""

    def __init__(self, features: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(784, features)
        self.blocks = nn.Sequential(*[Residual(features) for _ in range(blocks)])
        self.head = nn.Linear(features, 10)

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, 10)."""
        x = F.relu(self.stem(x.view(x.size(0), -1)))
        return self.head(self.blocks(x))


MODELS = (FunctionalMLP, ListMLP, NamedMLP, ResidualMLP)


def train(model: nn.Module, epochs: int, eager: bool = False) -> None:
    """Adam on the 4,000 training digits."""
    loader = DataLoader(
        TensorDataset(*nw.vision.datasets.MNIST(train=True).tensors()), batch_size=64, shuffle=True
    )
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    step = nw.compile(model, loss=F.cross_entropy, optimizer=optimizer)
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            if eager:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
            else:
                step(x, y)


def accuracy(model: nn.Module) -> float:
    """Share of the 1,000 test digits that are classified correctly."""
    images, labels = nw.vision.datasets.MNIST(train=False).tensors()
    model.eval()
    with nw.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains each model and returns the test accuracies."""
    parser = argparse.ArgumentParser(description="four styles of writing a model")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    options = parser.parse_args(argv)
    results = {}
    for make in MODELS:
        nw.manual_seed(0)
        model = make()
        train(model, options.epochs, options.eager)
        results[make.__name__] = accuracy(model if options.eager else nw.compile(model))
        print(f"{make.__name__}: test accuracy {results[make.__name__]:.1%}")
    return results


if __name__ == "__main__":
    main()
