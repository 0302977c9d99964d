"""How much of every layer's signal int8 leaves: the signal-to-quantisation-noise ratio (SQNR), in decibels."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnvision.export.base import Pixels
from mnvision.export.given import Feed, computed, crop_shares, fed, with_given
from mnvision.export.graph import INPUT
from mnvision.export.int8 import Layer, ends_of, in_batches, with_float
from mnvision.files import whole_file

CEILING = 150.0
"""Decibels; float32 with its 24 bits can tell no more."""
_TINY = 1e-30


@dataclass(frozen=True)
class LayerNoise:
    """What int8 does to one layer.

    Attributes:
        layer: As the model calls it.
        kind: "depthwise", "pointwise", "conv" or "linear".
        sqnr_db: Of what leaves the layer, noise of the layers before it included.
        gain_db: By how much the network's raw outputs become cleaner when this layer alone is computed in float.
    """

    layer: str
    kind: str
    sqnr_db: float
    gain_db: float


def sqnr_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``, both sums of squares; at most 150 dB, which also stands for no noise."""
    ratio = 10 * np.log10(max(signal, _TINY) / max(noise, _TINY))
    return float(np.clip(ratio, -CEILING, CEILING))


def measure_layers(
    proto: Any, int8: Any, layers: Sequence[Layer], images: Pixels, batch: int | None
) -> list[LayerNoise]:
    """The noise of all layers, in their order.

    Both graphs of a Faster R-CNN crop the boxes that the float graph proposes, see ``mnvision/export/given.py``.

    Args:
        proto: The float graph.
        int8: What was made of it.
        layers: Those to measure.
        images: Pictures ``(N, 3, H, W)`` uint8, few: every layer is a run of the network of its own.
        batch: What the graphs take at once; None is any number.
    """
    parts: list[Feed] = [{INPUT: part} for part in in_batches(images, batch)]
    if given := crop_shares(proto):
        found = computed(proto, given, parts)
        parts = [{**part, **fed(one, given)} for part, one in zip(parts, found)]
        proto, int8 = with_given(proto, given), with_given(int8, given)
    ends = [layer.output for layer in ends_of(proto, layers)]
    outputs = [layer.output for layer in layers]
    reference = list(computed(proto, outputs, parts))
    noise = _ratios(reference, computed(int8, outputs, parts))
    rows = []
    for layer in layers:
        without = _ratios(reference, computed(with_float(int8, proto, layer), ends, parts))
        gain = float(np.mean([without[name] - noise[name] for name in ends]))
        rows.append(LayerNoise(layer.title, layer.kind, noise[layer.output], gain))
    return rows


def _ratios(reference: Sequence[Feed], found: Iterator[Feed]) -> dict[str, float]:
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for expected, values in zip(reference, found):
        for name, value in values.items():
            exact = expected[name].astype(np.float64)
            signal[name] = signal.get(name, 0.0) + float(np.square(exact).sum())
            noise[name] = noise.get(name, 0.0) + float(np.square(exact - value).sum())
    return {name: sqnr_db(signal[name], noise[name]) for name in signal}


def worst_first(rows: Sequence[LayerNoise]) -> list[LayerNoise]:
    """Those whose float helps the outputs most come first."""
    return sorted(rows, key=lambda row: (-row.gain_db, row.sqnr_db))


def write_report(target: Path, rows: Sequence[LayerNoise], summary: Mapping[str, Any]) -> list[Path]:
    """The layers as a table (``.csv``), and with what was measured of the whole file (``.json``), beside the file.

    Args:
        target: The exported file.
        rows: In the network's order.
        summary: Plain data.
    """
    table, whole = (target.with_name(f"{target.stem}_layers{suffix}") for suffix in (".csv", ".json"))
    entries = [asdict(row) for row in rows]
    rounded = [{**entry, **{key: f"{entry[key]:.2f}" for key in ("sqnr_db", "gain_db")}} for entry in entries]
    with whole_file(table) as path, path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(LayerNoise.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(rounded)
    with whole_file(whole) as path:
        path.write_text(json.dumps({**summary, "layers": entries}, indent=1) + "\n", encoding="utf-8")
    return [table, whole]
