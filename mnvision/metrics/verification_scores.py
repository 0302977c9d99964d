"""How well distances between embeddings tell pairs of one person from pairs of two."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-5  # of cosines in float32
_TABLE_WIDTH = 26


@dataclass(frozen=True)
class FoldScore:
    """One fold of the protocol.

    Attributes:
        fold: Its number in the pair list.
        accuracy: Share of its pairs that are answered right, in [0, 1].
        threshold: Squared distance chosen on the other folds; a pair below it counts as the same person.
        num_pairs: Pairs of the fold.
    """

    fold: int
    accuracy: float
    threshold: float
    num_pairs: int


@dataclass(frozen=True)
class AcceptanceRate:
    """True accepts at a limited share of false ones, over all pairs.

    Attributes:
        limit: False accept rate that is not exceeded, in (0, 1].
        tar: Share of the same-person pairs that are accepted.
        far: Share of the different-person pairs that are, at most ``limit``.
        threshold: Squared distance; pairs below it are accepted. Infinite where all pairs may be.
    """

    limit: float
    tar: float
    far: float
    threshold: float


@dataclass(frozen=True)
class ValidationRate:
    """VAL at FAR of the FaceNet code: the threshold from the other folds, the rates from the fold itself.

    Attributes:
        limit: False accept rate that the thresholds aim at.
        mean: Mean over the folds of the share of same-person pairs accepted.
        std: Their standard deviation (divided by the number of folds).
        far: Mean false accept rate that the folds really have.
    """

    limit: float
    mean: float
    std: float
    far: float


@dataclass(frozen=True)
class RocCurve:
    """Rates at every threshold that changes an answer, from accepting nothing to accepting all.

    Attributes:
        far: ``(V,)`` float64, rising from 0 to 1.
        tar: ``(V,)`` float64, rising from 0 to 1.
        thresholds: ``(V,)`` float64 squared distances; pairs below are accepted. The last is infinite.
    """

    far: NDArray[np.float64]
    tar: NDArray[np.float64]
    thresholds: NDArray[np.float64]


@dataclass(frozen=True)
class VerificationScores:
    """Result of a verification. Shares lie in [0, 1]; -1 means that the pairs could not be scored.

    Attributes:
        accuracy: Mean over the folds of their accuracies.
        std: Standard deviation over the folds, divided by their number F as in the code of FaceNet and insightface.
        standard_error: Of the mean: the estimated deviation (divided by F - 1) over the root of F, as LFW's report
            (Huang et al. 2007) defines it.
        auc: Area under the ROC curve; equal distances count half.
        eer: Rate at which false accepts equal false rejects, on the ROC curve with straight lines between its points.
        threshold: Squared distance that answers most pairs right, over all pairs together: for use, not for reporting.
        threshold_accuracy: Share of all pairs answered right by ``threshold``, which is chosen on them.
        tar_at_far: One per false accept rate, highest first.
        val_at_far: The same rates by folds.
        folds: One per fold, in the order of their numbers.
        num_same: Pairs of one person.
        num_different: Pairs of two.
        unresolved: Usual false accept rates that so few pairs cannot measure.
        num_left_out: Pairs with a picture that was not given.
        num_repeated: Embeddings left out because their picture had been given before.
        same: ``(P,)`` bool, of the pairs scored.
        similarities: ``(P,)`` float64 cosines of the pairs scored.
        roc: Over all pairs; None where nothing was scored.
    """

    accuracy: float
    std: float
    standard_error: float
    auc: float
    eer: float
    threshold: float
    threshold_accuracy: float
    tar_at_far: tuple[AcceptanceRate, ...]
    val_at_far: tuple[ValidationRate, ...]
    folds: tuple[FoldScore, ...]
    num_same: int
    num_different: int
    unresolved: tuple[float, ...] = ()
    num_left_out: int = 0
    num_repeated: int = 0
    same: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_), repr=False, compare=False)
    similarities: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    roc: RocCurve | None = field(default=None, repr=False, compare=False)

    @classmethod
    def unscored(cls, num_left_out: int = 0, num_repeated: int = 0) -> VerificationScores:
        """What is said of pairs that cannot be scored, e.g. after one batch of a longer validation."""
        return cls(-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, (), (), (), 0, 0, (), num_left_out, num_repeated)

    @property
    def similarity(self) -> float:
        """``threshold`` as a cosine: two embeddings above it count as one person."""
        return as_similarity(self.threshold)

    @property
    def separates(self) -> bool:
        """Whether pairs of one person are more alike, by more than rounding; else no threshold decides."""
        return self.roc is not None and self.auc > 0.5 and float(np.ptp(self.similarities)) > _ROUNDING

    def calibration(self, mirror: bool = False, rate: AcceptanceRate | None = None) -> dict[str, Any]:
        """What a checkpoint holds of these pairs.

        Args:
            mirror: Whether the embeddings are sums with those of mirrored pictures.
            rate: Takes its threshold instead of the best one.

        Returns:
            ``similarity``, from which two embeddings count as one person, and how it was found.
        """
        return {
            "similarity": self.similarity if rate is None else as_similarity(rate.threshold),
            "false_accept_rate": None if rate is None else rate.limit,
            "pairs": len(self.same),
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "mirror": mirror,
        }

    def scalars(self) -> dict[str, float]:
        """The numbers to follow over epochs, by name."""
        rates = {f"tar_at_far_{rate.limit:g}": rate.tar for rate in self.tar_at_far}
        names = ("accuracy", "standard_error", "auc", "eer")
        return {**{name: getattr(self, name) for name in names}, **rates}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curve and the single pairs, ready for JSON; thresholds also as cosines."""
        values = asdict(self)
        for name in ("same", "similarities", "roc"):
            del values[name]
        values["similarity"] = self.similarity
        for entry in (*values["folds"], *values["tar_at_far"]):
            entry["similarity"] = as_similarity(entry["threshold"])
        for entry in values["tar_at_far"]:
            if not np.isfinite(entry["threshold"]):
                entry["threshold"] = entry["similarity"] = None  # JSON has no infinity
        return values

    def table(self) -> str:
        """A few lines of text."""
        if self.roc is None:
            return f"no pairs could be scored; {self.num_left_out} name pictures that were not given"
        lines = [
            _row("Accuracy", f"{self.accuracy:.4f} +- {self.standard_error:.4f}  (standard error, {self._folds()})"),
            _row("Standard deviation", f"{self.std:.4f}  over the folds"),
            _row("AUC", f"{self.auc:.4f}"),
            _row("EER", f"{self.eer:.4f}"),
        ]
        for rate, val in zip(self.tar_at_far, self.val_at_far):
            by_folds = f"by folds {val.mean:.4f} +- {val.std:.4f} at {val.far:.4f}"
            lines.append(_row(f"TAR at FAR {rate.limit:g}", f"{rate.tar:.4f}  ({by_folds})"))
        if self.unresolved:
            rates = ", ".join(f"{rate:g}" for rate in self.unresolved)
            lines.append(_row("Not measurable", f"TAR at FAR {rates}: only {self.num_different} pairs of two people"))
        best = f"{self.similarity:.4f}, squared distance {self.threshold:.4f}"
        lines.append(_row("Best similarity threshold", f"{best}  ({self.threshold_accuracy:.4f} on these pairs)"))
        lines.append(f"{len(self.same)} pairs, {self.num_same} of one person and {self.num_different} of two")
        if self.num_left_out:
            lines[-1] += f"; {self.num_left_out} left out, their pictures were not given"
        if self.num_repeated:
            lines[-1] += f"; {self.num_repeated} repeated pictures left out"
        return "\n".join(lines)

    def _folds(self) -> str:
        spread = [fold.threshold for fold in self.folds]
        return f"{len(self.folds)} folds, thresholds {min(spread):.2f} to {max(spread):.2f}"


def as_squared_distance(similarity: float) -> float:
    """Squared distance of two unit vectors from their cosine."""
    return 2 - 2 * similarity


def as_similarity(squared_distance: float) -> float:
    """Cosine of two unit vectors from their squared distance."""
    return 1 - squared_distance / 2


def _row(name: str, value: str) -> str:
    return f"{name:<{_TABLE_WIDTH}} {value}"
