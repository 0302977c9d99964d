"""A checkpoint of ours as teacher: any task, any width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnvision.build import build, build_model
from mnvision.checkpoints import Metadata, load_model, load_weights, read_metadata
from mnvision.errors import UserError
from mnvision.merging import one_head
from mnvision.teachers.base import Outputs, Resolution, Teacher
from mnvision.teachers.spec import KINDS
from mnvision.transforms.resize import as_resolution

OUTPUTS = {"classification": "logits", "face_attributes": "attribute_logits", "geolocation": "logits"}


class CheckpointTeacher(Teacher):
    """A model that mnvision trained, with its averaged weights where there are any.

    Args:
        path: A ``.ckpt`` written by ``tools/train.py``.
        resolution: Side of its input in pixels; None is the one it was trained at. An SSD's default boxes follow it.
        features: Strides of the backbone's maps to give as well, as "features_<stride>".
        detections: Give an SSD's finished detections (for pseudo-labels) and not its raw outputs.
        head: Of a checkpoint of several heads, the one that teaches; None where only one can.

    Raises:
        UserError: Not a checkpoint of ours, a stride that its backbone does not have, ``detections`` of a model
            that has none, a resolution it cannot run at, or a head that is not there.
    """

    def __init__(
        self,
        path: str | Path,
        resolution: Resolution | None = None,
        features: Sequence[int] = (),
        detections: bool = False,
        head: str | None = None,
    ) -> None:
        super().__init__()
        path = Path(path)
        name = f"teacher {path}"
        self.model, metadata = _load(path, resolution, head, name)
        kind = self.model.kind
        if kind not in KINDS:
            raise UserError(f"{name} is a {kind} checkpoint, which cannot teach: give one of {', '.join(KINDS[:-1])}")
        if detections and kind != "detection":
            raise UserError(f"{name} is a {kind} checkpoint: teacher.detections is for SSD detectors")
        self.kind = "ssd" if kind == "detection" and not detections else kind
        own = list(self.model.backbone.feature_strides)
        self.feature_strides = sorted(set(features))
        self._give_features(metadata.model["backbone"], own, name)
        given = list(self.model.backbone.feature_strides)
        self._heads_maps = [given.index(stride) for stride in own]
        self._feature_maps = {stride: given.index(stride) for stride in self.feature_strides}
        height, width = self.model.resolution
        self.options = {"model": metadata.model, "features": self.feature_strides, "detections": detections}
        self._settle(
            name,
            self.kind,
            (height, width),
            class_names=tuple(metadata.class_names) or None,
            default_boxes=self._box_fractions(self.model.head.default_boxes) if self.kind == "ssd" else None,
            preprocess=metadata.preprocess,
            calibration=metadata.calibration,
        )

    def answer(self, images: Tensor) -> Outputs:
        """See :meth:`Teacher.answer`."""
        maps = self.model.features(images)
        raw = self.model.head([maps[index] for index in self._heads_maps])
        outputs = self._outputs(raw)
        return outputs | {f"features_{stride}": maps[index] for stride, index in self._feature_maps.items()}

    def _outputs(self, raw: Any) -> Outputs:
        if self.kind == "ssd":
            return {"cls_logits": raw["cls_logits"], "box_offsets": raw["box_offsets"]}
        if self.kind == "detection":
            found = self.model.decoder(raw, self.model.head.default_boxes, self.model.resolution)
            return dict(found) | {"boxes": self._box_fractions(found["boxes"])}
        if self.kind == "face_embeddings":
            return {"embedding": self.model.decoder(raw)}
        return {OUTPUTS[self.kind]: raw}

    def _box_fractions(self, boxes: Tensor) -> Tensor:
        height, width = self.model.resolution
        return boxes / torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)

    def _give_features(self, config: Mapping[str, Any], own: list[int], name: str) -> None:
        """Have the backbone return the maps asked for beside those that the head needs."""
        wanted = sorted({*own, *self.feature_strides})
        if wanted == sorted(own):
            return
        if wanted[-1] > max(own):
            raise UserError(
                f"{name}: teacher.features={self.feature_strides}: its backbone ends at stride {max(own)}, "
                "and strides are powers of 2"
            )
        try:
            backbone = build({**config, "out_strides": wanted})
        except UserError as error:
            raise UserError(f"{name}: teacher.features={self.feature_strides}: {error}") from None
        backbone.load_state_dict(self.model.backbone.state_dict())
        self.model.backbone = backbone


def _load(path: Path, resolution: Resolution | None, head: str | None, name: str) -> tuple[Any, Metadata]:
    """A single-task model in eval mode, and its metadata."""
    metadata = read_metadata(path)
    if metadata.kind != "multitask":
        if head is not None:
            raise UserError(f"{name} is a {metadata.kind} checkpoint of one head: leave teacher.head out")
        return load_model(path, None if resolution is None else _resized(metadata.model, resolution, name))
    part = one_head(path, head, (*OUTPUTS, "face_embeddings", "detection"), "teacher.head")
    single = part.metadata
    if resolution is not None:
        single.model = _resized(single.model, resolution, name)
    model = build_model(single.model)
    load_weights(model, part.weights, path)
    return model.eval(), single


def _resized(model: Mapping[str, Any], resolution: Resolution, name: str) -> dict[str, Any]:
    """The model's config at another resolution."""
    height, width = as_resolution(resolution, "teacher.resolution")
    if height != width:
        raise UserError(f"{name}: teacher.resolution={[height, width]}: our models are square, give one side")
    config = deepcopy(dict(model))
    config["backbone"]["resolution"] = height
    if "resolution" in config["head"]:
        config["head"]["resolution"] = height
    return config
