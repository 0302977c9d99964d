"""Whole models: pixels in, answers out.

What is trained is what is shipped: normalisation is inside, so a checkpoint and every exported file take pixels
0-255, and the commonest cause of wrong deployed results (normalising twice, or not at all) cannot occur.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.boxes.postprocess import RegionDecoder, SSDDecoder
from mnvision.build import build
from mnvision.errors import UserError
from mnvision.heads.cells import CellScores
from mnvision.heads.classifier import ClassifierHead, ClassScores
from mnvision.heads.embedding import EmbeddingHead, UnitLength
from mnvision.heads.faster_rcnn import FasterRCNNHead
from mnvision.heads.ssd import SSDHead
from mnvision.types import Detections, RegionOutputs, SSDOutputs

REGIONS_AT_ONCE = 600


class _PixelModel(nn.Module, ABC):
    """Backbone behind a normalisation of uint8 pixels, ``(pixel - mean) / std`` per channel."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: MobileNetV1,
        head: nn.Module,
        decoder: nn.Module,
        mean: Sequence[float] = (127.5, 127.5, 127.5),
        std: Sequence[float] = (127.5, 127.5, 127.5),
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(f"model.mean={list(mean)}, model.std={list(std)}: three numbers each, std > 0")
        # The config carries these values, so the state dict holds nothing but backbone.* and head.*.
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)
        self.backbone = backbone
        self.head = head
        self.decoder = decoder

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels that the model was composed for."""
        side = self.backbone.resolution
        return (side, side)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of uint8 (or float 0-255) images ``(B, 3, H, W)``."""
        return self.backbone((images.to(self.mean.dtype) - self.mean) / self.std)

    @abstractmethod
    def answer(self, maps: Sequence[Tensor]) -> Any:
        """The raw outputs for maps of :meth:`features`, which another model with the same backbone may have made."""

    @abstractmethod
    def finish(self, raw: Any) -> Any:
        """What :meth:`predict` gives, of raw outputs."""

    def forward(self, images: Tensor) -> Any:
        """The raw outputs for uint8 images ``(B, 3, H, W)``; H and W are the model's resolution."""
        return self.answer(self.features(images))

    def predict(self, images: Tensor) -> Any:
        """Decoded answers for uint8 images ``(B, 3, H, W)``."""
        return self.finish(self(images))


def _per_channel(values: Sequence[float]) -> Tensor:
    """``(1, 3, 1, 1)``, or ``(1, 1, 1, 1)`` where all are equal: one value is twice as fast in channels_last."""
    if len(set(values)) == 1:
        values = values[:1]
    return torch.tensor([float(value) for value in values]).reshape(1, -1, 1, 1)


class _VectorModel(_PixelModel):
    """One row of numbers per image."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a plain mapping with keys backbone, head, decoder, mean, std."""
        backbone = build(config["backbone"])
        head = build(config["head"], in_channels=backbone.feature_channels)
        return cls(backbone, head, build(config["decoder"]), config["mean"], config["std"])

    def answer(self, maps: Sequence[Tensor]) -> Tensor:
        """The head's raw outputs ``(B, K)`` for the backbone's maps."""
        return self.head(list(maps))

    def finish(self, raw: Tensor) -> Tensor:
        """Decoded outputs ``(B, K)`` float32 of raw outputs."""
        return self.decoder(raw)


class Classifier(_VectorModel):
    """Images to class logits; :meth:`predict` gives probabilities that sum to one.

    Args:
        backbone: Gives the feature maps.
        head: Takes them.
        decoder: Logits to probabilities.
        mean: Per channel, in pixel units 0-255.
        std: Per channel, in pixel units.
    """

    kind: ClassVar[str] = "classification"

    head: ClassifierHead
    decoder: ClassScores


class AttributeClassifier(_VectorModel):
    """Images to one logit per attribute; :meth:`predict` gives each one's probability. Arguments as above."""

    kind: ClassVar[str] = "face_attributes"


class Geolocator(_VectorModel):
    """Images to one logit per cell of the Earth; :meth:`predict` gives each cell's probability. Arguments as above.

    Where the cells lie, a checkpoint's ``calibration["partition"]`` says: the network knows them by number alone.
    """

    kind: ClassVar[str] = "geolocation"

    head: ClassifierHead
    decoder: CellScores


