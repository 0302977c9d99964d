"""An ONNX file as teacher, run by onnxruntime: how face models and detectors are often handed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mnvision.errors import UserError
from mnvision.teachers.base import Outputs, PixelInput, Resolution, Teacher, digest
from mnvision.teachers.detections import stacked
from mnvision.teachers.onnx_boxes import BoxOutputs
from mnvision.teachers.onnx_file import OnnxFile
from mnvision.teachers.spec import TeacherSpec
from mnvision.teachers.weights import read_names
from mnvision.transforms.resize import as_resolution

OUTPUTS = {"classification": "logits", "face_attributes": "attribute_logits", "face_embeddings": "embedding"}
SMALLEST = 1e-7
"""Probabilities are kept this far from 0 and 1 before their logarithm is taken."""


class OnnxTeacher(Teacher):
    """A network in an ONNX file; nothing is guessed that the file does not say.

    Args:
        path: The file.
        kind: "classification", "face_attributes", "face_embeddings" or "detection".
        resolution: Side, or height and width, of the input where the file leaves them free.
        layout: "nchw" or "nhwc"; None goes by the axis of three channels.
        channel_order: "rgb" or "bgr".
        mean: Per channel in the file's order, in pixel units 0-255: the input is ``(pixel - mean) / std``. Needed for
            floating-point inputs (mean 0 and std 255 for pixels in 0..1), not for uint8 ones.
        std: Per channel, in pixel units.
        output: Name of the output; None where there is only one.
        probabilities: The output has been through softmax (classification) or sigmoid (attributes); its logarithm,
            or log(p / (1 - p)), is given, probabilities kept 1e-7 from 0 and 1.
        detections: For detectors, fields of :class:`BoxOutputs`. The graph ends with finished detections, after
            non-maximum suppression.
        class_names: Text file with one name per column (class, attribute); None looks beside the file.
        max_detections: Detections kept per picture, D, best first.
        threads: Threads of onnxruntime; None is all cores.

    Raises:
        UserError: onnxruntime is missing, the file cannot be loaded, its names, shapes or types are not those
            described (the line says what it has), or an option is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str = "classification",
        resolution: Resolution | None = None,
        layout: str | None = None,
        channel_order: str = "rgb",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        output: str | None = None,
        probabilities: bool = False,
        detections: Mapping[str, Any] | None = None,
        class_names: str | None = None,
        max_detections: int = 100,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        path = Path(path).expanduser()
        called = f"teacher {path}"
        boxes = _checked_options(kind, channel_order, probabilities, detections, max_detections)
        self.file = OnnxFile(path, called, threads)
        self.layout = self.file.layout(layout)
        height, width = self._size(resolution)
        self.bgr, self.pixels = channel_order == "bgr", self._pixel_input(mean, std, channel_order == "bgr")
        self.kind, self.probabilities, self.max_detections, self.boxes = kind, probabilities, max_detections, boxes
        self.names = [self._only_output(output)] if boxes is None else boxes.names
        self.file.require(self.names)
        self.options = {
            "kind": kind,
            "resolution": [height, width],
            "layout": self.layout,
            "channel_order": channel_order,
            "mean": mean,
            "std": std,
            "probabilities": probabilities,
            "outputs": self.names if boxes is None else asdict(boxes),
            "max_detections": max_detections,
        }
        self.num_classes: int | None = None
        probe = self.answer(torch.zeros(2, 3, height, width, dtype=torch.uint8))
        shapes = {name: tuple(value.shape[1:]) for name, value in probe.items()}
        names: tuple[str, ...] | None = None
        if boxes is not None:
            names = read_names(class_names, None, path)
            if names is None:
                raise UserError(f"{called}: give teacher.class_names, a file with the name of every class in a line")
            self.num_classes = len(names)
        elif kind != "face_embeddings":
            names = read_names(class_names, shapes[OUTPUTS[kind]][0], path)
        self.spec = TeacherSpec(called, kind, (height, width), shapes, names, self.file.parameters)

    def answer(self, images: Tensor) -> Outputs:
        """See :meth:`Teacher.answer`."""
        _, number_type, shape = self.file.input
        pixels = self.pixels(images) if self.pixels is not None else images.flip(1) if self.bgr else images
        if self.layout == "nhwc":
            pixels = pixels.permute(0, 2, 3, 1)
        array = np.ascontiguousarray(pixels.cpu().numpy().astype(number_type))
        if self.boxes is None:
            outputs = {OUTPUTS[self.kind]: self._vectors(array, shape[0] or len(array))}
        else:
            outputs = stacked([self._detections(self.boxes, one[None], images) for one in array])
        return {name: value.to(images.device) for name, value in outputs.items()}

    def fingerprint(self) -> str:
        """Hex digest of the file, its external data and the options."""
        return digest({"class": type(self).__name__, **self.options}, files=self.file.files)

    def _vectors(self, array: NDArray[Any], batch_size: int) -> Tensor:
        """One vector per picture; a last batch that is too short for the file is filled up with its last picture."""
        parts = []
        for start in range(0, len(array), batch_size):
            part = array[start : start + batch_size]
            filled = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
            (values,) = self.file.run(filled, self.names)
            if values.ndim < 2 or values.shape != (batch_size, values.shape[1], *[1] * (values.ndim - 2)):
                raise UserError(
                    f"{self.file.called}: its output {self.names[0]} is {values.shape} for {batch_size} pictures; one "
                    "vector for each is needed"
                )
            parts.append(torch.from_numpy(values.reshape(batch_size, -1).astype(np.float32))[: len(part)])
        vectors = torch.cat(parts)
        if self.kind == "face_embeddings":
            return F.normalize(vectors)
        if not self.probabilities:
            return vectors
        if not ((vectors >= 0) & (vectors <= 1 + 1e-4)).all():
            raise UserError(
                f"{self.file.called}: its output {self.names[0]} goes from {float(vectors.min()):.4g} to "
                f"{float(vectors.max()):.4g}, which are no probabilities: set teacher.probabilities=false"
            )
        vectors = vectors.clamp(SMALLEST, 1 - SMALLEST)
        return vectors.logit() if self.kind == "face_attributes" else vectors.log()

    def _detections(self, boxes: BoxOutputs, array: NDArray[Any], images: Tensor) -> Outputs:
        """Of one picture; many exported detectors take no more at once."""
        found = dict(zip(self.names, self.file.run(array, self.names)))
        size = (float(images.shape[2]), float(images.shape[3]))
        return boxes.read(found, size, self.num_classes, self.max_detections, self.file.called)

    def _size(self, resolution: Resolution | None) -> tuple[int, int]:
        """Height and width that the file and the argument agree on."""
        name, _, shape = self.file.input
        fixed = (shape[self.layout.index("h")], shape[self.layout.index("w")])
        if resolution is None:
            if fixed[0] is None or fixed[1] is None:
                raise UserError(f"{self.file.called}: its input {name} takes any size: give teacher.resolution")
            return fixed[0], fixed[1]
        size = as_resolution(resolution, "teacher.resolution")
        if any(own not in (None, asked) for own, asked in zip(fixed, size)):
            raise UserError(
                f"{self.file.called}: its input {name} is {fixed[0]} x {fixed[1]} px, teacher.resolution={resolution}: "
                "leave it out"
            )
        return size

    def _pixel_input(self, mean: Any, std: Any, bgr: bool) -> PixelInput | None:
        name, number_type, _ = self.file.input
        if number_type is np.uint8:
            if mean is not None or std is not None:
                raise UserError(
                    f"{self.file.called}: its input {name} is uint8: leave teacher.mean and teacher.std out"
                )
            return None
        if mean is None or std is None:
            raise UserError(
                f"{self.file.called}: its input {name} is {number_type.__name__}: give teacher.mean and teacher.std "
                "for pixels 0-255 (mean 0, std 255 where it takes 0..1; mean 127.5, std 127.5 where it takes -1..1)"
            )
        return PixelInput(mean, std, bgr)

    def _only_output(self, output: str | None) -> str:
        if output is not None:
            return output
        if len(self.file.outputs) != 1:
            raise UserError(f"{self.file.called}: give teacher.output, one of {self.file.describe()}")
        return next(iter(self.file.outputs))


def _checked_options(
    kind: str, channel_order: str, probabilities: bool, detections: Mapping[str, Any] | None, max_detections: int
) -> BoxOutputs | None:
    """How boxes are read, for detectors."""
    if kind not in (*OUTPUTS, "detection"):
        raise UserError(f"teacher.kind={kind!r}: choose one of {', '.join((*OUTPUTS, 'detection'))}")
    if channel_order not in ("rgb", "bgr"):
        raise UserError(f"teacher.channel_order={channel_order!r}: choose rgb or bgr")
    if probabilities and kind not in ("classification", "face_attributes"):
        raise UserError(f"teacher.probabilities is for classification and face_attributes, not for kind={kind}")
    if max_detections < 1:
        raise UserError(f"teacher.max_detections={max_detections}: give at least 1")
    return BoxOutputs.from_options(detections or {}) if kind == "detection" else None
