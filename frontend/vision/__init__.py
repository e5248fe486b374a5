"""Image datasets, models and transforms with the interface of ``torchvision``."""

from __future__ import annotations

from . import datasets, models, transforms

__all__ = ["datasets", "models", "transforms"]
