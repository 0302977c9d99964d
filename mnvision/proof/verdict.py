"""Whether a file may stand in for its checkpoint: what was measured of it, held against limits of its precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mnvision.errors import UserError
from mnvision.export.metadata import weights_digest
from mnvision.prediction.predictor import Predictor
from mnvision.proof.bootstrap import Interval
from mnvision.proof.differences import Differences
from mnvision.proof.scoring import LOWER_IS_BETTER


@dataclass(frozen=True)
class Tolerance:
    """The most that passes.

    Attributes:
        output: Largest difference of a number: probability, score, component of an embedding, or edge of a box as a
            share of the picture's longer side.
        flips: Share of decisions that flip.
        metric: Drop of the official metric, absolute.
    """

    output: float
    flips: float
    metric: float


TOLERANCES = {
    "fp32": Tolerance(1e-4, 1e-3, 1e-3),
    "fp16": Tolerance(5e-2, 2e-2, 5e-3),
    "int8": Tolerance(1.0, 0.1, 5e-3),
}
"""By precision. float32 leaves 1e-6 to 1e-5 between runtimes. float16 has 11 bits, and where a probability is about one
half an error of 0.1 in a logit moves it by 0.025; the export's own limit of 0.02 is for five pictures, this one for the
largest of thousands. Of int8 the metric is judged, and hardly the single number. Flips and metric are margins of ours,
below what most test sets resolve."""


@dataclass
class FileProof:
    """What was measured of one file.

    Attributes:
        name: Row of the table.
        path: The file.
        runtime: What ran it.
        precision: Of the file; "" where it cannot be opened.
        size_mb: Of all its files, in MB of 10^6 bytes.
        differences: From the checkpoint; None where it cannot be opened or its runtime fails.
        tolerance: What it was held against; None likewise.
        score: By the official metric; None without labels.
        change: Of the score from the checkpoint's.
        interval: Of the change; None where it was not resampled.
        median_ms: Of one picture, pixels to decoded numbers, one thread; None where not timed.
        ratio: How many times faster than the checkpoint in torch.
        cpu_ms: Processor time of the same; other processes do not count in it.
        cpu_ratio: How many times less of it than the checkpoint in torch.
        failures: Why it does not pass; empty where it does.
        figure: Name of the picture of the worst, if there is one.
    """

    name: str
    path: Path
    runtime: str
    precision: str
    size_mb: float
    differences: Differences | None = None
    tolerance: Tolerance | None = None
    score: float | None = None
    change: float | None = None
    interval: Interval | None = None
    median_ms: float | None = None
    ratio: float | None = None
    cpu_ms: float | None = None
    cpu_ratio: float | None = None
    failures: list[str] = field(default_factory=list)
    figure: str | None = None

    def judge(self, metric: str | None) -> None:
        """Name what is beyond tolerance."""
        found, limit = self.differences, self.tolerance
        if found is None or limit is None:
            return
        if not found.largest <= limit.output:
            self.failures.append(f"largest difference {found.largest:.1e}, tolerance {limit.output:g}")
        if found.share > limit.flips:
            words = f"{found.flipped} of {found.decisions} decisions flipped ({found.share:.2%})"
            self.failures.append(f"{words}, tolerance {limit.flips:.2%}")
        if self.change is not None and metric is not None:
            drop = self.change if metric in LOWER_IS_BETTER else -self.change
            # Scores are sums of floats: a drop of exactly the tolerance passes.
            if drop > limit.metric + 1e-12:
                self.failures.append(f"{metric} is worse by {drop:.4f}, tolerance {limit.metric:g}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "runtime": self.runtime,
            "precision": self.precision,
            "size_mb": self.size_mb,
            "differences": None if self.differences is None else self.differences.to_dict(),
            "score": self.score,
            "change": self.change,
            "interval_95": None if self.interval is None else self.interval.to_dict(),
            "median_ms": self.median_ms,
            "ratio": self.ratio,
            "cpu_ms": self.cpu_ms,
            "cpu_ratio": self.cpu_ratio,
            "tolerance": None if self.tolerance is None else vars(self.tolerance),
            "passed": not self.failures,
            "failures": self.failures,
            "figure": self.figure,
        }


def tolerance_for(precision: str, given: Mapping[str, Any]) -> Tolerance:
    """Of a precision, with what the user wants otherwise.

    Raises:
        UserError: A value is no number of at least 0, or the precision is unknown.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    for name, value in wanted.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise UserError(f"tolerance.{name}={value}: give a number of at least 0")
    if precision not in TOLERANCES:
        raise UserError(f"a file of precision {precision!r}: only {', '.join(TOLERANCES)} can be judged")
    return replace(TOLERANCES[precision], **wanted)


def metadata_failures(reference: Predictor[Any], other: Predictor[Any], path: Path) -> list[str]:
    """What a file says of itself that is not true of the checkpoint.

    Raises:
        UserError: It is of another task or has other classes, so that there is nothing to compare.
    """
    if other.kind != reference.kind:
        raise UserError(f"{path} is a {other.kind} file, the checkpoint a {reference.kind} model: give its own files")
    if other.class_names != reference.class_names:
        raise UserError(f"{path} has other classes than the checkpoint: give files that were exported from it")
    failures = [
        f"its {name} {'are' if name == 'category_ids' else 'is'} not the checkpoint's"
        for name in ("preprocess", "category_ids", "calibration")
        if getattr(other.metadata, name) != getattr(reference.metadata, name)
    ]
    model, file = reference.model, other.model
    if file.metadata.training.get("weights") != weights_digest(model.state_dict()):
        failures.append("it was exported from other weights than the checkpoint's")
    return failures
