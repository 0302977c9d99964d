"""Pictures of people as samples and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mnvision.data.identity_index import IdentityIndex
from mnvision.data.pictures import PictureDataset, PictureSample, collate_views
from mnvision.types import IdentityBatch


class IdentitySample(NamedTuple):
    """One view of a picture and the number of its identity, -1 where that is not known."""

    view: PictureSample
    label: int


class IdentityDataset(PictureDataset[IdentityIndex, IdentitySample]):
    """Pictures of people."""

    def labelled(self, view: PictureSample) -> IdentitySample:
        """See :class:`~mnvision.data.pictures.PictureDataset`."""
        return IdentitySample(view, int(self.source.labels[view.position]))


def collate_identities(samples: Sequence[IdentitySample]) -> IdentityBatch:
    """Stacks samples."""
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    return {**collate_views([sample.view for sample in samples]), "labels": labels}  # type: ignore[typeddict-item]
