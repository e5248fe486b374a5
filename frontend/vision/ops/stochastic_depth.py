"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382): residual branches left out at random."""

from __future__ import annotations

from ... import nn
from ...nn import functional as F
from ...tensor import Tensor


def stochastic_depth(input: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """In training the input is 0 with probability ``p``, else multiplied by 1 / (1 - p).

    mode: 'row' draws for every sample, 'batch' once for all. Raises ValueError for another mode
    and for ``p`` outside of [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"drop probability has to be between 0 and 1, but got {p}")
    if mode not in ("batch", "row"):
        raise ValueError(f"mode has to be either 'batch' or 'row', but got {mode}")
    if not training or p == 0.0:
        return input
    samples = input.shape[0] if mode == "row" else 1
    survivors = input.new_ones(samples, *[1] * (input.ndim - 1))
    return input * F.dropout(survivors, p)


class StochasticDepth(nn.Module):
    """``stochastic_depth`` as a layer that does nothing in eval mode."""

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return stochastic_depth(input, self.p, self.mode, self.training)

    def __repr__(self) -> str:
        return f"StochasticDepth(p={self.p}, mode={self.mode})"
