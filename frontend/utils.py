"""``netwright.utils``: where PyTorch programs look for ``utils.data``."""

from __future__ import annotations

import sys

from . import data

__all__ = ["data"]

# `from netwright.utils.data import DataLoader` looks the module up under this name.
sys.modules[f"{__name__}.data"] = data
sys.modules[f"{__name__}.data.distributed"] = data.distributed
