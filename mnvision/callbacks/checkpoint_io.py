"""Checkpoints that are written whole or not at all, and read as plain data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mnvision.checkpoints import read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.files import disk_reason, whole_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames; a failed save leaves the earlier file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save ``checkpoint``.

        Raises:
            UserError: The disk is full, or the folder cannot be written.
        """
        target = Path(path)
        try:
            with whole_file(target) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before the bytes do
        # torch's zip writer turns the system's error into a RuntimeError of its own.
        except (OSError, RuntimeError, UserError) as error:
            kept = "; the earlier file there is untouched" if target.exists() else ""
            raise UserError(
                f"could not save {target}: {disk_reason(error)}{kept}. Free some space and resume the run"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load as tensors and plain data, whatever ``weights_only`` says.

        Raises:
            UserError: The file is missing, corrupt, not one of our checkpoints, or not of a run.
        """
        content = read_checkpoint(path)
        read_metadata(path, content)
        if "loops" not in content:
            raise UserError(
                f"{path}: holds a model but no state of its training to resume; start anew from its weights with "
                "backbone.pretrained=FILE"
            )
        return content
