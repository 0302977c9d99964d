"""What a training data set must know of a teacher: what it looks at, or where its answers lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class OutputReader(Protocol):
    """A teacher's stored answers."""

    def read(self, view: int, position: int) -> Mapping[str, NDArray[np.float16]]:
        """The answers to one view of one picture, by name, without a batch dimension."""
        ...


@dataclass(frozen=True)
class TeacherView:
    """How the teacher takes part in a data set.

    Attributes:
        resolution: Height and width of the teacher's input.
        views: K, so many augmented views of every picture are shown, over and over; None draws new ones in every
            epoch, which no cache can hold.
        outputs: The teacher's answers to these views; None has the data set show the teacher's pictures instead.
    """

    resolution: tuple[int, int]
    views: int | None = None
    outputs: OutputReader | None = None
