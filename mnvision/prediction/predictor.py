"""From a checkpoint alone to predictions on pictures, without the training's config or framework."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from mnvision.boxes.rescale import to_original_pixels
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.models import AttributeClassifier, Classifier, Detector, Embedder, FasterRCNN, Geolocator
from mnvision.prediction.preprocess import Prepared, Preprocess, Source
from mnvision.prediction.results import Detection, ImageClasses, ImageDetections, ImageResult

SCORE_THRESHOLD = 0.3
"""Detections that people look at; evaluation keeps everything above the decoder's own, lower threshold."""

Result = TypeVar("Result", bound=ImageResult)

_PREDICTORS = {
    "detection": (__name__, "DetectionPredictor"),
    "faster_rcnn": (__name__, "DetectionPredictor"),
    "classification": (__name__, "ClassificationPredictor"),
    "face_attributes": ("mnvision.prediction.attributes", "AttributePredictor"),
    "face_embeddings": ("mnvision.prediction.embeddings", "EmbeddingPredictor"),
    "geolocation": ("mnvision.prediction.geolocation", "GeolocationPredictor"),
}


class Predictor(ABC, Generic[Result]):
    """A trained model with its preprocessing, class names and device.

    Args:
        model: One of ``mnvision.models``.
        metadata: Of its checkpoint.
        device: Where the model runs: "cpu", "cuda", "cuda:1", ..., or "auto" for CUDA where there is one.

    Attributes:
        note: What a user should know before relying on the answers; mostly nothing.

    Raises:
        UserError: An unknown or absent device, or metadata that contradict the model.
    """

    kind: ClassVar[str]
    result_type: ClassVar[type[ImageResult]]
    note: str = ""

    def __init__(
        self,
        model: Detector | FasterRCNN | Classifier | AttributeClassifier | Embedder | Geolocator,
        metadata: Metadata,
        device: str = "cpu",
    ) -> None:
        self.device = as_device(device)
        self.metadata = metadata
        self.class_names = tuple(metadata.class_names)
        self.resolution = model.resolution
        self.preprocess = Preprocess(metadata.preprocess, self.resolution)
        outputs = getattr(model.head, "num_classes", 0)  # an embedding has none
        if len(self.class_names) != outputs:
            raise UserError(f"{len(self.class_names)} class names for a model of {outputs} classes")
        model.eval().to(self.device).to(memory_format=torch.channels_last)

    @overload
    def predict(
        self, source: list[Any], score_threshold: float | None = None, batch_size: int = 16
    ) -> list[Result]: ...
    @overload
    def predict(self, source: Source, score_threshold: float | None = None, batch_size: int = 16) -> Result: ...
    def predict(
        self, source: Source | list[Any], score_threshold: float | None = None, batch_size: int = 16
    ) -> Result | list[Result]:
        """Predict on one picture or on a list of them, prepared exactly as in evaluation.

        Args:
            source: A path, uint8 RGB pixels ``(h, w, 3)``, a Pillow image, or a list of these.
            score_threshold: See :meth:`predict_prepared`.
            batch_size: Pictures that go through the network at once.

        Returns:
            One result for one picture, a list of results in the same order for a list.

        Raises:
            UserError: A file is missing or unreadable, pixels have another type or shape, or an argument is
                out of range.
        """
        if not isinstance(source, list):
            return self.predict_prepared([self.preprocess(source)], score_threshold)[0]
        results: list[Result] = []
        for start in range(0, len(source), check_positive("batch_size", batch_size)):
            batch = [self.preprocess(picture) for picture in source[start : start + batch_size]]
            results += self.predict_prepared(batch, score_threshold)
        return results

    @abstractmethod
    def check_threshold(self, score_threshold: float | None) -> float | None:
        """The threshold that applies, None where there is none.

        Raises:
            UserError: See :meth:`predict_prepared`.
        """

    @abstractmethod
    def predict_prepared(self, pictures: Sequence[Prepared], score_threshold: float | None = None) -> list[Result]:
        """Predict on one batch.

        Args:
            pictures: At least one, from :attr:`preprocess`.
            score_threshold: Only for detectors: lowest score of what is returned, from the decoder's own
                threshold to 1; None is :data:`SCORE_THRESHOLD`.

        Raises:
            UserError: A threshold out of range, or any for a classifier.
        """

    def _to_device(self, pictures: Sequence[Prepared]) -> Tensor:
        """``(B, 3, H, W)`` uint8, channels last: the memory order that pictures have anyway."""
        stacked = np.stack([picture.pixels for picture in pictures])
        return torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2)


