"""A common mistake: a classifier that ends in Softmax, trained with CrossEntropyLoss.

CrossEntropyLoss contains a log-softmax, so with a Softmax in front of it the loss of ten classes
cannot fall below 1.46 and training is slow. netwright warns (L001), removes the Softmax from the
training program, and keeps it where the model is called for its probabilities.

python examples/softmax_before_loss.py            # the corrected program
python examples/softmax_before_loss.py --strict   # as written: softmax of a softmax
netwright lint examples/softmax_before_loss.py:SoftmaxClassifier --input 64x784
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import netwright as nw
from netwright import nn, optim
from netwright.utils.data import DataLoader, TensorDataset


class SoftmaxClassifier(nn.Module):
    """Returns probabilities, which is not what CrossEntropyLoss expects."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
            nn.Softmax(dim=1),
        )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Probabilities (batch, 10)."""
        return self.layers(x)


def train(model: nn.Module, epochs: int, strict: bool = False) -> float:
    """Adam on the 4,000 training digits; returns the loss of the last batch."""
    loader = DataLoader(
        TensorDataset(*nw.vision.datasets.MNIST(train=True).tensors()), batch_size=64, shuffle=True
    )
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    step = nw.compile(model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, strict=strict)
    model.train()
    for epoch in range(epochs):
        for x, y in loader:
            loss = step(x, y)
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")
    return loss.item()


def accuracy(model: nn.Module) -> float:
    """Share of the 1,000 test digits that are classified correctly."""
    images, labels = nw.vision.datasets.MNIST(train=False).tensors()
    model.eval()
    with nw.no_grad():
        probabilities = model(images)
        return (probabilities.argmax(1) == labels).float().mean().item()


def main(argv: Sequence[str] | None = None) -> float:
    """Trains and returns the loss of the last batch."""
    parser = argparse.ArgumentParser(description="a softmax before CrossEntropyLoss")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--strict", action="store_true", help="keep the program as written")
    options = parser.parse_args(argv)
    nw.manual_seed(0)
    model = SoftmaxClassifier()
    loss = train(model, options.epochs, options.strict)
    print(f"test accuracy {accuracy(nw.compile(model)):.1%}")
    return loss


if __name__ == "__main__":
    main()
