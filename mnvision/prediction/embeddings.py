"""Embeddings of pictures from a checkpoint, and whether two of them are of one person."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.metrics.verification_scores import as_squared_distance
from mnvision.models import Embedder
from mnvision.prediction.faces import FacePreprocess
from mnvision.prediction.predictor import SinglePredictor, check_positive
from mnvision.prediction.preprocess import Prepared, Source
from mnvision.prediction.results import ImageResult, Pixels, Shown, picture_fields, picture_title
from mnvision.transforms.alignment import FivePoints
from mnvision.transforms.framing import Points

Embedding = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ImageEmbedding(ImageResult):
    """The embedding of one picture.

    Attributes:
        embedding: ``(D,)`` float32 of length 1.
    """

    embedding: Embedding

    def to_dict(self) -> dict[str, Any]:
        """Plain data: path, size (height, width) and the D numbers."""
        return {**picture_fields(self.path, self.size), "embedding": self._rounded()}

    @staticmethod
    def columns(class_names: Sequence[str]) -> tuple[str, ...]:
        """See :meth:`~mnvision.prediction.results.ImageResult.columns`: all numbers in one, separated by blanks."""
        return ("embedding",)

    def rows(self, shown: Shown) -> list[list[Any]]:
        """One row."""
        return [[" ".join(map(str, self._rounded()))]]

    def record(self, shown: Shown) -> dict[str, Any]:
        """See :meth:`to_dict`."""
        return self.to_dict()

    def found(self) -> list[str]:
        """That there is an embedding."""
        return ["embedding"]

    def draw(self, pixels: Pixels, shown: Shown) -> Pixels:
        """The picture as it is."""
        return pixels.copy()

    def _rounded(self) -> list[float]:
        """Nine digits give the float32 back."""
        return [float(f"{value:.9g}") for value in self.embedding.tolist()]

    def __str__(self) -> str:
        start = " ".join(f"{value:+.3f}" for value in self.embedding[:4])
        return f"{picture_title(self.path, self.size)}: {len(self.embedding)} numbers, {start} ..."


@dataclass(frozen=True)
class Comparison:
    """Two pictures side by side.

    Attributes:
        similarity: Cosine of their embeddings, in [-1, 1].
        threshold: Similarity above which the checkpoint takes two pictures for one person; None before calibration.
    """

    similarity: float
    threshold: float | None

    @property
    def squared_distance(self) -> float:
        """Squared L2 distance of the embeddings, in [0, 4]."""
        return as_squared_distance(self.similarity)

    @property
    def same(self) -> bool | None:
        """The decision; None without a threshold."""
        return None if self.threshold is None else self.similarity > self.threshold


class EmbeddingPredictor(SinglePredictor[ImageEmbedding]):
    """Embeddings of length 1.

    Pictures are prepared as :class:`~mnvision.prediction.faces.FacePreprocess` says.

    Args:
        model: An embedder.
        metadata: See :class:`~mnvision.prediction.predictor.SinglePredictor`.
        device: See :class:`~mnvision.prediction.predictor.SinglePredictor`.

    Raises:
        UserError: The stored calibration holds something else than a similarity.
    """

    kind = "face_embeddings"
    result_type = ImageEmbedding
    note = "tools/embed.py writes embeddings as Parquet or npz and draws them; tools/verify.py compares pictures"

    def __init__(self, model: Embedder, metadata: Metadata, device: str = "cpu") -> None:
        super().__init__(model, metadata, device)
        self.dim = model.head.dim
        self.preprocess: FacePreprocess = FacePreprocess(metadata.preprocess, self.resolution, self.network)
        threshold = metadata.calibration.get("similarity")
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
            raise UserError(f"calibration.similarity={threshold!r}: a number is needed; calibrate again")
        self.threshold: float | None = threshold
        self.mirror = bool(metadata.calibration.get("mirror", False))

    def lay_out(self, points: str | Sequence[Sequence[float]]) -> None:
        """Take pictures without landmarks for laid out alike, in another way than those of training.

        Args:
            points: Where the five points lie in them, as fractions of width and height, or "arcface" for crops that
                are aligned to its template.

        Raises:
            UserError: The checkpoint does not align by landmarks, or the points are no such.
        """
        framing = self.preprocess.framing
        if not isinstance(framing, FivePoints):
            raise UserError("points=...: this checkpoint does not align faces; leave them out")
        self.preprocess = FacePreprocess(framing.at(points).to_dict(), self.resolution, self.network, warn=False)

    def mirrors(self, mirror: bool | None) -> bool:
        """Whether embeddings of mirrored pictures are added.

        Args:
            mirror: What is asked for; None does as the checkpoint was calibrated.

        Raises:
            UserError: Neither true nor false nor None.
        """
        if mirror is not None and not isinstance(mirror, bool):
            raise UserError(f"mirror={mirror!r}: give true or false, or leave it out")
        return self.mirror if mirror is None else mirror

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that change with the weights, the network's structure or the preparation."""
        digest = hashlib.sha256(repr((self.metadata.model, self.metadata.preprocess)).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_threshold(self, score_threshold: float | None) -> None:
        """Refuse a threshold: embeddings have no scores.

        Raises:
            UserError: One was given.
        """
        if score_threshold is not None:
            raise UserError("score_threshold is for detectors; this is a face_embeddings checkpoint: leave it out")

    def embed(
        self,
        pictures: Sequence[Source],
        landmarks: Sequence[Points | None] | None = None,
        batch_size: int = 32,
        mirror: bool | None = None,
    ) -> Embedding:
        """Embeddings of pictures, in their order.

        Args:
            pictures: Files, arrays or Pillow images.
            landmarks: One ``(5, 2)`` or None per picture; None is none at all.
            batch_size: Pictures that go through the network at once.
            mirror: Add the embedding of the mirrored picture, at twice the time; None does as the checkpoint was
                calibrated.

        Returns:
            ``(N, D)`` float32, rows of length 1.

        Raises:
            UserError: A file is missing or unreadable, pixels are no uint8 RGB picture, or there are more or fewer
                landmarks than pictures.
        """
        check_positive("batch_size", batch_size)
        points = [None] * len(pictures) if landmarks is None else list(landmarks)
        if len(points) != len(pictures):
            raise UserError(f"{len(pictures)} pictures with {len(points)} landmarks; give one (or None) per picture")
        parts = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(pictures), batch_size):
            rows = slice(start, start + batch_size)
            batch = [self.preprocess(*one) for one in zip(pictures[rows], points[rows])]
            parts.append(self.embed_prepared(batch, mirror))
        return np.concatenate(parts)

    @torch.inference_mode()
    def embed_prepared(self, pictures: Sequence[Prepared], mirror: bool | None = None) -> Embedding:
        """``(B, D)`` float32 of length 1 of one batch; ``mirror`` as in :meth:`embed`."""
        return _as_numbers(self._embedded(self.to_device(pictures), self.model.predict, self.mirrors(mirror)))

    def decoded(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeddings ``(B, D)``, mirrored pictures' added if the checkpoint was calibrated so."""
        return self._embedded(images, network, self.mirror)

    def results(self, pictures: Sequence[Prepared], decoded: Tensor, threshold: float | None) -> list[ImageEmbedding]:
        """See :meth:`~mnvision.prediction.predictor.SinglePredictor.results`."""
        rows = _as_numbers(decoded)
        return [ImageEmbedding(picture.path, picture.size, row) for picture, row in zip(pictures, rows)]

    @staticmethod
    def _embedded(images: Tensor, network: Callable[[Tensor], Tensor], mirror: bool) -> Tensor:
        embeddings = network(images)
        if not mirror:
            return embeddings
        return torch.nn.functional.normalize(embeddings + network(images.flip(3)))

    def compare(self, first: Embedding, second: Embedding) -> Comparison:
        """Two embeddings ``(D,)`` of this predictor, and the decision at the stored threshold."""
        return Comparison(float(np.clip(first.astype(np.float64) @ second, -1, 1)), self.threshold)


def _as_numbers(embeddings: Tensor) -> Embedding:
    return np.asarray(embeddings.float().cpu().numpy())
