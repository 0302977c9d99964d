"""An int8 file that decides as its checkpoint does: quantise, run, measure, and keep layers in float where asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mnvision.errors import UserError
from mnvision.export.base import Format, Quantizer
from mnvision.export.before_after import BeforeAfter, time_both
from mnvision.export.calibration import ADVISED, Calibration, Samples
from mnvision.export.heads import HeadsJudge
from mnvision.export.judge import Judge, Judgement, refusal
from mnvision.export.layer_noise import LayerNoise, worst_first
from mnvision.export.metadata import FileMetadata
from mnvision.export.runtime import file_model

NAMED = 3
"""Layers that the terminal names."""


@dataclass
class Int8File:
    """What was made.

    Attributes:
        files: Written, the target last.
        compared: With the same graph in float32.
        kept: Layers in float.
        noise: Of every layer, where it was measured.
    """

    files: list[Path]
    compared: BeforeAfter
    kept: list[str]
    noise: list[LayerNoise] = field(default_factory=list)

    def summary(self, calibration: Calibration, samples: Samples) -> dict[str, Any]:
        """Plain data for the report."""
        return {
            **self.compared.to_dict(),
            "calibration_pictures": len(samples.calibration),
            "calibrated_on": f"{samples.source} of {samples.folder}",
            "measured_on": samples.judged_on,
            "float_layers": self.kept,
            "options": asdict(calibration),
        }

    def lines(self, samples: Samples) -> list[str]:
        """For the terminal."""
        count = len(samples.calibration)
        few = f"; {ADVISED} or more are advised" if count < ADVISED else ""
        calibrated = f"calibrated on {count} {samples.source} of {samples.folder}{few}"
        known = f"ranges and rounding of its {samples.source}; scores under fp32 are of the network rounded as there"
        lines = [
            calibrated if count else known,
            f"measured on {len(samples.held_out)} {samples.judged_on}",
            *([f"{samples.why_unscored}: decisions are compared"] if samples.scoring is None else []),
            *self.compared.lines(),
        ]
        if self.kept:
            lines.append(f"in float: {', '.join(self.kept)}")
        if self.noise:
            worst = worst_first(self.noise)[:NAMED]
            named = ", ".join(f"{row.layer} (SQNR {row.sqnr_db:.1f} dB, gain {row.gain_db:.1f} dB)" for row in worst)
            lines.append(f"layers that cost most: {named}")
        return lines


@dataclass(frozen=True)
class Int8Job:
    """What is to be made.

    Attributes:
        form: The format.
        quantizer: Of the graph that is exported.
        metadata: Goes into the file, with what was measured.
        target: The file, in a folder that exists.
    """

    form: Format
    quantizer: Quantizer
    metadata: FileMetadata
    target: Path


def write_int8(job: Int8Job, judge: Judge | HeadsJudge, calibration: Calibration) -> Int8File:
    """Write a graph in int8, with as few layers in float as ``calibration.max_drop`` allows.

    Args:
        job: What is to be made.
        judge: Holds files against the checkpoint; with the pictures.
        calibration: What is asked of int8.

    Raises:
        UserError: The graph cannot be quantised, or the file loses too much; see
            :func:`~mnvision.export.judge.most_lost`.
    """
    samples, metadata, kind = judge.samples, job.metadata, judge.reference.kind
    noise: list[LayerNoise] = []
    best: Judgement | None = None
    for count in _counts(len(job.quantizer.layers), calibration):
        kept = _worst(job.quantizer.layers, noise, count)
        metadata.quantization = {
            "pictures": len(samples.calibration),
            "source": samples.origin,
            "float_layers": kept,
        }
        written = job.quantizer.write(samples.calibration, kept, metadata, job.target)
        found = judge(file_model(job.form.open(written[-1])))
        best = found if best is None or found.drop < best.drop else best
        enough = found.fits(kind, calibration.max_drop)
        if not noise and (calibration.report or (not enough and calibration.max_drop is not None)):
            noise = job.quantizer.noise(samples.shown())
        if enough:
            metadata.quantization |= found.to_dict()
            files = job.quantizer.rewrite(metadata, job.target)
            compared = _compare(job, files, found, len(samples.held_out), calibration)
            return Int8File(files, compared, kept, noise if calibration.report else [])
    assert best is not None
    raise UserError(refusal(best, kind, calibration.max_drop))


def _compare(job: Int8Job, files: list[Path], found: Judgement, judged: int, calibration: Calibration) -> BeforeAfter:
    """The file beside the same graph in float32, which is written for this alone."""
    folder = job.target.parent / "fp32"
    folder.mkdir()
    plain = replace(job.metadata, precision="fp32", quantization={})
    whole = job.quantizer.write_float(plain, folder / job.target.name)
    sizes = sum(file.stat().st_size for file in whole), sum(file.stat().st_size for file in files)
    if not calibration.latency:
        return BeforeAfter(found, judged, sizes)
    return BeforeAfter(found, judged, sizes, *time_both(whole[-1], files[-1]))


def _counts(layers: int, calibration: Calibration) -> Iterator[int]:
    """How many layers stay in float, one attempt after the other: none, 1, 2, 4, ... up to half of them."""
    yield 0
    count = 1
    while calibration.max_drop is not None and count <= layers // 2:
        yield count
        count *= 2


def _worst(layers: Any, noise: list[LayerNoise], count: int) -> list[str]:
    """The layers to keep in float, in the network's order."""
    titles = {row.layer for row in worst_first(noise)[:count]}
    return [layer for layer in layers if layer in titles]
