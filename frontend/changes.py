"""Counters of changes: to modules and ``requires_grad`` flags, and of writes into tensors.

A compiled model asks in every call whether anything is different that its code or its prepared
weights depend on. While the counters stand still, the answers of the last call hold, whatever the
size of the model.
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
writes = Counter()
