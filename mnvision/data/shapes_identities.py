"""The embedded default for embeddings: the generated portraits, by identity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnvision.data.identity_sets import CelebaIdentitiesDataModule
from mnvision.data.shapes_write import GeneratedSet, shapes_portraits_job


class ShapesIdentitiesDataModule(GeneratedSet, CelebaIdentitiesDataModule):
    """The generated portraits; ``prepare_data`` writes them once, then they are read as CelebA is.

    Args:
        root: Cache folder that the data set becomes a folder in.
        framing: See :class:`~mnvision.data.identities.IdentityDataModule`.
        num_train: Training pictures.
        num_val: Validation pictures, and as many test pictures.
        data_seed: Seed of the pictures (``seed`` is that of order and augmentation).
        landmarks: File of landmarks in the data set's folder, or None to align nothing.
        pairs: File of pairs there, or None to draw them.
        **common: See :class:`~mnvision.data.identities.IdentityDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any],
        num_train: int = 1809,
        num_val: int = 351,
        data_seed: int = 0,
        landmarks: str | None = "list_landmarks_align_celeba.txt",
        pairs: str | None = "pairs.txt",
        **common: Any,
    ) -> None:
        folder = self.place(root, shapes_portraits_job(num_train, num_val, data_seed))
        super().__init__(folder, framing, landmarks=landmarks, pairs=pairs, **common)
