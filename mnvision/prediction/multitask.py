"""From a multi-task checkpoint to the answers of all its heads, with as few passes of the trunk as can be."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.multitask import MultiTaskModel
from mnvision.prediction.detection import DetectionPredictor
from mnvision.prediction.predictor import Predictor, SinglePredictor, as_device, predictor_class
from mnvision.prediction.preprocess import Prepared, Preprocess, Source
from mnvision.prediction.results import ImageResult
from mnvision.prediction.results_multitask import ImageAnswers
from mnvision.transforms.framing import Points


@dataclass(frozen=True, eq=False)
class PreparedForHeads(Prepared):
    """A picture ready for several heads; :attr:`pixels` are those of the first.

    Attributes:
        inputs: The picture by the :attr:`~mnvision.prediction.preprocess.Preprocess.key` of its preparation.
    """

    inputs: Mapping[str, Prepared] = field(default_factory=dict)


class HeadsPreprocess(Preprocess):
    """Prepares a picture once for all heads that want it alike.

    Args:
        rules: Of the heads, at least one.
    """

    def __init__(self, rules: Sequence[Preprocess]) -> None:
        super().__init__(rules[0].framing.to_dict(), rules[0].resolution, rules[0].network)
        self.rules = {rule.key: rule for rule in reversed(rules)}

    def __call__(self, source: Source, landmarks: Points | None = None) -> PreparedForHeads:
        """Prepare one picture, see :class:`~mnvision.prediction.preprocess.Preprocess`."""
        inputs = {key: rule(source, landmarks) for key, rule in self.rules.items()}
        first = next(reversed(inputs.values()))
        return PreparedForHeads(first.pixels, first.size, first.path, inputs)


class MultiTaskPredictor(Predictor[ImageAnswers]):
    """The answers of several heads. Heads that take a picture prepared alike share one pass of the trunk.

    Args:
        model: Several heads on one trunk.
        metadata: Of its checkpoint.
        device: See :class:`~mnvision.prediction.predictor.SinglePredictor`.

    Raises:
        UserError: An unknown or absent device, or metadata that contradict the model.
    """

    kind = "multitask"
    result_type = ImageAnswers

    def __init__(self, model: MultiTaskModel, metadata: Metadata, device: str = "cpu") -> None:
        if set(metadata.heads) != set(model.names):
            raise UserError(
                f"its metadata are of the heads {', '.join(metadata.heads) or 'none'}, its model has "
                f"{', '.join(model.names)}"
            )
        self.model = model
        self.device = as_device(device)
        self.metadata = metadata
        self.class_names = ()
        model.eval().to(self.device).to(memory_format=torch.channels_last)
        self._use({name: _head_predictor(model, metadata, name, device) for name in model.names})

    def _use(self, predictors: dict[str, SinglePredictor[Any]]) -> None:
        self.predictors = predictors
        self.preprocess = HeadsPreprocess([one.preprocess for one in predictors.values()])
        self.resolution = self.preprocess.resolution
        self.groups: dict[str, list[str]] = {}
        for name, one in predictors.items():
            self.groups.setdefault(one.preprocess.key, []).append(name)
        self.note = "; ".join([*self._passes(), *(f"{n}: {one.note}" for n, one in predictors.items() if one.note)])

    @property
    def parts(self) -> Mapping[str, Predictor[Any]]:
        """Predictors by head."""
        return self.predictors

    def only(self, heads: Sequence[str]) -> MultiTaskPredictor:
        """The same with some heads only, in this order; the others cost nothing then.

        Args:
            heads: Their names, at least one.

        Raises:
            UserError: No name, a name that is given twice, or one that no head has.
        """
        names = [heads] if isinstance(heads, str) else list(heads)
        if not names:
            raise UserError(f"heads=[]: give at least one of {', '.join(self.predictors)}")
        for name in names:
            if name not in self.predictors:
                raise UserError(f"there is no head {name!r}; the heads are {', '.join(self.predictors)}")
            if names.count(name) > 1:
                raise UserError(f"heads: {name} is named twice; give each once")
        chosen = copy.copy(self)
        chosen._use({name: self.predictors[name] for name in names})
        return chosen

    @overload
    def predict(
        self,
        source: list[Any],
        score_threshold: float | None = None,
        batch_size: int = 16,
        heads: Sequence[str] | None = None,
    ) -> list[ImageAnswers]: ...
    @overload
    def predict(
        self,
        source: Source,
        score_threshold: float | None = None,
        batch_size: int = 16,
        heads: Sequence[str] | None = None,
    ) -> ImageAnswers: ...
    def predict(
        self,
        source: Source | list[Any],
        score_threshold: float | None = None,
        batch_size: int = 16,
        heads: Sequence[str] | None = None,
    ) -> ImageAnswers | list[ImageAnswers]:
        """Predict on one picture or on a list of them, see :meth:`Predictor.predict`.

        Args:
            source: As there.
            score_threshold: For the detectors among the heads.
            batch_size: As there.
            heads: See :meth:`only`; None is all.

        Raises:
            UserError: As there, or as :meth:`only`.
        """
        if heads is not None:
            return self.only(heads).predict(source, score_threshold, batch_size)
        return super().predict(source, score_threshold, batch_size)

    def check_threshold(self, score_threshold: float | None) -> float | None:
        """The threshold itself: every detector among the heads takes it.

        Raises:
            UserError: No head is a detector, or one cannot have such a threshold.
        """
        detectors = {name: one for name, one in self.predictors.items() if isinstance(one, DetectionPredictor)}
        if score_threshold is not None and not detectors:
            raise UserError(f"score_threshold is for detectors; {', '.join(self.predictors)} are none: leave it out")
        for name, one in detectors.items():
            try:
                one.check_threshold(score_threshold)
            except UserError as error:
                raise UserError(f"head {name}: {error}") from None
        return score_threshold

    @torch.inference_mode()
    def predict_prepared(
        self, pictures: Sequence[Prepared], score_threshold: float | None = None
    ) -> list[ImageAnswers]:
        """See :meth:`~mnvision.prediction.predictor.Predictor.predict_prepared`."""
        self.check_threshold(score_threshold)
        answers: dict[str, list[ImageResult]] = {}
        for names, batch in self.inputs(pictures):
            answers |= self._answers(names, batch, score_threshold)
        return [
            ImageAnswers(picture.path, picture.size, {name: answers[name][row] for name in self.predictors})
            for row, picture in enumerate(pictures)
        ]

    def inputs(self, pictures: Sequence[Prepared]) -> Iterator[tuple[list[str], list[Prepared]]]:
        """Heads that take the same input, and that input of each of the pictures."""
        for key, names in self.groups.items():
            yield names, [_input(picture, key) for picture in pictures]

    def _answers(
        self, names: list[str], pictures: Sequence[Prepared], score_threshold: float | None
    ) -> dict[str, list[ImageResult]]:
        """Of heads that take the same pictures."""
        images = self.to_device(pictures)
        found = self.model.predict(images, names)
        answers: dict[str, list[ImageResult]] = {}
        for name in names:
            one = self.predictors[name]

            def network(seen: Tensor, name: str = name) -> Any:
                # What a head wants to see beside the pictures themselves, it sees in a pass of its own.
                return found[name] if seen is images else self.model.part(name).predict(seen)

            threshold = one.check_threshold(score_threshold if isinstance(one, DetectionPredictor) else None)
            answers[name] = one.results(pictures, one.decoded(images, network), threshold)
        return answers

    def _passes(self) -> list[str]:
        if len(self.predictors) == 1 or (len(self.groups) == 1 and not self.model.own_norms):
            return []
        if self.model.own_norms:
            return ["the trunk runs once for every head, since each has its own normalisations"]
        groups = "; for ".join(" and ".join(names) for names in self.groups.values())
        return [f"the trunk runs {len(self.groups)} times, since sizes or layouts of their input differ: for {groups}"]


def _head_predictor(model: MultiTaskModel, metadata: Metadata, name: str, device: str) -> SinglePredictor[Any]:
    part, single = model.part(name), metadata.head(name)
    if part.kind != single.kind:
        raise UserError(f"head {name}: calls itself {single.kind} but is a {part.kind} model")
    try:
        return predictor_class(part.kind)(part, single, device)
    except UserError as error:
        raise UserError(f"head {name}: {error}") from None


def _input(picture: Prepared, key: str) -> Prepared:
    assert isinstance(picture, PreparedForHeads)
    return picture.inputs[key]
