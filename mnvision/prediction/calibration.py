"""A checkpoint's calibration: the similarity from which two embeddings are of one person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mnvision.checkpoints import KEY, read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.files import disk_reason, whole_file


def save_calibrated(path: str | Path, target: str | Path, calibration: dict[str, Any]) -> None:
    """Write a copy of a checkpoint that differs in its calibration alone.

    Args:
        path: The checkpoint.
        target: The copy; appears whole or not at all.
        calibration: Plain data, e.g. of
            :meth:`~mnvision.metrics.verification_scores.VerificationScores.calibration`.

    Raises:
        UserError: The checkpoint cannot be read, or the copy not be written.
    """
    content = read_checkpoint(path)
    metadata = read_metadata(path, content)
    metadata.calibration = calibration
    content[KEY] = metadata.to_dict()
    target = Path(target).expanduser()
    try:
        with whole_file(target) as partial:
            torch.save(content, partial)
    except RuntimeError as error:  # torch's zip writer has no errors of the system's
        raise UserError(f"cannot write {target}: {disk_reason(error)}") from error
