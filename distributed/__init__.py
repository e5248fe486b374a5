"""Training with several processes, on one machine or many, over MPI: ``netwright.distributed``.

Functions and their names follow ``torch.distributed``; docs/distributed.md shows programs.
"""

from __future__ import annotations

from .collectives import all_gather_object, barrier, broadcast_object
from .data_parallel import DataParallel
from .process_group import (
    destroy_process_group,
    get_rank,
    get_world_size,
    init_process_group,
    is_available,
    is_initialized,
)

__all__ = [
    "DataParallel",
    "all_gather_object",
    "barrier",
    "broadcast_object",
    "destroy_process_group",
    "get_rank",
    "get_world_size",
    "init_process_group",
    "is_available",
    "is_initialized",
]
