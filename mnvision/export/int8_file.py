"""An int8 file that decides as its checkpoint does: quantise, run, measure, and keep layers in float where asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mnvision.errors import UserError
from mnvision.export.agreement import LOWEST, Agreement, agreement, answers
from mnvision.export.base import Session, Wish
from mnvision.export.calibration import ADVISED, Calibration, Samples
from mnvision.export.graph import ExportGraph
from mnvision.export.int8 import Layer, layers_of, quantized, weight_bytes
from mnvision.export.layer_noise import LayerNoise, measure_layers, worst_first
from mnvision.export.metadata import FileMetadata
from mnvision.export.runtime import FileModel

NAMED = 3
"""Layers that the terminal names."""


class OnnxBased(Protocol):
    """A format that is written from an ONNX graph."""

    def proto(self, graph: ExportGraph, wish: Wish) -> Any:
        """The ``onnx.ModelProto`` of a graph."""

    def save(self, proto: Any, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """Write it; the files, ``target`` last."""

    @staticmethod
    def open(path: Path) -> Session:
        """The file in its own runtime."""


@dataclass
class Int8File:
    """What was made.

    Attributes:
        files: Written, the target last.
        agreement: With the checkpoint.
        float_bytes: Size of the same graph in float32.
        kept: Layers in float.
        noise: Of every layer, where it was measured.
    """

    files: list[Path]
    agreement: Agreement
    float_bytes: int
    kept: list[str]
    noise: list[LayerNoise] = field(default_factory=list)

    def summary(self, calibration: Calibration, samples: Samples) -> dict[str, Any]:
        """Plain data for the report."""
        size = sum(file.stat().st_size for file in self.files)
        return {
            "agreement": self.agreement.share,
            "measured": self.agreement.words(),
            "bytes": size,
            "float_bytes": self.float_bytes,
            "calibration_pictures": len(samples.calibration),
            "held_out_pictures": len(samples.held_out),
            "float_layers": self.kept,
            "options": asdict(calibration),
        }

    def lines(self, samples: Samples) -> list[str]:
        """For the terminal."""
        size, whole = sum(file.stat().st_size for file in self.files) / 1e6, self.float_bytes / 1e6
        count = len(samples.calibration)
        few = f"; {ADVISED} or more are advised" if count < ADVISED else ""
        lines = [
            f"calibrated on {count} pictures{few}",
            f"{'':12}{'fp32':>10}{'int8':>10}",
            f"{'size':12}{f'{whole:.2f} MB':>10}{f'{size:.2f} MB':>10}  {size / whole:.2f} of it",
            f"{'agreement':12}{'100.0 %':>10}{f'{100 * self.agreement.share:.1f} %':>10}  {self.agreement.what}",
        ]
        if self.kept:
            lines.append(f"in float: {', '.join(self.kept)}")
        if self.noise:
            worst = worst_first(self.noise)[:NAMED]
            named = ", ".join(f"{row.layer} (SQNR {row.sqnr_db:.1f} dB, gain {row.gain_db:.1f} dB)" for row in worst)
            lines.append(f"layers that cost most: {named}")
        return lines


def write_int8(
    form: OnnxBased,
    graph: ExportGraph,
    wish: Wish,
    metadata: FileMetadata,
    target: Path,
    model: Any,
    samples: Samples,
    calibration: Calibration,
) -> Int8File:
    """Write a graph in int8, with as few layers in float as ``calibration.max_drop`` allows.

    Args:
        form: The format.
        graph: What is exported.
        wish: What the user asks for.
        metadata: Goes into the file, with what was measured.
        target: The file, in a folder that exists.
        model: The checkpoint's, in torch: what answers are compared with.
        samples: Pictures.
        calibration: What is asked of int8.

    Raises:
        UserError: The graph cannot be quantised, or the file decides differently too often; see
            :data:`~mnvision.export.agreement.LOWEST`.
    """
    proto = form.proto(graph, wish)
    layers = layers_of(proto)
    expected = answers(model, samples.held_out)
    needed = LOWEST[model.kind] if calibration.max_drop is None else 1 - calibration.max_drop
    noise: list[LayerNoise] = []
    best = Agreement(-1.0, "")
    for count in _counts(len(layers), calibration):
        kept = _worst(layers, noise, count)
        int8 = quantized(proto, samples.calibration, wish.batch, kept)
        titles = [layer.title for layer in kept]
        metadata.quantization = {"pictures": len(samples.calibration), "float_layers": titles}
        found = FileModel(form.open(form.save(int8, wish, metadata, target)[-1]))
        reached = agreement(model.kind, expected, answers(found, samples.held_out), metadata.calibration)
        best = max(best, reached, key=lambda item: item.share)
        enough = reached.share >= needed
        if not noise and (calibration.report or (not enough and calibration.max_drop is not None)):
            noise = measure_layers(proto, int8, layers, samples.held_out, wish.batch)
        if enough:
            metadata.quantization |= {"agreement": round(reached.share, 6), "measured": reached.words()}
            files = form.save(int8, wish, metadata, target)
            return Int8File(files, reached, weight_bytes(proto), titles, noise if calibration.report else [])
    raise UserError(_refusal(best, needed, calibration))


def _counts(layers: int, calibration: Calibration) -> Iterator[int]:
    """How many layers stay in float, one attempt after the other: none, 1, 2, 4, ... up to half of them."""
    yield 0
    count = 1
    while calibration.max_drop is not None and count <= layers // 2:
        yield count
        count *= 2


def _worst(layers: list[Layer], noise: list[LayerNoise], count: int) -> list[Layer]:
    """The layers to keep in float, in the network's order."""
    titles = {row.layer for row in worst_first(noise)[:count]}
    return [layer for layer in layers if layer.title in titles]


def _refusal(best: Agreement, needed: float, calibration: Calibration) -> str:
    if calibration.max_drop is None:
        advice = "give more pictures= like those in use, or max_drop=0.05 to keep the worst layers in float"
    else:
        advice = "half of the layers in float do not suffice; give a larger max_drop=, or precision=fp16"
    return (
        f"the int8 file decides differently, so it was not kept: {best.words()}, {100 * needed:.1f} % needed; {advice}"
    )
