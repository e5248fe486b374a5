"""A multilayer perceptron on the shipped digits: a Sequential inside a Module.

python examples/mlp.py                # trains with a compiled step
python examples/mlp.py --eager        # the same program, one numpy call per operator
netwright inspect examples/mlp.py:MLP --input 1x784
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import netwright as nw
from netwright import nn, optim
from netwright.utils.data import DataLoader, TensorDataset


class MLP(nn.Module):
    """784 pixels, two hidden layers of 512, ten classes. Images of any shape are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential(
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, 10)."""
        return self.layers(self.flatten(x))


def train(model: nn.Module, epochs: int, eager: bool = False) -> None:
    """SGD with momentum on the 4,000 training digits."""
    loader = DataLoader(
        TensorDataset(*nw.vision.datasets.MNIST(train=True).tensors()), batch_size=64, shuffle=True
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step = nw.compile(model, loss=criterion, optimizer=optimizer)
    for epoch in range(epochs):
        model.train()
        for x, y in loader:
            if eager:
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                optimizer.step()
            else:
                loss = step(x, y)
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")


def accuracy(model: nn.Module) -> float:
    """Share of the 1,000 test digits that are classified correctly."""
    images, labels = nw.vision.datasets.MNIST(train=False).tensors()
    model.eval()
    with nw.no_grad():
        logits = model(images)
        probabilities = nn.Softmax(dim=1)(logits)
        return (probabilities.argmax(1) == labels).float().mean().item()


def main(argv: Sequence[str] | None = None) -> float:
    """Trains and returns the test accuracy."""
    parser = argparse.ArgumentParser(description="MLP on the shipped digits")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    options = parser.parse_args(argv)
    nw.manual_seed(0)
    model = MLP()
    train(model, options.epochs, options.eager)
    result = accuracy(model if options.eager else nw.compile(model))
    print(f"test accuracy {result:.1%}")
    return result


if __name__ == "__main__":
    main()
