"""A multilayer perceptron with BatchNorm on the shipped digits.

python examples/mlp_batchnorm.py              # trains with a compiled step
python examples/mlp_batchnorm.py --eager      # the same program, one numpy call per operator
netwright lint examples/mlp_batchnorm.py:MLPBatchNorm --input 64x784

An epoch is one pass over the 4,000 training digits. The augmentation was chosen on 600 of them,
held out of the training (``--validate --seed S``, S = 0 ... 5: mean 97.2 %, least 96.3 %); after
that, the 1,000 test digits gave (``--seed S``, S = 0 ... 7) mean 97.5 %, least 97.2 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import netwright as nw
from netwright import nn, optim
from netwright.utils.data import DataLoader, Dataset, Subset
from netwright.vision.datasets import MNIST
from netwright.vision.transforms import Compose, InterpolationMode, RandomAffine, ToTensor

# Each digit is turned, scaled and moved by up to a pixel anew whenever it is drawn.
VARIED = Compose(
    [
        RandomAffine(
            degrees=10,
            translate=(1 / 28, 1 / 28),
            scale=(0.9, 1.1),
            interpolation=InterpolationMode.BILINEAR,
        ),
        ToTensor(),
    ]
)


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


def train(model: nn.Module, digits: Dataset, epochs: int, eager: bool = False) -> None:
    """Adam with a cosine schedule."""
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


def accuracy(model: nn.Module, digits: Dataset) -> float:
    """Share of the digits that are classified correctly, in batches of 100."""
    model.eval()
    correct = 0
    with nw.no_grad():
        for x, y in DataLoader(digits, batch_size=100):
            logits = model(x)
            correct += (logits.max(dim=1)[1] == y).sum().item()
    return correct / len(digits)


def main(argv: Sequence[str] | None = None) -> float:
    """Trains and returns the test accuracy, with ``--validate`` that on held-out digits."""
    parser = argparse.ArgumentParser(description="MLP with BatchNorm on the shipped digits")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the digits (10)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (0)")
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    parser.add_argument(
        "--validate",
        action="store_true",
        help="hold 600 training digits out and test on them, to choose hyper-parameters",
    )
    options = parser.parse_args(argv)
    nw.manual_seed(options.seed)
    training, testing = MNIST(train=True, transform=VARIED), MNIST(train=False)
    if options.validate:
        order = nw.randperm(len(training)).tolist()
        training, testing = Subset(training, order[600:]), Subset(MNIST(train=True), order[:600])
    model = MLPBatchNorm()
    train(model, training, options.epochs, options.eager)
    result = accuracy(model if options.eager else nw.compile(model), testing)
    print(f"{'validation' if options.validate else 'test'} accuracy {result:.1%}")
    return result


if __name__ == "__main__":
    main()
