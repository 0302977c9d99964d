"""Results of several processes put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

Part = TypeVar("Part")


def from_all_processes(mine: Callable[[], Part]) -> list[Part] | None:
    """What every process has collected, the same list in each of them.

    Args:
        mine: Gives this process's part, as objects that can be pickled; not called in a single process.

    Returns:
        One part per process by rank; None in a single process, which holds everything already.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine())
    return parts
