"""An exported file in the place of a model: the same predictors and the same evaluation run on it."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mnvision.build import build
from mnvision.checkpoints import Metadata, load_model, read_metadata
from mnvision.errors import UserError
from mnvision.export import regions
from mnvision.export.base import Format, Session
from mnvision.export.graph import output_name
from mnvision.export.suppression import NmsSettings, Suppress, keep_greedily
from mnvision.types import Detections

FORMATS = {
    ".onnx": "mnvision.export.onnx.Onnx",
    ".xml": "mnvision.export.openvino.OpenVino",
    ".pt2": "mnvision.export.pt2.Pt2",
    ".tflite": "mnvision.export.litert.LiteRT",
    ".pte": "mnvision.export.executorch.ExecuTorch",
}
"""Suffix -> the format that opens it; its module loads only when it is wanted."""
SMALLEST = 1e-30
"""Below any probability that float32 can tell from 0 in a sum; its logarithm is finite."""


class FileModel(nn.Module):
    """What a model of ``mnvision.models`` offers to those who only ask it, answered by an exported file.

    Args:
        session: The opened file.
        head: Of a multi-task file, the head to be the model.

    Attributes:
        metadata: What the file says of this model.
        kind: As the models of ``mnvision.models`` have it.
        resolution: Height and width of the input in pixels.
        network: Height and width that pictures have inside, the input's unless the file stretches them.
        backbone: Holds ``resolution`` only, the side of the network.
        head: Holds ``num_classes``, ``dim`` or ``default_boxes`` only.
        decoder: Of what :meth:`forward` gives.
        has_loss: Whether a loss can be computed from what :meth:`forward` gives.
    """

    fingerprint: Tensor

    def __init__(self, session: Session, head: str = "") -> None:
        super().__init__()
        metadata = session.metadata.head(head) if head else session.metadata
        self.session, self.metadata, self.name = session, metadata, head
        self.kind, self.resolution, self.network = metadata.kind, metadata.resolution, metadata.network
        self.backbone = SimpleNamespace(resolution=metadata.network[0])
        classes = len(metadata.class_names)
        dim = metadata.model.get("head", {}).get("dim")
        self.head = SimpleNamespace(num_classes=classes, dim=dim, default_boxes=torch.empty(0, 4))
        self.detects = "boxes" in metadata.outputs
        self.has_loss = not self.detects
        decoder = build(metadata.model["decoder"])
        self.decoder: nn.Module = _Finished(decoder.score_threshold) if self.detects else decoder
        self.suppress = Suppress(NmsSettings.of(decoder), keep_greedily) if metadata.nms is False else None
        # In the state dict, by which predictors tell one set of weights from another.
        self.register_buffer("fingerprint", _fingerprint(session.path))

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs by name for uint8 images ``(B, 3, H, W)``, as a single-task file calls them.

        Raises:
            UserError: Images of another type or size than the file takes, or the runtime fails.
        """
        return self.own(outputs_of(self.session, images))

    def own(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of all outputs of the file, this model's."""
        return {name: found[output_name(self.name, name)] for name in self.metadata.outputs}

    def predict(self, images: Tensor) -> Any:
        """What the model that was exported gives for uint8 images ``(B, 3, H, W)``: rows, or ``Detections``."""
        return self.finish(self.outputs(images))

    def finish(self, found: Mapping[str, Tensor]) -> Any:
        """The same from :meth:`outputs`."""
        if not self.detects:
            return next(iter(found.values()))
        if self.suppress is not None:
            found = dict(zip(("boxes", "scores", "classes", "count"), self.suppress(found["boxes"], found["scores"])))
        return Detections(boxes=found["boxes"], scores=found["scores"], labels=found["classes"].long())

    def forward(self, images: Tensor) -> Any:
        """What :attr:`decoder` turns into the answers of :meth:`predict`.

        Of classes and attributes these are logits, computed back from probabilities.
        """
        found = self.predict(images)
        if self.detects or self.kind == "face_embeddings":
            return found
        if self.kind == "face_attributes":
            return found.clamp(SMALLEST, 1).log() - (1 - found).clamp(min=1e-8).log()
        return found.clamp(min=SMALLEST).log()


class MultiTaskFile(nn.Module):
    """What a :class:`~mnvision.multitask.MultiTaskModel` offers to those who only ask it; one run serves all heads.

    Args:
        session: The opened file.

    Attributes:
        kind: "multitask".
        names: Of the heads.
        resolution: Height and width of the input in pixels.
        network: Height and width that pictures have inside.
        backbone: Holds ``resolution`` only, the side of the network.
        own_norms: False: no head needs a run of its own.
    """

    kind = "multitask"
    own_norms = False

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session, self.metadata = session, session.metadata
        self.names = tuple(session.metadata.heads)
        self.resolution, self.network = session.metadata.resolution, session.metadata.network
        self.backbone = SimpleNamespace(resolution=self.network[0])
        self.parts = nn.ModuleDict({name: FileModel(session, name) for name in self.names})

    def part(self, name: str) -> Any:
        """One head as a model of its own.

        Raises:
            UserError: There is no such head.
        """
        if name not in self.names:
            raise UserError(f"there is no head {name!r}; the heads are {', '.join(self.names)}")
        return self.parts[name]

    def passes(self, names: Iterable[str] | None = None) -> list[tuple[tuple[int, int], list[str]]]:
        """One run, whatever is asked for."""
        return [(self.resolution, list(self.names if names is None else names))]

    def predict(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Answers by head, of uint8 images ``(B, 3, H, W)``."""
        found = outputs_of(self.session, images)
        parts = {name: self.part(name) for name in (self.names if names is None else names)}
        return {name: part.finish(part.own(found)) for name, part in parts.items()}


def outputs_of(session: Session, images: Tensor) -> dict[str, Tensor]:
    """All outputs of a file by name for uint8 images ``(B, 3, H, W)``.

    A fixed batch is filled up; where any number can go in, few go into a Faster R-CNN at once.

    Raises:
        UserError: Images of another type or size than the file takes, or the runtime fails.
    """
    height, width = session.metadata.resolution
    right = images.ndim == 4 and images.dtype == torch.uint8 and len(images) > 0
    if not right or (tuple(images.shape[1:]) != (3, height, width)):
        raise UserError(
            f"{session.path}: takes uint8 images (B, 3, {height}, {width}), got {images.dtype} {tuple(images.shape)}"
        )
    pixels = images.cpu().numpy()
    if session.metadata.input["layout"] == "nhwc":
        pixels = pixels.transpose(0, 2, 3, 1)
    step = session.metadata.batch or min(len(pixels), regions.pictures_at_once(session.metadata.model))
    parts = []
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step]
        filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
        parts.append({name: value[: len(part)] for name, value in session.run(filled).items()})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: torch.from_numpy(value).to(images.device) for name, value in joined.items()}


class _Finished(nn.Module):
    """In the place of a detector's decoder where all is decoded already."""

    def __init__(self, score_threshold: float) -> None:
        super().__init__()
        self.score_threshold = score_threshold

    def forward(self, found: Detections, *rest: Any) -> Detections:
        """``found`` itself."""
        return found


class NoLoss(nn.Module):
    """In the place of a loss where raw outputs are not to be had."""

    def forward(self, *outputs: Any) -> dict[str, Tensor]:
        """No losses."""
        return {}


def is_exported(path: str | Path) -> bool:
    """Whether a path is to be opened by an export format; a ``.tflite`` without our metadata is not."""
    path = Path(path)
    if path.suffix.lower() != ".tflite":
        return path.suffix.lower() in FORMATS
    from mnvision.export.litert import has_metadata

    return path.is_file() and has_metadata(path)


def open_file(path: str | Path) -> Any:
    """An exported file as a model: a :class:`FileModel`, or a :class:`MultiTaskFile` of several heads.

    Raises:
        UserError: It does not exist, its runtime is not installed, or it is damaged, stripped or altered.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a checkpoint, or a file written by tools/export.py")
    module, _, name = FORMATS[path.suffix.lower()].rpartition(".")
    format_class = cast("type[Format]", getattr(importlib.import_module(module), name))
    return file_model(format_class.open(path)).eval()


def file_model(session: Session) -> FileModel | MultiTaskFile:
    """An opened file as a model."""
    return MultiTaskFile(session) if session.metadata.heads else FileModel(session)


def open_model(path: str | Path) -> tuple[Any, Metadata]:
    """The model of a checkpoint or of an exported file, and its metadata.

    Raises:
        UserError: See :func:`open_file` and :func:`~mnvision.checkpoints.load_model`.
    """
    if not is_exported(path):
        return load_model(path)
    model = open_file(path)
    return model, model.session.metadata.as_checkpoint()


def open_metadata(path: str | Path) -> Metadata:
    """The metadata of a checkpoint or of an exported file.

    Raises:
        UserError: See :func:`open_model`.
    """
    return open_model(path)[1] if is_exported(path) else read_metadata(path)


def _fingerprint(path: Path) -> Tensor:
    """SHA-256 of the file and of the weights beside it, ``(32,)`` uint8."""
    digest = hashlib.sha256(path.read_bytes())
    beside = path.with_suffix(".bin")
    if path.suffix.lower() == ".xml" and beside.is_file():
        digest.update(beside.read_bytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
