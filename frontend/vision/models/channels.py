"""Channel counts of networks that can be made wider and narrower."""

from __future__ import annotations


def make_divisible(channels: float, divisor: int, minimum: int | None = None) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, not below 90 % of it.

    minimum: the least result, by default the divisor. The rule is that of MobileNet's authors;
    all published channel counts follow from it.
    """
    nearest = int(channels + divisor / 2) // divisor * divisor
    result = max(divisor if minimum is None else minimum, nearest)
    return result + divisor if result < 0.9 * channels else result
