"""Regression of a smooth function with MSELoss or L1Loss.

python examples/regression.py                 # mean squared error
python examples/regression.py --loss l1       # mean absolute error
netwright inspect examples/regression.py:Regressor --input 1x2 --train --stage backward
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import netwright as nw
from netwright import nn, optim

LOSSES = {"mse": nn.MSELoss, "l1": nn.L1Loss}


class Regressor(nn.Module):
    """Two numbers in, one number out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )

    def forward(self, x: nw.Tensor) -> nw.Tensor:
        """(batch, 1)."""
        return self.layers(x)


def samples(count: int) -> tuple[nw.Tensor, nw.Tensor]:
    """Points in the square [-1, 1]^2 and ``sin(3 a) * b`` there."""
    x = nw.rand(count, 2) * 2 - 1
    return x, nw.sin(3 * x[:, :1]) * x[:, 1:]


def train(model: nn.Module, criterion: nn.Module, steps: int, eager: bool = False) -> None:
    """Adam on new points in every step."""
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
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
    """Trains and returns the mean absolute error on new points."""
    parser = argparse.ArgumentParser(description="regression of a smooth function")
    parser.add_argument("--loss", choices=LOSSES, default="mse")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--eager", action="store_true", help="numpy instead of native code")
    options = parser.parse_args(argv)
    nw.manual_seed(0)
    model = Regressor()
    train(model, LOSSES[options.loss](), options.steps, options.eager)
    x, y = samples(1000)
    with nw.no_grad():
        error = (nw.compile(model.eval())(x) - y).abs().mean().item()
    print(f"mean absolute error {error:.4f}")
    return error


if __name__ == "__main__":
    main()
