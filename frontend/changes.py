"""A counter of changes to modules and to ``requires_grad`` flags.

A compiled model asks in every call whether anything is different that its code depends on. While
the counter stands still, the answer of the last call holds, whatever the size of the model.
"""

from __future__ import annotations


class Counter:
    """Counts up; readers compare."""

    def __init__(self) -> None:
        self.count = 0

    def bump(self) -> None:
        """Notes a change."""
        self.count += 1


structure = Counter()
