"""What int8 gives and takes: metric, size and latency of a file beside the same one in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnvision.errors import UserError
from mnvision.export.judge import Judgement
from mnvision.latency.contest import Plan, contest
from mnvision.latency.subjects import MODEL, Candidate
from mnvision.latency.summary import make_rows

SECONDS = 1.0
"""Of measured calls per file."""


@dataclass(frozen=True)
class Speed:
    """Of both files, in turn: one picture, pixels to decoded numbers, one thread.

    Attributes:
        before_ms: Median of the float32 file.
        after_ms: Of the int8 file.
        ratio: How many times faster that one is, the median of the rounds' ratios.
        cpu_ratio: How many times less processor time it takes; None where that is not counted.
    """

    before_ms: float
    after_ms: float
    ratio: float
    cpu_ratio: float | None


@dataclass(frozen=True)
class BeforeAfter:
    """The comparison.

    Attributes:
        judgement: What was measured of the answers.
        judged: Pictures that it was measured on.
        sizes: Bytes of the float32 file and of the int8 file.
        speed: None where it was not timed.
        note: Why it could not be.
    """

    judgement: Judgement
    judged: int
    sizes: tuple[int, int]
    speed: Speed | None = None
    note: str = ""

    def lines(self) -> list[str]:
        """A table for the terminal."""
        found, (before, after) = self.judgement, self.sizes
        rows = [("", "fp32", "int8", "")]
        for head, one in found.parts().items():
            name = f"{head} " if head else ""
            if one.metric is not None:
                words = f"{-one.drop:+.4f} on {one.pictures} validation pictures"
                rows.append((f"{name}{one.metric}", f"{one.before:.4f}", f"{one.after:.4f}", words))
            if one.agreement is not None:
                share = f"{100 * one.agreement.share:.1f} %"
                rows.append((f"{name}agreement", "100.0 %", share, one.agreement.what))
        rows.append(("size", f"{before / 1e6:.2f} MB", f"{after / 1e6:.2f} MB", f"{after / before:.2f} of it"))
        if self.speed is not None:
            times = (f"{self.speed.before_ms:.2f} ms", f"{self.speed.after_ms:.2f} ms")
            cpu = "" if self.speed.cpu_ratio is None else f" ({self.speed.cpu_ratio:.2f} by processor time)"
            words = f"{self.speed.ratio:.2f} times as fast{cpu}: one picture, one thread"
            rows.append(("latency", *times, words))
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:{width}}{one:>11}{two:>11}  {words}".rstrip() for name, one, two, words in rows]
        return [*lines, *([f"latency: {self.note}"] if self.note else [])]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        speed = None if self.speed is None else {key: round(value, 4) for key, value in _known(self.speed)}
        return {
            **self.judgement.to_dict(),
            "held_out_pictures": self.judged,
            "float_bytes": self.sizes[0],
            "bytes": self.sizes[1],
            "latency": speed,
        }


def time_both(before: Path, after: Path) -> tuple[Speed | None, str]:
    """The speed of two files, or why they cannot be timed here."""
    candidates = [Candidate("fp32", file=str(before)), Candidate("int8", file=str(after))]
    try:
        timings = contest(Plan(candidates, parts=(MODEL,), seconds=SECONDS))
    except UserError as error:
        return None, f"not measured ({error})"
    rows = {row.file: row for row in make_rows(timings.blocks, timings.facts, "cpu")}
    if len(rows) < len(candidates):
        return None, f"not measured ({'; '.join(timings.notes)})"
    one, two = rows["fp32"], rows["int8"]
    assert one.median_ms is not None
    assert two.median_ms is not None
    assert two.ratio is not None
    return Speed(one.median_ms, two.median_ms, two.ratio, two.cpu_ratio), ""


def _known(speed: Speed) -> list[tuple[str, float]]:
    return [(key, value) for key, value in vars(speed).items() if value is not None]