class DetectionPredictor(Predictor[ImageDetections]):
    """Objects with boxes in pixels of the original pictures.

    Args:
        model: A detector.
        metadata: See :class:`Predictor`.
        device: See :class:`Predictor`.
    """

    kind = "detection"
    result_type = ImageDetections

    def __init__(self, model: Detector | FasterRCNN, metadata: Metadata, device: str = "cpu") -> None:
        super().__init__(model, metadata, device)
        if len(metadata.category_ids) not in (0, len(self.class_names)):
            raise UserError(f"{len(metadata.category_ids)} category ids for {len(self.class_names)} classes")
        self.model = model
        self.category_ids = tuple(metadata.category_ids or range(1, len(self.class_names) + 1))

    def check_threshold(self, score_threshold: float | None) -> float:
        """The threshold that applies.

        Raises:
            UserError: Above 1, or below what the decoder keeps at all.
        """
        lowest = self.model.decoder.score_threshold
        threshold = max(SCORE_THRESHOLD, lowest) if score_threshold is None else score_threshold
        if not isinstance(threshold, int | float) or not lowest <= threshold <= 1:
            raise UserError(
                f"score_threshold={score_threshold} must lie in [{lowest}, 1]: this checkpoint's decoder "
                f"keeps no score below {lowest}"
            )
        return threshold

    @torch.inference_mode()
    def predict_prepared(
        self, pictures: Sequence[Prepared], score_threshold: float | None = None
    ) -> list[ImageDetections]:
        """See :meth:`Predictor.predict_prepared`."""
        threshold = self.check_threshold(score_threshold)
        found = self.model.predict(self._to_device(pictures))
        sizes = torch.tensor([picture.size for picture in pictures], device=self.device)
        found = to_original_pixels(found, sizes, self.resolution)
        columns = zip(
            pictures,
            found["boxes"].cpu().tolist(),
            found["scores"].cpu().tolist(),
            found["labels"].cpu().tolist(),
        )
        return [
            ImageDetections(picture.path, picture.size, self._keep(boxes, scores, labels, threshold))
            for picture, boxes, scores, labels in columns
        ]

    def _keep(
        self, boxes: list[list[float]], scores: list[float], labels: list[int], threshold: float
    ) -> tuple[Detection, ...]:
        return tuple(
            Detection((box[0], box[1], box[2], box[3]), score, label, self.class_names[label])
            for box, score, label in zip(boxes, scores, labels)
            if label >= 0 and score >= threshold
        )


class ClassificationPredictor(Predictor[ImageClasses]):
    """Probabilities of all classes.

    Args:
        model: A classifier.
        metadata: See :class:`Predictor`.
        device: See :class:`Predictor`.
    """

    kind = "classification"
    result_type = ImageClasses

    def __init__(self, model: Classifier, metadata: Metadata, device: str = "cpu") -> None:
        super().__init__(model, metadata, device)
        self.model = model

    def check_threshold(self, score_threshold: float | None) -> None:
        """Refuse a threshold: a classifier answers with all classes.

        Raises:
            UserError: One was given.
        """
        if score_threshold is not None:
            raise UserError("score_threshold is for detectors; this is a classification checkpoint: leave it out")

    @torch.inference_mode()
    def predict_prepared(
        self, pictures: Sequence[Prepared], score_threshold: float | None = None
    ) -> list[ImageClasses]:
        """See :meth:`Predictor.predict_prepared`."""
        self.check_threshold(score_threshold)
        probabilities = self.model.predict(self._to_device(pictures)).cpu().numpy()
        return [
            ImageClasses(picture.path, picture.size, row, self.class_names)
            for picture, row in zip(pictures, probabilities)
        ]


def load_predictor(path: str | Path, device: str = "cpu") -> Predictor[Any]:
    """A predictor from a checkpoint or an exported file alone.

    Args:
        path: A ``.ckpt`` written by ``tools/train.py``, or what ``tools/export.py`` wrote, which its own runtime runs.
        device: See :class:`Predictor`.

    Raises:
        UserError: The file is missing, corrupt, none of ours, or of a kind that cannot be predicted with; or the
            runtime of an exported file is not installed.
    """
    from mnvision.export.runtime import open_model  # it builds on what predictors build on

    as_device(device)
    model, metadata = open_model(path)
    if model.kind != metadata.kind:
        raise UserError(f"{path}: calls itself a {metadata.kind} checkpoint but holds a {model.kind} model")
    try:
        return predictor_class(model.kind)(model, metadata, device)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def predictor_class(kind: str) -> type[Predictor[Any]]:
    """The predictor of a kind of model; its module loads only when it is wanted."""
    module, name = _PREDICTORS[kind]
    return cast("type[Predictor[Any]]", getattr(importlib.import_module(module), name))


def as_device(name: str) -> torch.device:
    """The device that a user names.

    Args:
        name: "cpu", "cuda", "cuda:1", ..., or "auto" for CUDA where there is one.

    Raises:
        UserError: An unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name!r} cannot be used here ({reason}); device=cpu always can") from None
    return device


def check_positive(name: str, value: int) -> int:
    """``value`` itself.

    Raises:
        UserError: Not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} must be a whole number >= 1, got {value!r}")
    return value
