"""Image datasets and transforms with the interface of ``torchvision``."""

from __future__ import annotations

from . import datasets, transforms

__all__ = ["datasets", "transforms"]
