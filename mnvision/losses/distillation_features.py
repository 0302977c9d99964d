"""Regression of a teacher's feature maps.

Source: the hints of FitNets, https://arxiv.org/abs/1412.6550, section 2.2, with a 1 x 1 convolution as regressor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError

PREFIX = "features_"
"""Name of a teacher's map of stride S: ``features_S``."""


class FeatureTargets(nn.Module):
    """Mean squared difference of the teacher's maps and the student's behind a learned 1 x 1 convolution.

    Where the grids differ, as when the teacher's input is larger, its maps are brought onto the student's grid by
    bilinear interpolation, averaging where there are fewer cells.

    Args:
        strides: Which maps are compared.
        student_channels: Channels of the student's map by stride.
        teacher_channels: Channels of the teacher's map by stride.

    Attributes:
        adapters: The convolutions by stride. They are trained with the student and stored in checkpoints to
            resume, but are no part of its model.

    Raises:
        UserError: No stride, one twice, or one that either has no map of.
    """

    def __init__(
        self, strides: Sequence[int], student_channels: Mapping[int, int], teacher_channels: Mapping[int, int]
    ) -> None:
        super().__init__()
        if not strides or len(set(strides)) != len(strides):
            raise UserError(f"distill.features={list(strides)}: give different strides, such as [16,32]")
        for stride in strides:
            if stride not in student_channels:
                wanted = sorted({*student_channels, *strides})
                raise UserError(
                    f"distill.features={list(strides)}: the student gives maps of stride {sorted(student_channels)}; "
                    f"add backbone.out_strides=[{','.join(map(str, wanted))}]"
                )
            if stride not in teacher_channels:
                raise UserError(
                    f"distill.features={list(strides)}: the teacher gives maps of stride {sorted(teacher_channels)}; "
                    "leave the others out"
                )
        self.strides = sorted(strides)
        self.adapters = nn.ModuleDict(
            {str(s): nn.Conv2d(student_channels[s], teacher_channels[s], 1) for s in self.strides}
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the teacher's outputs that it needs."""
        return tuple(f"{PREFIX}{stride}" for stride in self.strides)

    def forward(self, student: Mapping[int, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Loss of one batch, a mean over the maps.

        Args:
            student: ``(B, C, H, W)`` maps by stride.
            teacher: ``(B, C', h, w)`` maps by name.
        """
        losses = []
        with torch.autocast(next(iter(student.values())).device.type, enabled=False):
            for stride in self.strides:
                ours = self.adapters[str(stride)](student[stride].float())
                theirs = teacher[f"{PREFIX}{stride}"].float()
                if theirs.shape[-2:] != ours.shape[-2:]:
                    theirs = F.interpolate(theirs, ours.shape[-2:], mode="bilinear", antialias=True)
                losses.append(F.mse_loss(ours, theirs))
        return torch.stack(losses).mean()
