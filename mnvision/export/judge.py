"""Whether an int8 file may be kept: what it costs by the task's own metric, and which decisions it takes otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mnvision.errors import UserError
from mnvision.export.agreement import LOWEST, SCORE, Agreement, agreement
from mnvision.export.calibration import Samples
from mnvision.prediction.predictor import Predictor, make_predictor
from mnvision.proof.answers import answer
from mnvision.proof.scoring import metric_name

MOST_LOST = 0.05
"""Of the metric, absolute, where nobody says how much: a file that loses more is broken."""


@dataclass(frozen=True)
class Judgement:
    """What was measured of a file.

    Attributes:
        agreement: With the checkpoint; None where a detector shows nothing on the pictures.
        metric: The task's own, by which more is better; None without labels.
        before: The checkpoint's score.
        after: The file's.
        pictures: That it was measured on.
    """

    agreement: Agreement | None
    metric: str | None = None
    before: float = 0.0
    after: float = 0.0
    pictures: int = 0

    def parts(self) -> Mapping[str, Judgement]:
        """By head; of a single-task file itself, without a name."""
        return {"": self}

    @property
    def drop(self) -> float:
        """What is lost: of the metric, or the share of decisions where there is none."""
        if self.metric is not None:
            return self.before - self.after
        return 1 - self.agreement.share if self.agreement else 1.0

    def fits(self, kind: str, max_drop: float | None) -> bool:
        """Whether the file may be kept.

        Args:
            kind: Of the model.
            max_drop: As :class:`~mnvision.export.calibration.Calibration` has it; None refuses what is broken only.
        """
        return self.drop <= most_lost(kind, max_drop, self.metric is not None) + 1e-12  # scores are sums of floats

    def words(self) -> str:
        """In one line."""
        parts = [] if self.metric is None else [f"{self.metric} {self.before:.4f} became {self.after:.4f}"]
        return "; ".join([*parts, *([self.agreement.words()] if self.agreement else [])])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the file's metadata and the report."""
        found: dict[str, Any] = {"measured": self.words()}
        if self.agreement is not None:
            found["agreement"] = round(self.agreement.share, 6)
        if self.metric is not None:
            found["metric"] = {"name": self.metric, "float": round(self.before, 6), "int8": round(self.after, 6)}
        return found


class Judge:
    """Holds files of one checkpoint against it.

    Args:
        reference: The checkpoint's predictor.
        samples: Pictures, and what is true of them.

    Raises:
        UserError: There is nothing to compare.
    """

    def __init__(self, reference: Predictor[Any], samples: Samples) -> None:
        self.reference, self.samples = reference, samples
        self.expected = answer(reference, samples.held_out)
        self.metric: str | None = None
        if samples.scoring is None:
            return
        try:
            self.metric = metric_name(None, samples.scoring, self.expected, reference.metadata)
        except UserError:  # such as an attribute that all of a few pictures have
            why = "the metric is not defined on so few pictures"
            self.samples = replace(samples, scoring=None, why_unscored=why)

    def __call__(self, file: Any) -> Judgement:
        """Measure one :class:`~mnvision.export.runtime.FileModel`.

        Raises:
            UserError: Its answers cannot be scored, or a detector shows nothing and no labels are known.
        """
        kind, scoring = self.reference.kind, self.samples.scoring
        found = answer(make_predictor(file, file.metadata.as_checkpoint()), self.samples.held_out)
        same = agreement(kind, self.expected, found, self.reference.metadata.calibration)
        if scoring is not None and self.metric is not None:
            before, after = (scoring.scores(answers)[self.metric] for answers in (self.expected, found))
            return Judgement(same, self.metric, before, after, len(self.samples.held_out))
        if same is None:
            raise UserError(
                f"nothing scores {SCORE} or more on {self.samples.judged_on}, so nothing can be compared: give other "
                "pictures"
            )
        return Judgement(same, pictures=len(self.samples.held_out))


def most_lost(kind: str, max_drop: float | None, scored: bool) -> float:
    """How much of the metric, or of the decisions where none is measured, may be lost."""
    if max_drop is not None:
        return max_drop
    return MOST_LOST if scored else 1 - LOWEST[kind]


def refusal(best: Judgement, kind: str, max_drop: float | None) -> str:
    """Why no file was kept, in one line."""
    limit = most_lost(kind, max_drop, best.metric is not None)
    what = f"{best.drop:.4f} of {best.metric}" if best.metric else f"{best.drop:.1%} of the decisions"
    advice = (
        "max_drop=0.02 keeps the worst layers in float; give pictures like those in use"
        if max_drop is None
        else "half of the layers in float do not suffice: give a larger max_drop=, or precision=fp16"
    )
    return f"the int8 file loses {what} ({limit:.3g} allowed), so it was not kept: {best.words()}; {advice}"