class Embedder(_VectorModel):
    """Images to embeddings ``(B, D)``; :meth:`predict` gives them at unit length. Arguments as above."""

    kind: ClassVar[str] = "face_embeddings"

    head: EmbeddingHead
    decoder: UnitLength

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a plain mapping with keys backbone, head, decoder, mean, std."""
        backbone = build(config["backbone"])
        maps = {"in_channels": backbone.feature_channels, "in_strides": backbone.feature_strides}
        return cls(backbone, build(config["head"], **maps), build(config["decoder"]), config["mean"], config["std"])


class Detector(_PixelModel):
    """Images to raw SSD outputs; :meth:`predict` gives detections.

    Args:
        backbone: Gives the feature maps.
        head: Takes them; holds the default boxes.
        decoder: Raw outputs to detections.
        mean: Per channel, in pixel units 0-255.
        std: Per channel, in pixel units.
    """

    kind: ClassVar[str] = "detection"

    head: SSDHead
    decoder: SSDDecoder

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a plain mapping with keys backbone, head, decoder, mean, std."""
        backbone = build(config["backbone"])
        head = build(config["head"], in_channels=backbone.feature_channels, in_strides=backbone.feature_strides)
        return cls(backbone, head, build(config["decoder"]), config["mean"], config["std"])

    def answer(self, maps: Sequence[Tensor]) -> SSDOutputs:
        """Raw outputs for the backbone's maps of images at the model's resolution."""
        return self.head(list(maps))

    def finish(self, raw: SSDOutputs) -> Detections:
        """Detections in pixels of the network's input, of raw outputs."""
        return self.decoder(raw, self.head.default_boxes, self.head.resolution)


class FasterRCNN(_PixelModel):
    """Images to proposals and their classes; :meth:`predict` gives detections.

    The backbone's blocks behind the proposals' map classify each proposal, so all weights of a classifier's backbone
    have their place here, under their own names: ``backbone.*``.

    Args:
        backbone: With a tail; gives one feature map.
        head: Takes it; holds the anchors.
        decoder: Raw outputs to detections.
        mean: Per channel, in pixel units 0-255.
        std: Per channel, in pixel units.
    """

    kind: ClassVar[str] = "faster_rcnn"

    head: FasterRCNNHead
    decoder: RegionDecoder

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a plain mapping with keys backbone, head, decoder, mean, std."""
        backbone = build(config["backbone"])
        maps = {"in_channels": backbone.feature_channels, "in_strides": backbone.feature_strides}
        head = build(config["head"], **maps, region_channels=backbone.tail_channels)
        return cls(backbone, head, build(config["decoder"]), config["mean"], config["std"])

    def answer(self, maps: Sequence[Tensor]) -> RegionOutputs:
        """Raw outputs for the backbone's one map of images at the model's resolution."""
        (feature_map,) = maps
        proposals = self.head.propose(feature_map)
        boxes = proposals["proposals"]
        image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        logits, offsets = self.classify(feature_map, image, boxes.flatten(0, 1))
        shape = boxes.shape[:2]
        return {**proposals, "cls_logits": logits.unflatten(0, shape), "box_offsets": offsets.unflatten(0, shape)}

    def classify(self, feature_map: Tensor, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and box offsets of any boxes.

        Args:
            feature_map: ``(B, C, H, W)``.
            image: ``(R,)`` int64: which of the B each box lies in.
            boxes: ``(R, 4)`` float32, xyxy in pixels of the network's input.

        Returns:
            ``(R, K + 1)`` and ``(R, K, 4)``.
        """
        # Batch statistics are of all regions; without them parts give the same and need little memory.
        at_once = max(len(boxes), 1) if self.training else REGIONS_AT_ONCE
        parts = [
            self.head.classify(self.backbone.forward_tail(self.head.crops(feature_map, *part)))
            for part in zip(image.split(at_once), boxes.split(at_once))
        ]
        logits, offsets = zip(*parts)
        return torch.cat(logits), torch.cat(offsets)

    def finish(self, raw: RegionOutputs) -> Detections:
        """Detections in pixels of the network's input, of raw outputs."""
        return self.decoder(raw, self.resolution)
