"""What is timed: a checkpoint, an exported file or a composed model, made ready to be called.

Three parts are told apart, since each answers another question:

- ``whole``: a picture in memory to results: resizing, network, decoding, and the results as Python objects. What an
  application waits for, less the reading of the file.
- ``model``: pixels at the network's resolution to decoded numbers: normalisation, network, decoding and, for a
  detector, non-maximum suppression. What an exported file computes.
- ``network``: the same pixels to raw outputs, without decoding. Only of torch models: in an exported file the decoding
  is part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mnvision.build import build_model
from mnvision.checkpoints import KEY, Metadata
from mnvision.cost import Cost, measure
from mnvision.errors import UserError
from mnvision.prediction.predictor import Predictor, as_device, load_predictor, make_predictor
from mnvision.prediction.preprocess import pixels_from_memory

WHOLE, MODEL, NETWORK = "whole", "model", "network"
PARTS = (WHOLE, MODEL, NETWORK)
PICTURE_SIZE = (480, 640)
RUNTIMES = {
    ".onnx": "onnxruntime",
    ".xml": "openvino",
    ".pt2": "torch.export",
    ".tflite": "litert",
    ".pte": "executorch",
}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """One thing to time, as plain data: it travels to the process that times it.

    Attributes:
        name: Row of the tables.
        file: A checkpoint or an exported file; or
        config: a model's settled config, its weights then random.
        preprocess: How pictures become the network's input, for a config.
    """

    name: str
    file: str | None = None
    config: Mapping[str, Any] | None = None
    preprocess: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``Candidate(**data)`` is the same again."""
        return asdict(self)


class Subject:
    """A candidate that has been loaded.

    Args:
        candidate: What to load.
        device: As :class:`~mnvision.prediction.predictor.Predictor` takes it.
        picture: ``(h, w, 3)`` uint8 RGB, what the whole predictor is given.

    Attributes:
        model: Has ``predict(images)``; a torch model also ``forward(images)``.
        predictor: None where a composed model has none without training.
        parts: Of :data:`PARTS`, those it has.

    Raises:
        UserError: The file cannot be loaded, or the config cannot be built.
    """

    def __init__(self, candidate: Candidate, device: str, picture: NDArray[np.uint8]) -> None:
        self.candidate, self.device, self.picture = candidate, as_device(device), picture
        self.predictor: Predictor[Any] | None
        if candidate.file is not None:
            self.predictor = load_predictor(candidate.file, device)
            self.model: Any = self.predictor.model
        else:
            self.model, self.predictor = _compose(candidate, device)
        self.is_torch = not hasattr(self.model, "session")  # which a model behind an exported file holds
        self.parts = tuple(
            part for part, there in zip(PARTS, (self.predictor is not None, True, self.is_torch), strict=True) if there
        )

    @property
    def runtime(self) -> str:
        """What computes: "torch", or the runtime of an exported file."""
        if self.is_torch:
            return "torch"
        suffix = Path(self.candidate.file or "").suffix.lower()
        return RUNTIMES.get(suffix, suffix.lstrip("."))

    @property
    def cost(self) -> Cost:
        """Of one picture, by layer. What an exported file computes is counted on the model that it was made from."""
        model = self.model
        if not self.is_torch:
            assert self.predictor is not None
            model = build_model(self.predictor.metadata.model)
        return measure(model, tuple(model.resolution), torch.uint8)

    def facts(self) -> dict[str, Any]:
        """What a table says beside the times, as plain data."""
        file, cost = self.candidate.file, self.cost
        return {
            "kind": str(self.model.kind),
            "runtime": self.runtime,
            "resolution": list(self.model.resolution),
            "parts": list(self.parts),
            "file_mb": file_megabytes(Path(file)) if file else None,
            "mult_adds": cost.mult_adds,
            "params": cost.params,
        }

    def images(self, batch: int) -> Tensor:
        """``(batch, 3, H, W)`` uint8 noise on the device, in the memory order that pictures have."""
        height, width = self.model.resolution
        noise = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        return torch.from_numpy(noise).to(self.device).permute(0, 3, 1, 2)

    def call(self, part: str, batch: int) -> Call:
        """A callable that answers once for ``batch`` pictures.

        Raises:
            UserError: There is no such part.
        """
        if part not in self.parts:
            raise UserError(f"{self.candidate.name} has no part {part!r}, only {', '.join(self.parts)}")
        if part == WHOLE:
            assert self.predictor is not None
            predict, pictures = self.predictor.predict, [self.picture] * batch
            return lambda: predict(pictures, batch_size=batch)
        images = self.images(batch)
        compute = self.model.predict if part == MODEL else self.model

        def answer() -> Any:
            with torch.inference_mode():
                return compute(images)

        return answer


def _compose(candidate: Candidate, device: str) -> tuple[Any, Predictor[Any] | None]:
    """A model of random weights, the same in every process, and its predictor if it has one untrained."""
    torch.manual_seed(0)
    config = dict(candidate.config or {})
    model = build_model(config)
    settle_statistics(model)
    names = [f"class {number}" for number in range(getattr(model.head, "num_classes", 0))]
    metadata = Metadata(model.kind, config, names, preprocess=dict(candidate.preprocess or {}))
    try:
        return model, make_predictor(model, metadata, device)
    except UserError:
        return model.eval().to(as_device(device)).to(memory_format=torch.channels_last), None


def save_untrained(candidate: Candidate, path: Path) -> None:
    """Write a composed candidate as a checkpoint of random weights, for an exporter to read."""
    model, _ = _compose(candidate, "cpu")
    names = [f"class {number}" for number in range(getattr(model.head, "num_classes", 0))]
    rule = dict(candidate.preprocess or {"resize": "stretch"})
    metadata = Metadata(model.kind, dict(candidate.config or {}), names, preprocess=rule)
    state = {f"model.{key}": value.contiguous() for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, KEY: metadata.to_dict()}, path)


def settle_statistics(model: Any) -> None:
    """Batch normalisation as a trained model has it: without, activations of random weights fade to denormals.

    Args:
        model: Of one head or of several; in eval mode afterwards.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    passes = model.passes() if model.kind == "multitask" else [(model.resolution,)]
    with torch.no_grad():
        for (height, width), *heads in passes:
            model(torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8), *heads)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def make_picture(path: str | None) -> NDArray[np.uint8]:
    """The picture that whole predictors are given: a file's pixels, else noise of 480 x 640.

    Raises:
        UserError: The file is missing or is no picture.
    """
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (*PICTURE_SIZE, 3), dtype=np.uint8)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return pixels_from_memory(image)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"picture={path}: cannot be read ({error}); give the path of a picture") from None


def file_megabytes(path: Path) -> float:
    """Size on the disk in MB of 10^6 bytes, with the weights that lie beside it (OpenVINO's .bin, ONNX's .data)."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else [path.with_name(f"{path.name}.data")]
    return sum(file.stat().st_size for file in (path, *beside) if file.is_file()) / 1e6
