"""What an evaluation leaves in its folder, and what it prints."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.files import whole_file
from mnvision.metrics.attribute_scores import AttributeMetrics, AttributeRow
from mnvision.metrics.classification import ClassificationScores
from mnvision.metrics.coco import CocoEvaluator
from mnvision.metrics.coco_scores import CocoScores

WORST = 5
# Below this a detection is not one that a person would be shown.
CONFUSION_SCORE = 0.3


def detection_report(folder: Path, evaluator: CocoEvaluator, scores: CocoScores) -> list[str]:
    """Write ``metrics.json``, ``per_class.csv``, ``detections.json`` and figures; return the terminal's lines."""
    from mnvision.figures import save_confusion_matrix, save_pr_curves

    _write_json(folder / "metrics.json", scores.to_dict())
    _write_per_class(folder / "per_class.csv", "AP", scores.per_class)
    evaluator.save_results(folder / "detections.json")
    save_pr_curves(scores, folder / "figures" / "precision_recall.png")
    matrix = evaluator.confusion(CONFUSION_SCORE)
    save_confusion_matrix(matrix, list(scores.per_class), folder / "figures" / "confusion.png")
    return [*scores.table().splitlines(), *_ranked_lines("AP per class", scores.per_class)]


def classification_report(
    folder: Path,
    scores: ClassificationScores,
    notes: Sequence[str] = (),
    picture: Callable[[int], NDArray[np.uint8]] | None = None,
) -> list[str]:
    """Write ``metrics.json``, ``per_class.csv`` and figures; return the terminal's lines.

    Args:
        folder: Receives the files.
        scores: Of the evaluation.
        notes: What a reader of the scores should know.
        picture: Position of a sample -> its pixels ``(H, W, 3)``, to show mistakes with; None shows none.
    """
    from mnvision.figures import save_confusion_matrix
    from mnvision.figures_confusions import save_confused_pairs

    _write_json(folder / "metrics.json", {**scores.to_dict(), **({"notes": list(notes)} if notes else {})})
    _write_per_class(folder / "per_class.csv", "top1", scores.per_class)
    save_confusion_matrix(scores.confusion, list(scores.per_class), folder / "figures" / "confusion.png")
    confused = scores.confused[:WORST]
    if confused and picture is not None:
        save_confused_pairs(scores.confused, picture, folder / "figures" / "most_confused.png")
    return [
        *scores.table().splitlines(),
        *(f"note: {note}" for note in notes),
        *_ranked_lines("top-1 per class", scores.per_class),
        *(["most confused:"] if confused else []),
        *(f"  {', '.join(way.text() for way in (pair.forth, pair.back) if way.count)}" for pair in confused),
    ]


def attribute_report(folder: Path, scores: AttributeMetrics) -> list[str]:
    """Write ``metrics.json``, ``per_attribute.csv`` and figures; return the terminal's lines."""
    from mnvision.figures_faces import save_attribute_bars, save_reliability

    _write_json(folder / "metrics.json", scores.to_dict())
    with whole_file(folder / "per_attribute.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["attribute", *(column.name for column in fields(AttributeRow))])
        writer.writerows([name, *astuple(row)] for name, row in scores.per_attribute.items())
    save_reliability(scores.reliability, folder / "figures" / "reliability.png")
    save_attribute_bars(scores, folder / "figures" / "average_precision.png")
    per_attribute = {name: row.ap for name, row in scores.per_attribute.items()}
    return [*scores.table().splitlines(), *_ranked_lines("AP per attribute", per_attribute)]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def _write_per_class(path: Path, metric: str, per_class: Mapping[str, float]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", metric])
        writer.writerows(per_class.items())


def _ranked_lines(title: str, per_class: Mapping[str, float]) -> list[str]:
    """All classes where they are few, else the best and the worst; -1 stands for classes without samples."""
    ranked = sorted(((v, k) for k, v in per_class.items() if v >= 0), reverse=True)
    lines = [f"  {name:<20} {value:.3f}" for value, name in ranked]
    if len(lines) > 4 * WORST:
        lines = [*lines[:WORST], "  ...", *lines[-WORST:]]
    return [f"{title}:", *lines]
