"""Checks of options that several optimizers share."""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedError


def number(value: Any) -> float:
    """An option as a Python float; it may be a tensor of one element."""
    return float(value)


def check_learning_rate(lr: Any) -> None:
    """ValueError unless ``lr`` is one number that is not negative."""
    if hasattr(lr, "numel") and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not number(lr) >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")


def refuse(optimizer: str, **options: Any) -> None:
    """UnsupportedError for PyTorch's options that choose between its GPU implementations."""
    for name, value in options.items():
        if value:
            raise UnsupportedError(
                f"{optimizer}({name}={value!r}) is not supported: {name} selects one of PyTorch's "
                "implementations; leave it out. For a fused update use "
                "netwright.compile(model, loss=..., optimizer=...)"
            )
