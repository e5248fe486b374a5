"""Which of several processes this one is, where ``netwright.distributed`` has started them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """This process is number ``rank`` of ``size``."""

    rank: int
    size: int


_world: World | None = None


def current() -> World:
    """RuntimeError, which says how to, if nobody has initialised it."""
    if _world is None:
        raise RuntimeError(
            "Default process group has not been initialized: call "
            "netwright.distributed.init_process_group(), or give num_replicas and rank"
        )
    return _world


def enter(world: World | None) -> None:
    """Notes the world; None forgets it."""
    global _world
    _world = world
