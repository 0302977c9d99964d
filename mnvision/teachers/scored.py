"""A teacher in the place of a model, so that it is scored by the very metric that its students are."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.heads.cells import CellScores
from mnvision.heads.classifier import ClassScores
from mnvision.teachers.base import Teacher

# Kind -> the output that is scored, and what makes an answer of it.
SCORED = {
    "classification": "logits",
    "face_attributes": "attribute_logits",
    "face_embeddings": "embedding",
    "geolocation": "logits",
}


class ScoredTeacher(nn.Module):
    """Images to the teacher's one output; :meth:`predict` gives what its kind of model gives.

    Args:
        teacher: Of classes, attributes or embeddings, with a square input.

    Attributes:
        kind: As the models of ``mnvision.models`` have it.
        backbone: Holds ``resolution`` only.
        decoder: Raw outputs to probabilities or unit vectors.

    Raises:
        UserError: A teacher of boxes, of stored outputs, or with an input that is not square.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        spec = teacher.spec
        height, width = spec.resolution
        if spec.kind not in SCORED or height != width or height == 0:
            raise UserError(
                f"{spec.name}: only a teacher that runs on square pictures and gives classes, attributes or embeddings "
                f"can be scored; this one is {spec.kind} at {height} x {width}"
            )
        self.teacher, self.kind, self.output = teacher, spec.kind, SCORED[spec.kind]
        self.backbone = SimpleNamespace(resolution=height)
        self.head = SimpleNamespace(num_classes=spec.outputs[self.output][0])
        self.decoder: nn.Module = {
            "classification": ClassScores(),
            "face_attributes": nn.Sigmoid(),
            "face_embeddings": nn.Identity(),
            "geolocation": CellScores(),
        }[spec.kind]

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.teacher.spec.resolution

    def forward(self, images: Tensor) -> Tensor:
        """Logits or embeddings ``(B, K)`` of uint8 images ``(B, 3, H, W)``."""
        return self.teacher(images.contiguous())[self.output]

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities or unit vectors ``(B, K)`` float32 of uint8 images ``(B, 3, H, W)``."""
        return self.decoder(self(images))
