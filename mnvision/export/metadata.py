"""What an exported file says of itself: all that is needed to use it, with or without mnvision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from mnvision import __version__
from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.export.graph import INPUT, ExportGraph

KEY = "mnvision"
"""Under which name a format keeps the text."""
CHECKSUM = "checksum"
FORMAT_VERSION = 1

_MEANINGS = {
    "probabilities": "(B, K) float32 in 0..1, one per class name",
    "embeddings": "(B, D) float32 of length 1: a dot product of two is their cosine",
}
_DETECTIONS = {
    "boxes": "(B, D, 4) float32: x1, y1, x2, y2 in pixels of the input",
    "scores": "(B, D) float32 in 0..1, best first",
    "classes": "(B, D) int64, number of the class name; -1 is padding",
    "count": "(B,) int64: how many rows of each image are detections",
}
_DEFAULT_BOXES = {
    "boxes": "(B, A, 4) float32: x1, y1, x2, y2 in pixels of the input, of every default box",
    "scores": "(B, A, K) float32 in 0..1, one per class name; non-maximum suppression is still to be done",
}


@dataclass
class FileMetadata:
    """The content, as plain data.

    Attributes:
        kind: As of the checkpoint.
        class_names: K names; position is the label. None for embeddings.
        category_ids: The data set's own numbering (detection), else empty.
        input: ``name``, ``layout`` ("nchw" or "nhwc"), ``dtype``, ``channels``, ``batch`` (None is any), ``height``
            and ``width`` of the network, and ``any_size`` where other pictures are stretched inside.
        outputs: Name -> what it holds.
        preprocess: How a picture becomes the input, see ``mnvision/transforms/framing.py`` (alignment of faces
            included).
        calibration: Thresholds, similarity and the like, as of the checkpoint.
        precision: "fp32", "fp16" or "int8".
        nms: Whether non-maximum suppression is inside; None where there is none to do.
        model: The model's config: backbone, head (default boxes), decoder.
        training: ``run`` (its folder), ``seed``, ``monitor``, ``checkpoint`` (name of the file), ``weights`` (16
            hexadecimal digits of the weights), ``version`` (of mnvision that trained) and ``overrides``.
        quantization: Of int8: ``pictures`` it was calibrated on, ``float_layers`` left out, ``agreement`` with the
            checkpoint (0 to 1) and in words what was ``measured``; empty otherwise.
        version: mnvision's version that exported.
        format_version: Raised when the layout changes.
    """

    kind: str
    class_names: list[str]
    input: dict[str, Any]
    outputs: dict[str, str]
    model: dict[str, Any]
    category_ids: list[int] = field(default_factory=list)
    preprocess: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    nms: bool | None = None
    training: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    format_version: int = FORMAT_VERSION

    def to_text(self) -> str:
        """JSON with a checksum over all other entries."""
        content = json.loads(json.dumps(asdict(self)))
        return json.dumps({**content, CHECKSUM: _checksum(content)}, ensure_ascii=True)

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> FileMetadata:
        """The content back again; ``path`` is named in errors.

        Raises:
            UserError: There is none, it is incomplete, was changed after the export, or is of a newer version.
        """
        if not text:
            raise UserError(
                f"{path}: holds no {KEY!r} metadata: not exported by mnvision, or stripped since; export it again with "
                "tools/export.py"
            )
        try:
            content = json.loads(text)
            checksum = content.pop(CHECKSUM, None)
        except (ValueError, AttributeError):
            raise UserError(f"{path}: its {KEY!r} metadata are no JSON object: export it again") from None
        if content.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(f"{path}: exported by mnvision {content.get('version')}, newer than {__version__}: upgrade")
        known = {entry.name for entry in fields(cls)}
        required = {"kind", "class_names", "input", "outputs", "model"}
        if checksum != _checksum(content) or not required <= set(content) <= known:
            raise UserError(f"{path}: its {KEY!r} metadata were changed after the export: export it again")
        return cls(**content)

    def as_checkpoint(self) -> Metadata:
        """The same for what reads checkpoints: predictors and evaluation."""
        run: dict[str, Any] = {key: self.training[key] for key in ("seed", "monitor") if key in self.training}
        return Metadata(
            kind=self.kind,
            model=self.model,
            class_names=self.class_names,
            category_ids=self.category_ids,
            preprocess=self.preprocess,
            calibration=self.calibration,
            run=run,
            overrides=self.training.get("overrides", []),
            version=self.version,
        )

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.input["height"], self.input["width"]

    @property
    def batch(self) -> int | None:
        """Images that go in at once; None is any number."""
        return self.input["batch"]


def describe(
    metadata: Metadata, graph: ExportGraph, batch: int | None, precision: str, checkpoint: Path, digest: str
) -> FileMetadata:
    """What a file made of ``graph`` has to say.

    Args:
        metadata: Of the checkpoint.
        graph: What is exported.
        batch: Fixed number of images; None is any.
        precision: "fp32", "fp16" or "int8".
        checkpoint: Its file.
        digest: See :func:`weights_digest`.
    """
    height, width = graph.resolution
    nms = "count" in graph.names if "boxes" in graph.names else None
    meanings = _MEANINGS if nms is None else _DETECTIONS if nms else _DEFAULT_BOXES
    run = metadata.run
    training = {
        "run": _run_name(run),
        "seed": run.get("seed"),
        "monitor": run.get("monitor"),
        "checkpoint": checkpoint.name,
        "weights": digest,
        "version": metadata.version,
        "overrides": metadata.overrides,
    }
    return FileMetadata(
        kind=metadata.kind,
        class_names=list(metadata.class_names),
        input={
            "name": INPUT,
            "layout": graph.options.layout,
            "dtype": "uint8",
            "channels": "rgb",
            "batch": batch,
            "height": height,
            "width": width,
            "any_size": graph.options.resize,
        },
        outputs={name: meanings[name] for name in graph.names},
        model=metadata.model,
        category_ids=list(metadata.category_ids),
        preprocess=metadata.preprocess,
        calibration=metadata.calibration,
        precision=precision,
        nms=nms,
        training=training,
    )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change with any weight."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _run_name(run: Mapping[str, Any]) -> str | None:
    """The run folder below its task, such as ``ssd_coco/2026-01-31_12-00-00``; where it lay is nobody's concern."""
    folder = (run.get("paths") or {}).get("output_dir")
    return None if not folder else "/".join(PurePath(folder).parts[-2:])


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
