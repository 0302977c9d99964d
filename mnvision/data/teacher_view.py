"""How a teacher takes part in a data set: what it looks at, or where its answers lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.data.loaders import SampleKey, check_views


class OutputReader(Protocol):
    """A teacher's stored answers."""

    def read(self, view: int, position: int) -> Mapping[str, NDArray[np.float16]]:
        """The answers to one view of one picture, by name, without a batch dimension."""
        ...


@dataclass(frozen=True)
class TeacherView:
    """How the teacher takes part in a data module.

    Attributes:
        resolution: Height and width of the teacher's input.
        views: K, so many augmented views of every picture are shown, over and over; None draws new ones in every
            epoch, which no cache can hold.
        outputs: The teacher's answers to these views; None has the data set show the teacher's pictures instead.
        eval_outputs: Its answers to the validation pictures without augmentation, for data without labels.

    Raises:
        UserError: ``views`` is below 1.
    """

    resolution: tuple[int, int]
    views: int | None = None
    outputs: OutputReader | None = None
    eval_outputs: OutputReader | None = None

    def __post_init__(self) -> None:
        check_views(self.views)

    def for_evaluation(self) -> TeacherView:
        """The same teacher at one view without augmentation."""
        return replace(self, views=1, outputs=self.eval_outputs, eval_outputs=None)


class TeacherPart(Protocol):
    """What the samples of every data set hold for a teacher: one of the two, or neither."""

    @property
    def teacher_image(self) -> Tensor | None:
        """``(3, h, w)`` uint8 RGB."""
        ...

    @property
    def teacher_outputs(self) -> Mapping[str, NDArray[np.float16]] | None:
        """Name -> stored answer."""
        ...


class TaughtDataset(Protocol):
    """A data set whose views a teacher can be shown, alone and ahead of time."""

    def __len__(self) -> int: ...

    def path(self, position: int) -> Path:
        """File of one picture."""
        ...

    def teacher_picture(self, key: int | SampleKey) -> Tensor:
        """``(3, h, w)`` uint8 RGB, what a teacher sees of a sample; needs a teacher view."""
        ...

    def recipe(self) -> dict[str, Any]:
        """All that decides, beside the files' contents, what a teacher sees, as plain data."""
        ...


def teacher_fields(samples: Sequence[TeacherPart]) -> dict[str, Any]:
    """The fields of a batch that a teacher adds: ``teacher_images``, ``teacher_outputs``, or none."""
    images = [sample.teacher_image for sample in samples if sample.teacher_image is not None]
    if images:
        return {"teacher_images": torch.stack(images)}
    outputs = [sample.teacher_outputs for sample in samples if sample.teacher_outputs is not None]
    if not outputs:
        return {}
    names = outputs[0]
    return {
        "teacher_outputs": {name: torch.from_numpy(np.stack([output[name] for output in outputs])) for name in names}
    }
