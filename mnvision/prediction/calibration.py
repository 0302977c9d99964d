"""A checkpoint's calibration: the similarity from which two embeddings are of one person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mnvision.checkpoints import KEY, Metadata, read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.files import disk_reason, whole_file


def save_calibrated(path: str | Path, target: str | Path, calibration: dict[str, Any]) -> None:
    """Write a copy of a checkpoint that differs in its calibration alone; of several heads, in that of the embeddings.

    Args:
        path: The checkpoint.
        target: The copy; appears whole or not at all.
        calibration: Plain data, e.g. of
            :meth:`~mnvision.metrics.verification_scores.VerificationScores.calibration`.

    Raises:
        UserError: The checkpoint cannot be read or has several heads of embeddings, or the copy cannot be written.
    """
    content = read_checkpoint(path)
    metadata = read_metadata(path, content)
    _put(metadata, calibration, path)
    content[KEY] = metadata.to_dict()
    target = Path(target).expanduser()
    try:
        with whole_file(target) as partial:
            torch.save(content, partial)
    except RuntimeError as error:  # torch's zip writer has no errors of the system's
        raise UserError(f"cannot write {target}: {disk_reason(error)}") from error


def _put(metadata: Metadata, calibration: dict[str, Any], path: str | Path) -> None:
    if not metadata.heads:
        metadata.calibration = calibration
        return
    fitting = [name for name, head in metadata.heads.items() if head["kind"] == "face_embeddings"]
    if len(fitting) != 1:
        raise UserError(f"{path}: {len(fitting)} of its heads give embeddings, and one is calibrated: cut it out first")
    metadata.heads[fitting[0]] = {**metadata.heads[fitting[0]], "calibration": calibration}
