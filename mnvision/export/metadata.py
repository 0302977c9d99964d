"""What an exported file says of itself: all that is needed to use it, with or without mnvision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from mnvision import __version__
from mnvision.checkpoints import HEAD_KEYS, Metadata
from mnvision.errors import UserError
from mnvision.export import regions
from mnvision.export.graph import INPUT, ExportGraph, output_name

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

_PROPOSALS = {
    "boxes": "(B, P, K, 4) float32: x1, y1, x2, y2 in pixels of the input, of every proposal and class",
    "scores": "(B, P, K) float32 in 0..1, one per class name; non-maximum suppression is still to be done",
}


@dataclass
class FileMetadata:
    """The content, as plain data.

    Attributes:
        kind: As of the checkpoint.
        class_names: K names; position is the label. None for embeddings.
        category_ids: The data set's own numbering (detection), else empty.
        input: ``name``, ``layout`` ("nchw" or "nhwc"), ``dtype``, ``channels``, ``batch`` (None is any), ``height``
            and ``width`` of the pictures, ``network`` (height and width that they are stretched to inside), and
            ``any_size`` where pictures of any other size may go in.
        outputs: Name -> what it holds.
        preprocess: How a picture becomes the input, see ``mnvision/transforms/framing.py`` (alignment of faces
            included).
        calibration: Thresholds, similarity and the like, as of the checkpoint.
        heads: Of a multi-task model, by head what these entries say of a single-task file: ``kind``, ``class_names``,
            ``category_ids``, ``preprocess``, ``calibration`` and ``nms``; else empty.
        precision: "fp32", "fp16" or "int8".
        nms: Whether non-maximum suppression is inside; None where there is none to do.
        model: The model's config: backbone, head (default boxes), decoder.
        training: ``run`` (its folder), ``seed``, ``monitor``, ``checkpoint`` (name of the file), ``weights`` (16
            hexadecimal digits of the weights), ``version`` (of mnvision that trained) and ``overrides``.
        quantization: Of int8: ``pictures`` it was calibrated on and their ``source``, ``float_layers`` left out, what
            was ``measured`` in words, ``agreement`` with the checkpoint (0 to 1), and with labels the ``metric``
            (``name``, ``float`` and ``int8``); empty otherwise.
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
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
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
                f"{path}: holds no {KEY!r} metadata: not exported by mnvision, or stripped, damaged or cut off since; "
                "copy it again, or export it again with tools/export.py"
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
            heads={name: {key: head[key] for key in HEAD_KEYS} for name, head in self.heads.items()},
            run=run,
            overrides=self.training.get("overrides", []),
            version=self.version,
        )

    def head(self, name: str) -> FileMetadata:
        """What a file with one head of a multi-task file would say of itself; its outputs keep their names there."""
        named = {output: output_name(name, output) for output in (*_MEANINGS, *_DETECTIONS)}
        outputs = {output: self.outputs[key] for output, key in named.items() if key in self.outputs}
        training = {**self.training, "weights": self.training["heads"][name]}
        model = self.model["heads"][name]
        return replace(self, **self.heads[name], outputs=outputs, model=model, training=training, heads={})

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the pictures that go in; of a file that takes any, the network's."""
        return self.input["height"], self.input["width"]

    @property
    def network(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        height, width = self.input.get("network", self.resolution)  # not in files of earlier versions
        return height, width

    @property
    def batch(self) -> int | None:
        """Images that go in at once; None is any number."""
        return self.input["batch"]


def describe(
    metadata: Metadata, graph: ExportGraph, batch: int | None, precision: str, checkpoint: Path, model: Any
) -> FileMetadata:
    """What a file made of ``graph`` has to say.

    Args:
        metadata: Of the checkpoint.
        graph: What is exported.
        batch: Fixed number of images; None is any.
        precision: "fp32", "fp16" or "int8".
        checkpoint: Its file.
        model: Of the checkpoint, whose weights are named.
    """
    height, width = graph.size
    several = bool(metadata.heads)
    nms = {head: _nms(graph.names, head) for head in graph.heads}
    run = metadata.run
    training = {
        "run": _run_name(run),
        "seed": run.get("seed"),
        "monitor": run.get("monitor"),
        "checkpoint": checkpoint.name,
        "weights": weights_digest(model.state_dict()),
        "version": metadata.version,
        "overrides": metadata.overrides,
    }
    if several:
        training["heads"] = {head: weights_digest(model.part(head).state_dict()) for head in graph.heads}
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
            "network": list(graph.resolution),
            "any_size": graph.options.resize is True,
        },
        outputs={
            name: text
            for head in graph.heads
            for name, text in _outputs(graph.names, head, nms[head], _kind(metadata, head)).items()
        },
        model=metadata.model,
        category_ids=list(metadata.category_ids),
        preprocess=metadata.preprocess,
        calibration=metadata.calibration,
        heads={head: {**metadata.heads[head], "nms": nms[head]} for head in graph.heads} if several else {},
        precision=precision,
        nms=None if several else nms[graph.heads[0]],
        training=training,
    )


def _nms(names: tuple[str, ...], head: str) -> bool | None:
    """Whether non-maximum suppression is inside; None for a head without boxes."""
    return output_name(head, "count") in names if output_name(head, "boxes") in names else None


def _kind(metadata: Metadata, head: str) -> str:
    return str(metadata.heads[head]["kind"]) if head else metadata.kind


def _outputs(names: tuple[str, ...], head: str, nms: bool | None, kind: str) -> dict[str, str]:
    """Outputs of one head -> what they hold."""
    boxes = _PROPOSALS if kind == regions.KIND else _DEFAULT_BOXES
    meanings = _MEANINGS if nms is None else _DETECTIONS if nms else boxes
    named = {output_name(head, name): text for name, text in meanings.items()}
    return {name: named[name] for name in names if name in named}


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
