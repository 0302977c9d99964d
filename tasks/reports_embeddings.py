"""What the evaluation of embeddings leaves in its folder, and what it prints."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnvision.build import locate
from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.metrics.verification_scores import VerificationScores, as_similarity

log = logging.getLogger("mnvision")

_SHOWN_NAMES = 5


def verification_report(
    folder: Path,
    scores: VerificationScores,
    shared_names: Sequence[str] | None = None,
    measured_on: str = "",
) -> list[str]:
    """Write ``metrics.json``, ``folds.csv``, ``roc.csv`` and figures; return the terminal's lines.

    Args:
        folder: Where they go.
        scores: Of a verification.
        shared_names: People of the pairs who were trained on, in any order; None where that is not known.
        measured_on: What was measured, e.g. the pair list's file, for ``metrics.json``.

    Raises:
        UserError: A file cannot be written.
    """
    from mnvision.figures_embeddings import save_roc, save_similarities

    content = scores.to_dict()
    if measured_on:
        content["measured_on"] = measured_on
    lines = scores.table().splitlines()
    if shared_names is not None:
        shared = sorted(shared_names)
        content["trained_on"] = shared
        lines.append(_overlap_line(shared))
    with whole_file(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if scores.roc is None:
        return lines
    rows = ([f.fold, f.accuracy, f.threshold, as_similarity(f.threshold), f.num_pairs] for f in scores.folds)
    _write_table(folder / "folds.csv", ["fold", "accuracy", "threshold", "similarity", "pairs"], rows)
    curve = scores.roc
    points = zip(curve.thresholds.tolist(), curve.far.tolist(), curve.tar.tolist())
    _write_table(folder / "roc.csv", ["threshold", "far", "tar"], points)
    save_roc(scores, folder / "figures" / "roc.png")
    save_similarities(scores, folder / "figures" / "similarities.png")
    return lines


def people_trained_on(run: Mapping[str, Any], data: Any, split: str) -> list[str] | None:
    """Who of the people of a split was trained on, by the data of the checkpoint's own run.

    Args:
        run: Config of that run, empty where there was none.
        data: Data module with the pairs that are verified.
        split: Of these.

    Returns:
        Names, sorted; None, which is logged, where the run's data name nobody or cannot be read any more.
    """
    from mnvision.data.identities import IdentityDataModule

    if not isinstance(run.get("data"), Mapping):
        return None
    arguments = dict(run["data"])
    try:
        module = locate(arguments.pop("_target_", ""))
        if not (isinstance(module, type) and issubclass(module, IdentityDataModule)):
            return None
        shared = module(**arguments).also_verified(data.source(split))
    except (UserError, TypeError) as error:
        log.info("who was trained on cannot be compared with who is verified: %s", error)
        return None
    if shared is None:
        log.info("who was trained on cannot be compared with who is verified: there are no names on one side")
    return shared


def _overlap_line(shared: Sequence[str]) -> str:
    if not shared:
        return "nobody in the pairs was trained on, by name"
    more = ", ..." if len(shared) > _SHOWN_NAMES else ""
    return (
        f"{len(shared)} people in the pairs were trained on, so the scores are too good: "
        f"{', '.join(shared[:_SHOWN_NAMES])}{more}"
    )


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
