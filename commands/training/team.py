"""The processes that train together; here: one."""

from __future__ import annotations

from typing import Any


class Alone:
    """One process. `Team` of several has the same methods; all of them call each together."""

    rank = 0
    size = 1

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        return value

    def total(self, values: list[float]) -> list[float]:
        """The sums over all processes."""
        return values

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, by rank; on other ranks than 0 possibly empty."""
        return [value]
