"""A multilayer perceptron with BatchNorm on the shipped digits.

python examples/mlp_batchnorm.py              # trains with a compiled step
python examples/mlp_batchnorm.py --eager      # the same program, one numpy call per operator
netwright lint examples/mlp_batchnorm.py:MLPBatchNorm --input 64x784
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

import netwright as nw
from netwright import nn, optim
from netwright.utils.data import DataLoader, TensorDataset
from netwright.vision.datasets import MNIST
from netwright.vision.transforms import ToTensor


class MLPBatchNorm(nn.Module):
    """784-392-196-10 with BatchNorm1d before each ReLU.

    The linear layers keep the bias that the BatchNorm after them makes useless, as many programs
    do: ``netwright lint`` says so (L005).
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 392),
            nn.BatchNorm1d(392),
            nn.ReLU(),
            nn.Linear(392, 196),
            nn.BatchNorm1d(196),
            nn.ReLU(),
            nn.Linear(196, 10),
        )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, 10)."""
        return self.layers(x)


def shifted(pixels: np.ndarray) -> nw.Tensor:
    """A digit (28, 28), moved by up to one pixel in each direction, as an image (1, 28, 28)."""
    move = nw.randint(-1, 2, (2,)).tolist()
    return ToTensor()(np.roll(pixels, move, axis=(0, 1)))


def train(model: nn.Module, epochs: int, eager: bool = False) -> None:
    """Adam with a cosine schedule on the 4,000 training digits, each shifted when it is drawn."""
    loader = DataLoader(MNIST(train=True, transform=shifted), batch_size=32, shuffle=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
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
        schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")


def accuracy(model: nn.Module) -> float:
    """Share of the 1,000 test digits that are classified correctly, in batches of 100."""
    test = TensorDataset(*MNIST(train=False).tensors())
    model.eval()
    correct = 0
    with nw.no_grad():
        for x, y in DataLoader(test, batch_size=100):
            logits = model(x)
            correct += (logits.max(dim=1)[1] == y).sum().item()
    return correct / len(test)


def main(argv: Sequence[str] | None = None) -> float:
    """Trains and returns the test accuracy."""
    parser = argparse.ArgumentParser(description="MLP with BatchNorm on the shipped digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    options = parser.parse_args(argv)
    nw.manual_seed(0)
    model = MLPBatchNorm()
    train(model, options.epochs, options.eager)
    result = accuracy(model if options.eager else nw.compile(model))
    print(f"test accuracy {result:.1%}")
    return result


if __name__ == "__main__":
    main()
