"""What a checkpoint holds, and how it is read: plain data and tensors, nothing that runs.

A checkpoint is a Lightning checkpoint with two more entries: ``mnvision`` (see :class:`Metadata`) and, where
weights were averaged, ``ema_state_dict``. ``state_dict`` names begin with ``model.``; below that prefix lies
exactly what is shipped: ``backbone.*`` and ``head.*``.
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnvision import __version__
from mnvision.build import build_model
from mnvision.errors import UserError

KEY = "mnvision"
EMA_KEY = "ema_state_dict"
PREFIX = "model."
PUBLISHED_SUFFIX = ".tflite"
EXPORTED = (".onnx", ".xml", ".pt2", ".pte")
FORMAT_VERSION = 1
HEAD_KEYS = ("kind", "class_names", "category_ids", "preprocess", "calibration")

# What damaged zip archives and pickles were seen to raise.
UNREADABLE = (
    *(RuntimeError, EOFError, OSError, KeyError, IndexError, ValueError, TypeError, AttributeError),
    *(AssertionError, struct.error, zipfile.BadZipFile),
)


@dataclass
class Metadata:
    """All that is needed to use a checkpoint without the run that made it.

    Attributes:
        kind: ``kind`` of a class in ``mnvision.models``, such as ``"detection"`` (an SSD) or ``"faster_rcnn"``.
        model: The model's plain config, from which it is rebuilt.
        class_names: K names; position is the label. None for embeddings.
        category_ids: K ids in the data set's own numbering (detection), else empty.
        preprocess: How a picture becomes the network's input, see ``mnvision/transforms/framing.py``.
        calibration: What turns answers into decisions: ``thresholds`` of attributes and the ``similarity`` from which
            two embeddings are of one person, chosen on validation data; the ``partition`` of geolocation.
        heads: Of a multi-task model, by head what this entry of a single-task checkpoint holds of it: ``kind``,
            ``class_names``, ``category_ids``, ``preprocess`` and ``calibration``; else empty. Its model config is
            ``model["heads"]`` of that name.
        quantization: Of a run with ``quantize=qat``: the ranges of what goes into each layer, which its int8 file has
            (``mnvision/quantization/ranges.py``); else empty. The weights are those of a float model all the same.
        run: The whole resolved config of the run, for people and for resuming.
        overrides: The run's command-line overrides, from which the tools compose the same config again.
        version: mnvision's version that wrote the file.
        format_version: Raised when the layout changes.
    """

    kind: str
    model: dict[str, Any]
    class_names: list[str]
    category_ids: list[int] = field(default_factory=list)
    preprocess: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    version: str = __version__
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as stored."""
        return asdict(self)

    def as_head(self) -> dict[str, Any]:
        """This single-task entry as one of the :attr:`heads` of a multi-task model."""
        return {key: getattr(self, key) for key in HEAD_KEYS}

    def head(self, name: str) -> Metadata:
        """One head of a multi-task model as the entry of a single-task checkpoint.

        Raises:
            UserError: There is no such head.
        """
        if name not in self.heads:
            raise UserError(f"there is no head {name!r}; the heads are {', '.join(self.heads)}")
        own: dict[str, Any] = {key: self.heads[name][key] for key in HEAD_KEYS}
        run = self.run.get("heads_run", {}).get(name, self.run)
        common: dict[str, Any] = {"run": run, "overrides": self.overrides, "version": self.version}
        return Metadata(model=self.model["heads"][name], **own, **common)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], path: Path) -> Metadata:
        """The stored entry back again; ``path`` is named in errors."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or not {"kind", "model", "class_names"} <= set(data):
            raise UserError(f"{path}: its {KEY!r} entry is incomplete; the file was not written by mnvision")
        if data.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(
                f"{path}: written by mnvision {data.get('version')}, newer than this one ({__version__}): upgrade"
            )
        return cls(**{key: value for key, value in data.items() if key in known})


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The whole content of a checkpoint file, loaded with ``weights_only=True``.

    Of a published detector (.tflite) it is what our own checkpoint of it would hold.

    Raises:
        UserError: Missing, empty, truncated, corrupt, or holding objects other than tensors and plain data.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == PUBLISHED_SUFFIX:
        return _published(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint {path} {what}; give the path of a .ckpt file written by tools/train.py")
    if path.suffix.lower() in EXPORTED:
        raise UserError(f"{path} is an exported file: give the .ckpt that it was made of")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*pickle protocol.*")  # of a damaged file; the error follows
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sums(path)
    except pickle.UnpicklingError:
        with path.open("rb") as file:
            if file.read(8)[4:] == b"TFL3":
                raise UserError(f"{path}: a .tflite file under another suffix: rename it") from None
        raise UserError(
            f"{path}: refused, for it is corrupt or holds Python objects beside tensors and plain data"
        ) from None
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint, truncated or corrupt ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    return content


def _published(path: Path) -> dict[str, Any]:
    from mnvision.published.ssd_tflite import read_published_detector  # the reader builds on backbones and heads

    metadata, weights = read_published_detector(path)
    state = {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}
    return {KEY: Metadata(**metadata).to_dict(), "state_dict": state}


def _check_sums(path: Path) -> None:
    """Raise ``BadZipFile`` where bytes of the weights changed on disk, which ``torch.load`` reads without a word."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} does not fit")


def read_metadata(path: str | Path, content: Mapping[str, Any] | None = None) -> Metadata:
    """The mnvision entry of a checkpoint.

    Args:
        path: The file.
        content: Its content if it has been read already.
    """
    content = read_checkpoint(path) if content is None else content
    if KEY not in content:
        raise UserError(
            f"{path}: no {KEY!r} entry, so it is not one of our checkpoints; plain weights go to "
            "backbone.pretrained=FILE"
        )
    return Metadata.from_dict(content[KEY], Path(path))


def shipped_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """``backbone.*`` and ``head.*`` of a checkpoint: the averaged weights where there are any."""
    if content.get(EMA_KEY):
        return dict(content[EMA_KEY])
    state: Mapping[str, Tensor] = content.get("state_dict", {})
    return {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Fill ``model`` with ``weights``; every key must match.

    Raises:
        UserError: Names the keys and shapes that differ; the model keeps what it had.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    shapes = [
        f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if own[key].shape != weights[key].shape
    ]
    problems = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(shapes)))
        if keys
    ]
    if problems:
        raise UserError(f"{path}: its weights do not fit the model: {'; '.join(problems)}")
    model.load_state_dict(dict(weights))


def load_model(path: str | Path, config: dict[str, Any] | None = None) -> tuple[Any, Metadata]:
    """The model of a checkpoint in eval mode, and its metadata. Needs neither the run nor its config files.

    Args:
        path: The file.
        config: Replaces the stored model config, e.g. the same at another resolution.

    Raises:
        UserError: As :func:`read_checkpoint`; a target outside mnvision; weights that do not fit.
    """
    path = Path(path)
    content = read_checkpoint(path)
    metadata = read_metadata(path, content)
    if config is not None:
        metadata.model = config
    try:
        model = build_model(metadata.model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    load_weights(model, shipped_weights(content), path)
    return model.eval(), metadata
