"""Image datasets, transforms and models with the interface of ``torchvision``."""

from __future__ import annotations

from . import datasets, models, ops, transforms

__all__ = ["datasets", "models", "ops", "transforms"]
