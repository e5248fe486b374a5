"""A convolutional network on the shipped digits: two Sequentials joined by ``x.view``.

python examples/cnn.py                # trains with a compiled step
python examples/cnn.py --eager        # the same program, one numpy call per operator
netwright bench examples/cnn.py:CNN --input 1x1x28x28 --batch 1,64
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

import netwright as nw
from netwright import nn, optim
from netwright.utils.data import ConcatDataset, DataLoader, TensorDataset
from netwright.vision.datasets import MNIST
from netwright.vision.transforms import ToTensor


class CNN(nn.Module):
    """Convolution, BatchNorm, ReLU, pooling; then two linear layers with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 14 * 14, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, 10),
        )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch, 10) of images (batch, 1, 28, 28)."""
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


def shifted(pixels: np.ndarray) -> nw.Tensor:
    """A digit (28, 28), moved by up to one pixel in each direction, as an image (1, 28, 28)."""
    move = nw.randint(-1, 2, (2,)).tolist()
    return ToTensor()(np.roll(pixels, move, axis=(0, 1)))


def train(model: nn.Module, epochs: int, eager: bool = False) -> None:
    """Adam with a cosine schedule; an epoch has each of the 4,000 training digits twice, shifted.

    Shifts and label smoothing are what so few digits need: without them this network stays at 95 %,
    in PyTorch, too.
    """
    digits = ConcatDataset([MNIST(train=True, transform=shifted) for _ in range(2)])
    loader = DataLoader(digits, batch_size=32, shuffle=True)
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
            correct += (model(x).argmax(1) == y).sum().item()
    return correct / len(test)


def main(argv: Sequence[str] | None = None) -> float:
    """Trains and returns the test accuracy."""
    parser = argparse.ArgumentParser(description="CNN on the shipped digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    options = parser.parse_args(argv)
    nw.manual_seed(0)
    model = CNN()
    train(model, options.epochs, options.eager)
    result = accuracy(model if options.eager else nw.compile(model))
    print(f"test accuracy {result:.1%}")
    return result


if __name__ == "__main__":
    main()
