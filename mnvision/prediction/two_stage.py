"""Detected boxes, cut out and passed to further heads: first where something is, then what it is like."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mnvision.data.images import read_image
from mnvision.errors import UserError
from mnvision.multitask import HEAD_NAMES
from mnvision.prediction.detection import detectors_of
from mnvision.prediction.pictures import crop
from mnvision.prediction.predictor import Predictor
from mnvision.prediction.preprocess import Pixels, Prepared, Preprocess, Source, pixels_from_memory
from mnvision.prediction.results import Detection, ImageDetections, ImageResult
from mnvision.prediction.results_multitask import ImageAnswers
from mnvision.transforms.framing import Points

_AT_ONCE = 32  # crops that go through the network together


@dataclass(frozen=True)
class Crops:
    """Which boxes are passed on, and how they are cut out.

    Attributes:
        detector: The head whose boxes they are; None where there is only one detector.
        classes: Names of the classes to pass on; none is all.
        margin: By what share of its width and height a box grows at each side; the picture's edges stop it.
    """

    detector: str | None = None
    classes: Sequence[str] = ()
    margin: float = 0.0

    def __post_init__(self) -> None:
        wrong = isinstance(self.margin, bool) or not isinstance(self.margin, int | float)
        if wrong or not (math.isfinite(self.margin) and 0 <= self.margin <= 10):
            raise UserError(f"crop_margin={self.margin!r}: give a share of the box's sides, such as 0.2")


@dataclass(frozen=True, eq=False)
class PreparedWithSource(Prepared):
    """A picture ready for the detector, and where its pixels are to be had.

    Attributes:
        first: As the first predictor takes it.
        pixels_in_memory: ``(h, w, 3)`` uint8 RGB of a picture that is no file.
    """

    first: Prepared | None = None
    pixels_in_memory: Pixels | None = None

    def whole(self) -> Pixels:
        """The whole picture; a file is read again, since those of a batch would take gigabytes."""
        if self.pixels_in_memory is not None:
            return self.pixels_in_memory
        assert self.path is not None
        return read_image(self.path).pixels


class _WithSource(Preprocess):
    def __init__(self, first: Preprocess) -> None:
        super().__init__(first.framing.to_dict(), first.resolution, first.network)
        self.first = first

    def __call__(self, source: Source, landmarks: Points | None = None) -> PreparedWithSource:
        if isinstance(source, str | os.PathLike):
            seen, pixels = self.first(Path(source), landmarks), None
        else:
            pixels = pixels_from_memory(source)
            seen = self.first(pixels, landmarks)
        return PreparedWithSource(seen.pixels, seen.size, seen.path, seen, pixels)


class TwoStagePredictor(Predictor[Any]):
    """A detector, and heads that answer for every box it finds.

    A crop is a picture of its own to them, prepared by their own rule: the answers are those that they give on the
    crop saved as a file without loss. Results are those of ``first``; each detection that was passed on has
    :attr:`~mnvision.prediction.results.Detection.answers`.

    Args:
        first: With a detector among its heads.
        second: Answers for the crops, by one head or by several.
        crops: What is passed on.

    Raises:
        UserError: No detector, several and none chosen, or an unknown class.
    """

    kind = "two_stage"
    result_type = ImageResult

    def __init__(self, first: Predictor[Any], second: Predictor[Any], crops: Crops) -> None:
        self.first, self.second, self.crops = first, second, crops
        self.detector = _chosen(first, crops.detector)
        self._check_classes()
        self.model, self.metadata, self.device = first.model, first.metadata, first.device
        self.class_names, self.resolution = first.class_names, first.resolution
        self.preprocess = _WithSource(first.preprocess)
        self.note = "; ".join(dict.fromkeys(note for note in (first.note, second.note) if note))

    @property
    def parts(self) -> Mapping[str, Predictor[Any]]:
        """Those of the first predictor."""
        return self.first.parts

    @property
    def second_parts(self) -> Mapping[str, Predictor[Any]]:
        """The heads that answer for boxes, by name."""
        return {name or HEAD_NAMES[part.kind]: part for name, part in self.second.parts.items()}

    def check_threshold(self, score_threshold: float | None) -> float | None:
        """See :meth:`~mnvision.prediction.predictor.Predictor.check_threshold`; it is the detector's."""
        return self.first.check_threshold(score_threshold)

    def predict_prepared(self, pictures: Sequence[Prepared], score_threshold: float | None = None) -> list[Any]:
        """See :meth:`~mnvision.prediction.predictor.Predictor.predict_prepared`."""
        sources = [picture for picture in pictures if isinstance(picture, PreparedWithSource)]
        found = self.first.predict_prepared([one.first for one in sources if one.first], score_threshold)
        places, prepared = [], []
        for row, (source, result) in enumerate(zip(sources, found, strict=True)):
            boxes = self._boxes(result)
            numbers = [number for number, one in enumerate(boxes) if self._passes_on(one)]
            pixels = source.whole() if numbers else None
            for number in numbers:
                assert pixels is not None
                places.append((row, number))
                prepared.append(self.second.preprocess(crop(pixels, self._grown(boxes[number]))))
        answers = []
        for start in range(0, len(prepared), _AT_ONCE):
            answers += self.second.predict_prepared(prepared[start : start + _AT_ONCE])
        by_place = dict(zip(places, answers, strict=True))
        return [self._joined(result, row, by_place) for row, result in enumerate(found)]

    def _boxes(self, result: ImageResult) -> ImageDetections:
        boxes = result.parts[self.detector]
        assert isinstance(boxes, ImageDetections)
        return boxes

    def _by_head(self, answer: ImageResult) -> dict[str, ImageResult]:
        return dict(zip(self.second_parts, answer.parts.values(), strict=True))

    def _passes_on(self, found: Detection) -> bool:
        return not self.crops.classes or found.name in self.crops.classes

    def _grown(self, found: Detection) -> tuple[float, float, float, float]:
        left, top, right, bottom = found.box
        across, down = self.crops.margin * (right - left), self.crops.margin * (bottom - top)
        return left - across, top - down, right + across, bottom + down

    def _joined(self, result: ImageResult, row: int, answers: Mapping[tuple[int, int], ImageResult]) -> ImageResult:
        """A picture's result with the answers for its boxes."""
        boxes = self._boxes(result)
        found = tuple(
            replace(one, answers=self._by_head(answers[row, number])) if (row, number) in answers else one
            for number, one in enumerate(boxes)
        )
        joined = replace(boxes, detections=found)
        if isinstance(result, ImageAnswers):
            return replace(result, answers={**result.answers, self.detector: joined})
        return joined

    def _check_classes(self) -> None:
        known = self.first.parts[self.detector].class_names
        for name in self.crops.classes:
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.5)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"its classes are {', '.join(known[:8])}" + (", ..." if len(known) > 8 else "")
                )
                raise UserError(f"crop_classes: the detector knows no class {name!r}; {hint}")


def _chosen(predictor: Predictor[Any], name: str | None) -> str:
    """The head whose boxes are cut out."""
    detectors = list(detectors_of(predictor))
    if not detectors:
        heads = ", ".join(filter(None, predictor.parts)) or f"a {predictor.kind} checkpoint"
        raise UserError(f"there are no boxes to cut out: none of {heads} is a detector")
    if name is None and len(detectors) > 1:
        raise UserError(f"crops_of=NAME must say whose boxes are cut out: {' or '.join(detectors)}")
    if name is not None and name not in detectors:
        raise UserError(f"crops_of={name}: no such detector; there is {', '.join(filter(None, detectors)) or 'one'}")
    return detectors[0] if name is None else name
