"""From a checkpoint alone to predictions on pictures, without the training's config or framework."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.models import AttributeClassifier, Classifier, Detector, Embedder, FasterRCNN, Geolocator
from mnvision.prediction.preprocess import Prepared, Preprocess, Source
from mnvision.prediction.results import ImageResult

SCORE_THRESHOLD = 0.3
"""Detections that people look at; evaluation keeps everything above the decoder's own, lower threshold."""

Result = TypeVar("Result", bound=ImageResult)

_PREDICTORS = {
    "detection": ("mnvision.prediction.detection", "DetectionPredictor"),
    "faster_rcnn": ("mnvision.prediction.detection", "DetectionPredictor"),
    "classification": ("mnvision.prediction.classification", "ClassificationPredictor"),
    "face_attributes": ("mnvision.prediction.attributes", "AttributePredictor"),
    "face_embeddings": ("mnvision.prediction.embeddings", "EmbeddingPredictor"),
    "geolocation": ("mnvision.prediction.geolocation", "GeolocationPredictor"),
}


class Predictor(ABC, Generic[Result]):
    """A trained model with its preprocessing, class names and device.

    Attributes:
        model: One of ``mnvision.models``, or several heads on one trunk.
        metadata: Of its checkpoint.
        device: Where the model runs.
        class_names: K names; none of an embedding, nor of several heads together.
        resolution: Height and width of the model's input in pixels; of several heads, the first one's.
        preprocess: Makes a picture the network's input.
        note: What a user should know before relying on the answers; mostly nothing.
    """

    kind: ClassVar[str]
    result_type: ClassVar[type[ImageResult]]
    note: str = ""

    model: Any
    metadata: Metadata
    device: torch.device
    class_names: tuple[str, ...]
    resolution: tuple[int, int]
    preprocess: Preprocess

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

    @property
    def parts(self) -> Mapping[str, Predictor[Any]]:
        """Predictors by head; of a single-task model itself, without a name."""
        return {"": self}

    def to_device(self, pictures: Sequence[Prepared]) -> Tensor:
        """``(B, 3, H, W)`` uint8, channels last: the memory order that pictures have anyway."""
        stacked = np.stack([picture.pixels for picture in pictures])
        return torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2)


class SinglePredictor(Predictor[Result]):
    """The predictor of a model of one task.

    Args:
        model: One of ``mnvision.models``.
        metadata: Of its checkpoint.
        device: Where the model runs: "cpu", "cuda", "cuda:1", ..., or "auto" for CUDA where there is one.

    Raises:
        UserError: An unknown or absent device, or metadata that contradict the model.
    """

    def __init__(
        self,
        model: Detector | FasterRCNN | Classifier | AttributeClassifier | Embedder | Geolocator,
        metadata: Metadata,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.device = as_device(device)
        self.metadata = metadata
        self.class_names = tuple(metadata.class_names)
        self.resolution = model.resolution
        self.network: tuple[int, int] = getattr(model, "network", self.resolution)  # a file may stretch inside
        self.preprocess = Preprocess(metadata.preprocess, self.resolution, self.network)
        outputs = getattr(model.head, "num_classes", 0)  # an embedding has none
        if len(self.class_names) != outputs:
            raise UserError(f"{len(self.class_names)} class names for a model of {outputs} classes")
        model.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict_prepared(self, pictures: Sequence[Prepared], score_threshold: float | None = None) -> list[Result]:
        """See :meth:`Predictor.predict_prepared`."""
        threshold = self.check_threshold(score_threshold)
        return self.results(pictures, self.decoded(self.to_device(pictures), self.model.predict), threshold)

    def decoded(self, images: Tensor, network: Callable[[Tensor], Any]) -> Any:
        """What :meth:`results` takes.

        Args:
            images: ``(B, 3, H, W)`` uint8.
            network: Gives decoded answers for such images.
        """
        return network(images)

    @abstractmethod
    def results(self, pictures: Sequence[Prepared], decoded: Any, threshold: float | None) -> list[Result]:
        """Results for people of one batch.

        Args:
            pictures: What the network saw.
            decoded: Its answers, from :meth:`decoded`.
            threshold: From :meth:`check_threshold`.
        """


def load_predictor(path: str | Path, device: str = "cpu") -> Predictor[Any]:
    """A predictor from a checkpoint or an exported file alone.

    Args:
        path: A ``.ckpt`` written by ``tools/train.py``, or what ``tools/export.py`` wrote, which its own runtime runs.
        device: See :class:`SinglePredictor`.

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
        return make_predictor(model, metadata, device)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def make_predictor(model: Any, metadata: Metadata, device: str = "cpu") -> Predictor[Any]:
    """The predictor of a model of one or of several heads.

    Raises:
        UserError: See :class:`SinglePredictor`.
    """
    if model.kind != "multitask":
        return predictor_class(model.kind)(model, metadata, device)
    from mnvision.prediction.multitask import MultiTaskPredictor  # it builds on this module

    return MultiTaskPredictor(model, metadata, device)


def predictor_class(kind: str) -> type[SinglePredictor[Any]]:
    """The predictor of a kind of single-task model; its module loads only when it is wanted."""
    module, name = _PREDICTORS[kind]
    return cast("type[SinglePredictor[Any]]", getattr(importlib.import_module(module), name))


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
