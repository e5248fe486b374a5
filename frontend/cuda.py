"""What programs ask before they use a GPU: there is none."""

from __future__ import annotations


def is_available() -> bool:
    """Always False."""
    return False


def device_count() -> int:
    """Always 0."""
    return 0
