"""What an evaluation of geolocation leaves in its folder, and what it prints."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mnvision.files import whole_file
from mnvision.metrics.geolocation import GeolocationScores

COLUMNS = (
    *("path", "latitude", "longitude", "predicted_latitude", "predicted_longitude"),
    *("km", "probability", "cell", "true_cell"),
)


def geolocation_report(
    folder: Path,
    scores: GeolocationScores,
    cell_names: Sequence[str],
    notes: Sequence[str] = (),
    name: Callable[[int], str] = str,
) -> list[str]:
    """Write ``metrics.json``, ``per_photo.csv`` and figures; return the terminal's lines.

    Args:
        folder: Receives the files.
        scores: Of the evaluation.
        cell_names: K tokens.
        notes: What a reader of the scores should know.
        name: Position of a photo in its data set -> what to call it.
    """
    from mnvision.figures_geo import save_error_distribution, save_location_map

    with whole_file(folder / "metrics.json") as partial:
        content = {**scores.to_dict(), **({"notes": list(notes)} if notes else {})}
        partial.write_text(json.dumps(content, indent=2) + "\n")
    _write_photos(folder / "per_photo.csv", scores, cell_names, name)
    photos, figures = scores.photos, folder / "figures"
    save_error_distribution(photos.km, scores.within, scores.median_km, figures / "errors.png")
    save_location_map(photos.truth, photos.predicted, photos.km, figures / "map.png")
    return [*scores.table().splitlines(), *(f"note: {note}" for note in notes)]


def _write_photos(path: Path, scores: GeolocationScores, cell_names: Sequence[str], name: Callable[[int], str]) -> None:
    """A row per photo; ``true_cell`` is empty for those outside every cell."""
    photos = scores.photos
    columns = (
        photos.indices.tolist(),
        photos.truth.tolist(),
        photos.predicted.tolist(),
        photos.km.tolist(),
        photos.probabilities.tolist(),
        photos.cells.tolist(),
        photos.labels.tolist(),
    )
    with (
        whole_file(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for index, truth, predicted, km, probability, cell, label in zip(*columns):
            true_cell = "" if label < 0 else cell_names[label]
            writer.writerow(
                [name(index), *truth, *predicted, round(km, 3), round(probability, 6), cell_names[cell], true_cell]
            )
