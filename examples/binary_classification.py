"""Two classes: BCELoss after a Sigmoid, or BCEWithLogitsLoss without one.

The second is the better habit: it does not lose precision where the sigmoid saturates.

python examples/binary_classification.py              # BCEWithLogitsLoss on logits
python examples/binary_classification.py --sigmoid    # BCELoss on probabilities
netwright inspect examples/binary_classification.py:LogitClassifier --input 1x2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import netwright as nw
from netwright import nn, optim


class LogitClassifier(nn.Module):
    """One logit per point of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Logits (batch,)."""
        return self.layers(x).squeeze(1)


class SigmoidClassifier(LogitClassifier):
    """The probability of the second class."""

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """Probabilities (batch,)."""
        return nw.sigmoid(super().forward(x))


def samples(count: int) -> tuple[nw.Tensor, nw.Tensor]:
    """Points in [-1, 1]^2; the second class is the disc of radius 0.7."""
    x = nw.rand(count, 2) * 2 - 1
    return x, ((x * x).sum(1) < 0.49).float()


def train(model: nn.Module, criterion: nn.Module, steps: int, eager: bool = False) -> None:
    """Adam on new points in every step."""
    optimizer = optim.Adam(model.parameters(), lr=5e-3)
    step = nw.compile(model, loss=criterion, optimizer=optimizer)
    for _ in range(steps):
        x, y = samples(128)
        if eager:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        else:
            step(x, y)


def main(argv: Sequence[str] | None = None) -> float:
    """Trains and returns the accuracy on new points."""
    parser = argparse.ArgumentParser(description="is a point inside of a disc?")
    parser.add_argument("--sigmoid", action="store_true", help="BCELoss on probabilities")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    options = parser.parse_args(argv)
    nw.manual_seed(0)
    model = SigmoidClassifier() if options.sigmoid else LogitClassifier()
    criterion = nn.BCELoss() if options.sigmoid else nn.BCEWithLogitsLoss()
    train(model, criterion, options.steps, options.eager)
    x, y = samples(2000)
    with nw.no_grad():
        score = nw.compile(model.eval())(x)
    inside = score > (0.5 if options.sigmoid else 0.0)
    accuracy = (inside == (y > 0.5)).float().mean().item()
    print(f"accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
